"""Blind spots: how far an input can be changed, visibly, before the answer changes

A walk leads from a few points towards a point of another class, along inputs that the model answers with nearly the
same confidence. Each step takes the part of the way that is orthogonal to the gradient of the logit margin, and a small
correction against that gradient. A step that would change the answer, or take its confidence more than 0.2 below that
of the start, is halved instead. The headline is the median share of the distance between the two points that is left at
the end. The report shows start, end and target, and the confidence along the walk and along the straight line from
start to end.

Raised when
    Never: it informs, and no verdict depends on it.

What it means
    Near 0: what looks like one class is answered as another with hardly less confidence. Robustness in a small ball
    and such blindness outside of it go together; adversarial training makes the level sets larger. It is no sign of
    masking, and near 1 is no sign of its absence: a model whose gradient hides the way cannot be followed.

What to do
    Look at the end points. If people would answer otherwise, the model ignores what they see; robustness in a ball
    says nothing of that.

Source
    - Balasubramanian, Sriramanan, Sadasivan & Feizi 2023, Exploring geometry of blind spots in vision models,
      algorithm 1 (level set traversal); here with the gradient of the margin, which does not vanish where the
      confidence is 1 to rounding, fewer and longer steps, half the step where one would leave the level, and the step
      against the gradient only where confidence has been lost
    - Jacobsen, Behrmann, Zemel & Bethge 2019, Excessive invariance causes adversarial vulnerability
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskaudit.attacks.losses import margin
from maskaudit.data.shown import pixels, showable
from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, NotApplicable, ProbeContext
from maskaudit.target import Gradient
from maskaudit.threat import per_point_norm
from maskaudit.trace.behaviour import vanishes

#: Points followed, and steps: every step costs a forward and a backward pass for each of them.
MAX_POINTS, STEPS = 4, 40
#: Share of the orthogonal part of the way that a step takes, at first (η; the paper has 0.01 and 400 steps).
STRIDE = 0.15
#: Change of a coordinate in a step against the gradient, as a share of its range (ε of the paper).
CORRECTION = 2e-3
#: How much confidence may be lost (δ of the paper).
LOSS_OF_CONFIDENCE = 0.2
#: Places on the straight line from a point to its end at which it is asked once more.
PLACES = 9


@dataclass(frozen=True)
class Traversal:
    """What a traversal found, for N points.

    Attributes:
        end: the point (N, …) of the walk that is nearest to the goal.
        path: share of the distance that is left, and confidence, at the start and after each step, both (steps + 1, N).
    """

    end: Tensor
    path: tuple[Tensor, Tensor]

    @property
    def left(self) -> Tensor:
        """Distance of the end from the goal over that of the start (N,)."""
        return self.path[0].amin(dim=0)


def traverse(context: ProbeContext, goals: Tensor, *, steps: int = STEPS, correction: float = CORRECTION) -> Traversal:
    """Follow the level sets of the confidence in the labels from the context's points (N, …) towards `goals` (N, …).

    Args:
        context: the open target, points, labels and bounds.
        goals: where to.
        steps: passes forward and backward.
        correction: see `CORRECTION`.
    """
    x, y, low_high = context.x, context.y, context.threat.bounds
    most = correction * (low_high[1] - low_high[0])
    shape = (-1, *[1] * (x.dim() - 1))
    whole = per_point_norm((goals - x).flatten(1)).clamp_min(1e-12)
    found = _asked(context, x)
    at, grad, sure = x, found.grad, _confidence(found.scores, y)
    least, stride = sure - LOSS_OF_CONFIDENCE, torch.full((len(x),), STRIDE, dtype=x.dtype, device=x.device)
    end, distances, confidences = x, [torch.ones_like(whole)], [sure]
    for _ in range(steps):
        way, flat = goals - at, grad.flatten(1)
        along = (flat * way.flatten(1)).sum(dim=1) / flat.square().sum(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        across = way - along.view(shape) * grad
        back = most * (sure < confidences[0]).to(x).view(shape) * grad.sign()
        tried = context.threat.clamp(at + stride.view(shape) * across - back)
        found = _asked(context, tried)
        confidence = _confidence(found.scores, y)
        held = (found.scores.argmax(dim=1) == y) & (confidence >= least) & ~vanishes(found.grad)
        at, grad = (torch.where(held.view(shape), *pair) for pair in ((tried, at), (found.grad, grad)))
        sure, stride = torch.where(held, confidence, sure), torch.where(held, stride, stride / 2)
        left = per_point_norm((goals - at).flatten(1)) / whole
        end = torch.where((left < torch.stack(distances).amin(dim=0)).view(shape), at, end)
        distances.append(left)
        confidences.append(sure)
    return Traversal(end, (torch.stack(distances), torch.stack(confidences)))


def _asked(context: ProbeContext, x: Tensor) -> Gradient:
    target, y = context.target, context.y
    return target.value_and_grad(x, lambda scores, rows: margin(scores, y[rows], target.reject_class))


def _confidence(scores: Tensor, y: Tensor) -> Tensor:
    return scores.double().softmax(dim=1).gather(1, y[:, None]).squeeze(1)


def measure(context: ProbeContext) -> Measurement:
    """Median share of the distance to a point of another class that is left."""
    pairs = _pairs(context.y)[:MAX_POINTS]
    if not pairs:
        raise NotApplicable("All points are of one class, so there is no other class to walk towards.")
    chosen = context.part(torch.tensor([source for source, _ in pairs]))
    goals = context.x[[goal for _, goal in pairs]]
    first = _asked(chosen, chosen.x)
    if not first.connected or bool(vanishes(first.grad).any()):
        raise NotApplicable("There is no gradient to stay orthogonal to; see zero-gradient.")
    walk = traverse(chosen, goals)
    lowest = _lowest_on_the_line(chosen, walk.end)
    return Measurement(
        float(walk.left.quantile(0.5)), "share of the distance to another class left", len(pairs),
        details={"steps": STEPS, "confidence_lost_at_most": LOSS_OF_CONFIDENCE,
                 "walks": [_row(context, chosen, walk, lowest, row, pair) for row, pair in enumerate(pairs)]},
        per_point=tuple(walk.left.tolist()),
    )  # fmt: skip


def _pairs(y: Tensor) -> list[tuple[int, int]]:
    """Each point with the next one of another class, in a circle."""
    labels, n = y.tolist(), len(y)
    found = []
    for source, label in enumerate(labels):
        goal = next(((source + k) % n for k in range(1, n) if labels[(source + k) % n] != label), None)
        if goal is not None:
            found.append((source, goal))
    return found


def _lowest_on_the_line(context: ProbeContext, end: Tensor) -> Tensor:
    """Lowest confidence (N,) at places on the straight line from each point to its end."""
    at = torch.linspace(0, 1, PLACES, dtype=end.dtype, device=end.device)
    asked = [_confidence(context.target.scores(torch.lerp(context.x, end, place)), context.y) for place in at]
    return torch.stack(asked).amin(dim=0)


def _row(
    context: ProbeContext, chosen: ProbeContext, walk: Traversal, lowest: Tensor, row: int, pair: tuple[int, int]
) -> dict[str, Any]:
    """One walk for the report, with its images where the points are images."""
    source, goal = pair
    last = int(walk.path[0][:, row].argmin()) + 1
    distance, sure = (line[:last, row].tolist() for line in walk.path)
    change = (walk.end - chosen.x)[row]
    return {
        "label": int(context.y[source]), "goal_label": int(context.y[goal]), "left": distance[-1],
        "change_l2": float(change.norm()), "change_linf": float(change.abs().max()),
        "confidence": sure[-1], "lowest_on_line": float(lowest[row]),
        "path": [[1 - d, s] for d, s in zip(distance, sure, strict=True)],
        **_drawn(context, {"source": chosen.x[row], "end": walk.end[row], "goal": context.x[goal]}),
    }  # fmt: skip


def _drawn(context: ProbeContext, images: dict[str, Tensor]) -> dict[str, Any]:
    """Images for the report; nothing where the points are none."""
    shape, (low, high) = list(context.x.shape[1:]), context.threat.bounds
    if not showable(shape):
        return {}
    return {"shape": shape, **{name: pixels((image - low) / (high - low)) for name, image in images.items()}}


PROBE = documented_probe("blind-spots", measure, needs=("gradients",), docstring=__doc__)
