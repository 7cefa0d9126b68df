"""What a published network withstands, found without the audit: official AutoAttack part by part, and transfer.

AutoAttack (Croce & Hein 2020, `standard`) runs its four attacks one after the other, each on what the ones before left.
The points that its white-box attacks on cross-entropy, then all its white-box attacks, then Square leave say at which
level a network hides anything. What is left after that meets examples made on another network.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.autoattack import BATCH
from benchmarks.peers.interface import CountingModel

#: AutoAttack's attacks in its order; the first one follows cross-entropy, the last one asks for no gradient.
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
#: Steps and momentum of the attack on the other network.
TRANSFER_STEPS, TRANSFER_DECAY = 40, 1.0
#: Gap between white-box attacks and the rest, in points and as a share, from which on a network is called masked.
FEWEST, LEAST_SHARE = 5, 0.05
#: Gap up to which it is called honest.
MOST_HONEST = 1
#: Draws by whose majority a model that answers at random is scored.
DRAWS = 31


class Scores(nn.Module):
    """A model on the scale of logits: shares of one whole are replaced by their logarithm."""

    def __init__(self, model: nn.Module, shares: bool) -> None:
        super().__init__()
        self.model, self.shares = model, shares

    def forward(self, x: Tensor) -> Tensor:
        raw: Tensor = self.model(x)
        return raw.clamp_min(torch.finfo(raw.dtype).tiny).log() if self.shares else raw


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, *, random: bool = False, batch: int = 256) -> Tensor:
    """Predicted classes (N,); by majority where the model answers at random."""
    if not random:
        return torch.cat([model(part).argmax(1) for part in x.split(batch)])
    votes = torch.stack([answers(model, x, batch=batch) for _ in range(DRAWS)])
    return votes.mode(dim=0).values


def find(
    model: nn.Module, surrogate: nn.Module | None, x: Tensor, y: Tensor, eps: float, high: float, seed: int = 0
) -> dict[str, Any]:
    """Which points are unbroken after every stage.

    Args:
        model: in evaluation mode, on inputs (N, …) in [0, `high`].
        surrogate: an independent network for the same points; None for none.
        eps: radius in Linf.

    Returns:
        `stages`: name → 1 per point (N,) that is correct and unbroken, or the sentence with which the stage failed;
        `zero_ce`, `zero_margin`: share of correct points where a gradient is exactly zero; cost and passes.
    """
    unit = nn.Sequential(_Scaled(high), model) if high != 1 else model
    counting = CountingModel(unit)
    x, eps = x / high, eps / high
    with torch.no_grad():
        random = not torch.equal(unit(x[:16]), unit(x[:16]))
        shares = _are_shares(unit(x[:64])) and not random
    scores = Scores(counting, shares).eval()
    correct = answers(unit, x, random=random) == y
    unbroken, stages = correct.clone(), dict[str, Any](clean=correct.int().tolist())
    zero = _zero_gradients(scores, x[correct], y[correct])
    counting.forwards = counting.backwards = 0
    cpu = time.process_time()
    for stage in STAGES:
        rows = unbroken.nonzero().flatten()
        if not len(rows):
            break
        try:
            examples = _autoattack(scores, stage, x[rows], y[rows], eps, seed, random)
        except Exception as error:  # the package on a model that it was not made for
            stages[stage] = f"{type(error).__name__}: {error}"[:150]
            continue
        unbroken[rows] = ~_broken(unit, examples, x[rows], y[rows], eps, random)
        stages[stage] = unbroken.int().tolist()
    cost = {"cpu_seconds": round(time.process_time() - cpu, 1), "forwards": counting.forwards,
            "backwards": counting.backwards}  # fmt: skip
    rows = unbroken.nonzero().flatten()
    if surrogate is not None and len(rows):
        examples = momentum(nn.Sequential(surrogate), x[rows], y[rows], eps)
        unbroken[rows] = ~_broken(unit, examples, x[rows], y[rows], eps, random)
        stages["transfer"] = unbroken.int().tolist()
    return {"stages": stages, **zero, "random": random, "shares": shares, **cost}


def ran(stages: Mapping[str, Any]) -> dict[str, list[int]]:
    """The stages that did not fail, with 1 for each point that is left."""
    return {name: left for name, left in stages.items() if not isinstance(left, str)}


def ladder(stages: Mapping[str, Any]) -> str:
    """Shares of the points that AutoAttack on cross-entropy, all its white-box attacks, and everything leave."""
    at = {name: sum(left) / len(left) for name, left in ran(stages).items()}
    white = min(at[name] for name in ("clean", *STAGES[:-1]) if name in at)
    return f"{at.get(STAGES[0], float('nan')):.2f} / {white:.2f} / {min(at.values()):.2f}"


def on_both(found: Mapping[int, int], stages: Mapping[str, Any], index: Sequence[int]) -> str:
    """Robust accuracy by an audit and by the stages, on the points that both met, and how many these are.

    Args:
        found: point → 1 where the audit left it.
        stages: as `find` gives them.
        index: their points.
    """
    best = dict(zip(index, map(min, *ran(stages).values()), strict=True))
    common = best.keys() & found.keys()
    ours, theirs = (sum(left[i] for i in common) / len(common) for left in (found, best))
    return f"{ours:.3f} / {theirs:.3f} ({len(common)})"


def label(stages: Mapping[str, Any], zero_ce: float | None = None) -> str:
    """`masked`, `honest` or `open`, from the points that only some kinds of attack break.

    Args:
        stages: as `find` gives them.
        zero_ce: share of points where the gradient of cross-entropy is exactly zero. Where it is, points that fall to
            another loss alone count like those that fall without a gradient; else all white-box attacks are one.
    """
    left = {name: sum(points) for name, points in ran(stages).items()}
    if not left["clean"]:
        return "open"
    white = min([left[name] for name in ("clean", *STAGES[:-1]) if name in left])
    if zero_ce is not None and zero_ce >= LEAST_SHARE:
        white = left.get(STAGES[0], white)
    gap = white - min(left.values())
    if gap >= FEWEST and gap / left["clean"] >= LEAST_SHARE:
        return "masked"
    return "honest" if gap <= MOST_HONEST else "open"


class _Scaled(nn.Module):
    def __init__(self, high: float) -> None:
        super().__init__()
        self.high = high

    def forward(self, x: Tensor) -> Tensor:
        return x * self.high


def _are_shares(raw: Tensor) -> bool:
    return bool((raw >= 0).all() and (raw.sum(1) - 1).abs().max() < 1e-3)


def _autoattack(model: nn.Module, stage: str, x: Tensor, y: Tensor, eps: float, seed: int, random: bool) -> Tensor:
    package: Any = importlib.import_module("autoattack")
    with contextlib.redirect_stdout(io.StringIO()):
        attack = package.AutoAttack(model, norm="Linf", eps=eps, seed=seed, verbose=False, device="cpu")
        attack.attacks_to_run = [stage]
        if random:
            attack.apgd.eot_iter = attack.apgd_targeted.eot_iter = 20
        examples: Tensor = attack.run_standard_evaluation(x, y, bs=min(BATCH, len(x)))
    return examples.detach()


def _broken(model: nn.Module, examples: Tensor, x: Tensor, y: Tensor, eps: float, random: bool) -> Tensor:
    """Which examples lie in ball and box and are answered wrongly, together and alone."""
    legal = ((examples - x).flatten(1).abs().amax(1) <= eps * (1 + 1e-5) + 1e-7) & (
        (examples.flatten(1).amin(1) >= 0) & (examples.flatten(1).amax(1) <= 1)
    )
    wrong = answers(model, examples, random=random) != y
    if not random:
        wrong &= answers(model, examples, batch=1) != y
    return legal & wrong


def momentum(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Examples by iterated steps with momentum (Dong et al. 2018) on a network that is at hand."""
    moved, pace = x.clone(), torch.zeros_like(x)
    for _ in range(TRANSFER_STEPS):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), y, reduction="sum"), moved)
        size = gradient.flatten(1).abs().mean(1).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
        pace = TRANSFER_DECAY * pace + gradient / size
        moved = (moved.detach() + eps / 8 * pace.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return moved


def _zero_gradients(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float | None]:
    """Share of points whose gradient of cross-entropy, and of the margin, is exactly zero; None where there is none."""

    def margin(scores: Tensor) -> Tensor:
        others = scores.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        return (others - scores.gather(1, y.unsqueeze(1)).squeeze(1)).sum()

    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "zero_ce": lambda scores: F.cross_entropy(scores, y, reduction="sum"), "zero_margin": margin,
    }  # fmt: skip
    found: dict[str, float | None] = {}
    for name, loss in losses.items():
        point = x.clone().requires_grad_()
        total = loss(model(point)) if len(x) else torch.zeros(())
        if not total.requires_grad:
            found[name] = None
            continue
        (gradient,) = torch.autograd.grad(total, point, allow_unused=True)
        found[name] = None if gradient is None else float((gradient.flatten(1).abs().amax(1) == 0).double().mean())
    return found
