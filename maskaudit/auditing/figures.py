"""Small data for the report's figures: accuracy against ε, a slice of the loss surface, image strips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.losses import cross_entropy, margin
from maskaudit.attacks.pgd import pgd
from maskaudit.attacks.square import square
from maskaudit.auditing.ledger import Ledger
from maskaudit.auditing.state import AuditState
from maskaudit.data.shown import pixels, showable
from maskaudit.errors import MaskauditError
from maskaudit.rng import PointRNG
from maskaudit.settings import AuditEvent
from maskaudit.target import Target
from maskaudit.target.rescore import rescore
from maskaudit.threat import ThreatModel

#: Multiples of ε on the accuracy curve, and the queries of its gradient-free search.
EPS_FRACTIONS = (0.25, 0.5, 0.75, 1.5)
EPS_QUERIES = 100

#: Grid of the surface slice, in units of ε along each axis.
SURFACE_STEPS = 21
SURFACE_RANGE = (-0.5, 1.5)

MAX_STRIPS = 6


def draw_figures(state: AuditState) -> None:
    """Figures are extras: what goes wrong here is noted and loses nothing."""
    target, ledger, threat = state.target, state.ledger, state.threat
    if not bool(ledger.correct.any()):
        return
    state.tell(AuditEvent("figures"))
    state.attacker.settle("figures")
    rng = state.attacker.rng("figures", torch.arange(len(ledger)))
    try:
        state.figures = {
            "eps_curve": eps_curve(target, ledger, threat, rng, state.settings.effort.curve_points),
            "surface": surface(target, ledger, threat),
            "gradient_flow": gradient_flow(state.trace),
            "strips": strips(target, ledger, threat),
        }
    except (MaskauditError, RuntimeError) as error:
        state.notes.append(f"The figures could not be drawn: {error}")


def eps_curve(target: Target, ledger: Ledger, threat: ThreatModel, rng: PointRNG, points: int) -> list[dict[str, Any]]:
    """Accuracy of the first `points` points under smaller and larger balls: usual attack, white-box attacks, all.

    The ε of the audit takes its figures from the ledger and from nothing else; other radii get a lighter search
    (PGD-40, and where the audit ran their like, Auto-PGD on the margin and Square). A point once broken stays broken at
    larger radii for the last two, since its example stays admissible; so at smaller radii only what was broken at the
    audit's is attacked, and at larger ones only what was not.
    """
    rows = ledger.correct.nonzero().squeeze(1)[:points]
    if not len(rows):
        return []
    drawn = int(rows[-1]) + 1
    x, y = ledger.x[rows], ledger.y[rows]
    audited = (ledger.reference()[rows], ledger.strong()[rows], ledger.best_known()[rows])
    parts = {entry.spec.part for entry in ledger.entries.values() if entry.attempted.any()}
    masks: dict[float, tuple[Tensor, Tensor, Tensor]] = {}
    strong, best = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows, dtype=torch.bool)
    for fraction in sorted((*EPS_FRACTIONS, 1.0)):
        ball = threat.with_eps(threat.eps * fraction)
        if fraction == 1.0:
            usual, white_box, every = audited
        else:
            lighter = _LighterSearch(target, x, y, ball, rng.select(rows).fork(f"eps {fraction}"))
            met = [mask if fraction < 1 else torch.ones_like(mask) for mask in audited]
            usual = lighter.broken(pgd, met[0])
            further = met[1] & ~(usual | strong) & ("other_loss" in parts)
            white_box = usual | lighter.broken(apgd, further, loss="margin", steps=25)
            beyond = met[2] & ~(white_box | best) & ("gradient_free" in parts)
            every = white_box | lighter.broken(square, beyond, queries=EPS_QUERIES)
        strong, best = strong | white_box, best | every
        masks[ball.eps] = audited if fraction == 1.0 else (usual, strong, best)
    curve = [{"eps": 0.0, "n": drawn, **dict.fromkeys(("reference", "strong", "best_known"), len(rows) / drawn)}]
    for eps, (usual, white_box, every) in masks.items():
        figures = {"reference": usual, "strong": white_box, "best_known": every}
        curve.append({"eps": eps, "n": drawn, **{k: int((~m).sum()) / drawn for k, m in figures.items()}})
    return curve


def gradient_flow(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Gradient that leaves each op towards the input, from the input to the output, as the trace measured it."""
    rows = sorted(trace.get("flow", ()), key=lambda row: row["index"])
    return [
        {
            "name": ".".join(part for part in (row["location"]["module"], row["location"]["op"]) if part),
            "norm": row["norm_out"],
            "zero_share": row["zero_share"],
            "culprit": row["blamed"],
        }
        for row in rows
    ]


def surface(target: Target, ledger: Ledger, threat: ThreatModel) -> dict[str, Any] | None:
    """Margin and cross-entropy on the plane of gradient direction × direction of a challenger's example.

    The point is one that the model's gradients fail to break, if there is one; None when nothing broke.
    """
    strong, best = ledger.strong(), ledger.best_known()
    hidden = best & ~strong
    by_loss = strong & ~ledger.cross_entropy()
    for candidates in (hidden, by_loss, best):
        if candidates.any():
            row = int(candidates.nonzero()[0])
            break
    else:
        return None
    name, example = ledger.examples_of(row)[0]
    x, y = ledger.x[row : row + 1], ledger.y[row : row + 1]
    gradient = target.value_and_grad(x, lambda s, r: margin(s, y[r], target.reject_class)).grad
    u = threat.eps * threat.step_direction(torch.nan_to_num(gradient))
    v = example[None] - x
    ticks = torch.linspace(*SURFACE_RANGE, SURFACE_STEPS)
    shape = (-1, *[1] * (x.dim() - 1))
    grid = torch.cat(
        [threat.clamp(x + ticks.view(shape) * u + float(step) * v) for step in ticks]
    )  # rows: v, columns: u
    scores = target.scores(grid)
    labels = y.expand(len(grid))
    values = {
        "margin": margin(scores, labels, target.reject_class),
        "loss": cross_entropy(scores, labels),
    }
    return {
        "point": ledger.index[row],
        "u_label": "gradient direction",
        "v_label": f"direction of the {name} example",
        "u": _rounded(ticks),
        "v": _rounded(ticks),
        **{key: [_rounded(line) for line in value.view(SURFACE_STEPS, -1)] for key, value in values.items()},
        "gradient_at": [1.0, 0.0],
        "challenger_at": [0.0, 1.0],
    }


def strips(target: Target, ledger: Ledger, threat: ThreatModel) -> list[dict[str, Any]]:
    """Clean, adversarial and difference images as 8-bit pixels in base64, points hidden from gradients first."""
    if not showable(ledger.x.shape[1:]):
        return []
    best, strong = ledger.best_known(), ledger.strong()
    order = torch.cat([(best & ~strong).nonzero(), (best & strong).nonzero()]).squeeze(1)
    low, high = threat.bounds
    shown = []
    for row in order[:MAX_STRIPS].tolist():
        name, example = ledger.examples_of(row)[0]
        clean = ledger.x[row]
        shown.append(
            {
                "index": ledger.index[row],
                "label": int(ledger.y[row]),
                "predicted": taken_for(target, example, int(ledger.y[row])),
                "attack": name,
                "distance": float(threat.distance(example[None], clean[None])),
                "shape": list(clean.shape),
                "clean": pixels((clean - low) / (high - low)),
                "adversarial": pixels((example - low) / (high - low)),
                "difference": pixels(0.5 + (example - clean) / (2 * (example - clean).abs().max().clamp_min(1e-12))),
            }
        )
    return shown


def taken_for(target: Target, example: Tensor, label: int) -> int:
    """The class that an example (…) of a point of class `label` is taken for: the likeliest that is an error."""
    scores = target.scores(example[None]).clone()
    scores[:, [label, *([] if target.reject_class is None else [target.reject_class])]] = -torch.inf
    return int(scores.argmax())


@dataclass(frozen=True)
class _LighterSearch:
    """Attacks at a radius that the audit did not look at, on the points that are still in question."""

    target: Target
    x: Tensor
    y: Tensor
    threat: ThreatModel
    rng: PointRNG

    def broken(self, attack: Callable[..., Attempt], wanted: Tensor, **settings: Any) -> Tensor:
        """Points (N,) of `wanted` (N,) that the attack breaks, by fresh scoring."""
        found, rows = torch.zeros_like(wanted), wanted.nonzero().squeeze(1)
        if len(rows):
            x, y = self.x[rows], self.y[rows]
            attempt = attack(self.target, x, y, threat=self.threat, rng=self.rng.select(rows), **settings)
            found[rows] = rescore(
                self.target.raw, attempt.examples, x, y, threat=self.threat, random=self.target.random,
                reject_class=self.target.reject_class,
            ).broken  # fmt: skip
        return found


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]
