"""Unbounded attack: points that withstand it although every input is allowed

Share of points left unbroken by PGD whose ball holds the whole box of
admissible inputs.

Raised when
    More than 2 % of the points are left.

What it means
    With no limit on the perturbation, any point can be turned into one of
    another class, so a working attack must reach 100 %. What is left measures how
    far the attack was misled: by gradients that vanish or point elsewhere, or by a
    loss that has gone flat.

What to do
    Find the cause with the other probes, then repair the gradient or change the
    loss, and repeat this check before trusting any number at a smaller ε.

Source
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3.1
    - Carlini et al. 2019, On evaluating adversarial robustness, section 5
"""

from __future__ import annotations

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.probes.paired import named
from maskaudit.results import ProbeFinding

#: Name of the attack row that this probe reads.
ATTACK = "unbounded"


def measure(context: ProbeContext) -> Measurement:
    """Share of points that the unbounded attack leaves unbroken."""
    unbroken = ~named(context, ATTACK).broken
    count, n = int(unbroken.sum()), len(unbroken)
    return Measurement(
        count / n, "share of points", n, count=count,
        findings=(ProbeFinding(f"{count} of {n} points withstand an attack with the whole range of an input."),),
        per_point=tuple(unbroken.double().tolist()),
    )  # fmt: skip


PROBE = documented_probe("unbounded-attack", measure, needs=("attacks",), docstring=__doc__)
