"""A learned, differentiable stand-in of a block: what it returns for perturbed points, fitted by a small network.

The last resort (Athalye et al. 2018, section 4.1: any differentiable approximation
of the block serves the backward pass). Forward values stay the block's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.attacks.interface import AttackUnavailable
from maskaudit.rng import PointRNG
from maskaudit.settings.plan import Repair
from maskaudit.target import Target
from maskaudit.target.preserve import seeded
from maskaudit.threat import ThreatModel
from maskaudit.trace.calls import tensors_of
from maskaudit.trace.scope import ModuleScope, as_written

#: Audited points that are perturbed, copies of each, and passes over all of them.
POINTS, COPIES, EPOCHS = 128, 16, 40
BATCH = 128
HIDDEN = 256
CHANNELS = 32
LEARNING_RATE = 2e-3
#: Larger blocks are not fitted: the network would have more weights than there are examples to fit them.
MAX_NUMEL = 50_000


@dataclass(frozen=True)
class BlockExamples:
    """What a block was given and what it returned, one row per example."""

    inputs: Tensor
    outputs: Tensor


def fit_stand_in(target: Target, x: Tensor, repair: Repair, *, threat: ThreatModel, seed: int) -> nn.Module:
    """A network that maps the block's input to its output, fitted on points `x` (N, …) with noise inside the ball.

    The block is the module at `repair.location.module`; "" is the whole model. Deterministic under `seed`.

    Raises:
        AttackUnavailable: the block is too large, or does not map one tensor to one tensor row by row.
    """
    seen = _observe(target, _perturbed(x[:POINTS], threat, seed), repair.location.module)
    if seen is None:
        raise AttackUnavailable(f"the block {repair.location.module or 'model'} does not map one tensor to another")
    if max(seen.inputs[0].numel(), seen.outputs[0].numel()) > MAX_NUMEL:
        raise AttackUnavailable(f"the block {repair.location.module or 'model'} is too large to be learnt")
    with seeded(seed), torch.enable_grad():
        network = _StandIn(seen)
        _train(network, seen)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()


def _perturbed(x: Tensor, threat: ThreatModel, seed: int) -> Tensor:
    """`COPIES` of each point: the first as it is, the others uniform in the ball and at its corners by turns."""
    rng = PointRNG.create(seed, "stand-in", torch.arange(len(x)))
    copies = [x]
    for number in range(1, COPIES):
        noise = rng.signs(x.shape[1:], step=number).to(x)
        if number % 2:
            noise = noise * rng.uniform(x.shape[1:], step=number + COPIES).to(x)
        radius = threat.eps if threat.norm == "Linf" else threat.eps / x[0].numel() ** 0.5
        copies.append(threat.project(x + radius * noise, x))
    return torch.cat(copies)


def _observe(target: Target, x: Tensor, path: str) -> BlockExamples | None:
    pairs: list[tuple[Tensor, Tensor]] = []
    pending: list[Tensor | None] = []
    scope: ModuleScope

    def before(module: nn.Module, inputs: Any) -> None:
        if path and scope.names.get(id(module)) == path:
            pending.append(next(iter(tensors_of(inputs)), None))

    def after(module: nn.Module, output: Any) -> None:
        if path and scope.names.get(id(module)) == path and pending:
            given = pending.pop()
            if given is not None and isinstance(output, Tensor):
                pairs.append((given.detach().clone(), output.detach().clone()))

    scope = ModuleScope(as_written(target.model), before=before, after=after)
    with scope.watching():
        scores = target.raw(x)
    if not path:
        pairs = [(x, scores)]
    rows = [(a.float(), b.float()) for a, b in pairs if len(a) == len(b) and a.is_floating_point()]
    if not rows or any(a.shape[1:] != rows[0][0].shape[1:] or b.shape[1:] != rows[0][1].shape[1:] for a, b in rows):
        return None
    return BlockExamples(torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows]))


class _StandIn(nn.Module):
    """Standardised input → small network → output of the block's shape and scale."""

    def __init__(self, seen: BlockExamples) -> None:
        super().__init__()
        self.shape = seen.outputs.shape[1:]
        before, after = seen.inputs[0], seen.outputs[0]
        self.mean_in, self.scale_in = seen.inputs.mean(), seen.inputs.std().clamp_min(1e-12)
        self.mean_out, self.scale_out = seen.outputs.mean(), seen.outputs.std().clamp_min(1e-12)
        images = before.dim() == 3 and after.dim() == 3 and before.shape[1:] == after.shape[1:]
        self.body: nn.Module
        if images:
            self.body = nn.Sequential(
                nn.Conv2d(before.shape[0], CHANNELS, 3, padding=1), nn.GELU(),
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.GELU(),
                nn.Conv2d(CHANNELS, after.shape[0], 3, padding=1),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(before.numel(), HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
                nn.Linear(HIDDEN, after.numel()),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, about."""
        standard = (x.float() - self.mean_in) / self.scale_in
        return (self.body(standard) * self.scale_out + self.mean_out).view(len(x), *self.shape)


def _train(network: nn.Module, seen: BlockExamples) -> None:
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    scale = seen.outputs.std().clamp_min(1e-12)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(seen.inputs)).split(BATCH):
            loss = ((network(seen.inputs[rows]) - seen.outputs[rows]) / scale).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
