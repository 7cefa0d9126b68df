"""Probes, attacks and repairs of other packages, found by their entry points.

Groups: `maskaudit.probes` (a `Probe`), `maskaudit.attacks` (an `AttackSpec`) and `maskaudit.repairs` (a
`RepairPlugin`), or a tuple of them. Nothing is imported before an audit or a listing asks. What cannot be
used is left out with a note; examples of foreign attacks are scored afresh like all others, so a plug-in
can add what it finds, and claim nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
from torch import Tensor

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable, Attempt, Kind
from maskaudit.attacks.registry import battery
from maskaudit.attacks.second_opinion import external_attack, second_opinions
from maskaudit.errors import UsageError, describe_error
from maskaudit.foreign import PLUGIN_GROUPS
from maskaudit.loading.interface import Model
from maskaudit.probes import PROBES
from maskaudit.probes.interface import Probe
from maskaudit.repairs.stage_rows import plan_specs
from maskaudit.rng import PointRNG
from maskaudit.settings import AuditSettings, Budget
from maskaudit.target import Target
from maskaudit.threat import Norm, ThreatModel
from maskaudit.trace.behaviour import copy_of

#: Roles that a foreign attack may have: the reference and G* are ours, matched in effort.
ROLES = ("challenger", "second_opinion")
#: Kinds that mean something to the audit itself.
OWN_KINDS = ("repaired",)
#: Kinds that do without the gradient of the model.
ASKING: tuple[Kind, ...] = ("score", "decision", "random", "universal", "transfer")
#: Fewer queries of a black box than this for each point and attack are spent on frugal attacks only: one gradient by
#: differences of 128 blocks takes 259 of them, and a surrogate learns from up to 1,000 inputs before it attacks.
FEW_QUERIES = 300
#: How much the scores of a repaired model may differ from the model's own, relative and absolute.
SAME_SCORES = (1e-3, 1e-4)


@dataclass(frozen=True)
class RepairPlugin:
    """A repair of another package.

    Attributes:
        name: identifier in reports; title: one line.
        wrap: gives, for the audited model, a context whose value is called in its place: same answers, other
            gradients. What it changes in the model is undone when the context ends.
        sources: citations.
    """

    name: str
    title: str
    wrap: Callable[[Model], AbstractContextManager[Callable[[Tensor], Any]]]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """Everything that an audit can run: probes and attacks in order, the names of foreign attacks, and notes."""

    probes: tuple[Probe, ...]
    attacks: tuple[AttackSpec, ...]
    foreign: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The names of all probes and attacks."""
        return frozenset({probe.rule for probe in self.probes} | {spec.name for spec in self.attacks})


def catalogue(effort: Budget, norm: Norm = "Linf") -> Catalogue:
    """Our own probes and attacks, and those of installed plug-ins.

    Raises:
        UsageError: when a plug-in takes a name that is taken.
    """
    probes, attacks = (
        list(PROBES),
        [*battery(effort), *plan_specs(effort.steps, effort.targets), *second_opinions(norm)],
    )
    taken = {probe.rule: "maskaudit" for probe in probes} | {spec.name: "maskaudit" for spec in attacks}
    foreign: set[str] = set()
    notes: list[str] = []
    for kind, entry in _found():
        try:
            items = _items(kind, entry.load())
        except (Exception, SystemExit) as error:  # a foreign package may raise anything while it is imported
            notes.append(f"The plug-in {_described(entry)} cannot be used and was left out: {describe_error(error)}.")
            continue
        for item in items:
            name = item.rule if isinstance(item, Probe) else item.name
            if name in taken:
                raise UsageError(
                    f"The plug-in {_described(entry)} calls something {name!r}, a name of {taken[name]}: "
                    "uninstall one of them, or ask its author to rename it."
                )
            taken[name] = _described(entry)
            if isinstance(item, Probe):
                probes.append(item)
            else:
                spec = item if isinstance(item, AttackSpec) else _through(item, effort)
                attacks.append(replace(spec, part="", decisive=False))
                foreign.add(name)
    return Catalogue(tuple(probes), tuple(attacks), frozenset(foreign), tuple(notes))


def _found() -> list[tuple[type, EntryPoint]]:
    """Entry points with what they must give, in a fixed order."""
    return [
        (kind, entry)
        for group, kind in zip(PLUGIN_GROUPS, (Probe, AttackSpec, RepairPlugin), strict=True)
        for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value))
    ]


def _items(kind: type, loaded: object) -> tuple[Any, ...]:
    items = tuple(loaded) if isinstance(loaded, (tuple, list)) else (loaded,)
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(f"expected {kind.__name__}, got {type(item).__name__}")
        if isinstance(item, AttackSpec) and item.role not in ROLES:
            raise ValueError(f"the role of {item.name} must be {' or '.join(ROLES)}, got {item.role}")
        if isinstance(item, AttackSpec) and item.kind in OWN_KINDS:
            raise ValueError(f"the kind of {item.name} must not be {item.kind}")
    return items


def _described(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist is not None else "unknown package"
    return f"{entry.name} of {package} ({entry.group})"


def _through(repair: RepairPlugin, effort: Budget) -> AttackSpec:
    return AttackSpec(
        repair.name, repair.title, "repaired", "challenger", partial(attack_through, repair=repair),
        {"steps": effort.steps}, None, tuple(repair.sources),
    )  # fmt: skip


def attack_through(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, repair: RepairPlugin, steps: int
) -> Attempt:
    """Auto-PGD on the logit margin through a foreign repair.

    Raises:
        AttackUnavailable: when the repaired model does not answer as the model does.
    """
    with repair.wrap(target.model) as repaired:
        other = copy_of(target, repaired, draws=target.draws)
        if not target.random and not _alike(other.raw(x), target.raw(x)):
            raise AttackUnavailable("the repaired model does not answer as the model does, so this is not a repair")
        return apgd(other, x, y, threat=threat, rng=rng, loss="margin", steps=steps)


def _alike(first: Tensor, second: Tensor) -> bool:
    relative, absolute = SAME_SCORES
    return first.shape == second.shape and torch.allclose(first, second, rtol=relative, atol=absolute)


def check_names(names: Iterable[str], known: Catalogue, extra: Iterable[AttackSpec] = ()) -> None:
    """Raise UsageError for a name that no probe or attack has."""
    every = known.names | {spec.name for spec in extra}
    for name in names:
        if name not in every:
            raise UsageError(f"There is no probe or attack {name!r}; `maskaudit probes` lists them.")


def chosen(known: Catalogue, settings: AuditSettings) -> tuple[AttackSpec, ...]:
    """The attacks that the settings ask for; the reference attack always runs.

    Those that give cross-entropy a second chance come last, so that it gets one on what added attacks break as well.
    """
    extra = [external_attack(name) for name in settings.attacks]
    check_names((*settings.select, *settings.ignore), known, extra)
    every = tuple(sorted((*known.attacks, *extra), key=lambda spec: spec.second_chance))
    if settings.black_box:
        dear = too_dear(known, settings)
        every = tuple(
            spec for spec in every if spec.kind in ASKING and spec.role == "challenger" and spec.name not in dear
        )
    return tuple(spec for spec in every if spec.role == "reference" or wanted(settings, spec.name))


def too_dear(known: Catalogue, settings: AuditSettings) -> tuple[str, ...]:
    """Attacks that a black box with this few queries is not asked for, though they could be."""
    if settings.queries is None or settings.effort.queries >= FEW_QUERIES:
        return ()
    dear = (spec.name for spec in known.attacks if spec.kind in ASKING and not spec.frugal)
    return tuple(name for name in dear if wanted(settings, name))


def wanted(settings: AuditSettings, name: str) -> bool:
    """Whether a probe or attack was selected, if any were, and not ignored."""
    return (not settings.select or name in settings.select) and name not in settings.ignore
