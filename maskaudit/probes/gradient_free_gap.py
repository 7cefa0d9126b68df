"""Gradient-free gap: points that score-based search breaks and white-box attacks do not

Share of points broken by attacks that use scores only (Square, finite
differences) and by no white-box attack; with the plain
difference to the reference attack next to it.

Raised when
    The lower end of the 99 % interval of that share is above 3.5 %, the largest
    gap that an honest model showed.

What it means
    Search that sees less found more, so the gradients do not lead where they
    should. The comparison is with the best white-box attacks of equal budget,
    not with the reference: honest models often lose a few points more to Square
    than to PGD, and the plain difference accuses them wrongly. The reverse does
    not hold: where the scores are saturated too, the absence of a gap proves
    nothing.

What to do
    Repair the gradient at the place that the other probes name and attack again;
    count the gradient-free examples in the robust accuracy.

Source
    - Andriushchenko, Croce, Flammarion & Hein 2020, Square Attack
    - Uesato et al. 2018, Adversarial risk and the dangers of evaluating against weak attacks
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3.1
"""

from __future__ import annotations

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.probes.paired import of_kind, strong_gap


def measure(context: ProbeContext) -> Measurement:
    """Paired share of points for attacks of kind "score"."""
    return strong_gap(context, of_kind(context, "score"), "Score-based search")


PROBE = documented_probe("gradient-free-gap", measure, needs=("attacks",), docstring=__doc__)
