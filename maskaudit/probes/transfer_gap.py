"""Transfer gap: points that transferred examples break and white-box attacks do not

Share of points broken by examples made on a surrogate and by no attack on the
gradients of the model, out of the audited points; with the plain difference to the
reference attack next to it.

Raised when
    The lower end of the 99 % interval of that share is above 3.5 %, the largest
    gap that an honest model showed.

What it means
    A model's gradients should be the best guide to its weak points. If those
    of another model lead to examples that its own cannot find, its own are hidden.

What to do
    Look at the probes that name a place (saturation, zero-gradient,
    finite-difference-agreement) and attack through a repaired gradient. Count the
    transferred examples in the robust accuracy.

Source
    - Papernot et al. 2017, Practical black-box attacks against machine learning
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3.1
    - Carlini et al. 2019, On evaluating adversarial robustness, section 5
"""

from __future__ import annotations

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.probes.paired import of_kind, strong_gap


def measure(context: ProbeContext) -> Measurement:
    """Paired share of points for attacks of kind "transfer"."""
    return strong_gap(context, of_kind(context, "transfer"), "Transferred examples")


PROBE = documented_probe("transfer-gap", measure, needs=("attacks",), docstring=__doc__)
