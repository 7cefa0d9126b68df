"""One branch alone, masked, silenced: gradients that add up to the whole, answers that stay, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.errors import UsageError
from maskaudit.repairs.branch import BranchModel, View, check_branches, through_branch

from ..auditing.branch_models import Inception
from ..probes.toys import context, points


class Two(nn.Module):
    """z = (A x)² + B x, elementwise, behind a stem s(x) = 2x."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem, self.a, self.b = Times(), nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        for layer in (self.a, self.b):
            layer.weight.data = torch.randn(3, 4, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.a(h).square() + self.b(h)


class Times(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def gradient(model: object, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_(True)
    scores = model(leaf)  # type: ignore[operator]
    (grad,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    return scores.detach(), grad


def test_the_gradient_through_a_branch_is_the_product_of_its_factors() -> None:
    model, x = Two(), points(5, 4)
    scores, alone = gradient(BranchModel(model, "a", "alone"), x)
    assert torch.equal(scores, model(x))
    assert torch.allclose(alone, 2 * (2 * model.a(2 * x)) @ model.a.weight, atol=1e-5)
    scores, masked = gradient(BranchModel(model, "a", "masked"), x)
    assert torch.equal(scores, model(x))
    assert torch.allclose(masked, 2 * torch.ones(5, 3) @ model.b.weight, atol=1e-5)
    scores, _ = gradient(BranchModel(model, "a", "silenced"), x)
    assert torch.equal(scores, model.b(2 * x))


@pytest.mark.parametrize("branch", ["b1", "b3_2", "b5", "pool"])
def test_both_parts_add_up_to_the_whole_gradient_and_nothing_is_left_behind(branch: str) -> None:
    torch.manual_seed(0)
    model, x = Inception().eval(), points(4, 1, 8, 8)
    _, whole = gradient(model, x)
    _, alone = gradient(BranchModel(model, branch, "alone"), x)
    _, masked = gradient(BranchModel(model, branch, "masked"), x)
    assert torch.allclose(alone + masked, whole, atol=1e-5)
    assert float(alone.abs().max()) > 0
    assert not any(module._forward_hooks for module in model.modules())


def test_a_branch_used_twice_counts_every_way_through_it_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.a.weight.data = torch.diag(torch.tensor([2.0, 3.0, 5.0]))

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            return self.a(first) + first + 7 * x

    _, alone = gradient(BranchModel(Twice(), "a", "alone"), points(2, 3))
    assert torch.allclose(alone, torch.tensor([[6.0, 12.0, 30.0]]).expand(2, 3))


def test_a_target_seen_through_a_branch_answers_as_before_and_counts_in_the_same_ledger() -> None:
    with context(Two(), points(6, 4)) as ctx:
        view: View = "alone"
        other = through_branch(ctx.target, "a", view)
        before = ctx.target.ledger.copy()
        assert torch.equal(other.scores(ctx.x), ctx.target.scores(ctx.x))
        assert ctx.target.ledger.since(before).forwards == 12


def test_what_is_no_branch_is_refused_in_one_sentence() -> None:
    model = Two()
    model.unused = nn.Linear(1, 1)  # type: ignore[assignment]
    check_branches(model, ("a", "stem"))
    with pytest.raises(UsageError, match=r"no module 'steam' \(did you mean stem"):
        check_branches(model, ("steam",))
    with pytest.raises(UsageError, match="plain callable"):
        check_branches(model.forward, ("a",))
    check_branches(model.forward, ())
    with pytest.raises(UsageError, match="unused does not run"):
        BranchModel(model, "unused", "masked")(points(2, 4))

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(UsageError, match="returns tuple"):
        BranchModel(nn.Sequential(Pair()), "0", "alone")(points(2, 4))
