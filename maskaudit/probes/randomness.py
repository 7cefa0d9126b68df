"""Randomness: the model's answers differ between evaluations of the same input

Every audited point is evaluated eight times. The headline is the share of points
whose decision is not the same each time; reported as well are the largest change of a
score and where the randomness comes from: which global generator (torch, numpy,
random) the model draws from, or, if seeding all of them alike does not repeat the
answer, a generator of its own or an internal state.

Raised when
    Never: the figure informs. Attacks on a model that answers at random average
    over draws and are judged over fresh draws.

What it means
    A random model gives a different gradient at each call, so a single gradient
    is mostly noise, and a single lucky draw can make a point look broken or
    robust. Score changes near the rounding of float32 come from parallel
    arithmetic and mean nothing.

What to do
    Average gradients over draws (expectation over transformation), judge examples by
    a majority of fresh draws, and report both the randomised model and one with
    the randomness fixed.

Source
    - Athalye, Engstrom, Ilyas & Kwok 2018, Synthesizing robust adversarial examples
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 4
    - Gao, Shumailov, Fawaz & Papernot 2022, On the limitations of stochastic pre-processing defenses
"""

from __future__ import annotations

import torch

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.results import ProbeFinding
from maskaudit.target import Target
from maskaudit.target.preserve import drawn_since, preserved_random_state, seed_generators

#: Evaluations of each point.
DRAWS = 8
#: Points on which the source of randomness is looked for.
SOURCE_POINTS = 16
#: Any seed; only that it is used twice matters.
SEED = 12345


def generators_used(target: Target, x: torch.Tensor) -> list[str]:
    """Names of the global generators that one evaluation of `x` (N, …) advances."""
    seed_generators(SEED)
    target.raw(x)
    return list(drawn_since(SEED))


def repeats_when_seeded(target: Target, x: torch.Tensor) -> bool:
    """Whether seeding every global generator alike gives the same answer twice."""
    answers = []
    for _ in range(2):
        seed_generators(SEED)
        answers.append(target.raw(x))
    return torch.equal(*answers)


def measure(context: ProbeContext) -> Measurement:
    """Share of points whose decision changes over `DRAWS` evaluations."""
    target, x, n = context.target, context.x, len(context.x)
    with preserved_random_state():
        answers = torch.stack([target.raw(x) for _ in range(DRAWS)])
        sample = x[:SOURCE_POINTS]
        used = generators_used(target, sample)
        reproducible = repeats_when_seeded(target, sample)
    decisions = answers.argmax(dim=2)
    flipped = (decisions != decisions[0]).any(dim=0)
    change = float((answers.amax(dim=0) - answers.amin(dim=0)).max())
    count = int(flipped.sum())
    findings: tuple[ProbeFinding, ...] = ()
    if change > 0:
        source = ", ".join(used) if used else "no global generator"
        findings = (ProbeFinding(f"Scores change by up to {change:.3g} between evaluations; drawn from: {source}."),)
    return Measurement(
        count / n, "share of points", n, count=count, findings=findings,
        details={
            "draws": DRAWS,
            "largest_score_change": change,
            "generators": used,
            "private_source": change > 0 and not reproducible,
        },
        per_point=tuple(flipped.double().tolist()),
    )  # fmt: skip


PROBE = documented_probe("randomness", measure, needs=(), docstring=__doc__)
