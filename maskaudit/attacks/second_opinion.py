"""The second opinion: torchattacks, if installed, attacks a sample of the points not broken yet in every audit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maskaudit.attacks.interface import AttackSpec, AttackUnavailable, Attempt, Phase
from maskaudit.attacks.torchattacks_adapter import attack_names, available, run_torchattacks
from maskaudit.errors import UsageError
from maskaudit.results import Family, Role
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import Norm, ThreatModel

PREFIX = "torchattacks:"

_SOURCE = "Kim 2020, Torchattacks: a PyTorch repository for adversarial attacks"

#: torchattacks attacks that ask only for scores; all others follow the model's gradients.
_SCORE_BASED = frozenset({"Square", "OnePixel", "Pixle", "SPSA", "GN"})

#: Those that follow the gradient of cross-entropy by themselves.
_CROSS_ENTROPY = frozenset(
    {
        "APGD", "BIM", "DIFGSM", "EOTPGD", "FFGSM", "FGSM", "MIFGSM", "NIFGSM", "PGD", "PGDL2", "PIFGSM", "PIFGSMPP",
        "RFGSM", "SINIFGSM", "TIFGSM", "UPGD", "VMIFGSM", "VNIFGSM",
    }
)  # fmt: skip

_PHASES: dict[Role, Phase] = {
    "strong": "white_box", "challenger": "challengers", "second_opinion": "second_opinion"
}  # fmt: skip

_QUERIES = 500
_STEPS = 40


def second_opinions(norm: Norm) -> tuple[AttackSpec, ...]:
    """torchattacks' PGD and Square as independent rows of the report."""
    return (
        _spec("PGD" if norm == "Linf" else "PGDL2", "torchattacks-pgd", "second_opinion", {"steps": _STEPS}),
        _spec("Square", "torchattacks-square", "second_opinion", {"n_queries": _QUERIES}),
    )


def external_attack(name: str) -> AttackSpec:
    """The attack for `--attack torchattacks:NAME`; it counts as white-box or challenger, by its kind.

    Raises:
        UsageError: for any other name, an attack that torchattacks does not have, or without torchattacks.
    """
    short = name.removeprefix(PREFIX)
    if short == name or not short:
        raise UsageError(f"--attack adds an attack of torchattacks, written {PREFIX}NAME; got {name!r}.")
    found, detail = available()
    if not found:
        raise UsageError(f"{name} cannot run: {detail}.")
    if short not in attack_names():
        raise UsageError(f"torchattacks has no attack {short!r}; it has {', '.join(attack_names())}.")
    return _spec(short, name, "challenger" if short in _SCORE_BASED else "strong", {})


def run_if_available(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, attack: str, **settings: Any
) -> Attempt:
    """`run_torchattacks`, or AttackUnavailable that says how to get the library."""
    found, detail = available()
    if not found:
        raise AttackUnavailable(detail)
    return run_torchattacks(target, x, y, threat=threat, rng=rng, name=attack, **settings)


def _spec(attack: str, name: str, role: Role, settings: dict[str, Any]) -> AttackSpec:
    follows: Family = "cross_entropy" if attack in _CROSS_ENTROPY else "other_loss"
    return AttackSpec(
        name=name,
        title=f"{attack} of torchattacks",
        kind="score" if attack in _SCORE_BASED else "gradient",
        role=role,
        family=follows if role == "strong" else None,
        phase=_PHASES[role],
        run=run_if_available,
        settings={"attack": attack, **settings},
        sources=(_SOURCE,),
        decisive=False,
    )
