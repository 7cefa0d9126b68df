"""Which modules are branches, from the ops of a pass: Inception, residual and plain networks, detached branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.trace import trace_model
from maskaudit.trace.records import Fork

from ..auditing.branch_models import Inception
from ..probes.toys import context, points


def found(model: nn.Module) -> tuple[Fork, ...]:
    with context(model.eval(), points(8, 1, 8, 8)) as ctx:
        return trace_model(ctx.target, ctx.x, ctx.y).forks


def test_branches_of_an_inception_network_are_named_by_the_modules_that_end_them() -> None:
    (fork,) = found(Inception())
    assert fork.branches == ("b1", "b3_2", "b5", "pool")
    assert (fork.unnamed, fork.join.op) == (0, "cat")


def test_a_branch_off_the_graph_is_still_one() -> None:
    (fork,) = found(Inception(Tensor.detach))
    assert "b5" in fork.branches


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def test_a_residual_block_has_a_branch_beside_a_way_without_a_module() -> None:
    model = nn.Sequential(Residual(), Residual(), nn.Flatten(), nn.Linear(64, 3))
    assert [(fork.branches, fork.unnamed) for fork in found(model)] == [(("0.conv2",), 1), (("1.conv2",), 1)]


def test_a_chain_has_no_branches_and_neither_has_what_no_module_makes() -> None:
    chain = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    assert found(chain) == ()

    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)[:, :6]
            return torch.cat([x.sin(), x.cos()], dim=1)

    assert found(Functional()) == ()
