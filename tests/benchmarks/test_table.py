"""The figures of the table, worked out by hand, and what it says in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import comparison
from benchmarks.comparison import OURS, Row, better
from benchmarks.peers import PEERS
from benchmarks.score import Outcome, Share, audit_outcome, peer_outcome, summarise
from benchmarks.table import Knowledge, render
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.truth import Truth, pack

MASKED = ZooEntry("bad", "Masked", True, "gradient", "standard", part="check", mechanisms=("shattered",), module="",
                  ops=("round",))  # fmt: skip
HEALTHY = ZooEntry("good", "Healthy", False, "", "standard", part="tune")
ENTRIES = {"bad": MASKED, "good": HEALTHY}
RATE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}


def truth(name: str, broken: list[bool], certified: list[bool] | None = None) -> Truth:
    return Truth(
        name, "r", "w", "digits", "Linf", 0.2, tuple(range(len(broken))), pack([True] * len(broken)), pack(broken),
        pack(broken), pack(broken), pack(certified) if certified else "", False, ("a",),
    )  # fmt: skip


def audit(model: str = "bad", label: str = "masked", **changes: Any) -> dict[str, Any]:
    place = {"module": "", "op": "round", "file": "net.py", "line": 3}
    named = [{"id": "shattered", "title": "t", "confidence": "high", "locations": [place]}] if label == "masked" else []
    record = {
        "kind": "audit", "peer": "", "model": model, "weights": "w", "seed": 0, "budget": "quick", "code": "c",
        "points": 0, "machine": "m", "status": "ran", "reason": "", "seconds": 2.0, "cpu_seconds": 1.0,
        "forwards": 30, "backwards": 12,
        "document": {
            "target": {"sha256": "w"},
            "verdict": {"label": label, "mechanisms": named},
            "accuracy": {"reference": RATE, "best_known": RATE},
            "masking": {"gradient_level": {**RATE, "value": 0.8}, "loss_level": {**RATE, "value": 0.1}},
            "points": {"index": [0, 1, 2, 3], "correct": [1, 1, 1, 1], "broken_by": [[1], [1], [1], []]},
        },
    }  # fmt: skip
    return {**record, **changes}


def peer(model: str = "bad", fired: bool = True, **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "peer", "peer": "attack-failure", "model": model, "weights": "w", "seed": 0, "budget": "quick",
        "code": "c", "points": 4, "machine": "m", "status": "ran", "reason": "", "seconds": 1.0, "cpu_seconds": 0.5,
        "forwards": 5, "backwards": 5, "indicators": {"I1": fired, "I4": False}, "figures": {}, "index": [0, 1, 2, 3],
        "unbroken": [1, 1, 0, 0],
    }  # fmt: skip
    return {**record, **changes}


def test_an_audit_is_held_against_entry_and_truth() -> None:
    outcome = audit_outcome(audit(), MASKED, truth("bad", [True] * 4))
    assert (outcome.label, outcome.distance, outcome.passes) == ("masked", 0.25, 42)
    assert (outcome.level, outcome.mechanism, outcome.module, outcome.location, outcome.line) == (True,) * 5


@pytest.mark.parametrize(
    ("place", "module", "location", "line"),
    [
        ({"module": "", "op": "round", "file": None, "line": None}, True, True, False),
        ({"module": "", "op": "sin", "file": "net.py", "line": 3}, True, False, False),
        ({"module": "head", "op": "round", "file": "net.py", "line": 3}, False, False, False),
    ],
)
def test_module_op_and_line_are_asked_apart(place: dict[str, Any], module: bool, location: bool, line: bool) -> None:
    record = audit()
    record["document"]["verdict"]["mechanisms"][0]["locations"] = [place]
    outcome = audit_outcome(record, MASKED, None)
    assert (outcome.module, outcome.location, outcome.line) == (module, location, line)


def test_the_leading_mechanism_and_any_mechanism_differ() -> None:
    record = audit()
    record["document"]["verdict"]["mechanisms"].insert(0, {"id": "cut", "locations": []})
    outcome = audit_outcome(record, MASKED, None)
    assert (outcome.mechanism, outcome.any_mechanism) == (False, True)


@pytest.mark.parametrize(("unproven", "proof"), [({}, True), ({"verdict": "does not follow"}, False), (None, None)])
def test_an_audit_whose_own_proof_fails_is_counted(unproven: dict[str, str] | None, proof: bool | None) -> None:
    record = audit() if unproven is None else audit() | {"unproven": unproven}
    summary = summarise([audit_outcome(record, MASKED, None)])
    assert summary.proof == Share(int(bool(proof)), int(proof is not None))


def test_the_wrong_level_is_seen() -> None:
    assert audit_outcome(audit(), replace(MASKED, level="loss"), None).level is False


def test_mechanisms_of_a_wrong_verdict_are_not_asked() -> None:
    outcome = audit_outcome(audit(label="clear"), MASKED, None)
    assert (outcome.label, outcome.mechanism, outcome.level, outcome.distance) == ("clear", None, None, None)


def test_breaking_a_certified_point_is_counted() -> None:
    known = truth("bad", [True, True, False, False], certified=[False, False, True, True])
    assert audit_outcome(audit(), MASKED, known).below == 1
    assert peer_outcome(peer(), MASKED, known).below == 2


def test_a_peer_is_held_against_the_same_points() -> None:
    assert peer_outcome(peer(), MASKED, truth("bad", [True, True, True, False])).distance == 0.25
    elsewhere = replace(truth("bad", [True, True, True, False]), weights="other")
    assert peer_outcome(peer(), MASKED, elsewhere).distance == 0.25  # the aggregates: 2 of 4 against 1 of 4
    assert peer_outcome(peer(unbroken=None), MASKED, elsewhere).distance is None


def test_left_out_indicators_do_not_count() -> None:
    assert peer_outcome(peer(), MASKED, None, without=("I1",)).label == "clear"
    assert peer_outcome(peer(), MASKED, None).label == "masked"


def test_a_crash_finds_nothing_and_accuses_nobody() -> None:
    crash = {"status": "crash", "reason": "IndexError"}
    summary = summarise([
        peer_outcome(peer("bad", **crash), MASKED, None), peer_outcome(peer("good", **crash), HEALTHY, None)
    ])  # fmt: skip
    assert (summary.sensitivity, summary.accused, summary.specificity) == (Share(0, 1), Share(0, 1), Share(1, 1))
    assert summary.unanswered == Share(2, 2)


def outcome(label: str, masked: bool, **changes: Any) -> Outcome:
    return replace(Outcome("m", "tune", masked, 0, label, True, None, 0, 1.0, 1.0, 10), **changes)


def test_rates_are_over_the_right_models() -> None:
    summary = summarise([
        outcome("masked", True), outcome("clear", True), outcome("suspect", True), outcome("inconclusive", False),
        outcome("masked", False), outcome("clear", False),
    ])  # fmt: skip
    assert summary.sensitivity == Share(1, 3)
    assert summary.false_clear == Share(1, 3)
    assert summary.accused == Share(1, 3)
    assert summary.specificity == Share(2, 3)
    assert (summary.suspect, summary.inconclusive) == (Share(1, 6), Share(1, 6))
    assert summary.undecided_healthy == Share(1, 3)


@pytest.mark.parametrize(("distance", "within"), [(0.0, 1), (-0.3, 1), (0.01, 1), (0.011, 0)])
def test_within_a_point_of_the_truth(distance: float, within: int) -> None:
    summary = summarise([outcome("clear", False, distance=distance), outcome("clear", False)])
    assert (summary.within, summary.worst) == (Share(within, 1), distance)


def test_shares_carry_their_exact_interval() -> None:
    assert str(Share(0, 0)) == "–"
    assert str(Share(33, 33)) == "33 of 33 (0.852–1.000)"  # 0.005^(1/33)


def _row(title: str, found: int, cpu: float, peer: str = "binarization") -> Row:
    outcomes = [outcome("masked" if k < found else "clear", True, cpu_seconds=cpu) for k in range(4)]
    return Row(title, summarise(outcomes), peer=peer)


def test_every_column_in_which_a_peer_is_better_is_named() -> None:
    paragraph = better(
        [_row(OURS, 3, 2.0), _row("sharp", 4, 3.0), _row("fast", 1, 0.5, "autoattack"), _row("same", 3, 2.0)]
    )
    assert "sensitivity)*: sharp (4 of 4" in paragraph
    assert "CPU s, median*: fast (0.5); ours 2.0" in paragraph
    assert "same (" not in paragraph
    assert "healthy" not in paragraph
    assert f"**Why.** sharp {comparison.SPARES['binarization']}; fast {comparison.SPARES['autoattack']}." in paragraph
    assert better([_row(OURS, 4, 1.0), _row("worse", 3, 1.0)]).startswith("No peer has a better figure")


def test_it_is_known_of_every_peer_why_it_can_be_better() -> None:
    assert set(comparison.SPARES) == set(PEERS)


def test_a_lenient_reading_is_not_cheaper_for_being_read_again() -> None:
    lenient = replace(_row("again", 4, 0.5), lenient=True)
    paragraph = better([_row(OURS, 3, 2.0), lenient])
    assert "sensitivity)*: again" in paragraph
    assert "CPU" not in paragraph


def test_the_document_holds_every_run() -> None:
    records = [
        audit(), audit("good", "clear"), peer(), peer("good", False),
        peer("bad", peer="binarization", status="crash", reason="IndexError: a | b"),
        peer("good", peer="autoattack", status="unavailable", reason="the package is not installed"),
    ]  # fmt: skip
    known = Knowledge(ENTRIES, {"bad": truth("bad", [True] * 4)})
    text = render(records, known, budget="quick", command="python verdict.py", planned=2)
    assert "1 of 1 (0.005–1.000)" in text
    assert "crash: IndexError: a / b" in text
    assert "**Official AutoAttack, any flag did not run everywhere**: the package is not installed." in text
    assert "The run is not complete" not in text
    assert "| bad | masked | 0.000 | 0 | masked |" in text
    # every table has as many cells in each row as in its head
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, rows


def test_a_part_of_a_run_is_not_taken_for_the_whole() -> None:
    known = Knowledge(ENTRIES, {})
    text = render([audit(), audit("good", "clear", code="d")], known, budget="quick", command="c", planned=6)
    assert "The run is not complete" in text
    assert "different versions of the sources" in text
    assert "Next to peers" not in text


def test_an_audit_that_broke_off_is_a_row() -> None:
    broken = audit(status="timeout", reason="not finished after 9 s")
    del broken["document"]
    text = render([broken], Knowledge(ENTRIES, {}), budget="quick", command="c", planned=1)
    assert "timeout: not finished after 9 s" in text
    assert "| audits that failed or ran out of time | 1 of 1" in text


def test_columns_know_which_way_is_better() -> None:
    ways = {column.title: column.higher for column in comparison.COLUMNS}
    assert ways["masked models found (sensitivity)"]
    assert not ways["farthest above the truth"]
    assert not ways["no answer (crash, time limit)"]


def test_a_peer_that_met_other_weights_is_not_compared() -> None:
    known = Knowledge({"bad": MASKED}, {})
    for weights, beside in (("w", True), ("other", False)):
        text = render([audit(), peer(weights=weights)], known, budget="quick", command="c", planned=1)
        assert ("## Next to peers" in text) is beside
