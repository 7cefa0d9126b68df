"""Entry points of other packages: what they add, what is left out with a note, and what they cannot do."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit.api import audit
from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable, Attempt
from maskaudit.attacks.registry import battery
from maskaudit.auditing import catalogue as plugins
from maskaudit.auditing.catalogue import RepairPlugin, attack_through, catalogue
from maskaudit.command import rules
from maskaudit.command.rules import explain_rule, list_rules
from maskaudit.errors import UsageError
from maskaudit.probes.interface import Measurement, Probe, ProbeContext
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS, AuditSettings
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

MODULE = "maskaudit_plugin_for_tests"


def never(x: Tensor) -> Tensor:
    return torch.full((len(x),), -1)


def boasts(target: Target, x: Tensor, y: Tensor, **_: Any) -> Attempt:
    """Claims a success at once, with examples far outside the ball."""
    return Attempt(torch.ones_like(x) - x, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x)).long())


def crashes(target: Target, x: Tensor, y: Tensor, **_: Any) -> Attempt:
    raise ZeroDivisionError("foreign")


def brightness(context: ProbeContext) -> Measurement:
    return Measurement(float(context.x.mean()), "brightness", len(context.x))


def attack(name: str, run: Any = boasts, **changes: Any) -> AttackSpec:
    return AttackSpec(**{"name": name, "title": name, "kind": "score", "role": "challenger", "run": run} | changes)


PROBE = Probe("brightness", "Mean brightness", frozenset(), brightness, ())
Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make `group=object` pairs appear as installed entry points."""

    def installed(**groups: Any) -> None:
        module = types.ModuleType(MODULE)
        monkeypatch.setitem(sys.modules, MODULE, module)
        found: dict[str, list[EntryPoint]] = {}
        for kind, item in groups.items():
            group = f"maskaudit.{kind}"
            if item is not ...:
                setattr(module, kind, item)
            found[group] = [EntryPoint(f"my-{kind}", f"{MODULE}:{kind}", group)]
        for module in (plugins, rules):
            monkeypatch.setattr(module, "entry_points", lambda group: found.get(group, []))

    return installed


def test_without_plugins_there_are_only_our_own(install: Install) -> None:
    install()
    known = catalogue(BUDGETS["quick"])
    assert (known.foreign, known.notes) == (frozenset(), ())
    assert [spec.name for spec in known.attacks][: len(battery(BUDGETS["quick"]))] == [
        spec.name for spec in battery(BUDGETS["quick"])
    ]


def test_listed_and_explained(install: Install) -> None:
    install(probes=PROBE, attacks=(attack("mine"), attack("yours", role="second_opinion")))
    listed = {name for _, name, _ in list_rules()}
    assert {"brightness", "mine", "yours", "pgd"} <= listed
    assert "Claims a success" in explain_rule("mine")


@pytest.mark.heavy
def test_an_audit_runs_them_and_believes_nothing(install: Install, net: nn.Module) -> None:
    install(probes=PROBE, attacks=(attack("boasts"), attack("crashes", crashes)), repairs=...)
    settings = AuditSettings(budget="quick", samples=20, select=("boasts", "crashes", "brightness", "square"))
    report = audit(net, eps=0.05, settings=settings).report
    rows = {row.name: row for row in report.attacks}
    unbroken = sum(not names for names in report.points["broken_by"])
    assert (rows["boasts"].status, rows["boasts"].attempted, rows["boasts"].broken) == ("ran", unbroken, 0)
    assert unbroken > 0
    assert rows["square"].attempted > 0
    assert (rows["crashes"].status, rows["crashes"].reason) == ("error", "ZeroDivisionError: foreign")
    assert {probe.rule: probe.status for probe in report.probes}["brightness"] == "pass"
    assert any("my-repairs of unknown package (maskaudit.repairs) cannot be used" in note for note in report.notes)


BROKEN = {
    "missing attribute": ({"attacks": ...}, "AttributeError"),
    "wrong type": ({"probes": 3}, "expected Probe, got int"),
    "in a tuple": ({"attacks": (attack("mine"), "x")}, "expected AttackSpec, got str"),
    "own role": ({"attacks": attack("mine", role="strong")}, "challenger or second_opinion, got strong"),
    "own kind": ({"attacks": attack("mine", kind="repaired")}, "must not be repaired"),
}


@pytest.mark.parametrize(("groups", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_ones_are_left_out_with_a_note(install: Install, groups: dict[str, Any], words: str) -> None:
    install(**groups)
    known = catalogue(BUDGETS["quick"])
    assert not known.foreign
    assert "mine" not in known.names
    (note,) = known.notes
    assert words in note


@pytest.mark.parametrize(
    "groups",
    [
        {"attacks": attack("square")},
        {"probes": PROBE, "attacks": attack("brightness")},
        {"attacks": attack("saturation")},
    ],
)
def test_names_that_clash_are_refused(install: Install, groups: dict[str, Any]) -> None:
    install(**groups)
    with pytest.raises(UsageError, match=r"my-attacks of unknown package .* a name of"):
        catalogue(BUDGETS["quick"])


class Rounded(nn.Module):
    """Ten classes by the mean of a strip of pixels, rounded: no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x.flatten(1)[:, :60].view(-1, 10, 6).mean(2) * 20) * 3


@contextlib.contextmanager
def smooth(model: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    def call(x: Tensor) -> Tensor:
        plain = x.flatten(1)[:, :60].view(-1, 10, 6).mean(2) * 60
        scores: Tensor = model(x).detach() + plain - plain.detach()
        return scores

    yield call


@contextlib.contextmanager
def lies(model: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    yield lambda x: -model(x)


def test_a_repair_is_attacked_through(install: Install) -> None:
    install(repairs=RepairPlugin("straight", "Straight through the rounding", smooth))
    spec = next(spec for spec in catalogue(BUDGETS["quick"]).attacks if spec.name == "straight")
    assert (spec.kind, spec.role) == ("repaired", "challenger")
    threat = ThreatModel("Linf", 0.3, (0.0, 1.0))
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rng = PointRNG.create(0, "straight", torch.arange(16))
    with Target(Rounded()) as target:
        y = target.scores(x).argmax(1)
        attempt = spec.run(target, x, y, threat=threat, rng=rng, **spec.settings)
        count = (target.scores(attempt.examples).argmax(1) != y).sum()
        own = apgd(target, x, y, threat=threat, rng=rng, loss="margin", steps=spec.settings["steps"])
        assert int(count) >= 12
        assert int(count) > int((target.scores(own.examples).argmax(1) != y).sum())
        liar = RepairPlugin("liar", "", lies)
        with pytest.raises(AttackUnavailable, match="not a repair"):
            attack_through(target, x, y, threat=threat, rng=rng, repair=liar, steps=2)
