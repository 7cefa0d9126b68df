"""Naming the mechanism from probe results: the firing and the silent case of each."""

from __future__ import annotations

from typing import Any

import pytest

from maskaudit.results import Location, ProbeFinding, ProbeResult, ProbeStatus
from maskaudit.verdict.mechanisms import TITLES, located, name_mechanisms


def probe(rule: str, status: ProbeStatus = "finding", **changes: Any) -> ProbeResult:
    return ProbeResult(rule, rule, status, **changes)


def agreement(*values: float | None, status: ProbeStatus = "finding", points: int = 100) -> ProbeResult:
    scales = [{"scale": f"ε/{4**i}", "agreement": value, "points": points} for i, value in enumerate(values)]
    return probe("finite-difference-agreement", status, threshold=0.85, details={"scales": scales})


def zero(share: float, connected: bool = True, status: ProbeStatus = "finding") -> ProbeResult:
    return probe("zero-gradient", status, details={"zero_margin_share": share, "connected": connected})


def one_step(fgsm: int, reference: int, n: int = 100) -> ProbeResult:
    """FGSM broke the first `fgsm` points, the reference the first `reference`."""
    only = max(reference - fgsm, 0)
    details = {"broken": fgsm, "broken_by_rival": reference, "only_rival": only}
    return probe("one-step-beats-iterative", "pass", n=n, details=details)


SATURATED = probe("saturation", findings=(ProbeFinding("flat", Location("layer.3", "tanh")),))
CASES: list[tuple[str, tuple[ProbeResult, ...], bool, set[str]]] = [
    ("nothing", (), False, {"unknown"}),
    ("all pass", (zero(0.0, status="pass"), agreement(0.99, status="pass")), False, {"unknown"}),
    ("cut", (zero(1.0, connected=False),), False, {"cut"}),
    ("zero gradient", (zero(0.9),), False, {"shattered"}),
    ("half is not most", (zero(0.5),), False, {"unknown"}),
    ("jagged", (zero(0.0), agreement(0.95, 0.1)), False, {"jagged-surface"}),
    ("lying", (zero(0.0), agreement(0.2, 0.1)), False, {"lying-backward"}),
    ("unmeasured scale", (agreement(None, 0.9),), False, {"jagged-surface"}),
    ("no scales", (probe("finite-difference-agreement", threshold=0.85),), False, {"lying-backward"}),
    ("saturated", (SATURATED,), False, {"saturation"}),
    ("saturation without place", (probe("saturation"),), False, {"unknown"}),
    ("large logits", (probe("loss-decision-gradient-ratio"),), True, {"logit-scale"}),
    ("saturated softmax", (probe("output-kind"),), True, {"logit-scale"}),
    *(
        (f"{kind}", (probe("output-kind", details={"kind": kind}), probe("loss-decision-gradient-ratio")), True,
         {"output-hides-loss"})
        for kind in ("one-hot", "clipped logits", "constant")
    ),
    ("flat loss", (), True, {"flat-loss"}),
    ("saturation explains the loss", (SATURATED,), True, {"saturation"}),
    ("imbalanced", (probe("imbalanced-margin", value=5.0),), True, {"imbalanced-margin"}),
    ("imbalanced, proven by gradients", (probe("imbalanced-margin", value=5.0),), False, {"imbalanced-margin"}),
    ("large logits come before", (probe("imbalanced-margin"), probe("output-kind")), True, {"logit-scale"}),
    ("balanced", (probe("imbalanced-margin", "pass", value=1.5),), True, {"flat-loss"}),
    ("overfitted", (one_step(fgsm=20, reference=95),), False, {"catastrophic-overfitting"}),
    ("weak to both", (one_step(fgsm=70, reference=99),), False, {"unknown"}),
    ("single steps beat many", (one_step(fgsm=95, reference=20),), False, {"unknown"}),
    ("overfitted and flat", (one_step(fgsm=10, reference=80),), True, {"flat-loss", "catastrophic-overfitting"}),
    ("random", (probe("randomness", "pass", value=0.02),), False, {"stochastic"}),
    ("not random", (probe("randomness", "pass", value=0.0),), False, {"unknown"}),
    ("undefined", (probe("randomness", "pass"),), False, {"unknown"}),
    ("errors say nothing", (zero(0.9, status="error"), agreement(0.1, status="error")), False, {"unknown"}),
    ("not applicable", (zero(0.9, status="not_applicable"),), False, {"unknown"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("probes", "by_loss", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_names(probes: tuple[ProbeResult, ...], by_loss: bool, expected: set[str]) -> None:
    mechanisms = name_mechanisms(probes, by_loss=by_loss)
    assert {mechanism.id for mechanism in mechanisms} == expected
    assert all(mechanism.title == TITLES[mechanism.id] for mechanism in mechanisms)


def test_the_place_is_named() -> None:
    (mechanism,) = name_mechanisms((SATURATED,), by_loss=False)
    assert mechanism.locations == (Location("layer.3", "tanh"),)


@pytest.mark.parametrize("proven", [True, False])
def test_close_logits_are_a_cause_only_of_what_is_proven_at_loss_level(proven: bool) -> None:
    culprit = {"mechanism": "saturation", "confidence": "high", "location": {"op": "tanh"}}
    for culprits in ([], [culprit]):
        traced = located({"culprits": culprits, "shrinks": {"module": "", "op": "div", "file": "net.py", "line": 5}})
        found = {m.id: m.locations for m in name_mechanisms((probe("imbalanced-margin"),), traced, by_loss=proven)}
        assert ("small-logits" in found) == proven
        assert not proven or found["small-logits"] == (Location("", "div", "net.py", 5),)


@pytest.mark.parametrize(("by_loss", "first"), [(True, "logit-scale"), (False, "saturation")])
def test_the_proven_level_comes_first(by_loss: bool, first: str) -> None:
    mechanisms = name_mechanisms((SATURATED, probe("loss-decision-gradient-ratio")), by_loss=by_loss)
    assert mechanisms[0].id == first
    assert {m.confidence for m in mechanisms if m.id == "logit-scale"} == {"high" if by_loss else "medium"}


def test_the_order_of_probes_does_not_matter() -> None:
    probes = (zero(0.0), agreement(0.95, 0.1), SATURATED, probe("randomness", "pass", value=0.1))
    assert name_mechanisms(probes, by_loss=False) == name_mechanisms(probes[::-1], by_loss=False)


def test_a_line_that_is_named_for_several_ops_is_told_once() -> None:
    culprits = [
        {"mechanism": "saturation", "confidence": "high", "location": {"op": "tanh", "file": "net.py", "line": line}}
        for line in (3, 3, 4)
    ]
    assert [m.locations[0].line for m in located({"culprits": culprits})] == [3, 4]
