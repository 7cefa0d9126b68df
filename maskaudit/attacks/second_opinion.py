"""The second opinion: torchattacks, if installed, attacks a sample of the points in every audit."""

from __future__ import annotations

from functools import partial

from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.torchattacks_adapter import run_torchattacks
from maskaudit.errors import UsageError

PREFIX = "torchattacks:"

_SOURCE = "Kim 2020, Torchattacks: a PyTorch repository for adversarial attacks"

#: torchattacks attacks that ask only for scores; all others follow the model's own gradients.
_SCORE_BASED = frozenset({"Square", "OnePixel", "Pixle", "SPSA", "GN"})

SECOND_OPINION_QUERIES = 500


def second_opinions() -> tuple[AttackSpec, ...]:
    """torchattacks' PGD and Square as independent rows of the report."""
    return (
        _spec("PGD", "second_opinion", {"steps": 40}),
        _spec("Square", "second_opinion", {"n_queries": SECOND_OPINION_QUERIES}),
    )


def external_attack(name: str) -> AttackSpec:
    """The attack for `--attack torchattacks:NAME`; it counts as own-gradient or challenger, by its kind.

    Raises:
        UsageError: for any other name.
    """
    if not name.startswith(PREFIX) or name == PREFIX:
        raise UsageError(f"--attack adds an attack of torchattacks, written {PREFIX}NAME; got {name!r}.")
    short = name.removeprefix(PREFIX)
    role = "challenger" if short in _SCORE_BASED else "strong"
    spec = _spec(short, role, {})
    return AttackSpec(f"{name}", spec.title, spec.kind, spec.role, spec.run, spec.settings, "", spec.sources)


def _spec(name: str, role: str, settings: dict[str, object]) -> AttackSpec:
    return AttackSpec(
        name=f"torchattacks-{name.lower()}",
        title=f"{name} of torchattacks",
        kind="score" if name in _SCORE_BASED else "gradient",
        role=role,  # type: ignore[arg-type]
        run=partial(run_torchattacks, name=name),
        settings=settings,
        sources=(_SOURCE,),
    )
