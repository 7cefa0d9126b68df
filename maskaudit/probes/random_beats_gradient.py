"""Random beats gradient: points that random noise breaks and white-box attacks do not

Share of points broken by random perturbations of full size and by no attack on
the model's gradients.

Raised when
    The lower end of the 99 % interval of that share is above 3.5 %, the largest
    gap that an honest model showed.

What it means
    Blind guessing found what hundreds of gradient steps did not. No healthy
    gradient is worse than chance: this is the plainest sign of masking. Its
    absence means little, above all for large inputs, where random noise is weak.

What to do
    Treat the gradients as useless until repaired; judge the model by attacks
    that do without them.

Source
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3.1
    - Carlini et al. 2019, On evaluating adversarial robustness, section 5
"""

from __future__ import annotations

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.probes.paired import of_kind, strong_gap


def measure(context: ProbeContext) -> Measurement:
    """Paired share of points for attacks of kind "random"."""
    return strong_gap(context, of_kind(context, "random"), "Random noise")


PROBE = documented_probe("random-beats-gradient", measure, needs=("attacks",), docstring=__doc__)
