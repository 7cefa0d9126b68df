"""Finite-difference agreement: does the gradient predict how the margin really changes

The gradient of the logit margin, between the true class and the runner-up, is compared with how
the margin really changes. At a random base point near each audited point (inside ball and bounds,
with room for the step), the change along 12 random directions is measured by central differences
with steps of ε/4, ε/16, ε/64 and ε/256. For each point and step size this gives a cosine between
the measured and the predicted changes; its mean over the points is 1 where they agree and 0 where
they are unrelated.

Step sizes are tried from the largest down to the first that agrees, and the worst mean among them is
the headline. Finer steps do not count: a model whose gradient is right at coarse steps only has a
smooth backward pass over small stairs (a straight-through gradient, half precision), which hides
nothing from an attack. Points are added until the mean is far enough from the limit.

Raised when
    The mean cosine is below 0.85.

    Before it is raised for a float32 model, the differences are taken once more in float64, if the model
    can be copied into it: a difference that is lost in rounding is no finding.

What it means
    The gradient does not describe the model at the size of step that an attack
    takes. Agreement at fine scales only: the surface is jagged, and the gradient is right
    but too local. No agreement at any scale: the backward pass belongs to another
    function, or the gradient is cut while the output still changes.

What to do
    Look for rounding, thresholds, detached tensors, custom backward passes and
    high-frequency terms; attack through a repaired gradient, with finite
    differences at coarse steps, and with gradient-free search.

Source
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3
    - Uesato et al. 2018, Adversarial risk and the dangers of evaluating against weak attacks
    - Measured here: honest models .92 to .99 at ε/4, masked ones at most .82 (docs/verdict.md)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from scipy.special import stdtrit
from torch import Tensor

from maskaudit.attacks.losses import targeted_margin, wrong_class
from maskaudit.probes.differences import (
    DIRECTIONS,
    agreement,
    base_points,
    margin_differences,
    rounding_noise,
    unit_directions,
)
from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, NotApplicable, ProbeContext
from maskaudit.results import ProbeFinding
from maskaudit.target import Target
from maskaudit.target.chunks import chunks
from maskaudit.target.fit import FEW, in_type
from maskaudit.threat import ThreatModel
from maskaudit.verdict.limits import AGREEMENT, FEWEST_COMPARED

#: Step sizes as divisors of ε, coarse to fine.
DIVISORS = (4, 16, 64, 256)
#: Points that a scale begins with and is extended by …
POINTS = 16
#: … until the mean cosine lies further from the limit than Student's interval at this one-sided level is wide.
DOUBT = 0.0005
#: A step never takes more than this share of the width of the bounds.
LARGEST_STEP = 1 / 8


@dataclass(frozen=True)
class ScaleAgreement:
    """Agreement at one scale: mean cosine over the `n` points where changes rise above rounding."""

    divisor: int
    step: float
    agreement: float | None
    n: int
    zero_prediction: int


def headline(scales: list[ScaleAgreement]) -> ScaleAgreement | None:
    """The scale to report: the worst, going from coarse to fine up to the first one that agrees."""
    worst: ScaleAgreement | None = None
    for scale in scales:
        if scale.agreement is None:
            continue
        if worst is None or worst.agreement is None or scale.agreement < worst.agreement:
            worst = scale
        if scale.agreement >= AGREEMENT:
            break
    return worst


class _Portion:
    """Some of the points: their bases, gradients and noise, which all scales share.

    Changes are measured through `exact` where it is given; the gradient is always the target's own.
    """

    def __init__(self, context: ProbeContext, largest: float, exact: Target | None) -> None:
        target, y = context.target, context.y
        self.directions = unit_directions(context)
        self.base = base_points(context, self.directions, largest)
        scores = target.scores(self.base)
        self.rival = rival = wrong_class(scores, y, 0, target.reject_class)
        found = target.value_and_grad(self.base, lambda s, rows: targeted_margin(s, y[rows], rival[rows])).grad.double()
        self.finite = torch.isfinite(found).flatten(1).all(dim=1)
        self.gradient = found.nan_to_num(0.0, 0.0, 0.0)
        if exact is not None:
            context = replace(context, target=exact)
            scores = exact.scores(self.base)
        self.context, self.noise = context, rounding_noise(context, self.base, rival, scores)

    def compare(self, step: float) -> tuple[Tensor, Tensor]:
        """Cosine (N,), NaN where changes drown in rounding, and whether nothing was predicted (N,)."""
        moves = self.directions * step
        measured, predicted = margin_differences(self.context, self.base, self.rival, moves, self.gradient)
        cosine, usable = agreement(measured, predicted, self.noise)
        cosine = torch.where(self.finite, cosine, torch.zeros_like(cosine))
        flat = (predicted == 0).all(dim=0) & usable
        return torch.where(usable, cosine, torch.full_like(cosine, torch.nan)), flat


@dataclass
class _Points:
    """All points, in portions that are prepared when the first scale wants them."""

    context: ProbeContext
    largest: float
    exact: Target | None = None
    ready: list[_Portion] = field(default_factory=list)

    def portions(self) -> Iterator[_Portion]:
        """Portions that fit into memory at once, in order; each multiple of `POINTS` points ends one."""
        yield from list(self.ready)
        done, total = sum(len(portion.base) for portion in self.ready), len(self.context.y)
        while done < total:
            room = min(POINTS - done % POINTS, total - done)
            size = next(chunks(room, 4 * DIRECTIONS * self.context.x[0].numel())).stop
            self.ready.append(_Portion(self.context.part(slice(done, done + size)), self.largest, self.exact))
            done += size
            yield self.ready[-1]


def _scale(points: _Points, divisor: int, step: float) -> tuple[ScaleAgreement, Tensor]:
    """The agreement at one scale, on as many points as it takes to tell, with the cosine of each (≤ N,)."""
    total = len(points.context.y)
    cosines, flat = torch.empty(0, dtype=torch.float64), 0
    for portion in points.portions():
        found, none = portion.compare(step)
        cosines, flat = torch.cat([cosines, found.cpu()]), flat + int(none.sum())
        if len(cosines) % POINTS == 0 and beyond_doubt(cosines[~cosines.isnan()]):
            break
    usable = cosines[~cosines.isnan()]
    mean = float(usable.mean()) if len(usable) >= min(FEWEST_COMPARED, total) else None
    return ScaleAgreement(divisor, step, mean, len(usable), flat), cosines


def beyond_doubt(cosines: Tensor) -> bool:
    """Whether the mean of these cosines (n,) is on one side of the limit beyond doubt."""
    n = len(cosines)
    if n < FEWEST_COMPARED:
        return False
    width = float(stdtrit(n - 1, 1 - DOUBT)) * float(cosines.std()) / n**0.5
    return abs(float(cosines.mean()) - AGREEMENT) > width


@dataclass(frozen=True)
class _Figures:
    """Agreement at the scales looked at, cosines per point by scale; rounding and finiteness per point (N,)."""

    scales: list[ScaleAgreement]
    cosines: dict[int, Tensor]
    noise: Tensor
    finite: Tensor

    @property
    def agreement(self) -> float:
        """That of the headline; −1 where there is none."""
        chosen = headline(self.scales)
        return -1.0 if chosen is None or chosen.agreement is None else chosen.agreement


def _figures(context: ProbeContext, exact: Target | None = None) -> _Figures:
    """Compare at one scale after the other until one agrees, differences measured through `exact` where it is given."""
    steps = [_step(context.threat, divisor) for divisor in DIVISORS]
    points = _Points(context, max(steps), exact)
    scales, cosines = [], {}
    for divisor, step in zip(DIVISORS, steps, strict=True):
        scale, cosines[divisor] = _scale(points, divisor, step)
        scales.append(scale)
        if scale.agreement is not None and scale.agreement >= AGREEMENT:
            break
    noise = torch.cat([portion.noise for portion in points.ready])
    finite = torch.cat([portion.finite for portion in points.ready])
    return _Figures(scales, cosines, noise, finite)


def measure(context: ProbeContext) -> Measurement:
    """Mean cosine of measured and predicted margin changes at the worst scale; float64 where float32 would accuse."""
    if context.target.random:
        raise NotApplicable("The model answers at random, so differences between calls measure the noise.")
    found, single, kind = _figures(context), None, "float32"
    if found.agreement < AGREEMENT:  # or nothing rises above rounding
        exact = in_type(context.target, torch.float64, context.x[:FEW])
        again = _figures(context, exact) if exact is not None else found
        if again.agreement > found.agreement:
            found, single, kind = again, found.agreement, "float64"
    scales, cosines, noise, finite = found.scales, found.cosines, found.noise, found.finite
    chosen = headline(scales)
    if chosen is None or chosen.agreement is None:
        raise NotApplicable(
            "Undefined: neither the margin nor its gradient changes by more than rounding at any scale; "
            "see zero-gradient and output-kind."
        )
    return Measurement(
        chosen.agreement, "mean cosine over directions", chosen.n,
        findings=(
            ProbeFinding(
                f"Steps of ε/{chosen.divisor} change the margin otherwise than the gradient predicts: "
                f"mean cosine {chosen.agreement:.2f} on {chosen.n} points."
            ),
        ),
        details={
            "directions": DIRECTIONS,
            "measured_in": kind,
            "float32_agreement": single if single is not None and single >= 0 else None,
            "headline_scale": f"ε/{chosen.divisor}",
            "scales": [
                {
                    "scale": f"ε/{scale.divisor}", "step": scale.step, "agreement": scale.agreement,
                    "points": scale.n, "points_with_zero_prediction": scale.zero_prediction,
                }
                for scale in scales
            ],
            "rounding_median": float(noise.quantile(0.5)),
            "points_without_finite_gradient": int((~finite).sum()),
        },
        per_point=tuple(cosines[chosen.divisor].tolist()),
    )  # fmt: skip


def _step(threat: ThreatModel, divisor: int) -> float:
    low, high = threat.bounds
    return min(threat.eps / divisor, (high - low) * LARGEST_STEP * DIVISORS[0] / divisor)


PROBE = documented_probe("finite-difference-agreement", measure, needs=("gradients",), docstring=__doc__)
