"""One step beats iterative: points that FGSM breaks and the reference PGD does not

Share of points broken by the single-step attack `fgsm` and not by the reference
attack, which takes many steps on the same loss.

Raised when
    The lower end of the 99 % interval of that share is above 3.5 %, the largest
    gap that an honest model showed.

What it means
    Many small steps should reach at least what one large step does. If they do
    not, the small steps are led astray: the gradient near the point is noise, or
    the surface is bent so that only a jump gets across. Shattered
    gradients and GREACE training show this.

What to do
    Attack with larger steps, several restarts and other losses; compare the
    gradient with finite differences (finite-difference-agreement).

Source
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3.1
    - Tramèr et al. 2018, Ensemble adversarial training: attacks and defenses
    - Wong, Rice & Kolter 2020, Fast is better than free: revisiting adversarial training
"""

from __future__ import annotations

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.probes.paired import named, paired_gap, reference


def measure(context: ProbeContext) -> Measurement:
    """Paired share of points for `fgsm` against the reference."""
    rival = reference(context)
    return paired_gap(named(context, "fgsm").broken, rival.broken, "FGSM broke", f"no step of {rival.row.name}")


PROBE = documented_probe("one-step-beats-iterative", measure, needs=("attacks",), docstring=__doc__)
