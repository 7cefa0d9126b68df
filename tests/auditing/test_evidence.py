"""Evidence: pack, read, verify; and every alteration that verification must notice."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import maskaudit
from maskaudit.attacks.interface import AttackSpec, Attempt
from maskaudit.auditing.evidence import (
    conclusion,
    pack_evidence,
    read_evidence,
    read_report,
    report_digest,
    verify_audit,
)
from maskaudit.auditing.judging import broken_by
from maskaudit.auditing.ledger import Ledger
from maskaudit.command import verify
from maskaudit.errors import InputError, UsageError
from maskaudit.results import EVIDENCE_FILE, REQUIRED_SECTIONS, Family, ProbeResult, Role, dump_json, plain
from maskaudit.target.rescore import clean_correct
from maskaudit.threat import ThreatModel
from maskaudit.verdict.limits import LIMITS
from maskaudit.verdict.power import check_power
from maskaudit.verdict.recorded import Recorded, observations
from maskaudit.verdict.recount import recount
from maskaudit.verdict.rules import judge
from maskaudit.verdict.statistics import rate

THREAT = ThreatModel("Linf", 0.1)
POINTS = 6
SHA = "digest of the model"


def network() -> nn.Linear:
    """Class 1 where the first coordinate exceeds one half."""
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        net.bias.copy_(torch.tensor([0.0, -0.5]))
    return net


def spec(name: str, role: Role, kind: str = "gradient", family: Family | None = None) -> AttackSpec:
    return AttackSpec(name, name, kind, role, lambda *_, **__: Attempt(*3 * [torch.empty(0)]), {}, family)


PGD = spec("pgd", "reference", family="cross_entropy")
MARGIN = spec("apgd-margin", "strong", family="other_loss")
SQUARE, OPINION = spec("square", "challenger", "score"), spec("torchattacks:PGD", "second_opinion", "external")
SANITY = spec("unbounded", "sanity")


def audited() -> Ledger:
    """Points 0 … 4 correct, 0 broken by all, 1 by margin and square, 2 by square, 3 by the second opinion, 4 not."""
    ledger = Ledger()
    x = torch.full((POINTS, 2), 0.45)
    x[5] = 0.9
    correct = torch.arange(POINTS) < 5
    ledger.add_points(torch.arange(POINTS) + 50, x, torch.zeros(POINTS, dtype=torch.int64), correct, (~correct).long())
    rows = torch.arange(5)
    broken_by = ((PGD, [0]), (MARGIN, [0, 1]), (SQUARE, [0, 1, 2]), (OPINION, [3]), (SANITY, [0, 1, 2, 3, 4]))
    for number, (attack, broken) in enumerate(broken_by):
        example = x[rows] + torch.tensor([0.06 + 0.01 * number, 0.0])
        mask = torch.tensor([row in broken for row in rows.tolist()])
        ledger.record(attack, rows, example, mask, torch.ones(5, dtype=torch.int64))
    return ledger


@dataclass
class Files:
    """An audit's two files, in memory."""

    document: dict[str, Any]
    evidence: bytes

    def sign(self) -> None:
        """What an honest audit does last, and what a careful forger does too."""
        tensors, metadata = load(self.evidence), self.metadata()
        metadata["report_sha256"] = report_digest(self.document)
        self.write(tensors, metadata)

    def metadata(self) -> dict[str, Any]:
        header = json.loads(self.evidence[8 : 8 + int.from_bytes(self.evidence[:8], "little")])
        return json.loads(header["__metadata__"]["maskaudit_evidence"])  # type: ignore[no-any-return]

    def write(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.evidence = save(tensors, {"maskaudit_evidence": json.dumps(metadata)})
        self.document["evidence"] = {"file": EVIDENCE_FILE, "sha256": hashlib.sha256(self.evidence).hexdigest()}


def audit(ledger: Ledger | None = None, **scoring: Any) -> Files:
    ledger = audited() if ledger is None else ledger
    settings = {"sha256": SHA, "random": False, "reject_class": None, **scoring}
    document = report(ledger, settings)
    kept = {"threat": document["threat"], "seed": 0, **settings}
    files = Files(document, pack_evidence(ledger, document, kept))
    files.write(load(files.evidence), files.metadata())
    return files


def report(ledger: Ledger, target: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The report that an audit with this ledger writes."""
    recorded = Recorded(ledger.correct.tolist(), broken_by(ledger), ledger.rows(), **changes)
    judgement = judge(observations(recorded))
    document: dict[str, Any] = plain({
        "schema_version": 1,
        **{section: {} for section in REQUIRED_SECTIONS},
        "target": target,
        "threat": {"norm": THREAT.norm, "eps": THREAT.eps, "bounds": list(THREAT.bounds)},
        "settings": {"looks": [len(ledger)], "data": "toy", "left_out": dict(recorded.left_out)},
        "verdict": dataclasses.asdict(judgement.verdict),
        "claim": dataclasses.asdict(judgement.claim),
        "accuracy": {name: rate and dataclasses.asdict(rate) for name, rate in judgement.accuracy.items()},
        "masking": {
            **judgement.masking,
            **{name: dataclasses.asdict(judgement.masking[name]) for name in ("gradient_level", "loss_level")},
            "traced": [],
        },
        "power": recorded.power.to_dict(),
        "probes": [],
        "attacks": [dataclasses.asdict(row) for row in ledger.rows()],
        "points": {
            "index": ledger.index, "label": ledger.y.tolist(), "predicted": ledger.predicted.tolist(),
            "correct": ledger.correct.tolist(), "broken_by": broken_by(ledger),
        },
    })  # fmt: skip
    return document


def failures(files: Files, model: nn.Module | None = None, sha: str = SHA) -> set[str]:
    checks = verify_audit(files.document, read_evidence(files.evidence, "evidence"), model or network(), sha)
    return {check.name for check in checks if not check.holds}


def test_round_trip() -> None:
    files = audit()
    evidence = read_evidence(files.evidence, "evidence")
    names = evidence.metadata["attacks"]
    kept = {
        (int(evidence.tensors["index"][point]), names[attack])
        for point, attack in zip(evidence.tensors["example_point"], evidence.tensors["example_attack"], strict=True)
    }
    assert kept == {
        (50, "pgd"),
        (50, "square"),
        (51, "apgd-margin"),
        (51, "square"),
        (52, "square"),
        (53, OPINION.name),
    }
    assert failures(files) == set()


def test_every_family_can_be_recounted_from_the_evidence() -> None:
    """A point hidden from one family must not be provable by it, and the other way round."""
    evidence = read_evidence(audit().evidence, "evidence")
    names = evidence.metadata["attacks"]
    proven = {name: set() for name in names}
    for point, attack in zip(evidence.tensors["example_point"], evidence.tensors["example_attack"], strict=True):
        proven[names[attack]].add(int(evidence.tensors["index"][point]))
    assert proven["pgd"] | proven["apgd-margin"] == {50, 51}
    assert proven["square"] == {50, 51, 52}
    assert proven["unbounded"] == set()


def test_the_same_audit_gives_the_same_bytes() -> None:
    assert audit().evidence == audit().evidence


def test_an_audit_that_broke_nothing_verifies() -> None:
    ledger = Ledger()
    ledger.add_points(
        torch.arange(2), torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64), torch.ones(2).bool(), torch.zeros(2)
    )
    assert failures(audit(ledger)) == set()


def test_verification_leaves_the_model_alone() -> None:
    net = nn.Sequential(network(), nn.BatchNorm1d(2, affine=False)).train()
    verify_audit(audit().document, read_evidence(audit().evidence, "e"), net, SHA)
    assert net.training
    assert int(net[1].num_batches_tracked) == 0


# --- alterations ----------------------------------------------------------------------------------


def _tensor(name: str, change: Callable[[Tensor], None]) -> Callable[[Files], None]:
    def alter(files: Files) -> None:
        tensors = load(files.evidence)
        change(tensors[name])
        files.write(tensors, files.metadata())

    return alter


def _set(row: int, value: float) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        tensor[row] = value

    return change


ALTERATIONS: dict[str, tuple[Callable[[Files], None], set[str]]] = {
    "an example made harmless": (_tensor("examples", _set(4, 0.44)), {"misclassified", "points"}),
    "an example outside the ball": (_tensor("examples", _set(0, 0.7)), {"ball and bounds", "misclassified", "points"}),
    "an example that is not a number": (
        _tensor("examples", _set(0, torch.nan)),
        {"ball and bounds", "misclassified", "points"},
    ),
    "a label": (_tensor("label", _set(2, 1)), {"clean points", "misclassified", "points"}),
    "a label that the model lacks": (_tensor("label", _set(2, 12)), {"clean points", "misclassified", "points"}),
    "a negative label": (_tensor("label", _set(2, -1)), {"clean points", "misclassified", "points"}),
    "a clean point": (_tensor("clean", _set(2, 0.51)), {"clean points", "misclassified", "points"}),
    "the point an example belongs to": (_tensor("index", _set(3, 99)), {"points", "clean points"}),
}


@pytest.mark.parametrize(("alter", "expected"), ALTERATIONS.values(), ids=ALTERATIONS)
def test_an_altered_example_does_not_hold_even_if_the_digests_are_made_anew(
    alter: Callable[[Files], None], expected: set[str]
) -> None:
    files = audit()
    alter(files)
    assert failures(files) == expected
    before = audit()
    assert failures(Files(before.document, files.evidence)) == expected | {"evidence"}


def test_an_altered_report_is_noticed() -> None:
    files = audit()
    files.document["verdict"] = {"label": "clear"}
    assert failures(files) == {"report", "verdict"}


def _report(change: Callable[[dict[str, Any]], object]) -> Callable[[Files], None]:
    def alter(files: Files) -> None:
        change(files.document)

    return alter


def _breaks(row: int, *names: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["points"]["broken_by"].__setitem__(row, list(names))


def _attack(name: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: next(row for row in document["attacks"] if row["name"] == name).update(fields)


def _share(value: float) -> dict[str, Any]:
    return {"value": value, "low": 0.0, "high": 1.0, "n": POINTS}


#: What a forger may do to the report, with the digests made anew, and what then fails.
FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], set[str]]] = {
    "the verdict": (lambda d: d["verdict"].update(label="clear"), {"verdict"}),
    "the sentence": (lambda d: d["verdict"].update(sentence="All is well."), {"verdict"}),
    "a reason": (lambda d: d["verdict"].update(reasons=[]), {"verdict"}),
    "a mechanism": (lambda d: d["verdict"].update(mechanisms=[{"id": "cut", "title": "", "confidence": "low"}]),
                    {"verdict"}),
    "the claim": (lambda d: d["claim"].update(status="not_refuted"), {"claim"}),
    "a claim that was not made": (lambda d: d["claim"].update(claimed=0.9), {"claim"}),
    "best known accuracy": (lambda d: d["accuracy"].update(best_known=_share(0.0)), {"accuracy"}),
    "clean accuracy": (lambda d: d["accuracy"].update(clean=_share(1.0)), {"accuracy"}),
    "the reference": (lambda d: d["accuracy"].update(reference=_share(0.1)), {"accuracy"}),
    "an interval": (lambda d: d["accuracy"]["best_known"].update(high=0.2), {"accuracy"}),
    "the gradient level": (lambda d: d["masking"].update(gradient_level=_share(0.0)), {"levels"}),
    "the loss level": (lambda d: d["masking"].update(loss_level=_share(0.0)), {"levels"}),
    "the slack": (lambda d: d["masking"]["rule"].update(slack=0.5), {"levels"}),
    "the screen": (lambda d: d["masking"]["screen"].update(fired=True), {"levels"}),
    "the power check": (lambda d: d["power"].update(passed=True, method="recapture"), {"power"}),
    "known points that nobody broke": (lambda d: d.update(power=check_power("recapture", 30, 32).to_dict()), {"power"}),
    "a row that ran on nothing": (_attack("square", status="ran", attempted=0, broken=0), {"attacks"}),
    "a place that the trace does not name": (
        lambda d: d["masking"].update(traced=[{"id": "cut", "title": "", "confidence": "high", "locations": [
            {"module": "net", "op": "round", "file": None, "line": None}]}]),
        {"trace", "verdict"},
    ),
    "points proven robust that are broken": (
        lambda d: (d["points"].update(certified=[True] * POINTS), d["accuracy"].update(certified=vars(rate(6, 6)))),
        {"accuracy"},
    ),
    "what a row broke": (_attack("square", broken=1), {"attacks"}),
    "what a row met": (_attack("square", attempted=6), {"attacks"}),
    "what a row was the first to break": (_attack("square", new=0), {"attacks"}),
    "the accuracy of a row": (_attack("pgd", robust_accuracy=0.9), {"attacks"}),
    "the interval of a row": (_attack("pgd", interval=None), {"attacks"}),
    "a row that is gone": (lambda d: d["attacks"].pop(2), {"attacks", "accuracy", "levels", "verdict"}),
    "a row of another role": (_attack("square", role="strong", family="other_loss"), {"levels", "accuracy"}),
    "a row of another family": (_attack("apgd-margin", family="cross_entropy"), {"levels"}),
    "a point broken without example": (_breaks(4, "square"), {"points", "attacks", "accuracy", "levels", "verdict"}),
    "a point no longer broken": (_breaks(3), {"points", "attacks", "accuracy"}),
    "a point broken by the reference as well": (_breaks(2, "pgd", "square"),
                                                {"points", "attacks", "accuracy", "levels"}),
    "a point answered wrongly that is right": (lambda d: d["points"]["correct"].__setitem__(4, False),
                                               {"clean points", "attacks", "accuracy", "levels", "verdict"}),
    "a point answered rightly that is wrong": (lambda d: d["points"]["correct"].__setitem__(5, True),
                                               {"clean points", "attacks", "accuracy", "levels", "verdict"}),
    "a label": (lambda d: d["points"]["label"].__setitem__(1, 1), {"clean points", "accuracy"}),
    "another model": (lambda d: d["target"].update(sha256="another"), {"scoring"}),
    "a random model": (lambda d: d["target"].update(random=True), {"scoring"}),
    "the number of points": (lambda d: d["settings"].update(samples=99), {"accuracy"}),
    "a missing part": (lambda d: d["settings"].update(left_out={"square": "gradient_free"}), {"verdict"}),
}  # fmt: skip


@pytest.mark.parametrize(("forge", "expected"), FORGERIES.values(), ids=FORGERIES)
def test_a_report_that_does_not_follow_from_its_points_fails_though_the_digests_are_made_anew(
    forge: Callable[[dict[str, Any]], object], expected: set[str]
) -> None:
    files = audit()
    forge(files.document)
    assert failures(files) - expected == {"report"}
    files.sign()
    assert failures(files) == expected


def test_a_grade_that_does_not_follow_from_its_value_is_noticed() -> None:
    files = audit()
    probe = ProbeResult("zero-gradient", "", "pass", value=0.9, threshold=LIMITS["zero-gradient"].value)
    files.document["probes"] = [plain(dataclasses.asdict(probe))]
    files.sign()
    assert "probes" in failures(files)


def test_an_example_that_the_report_leaves_out_is_noticed() -> None:
    """A forger who strikes out a point keeps its example from the reader, or must forge the evidence too."""
    files, ledger = audit(), audited()
    del ledger.entries[OPINION.name].examples[3]
    ledger.entries[OPINION.name].broken[3] = False
    ledger.entries[OPINION.name].new = 0
    files.document = {**report(ledger, files.document["target"]), "evidence": files.document["evidence"]}
    files.sign()
    assert failures(files) == {"points"}


def test_the_last_sentence_says_what_holds_what_does_not_and_what_nobody_can_know() -> None:
    files = audit()
    checks = verify_audit(files.document, read_evidence(files.evidence, "e"), network(), SHA)
    held = conclusion(checks, files.document)
    assert held.startswith("Everything that can be checked holds")
    assert "the verdict inconclusive follow from the points" in held
    for unknown in ("every attack ran as listed, in a ball", "settings, notes", "a fair draw from toy", "--sha256"):
        assert unknown in held
    assert "--sha256" not in conclusion(checks, files.document, published=True)
    files.document["verdict"]["label"] = "clear"
    files.sign()
    checks = verify_audit(files.document, read_evidence(files.evidence, "e"), network(), SHA)
    assert "does not hold: verdict; what holds: report, evidence" in conclusion(checks, files.document)


# --- models that answer at random -----------------------------------------------------------------


class Wavering(nn.Module):
    """The network of this module, whose answer is turned round with some chance."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.net, self.chance = network(), chance

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x)
        return torch.where(torch.rand(len(x), 1) < self.chance, scores.flip(1), scores)


def many(n: int, model: nn.Module | None = None) -> Ledger:
    """As many correct points that the reference breaks, and as many that nothing breaks, right by a majority."""
    ledger = Ledger()
    x = torch.full((2 * n, 2), 0.45)
    ledger.add_points(
        torch.arange(2 * n),
        x,
        torch.zeros(2 * n, dtype=torch.int64),
        torch.ones(2 * n).bool(),
        torch.zeros(2 * n).long(),
    )
    if model is not None:
        ledger.correct = clean_correct(model, x, ledger.y, random=True)
    rows = ledger.correct.nonzero().squeeze(1)
    ledger.record(PGD, rows, x[rows] + torch.tensor([0.08, 0.0]), rows < n, torch.ones(len(rows), dtype=torch.int64))
    return ledger


@pytest.mark.parametrize(("chance", "failed"), [
    (0.0, set()), (0.3, set()), (0.45, set()), (0.7, {"misclassified", "points"}),
])  # fmt: skip
def test_a_random_model_is_tested_on_fresh_draws(chance: float, failed: set[str]) -> None:
    """Of 60 examples that win 55 % of the draws about 17 lose a majority; that is no reason to doubt them."""
    files = audit(many(60, Wavering(min(chance, 0.45))), random=True)
    assert failures(files, Wavering(chance)) - {"clean points"} == failed
    assert ("clean points" in failures(files, Wavering(chance))) is (chance > 0.5)


def test_the_chance_of_failing_an_honest_random_audit_is_kept() -> None:
    """Examples at the very border, which win half of the draws, and clean points that are right in half of them."""
    wavering, failed = Wavering(0.5), 0
    for seed in range(30):
        torch.manual_seed(seed)
        ledger = many(8)
        files = audit(
            ledger,
            random=True,
        )
        files.write(load(files.evidence), {**files.metadata(), "seed": seed})
        failed += "misclassified" in failures(files, wavering)
    assert failed <= 3


def test_the_test_on_fresh_draws_states_its_error() -> None:
    files = audit(many(10), random=True)
    checks = verify_audit(files.document, read_evidence(files.evidence, "e"), Wavering(0.3), SHA)
    details = {check.name: check.detail for check in checks}
    assert "with a chance of 0.5%" in details["misclassified"]
    assert "level 0.5%" in details["clean points"]


def test_the_evidence_can_be_checked_without_the_report() -> None:
    evidence = read_evidence(audit().evidence, "evidence")
    checks = verify_audit(None, evidence, network(), SHA)
    assert [check.name for check in checks] == ["model", "clean points", "ball and bounds", "misclassified"]
    assert all(check.holds for check in checks)
    assert "smallest margin" in checks[-1].detail


def test_a_wider_ball_in_the_evidence_is_noticed() -> None:
    files = audit()
    metadata = files.metadata()
    metadata["threat"]["eps"] = 0.5
    files.write(load(files.evidence), metadata)
    assert failures(files) == {"threat"}


def test_how_far_the_examples_go_is_told_next_to_the_radius() -> None:
    """A radius that is made larger in both files contradicts nothing: readers see that the search never went there."""
    files = audit()
    files.document["threat"]["eps"] = 0.5
    files.write(load(files.evidence), files.metadata() | {"threat": files.document["threat"]})
    files.sign()
    checks = verify_audit(files.document, read_evidence(files.evidence, "evidence"), network(), SHA)
    (ball,) = (check for check in checks if check.name == "ball and bounds")
    assert ball.detail.endswith("the farthest lies at 0.09, the radius is 0.5")
    assert "in a ball of this size" in conclusion(checks, files.document)


def test_a_model_without_a_digest_verifies_and_the_last_sentence_says_what_that_leaves_open() -> None:
    files = audit(sha256="")
    checks = verify_audit(files.document, read_evidence(files.evidence, "e"), network(), "")
    assert all(check.holds for check in checks), checks
    assert "cannot show: that this is the model that was audited" in conclusion(checks, files.document)
    known = audit()
    assert failures(known, sha="") == {"model"}


def test_altered_weights_are_noticed_with_and_without_the_digest() -> None:
    other = network()
    with torch.no_grad():
        other.bias[1] = -0.6
    assert failures(audit(), other) == {"misclassified", "points"}
    assert failures(audit(), sha="another digest") == {"model"}
    assert failures(audit(), sha="") == {"model"}


@pytest.mark.parametrize("size", [0, 4, 8, 60, -1, -40])
def test_a_truncated_file_is_refused(size: int) -> None:
    content = audit().evidence
    with pytest.raises(InputError, match=r"evidence\.safetensors is not a maskaudit evidence file, or it is damaged"):
        read_evidence(content[:size], "evidence.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        save({"x": torch.zeros(1)}),
        save({"x": torch.zeros(1)}, {"maskaudit_evidence": "[1]"}),
        save({"x": torch.zeros(1)}, {"maskaudit_evidence": "{}"}),
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_a_foreign_file_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match=r"damaged|lacks some of the tensors"):
        read_evidence(content, "evidence.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("label", torch.zeros(4)),
        ("rest_label", torch.zeros(3, dtype=torch.int64)),
        ("rest_index", torch.zeros(2)),
        ("rest", torch.zeros(2, 3)),
        ("rest", torch.full((2, 2), torch.nan)),
        ("label", torch.zeros(3, dtype=torch.int64)),
        ("label", torch.tensor(0)),
        ("example_point", torch.full((6,), 4)),
        ("example_point", torch.full((6,), -1)),
        ("example_point", torch.zeros(6)),
        ("example_attack", torch.zeros(5, dtype=torch.int64)),
        ("examples", torch.zeros(6, 3)),
        ("clean", torch.tensor(0.5)),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(name: str, tensor: Tensor) -> None:
    files = audit()
    files.write({**load(files.evidence), name: tensor}, files.metadata())
    with pytest.raises(InputError, match="do not fit together"):
        read_evidence(files.evidence, "evidence.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"threat": None},
        {"threat": {"norm": "Linf", "eps": "wide", "bounds": [0, 1]}},
        {"threat": {"norm": "Linf", "eps": 0.1, "bounds": [0]}},
        {"seed": "zero"},
        {"mean": ["a"]},
    ],
)
def test_malformed_scoring_is_refused(changes: dict[str, Any]) -> None:
    files = audit()
    files.write(load(files.evidence), {**files.metadata(), **changes})
    with pytest.raises(InputError, match="malformed"):
        failures(files)


@pytest.mark.parametrize(
    "points", [{}, [], {"index": [1, 2], "broken_by": [[]]}, {"index": ["x"], "broken_by": [["a"]]}]
)
def test_a_damaged_points_section_is_refused(points: object) -> None:
    files = audit()
    files.document["points"] = points
    with pytest.raises(InputError, match="points or accuracy section is damaged"):
        failures(files)


def test_counts_that_contradict_each_other_are_no_error_of_the_report_but_a_failed_check() -> None:
    files = audit()
    files.document["points"]["correct"] = [False] * len(files.document["points"]["correct"])
    (check,) = [one for one in recount(files.document) if one.name == "points"]
    assert not check.holds
    assert "contradicts itself" in check.detail


def test_a_report_without_any_attack_has_no_accuracy_to_check() -> None:
    guesses = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(guesses[1].weight)
    document = maskaudit.audit(guesses, "digits", eps=0.1, budget="quick", samples=24).report.to_dict()
    assert document["accuracy"]["best_known"] is None
    assert [check for check in recount(document) if not check.holds] == []


# --- on disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [EVIDENCE_FILE, None, "../../etc/passwd", f"/elsewhere/{EVIDENCE_FILE}", 3])
def test_the_evidence_is_looked_for_beside_the_report_only(
    named: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = Path.open

    def watched(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        read.extend([path] if mode == "rb" else [])
        return original(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", watched)
    monkeypatch.setattr(verify, "load_model", lambda *_, **__: SimpleNamespace(module=network(), sha256=SHA))
    files = audit()
    document = copy.deepcopy(files.document)
    document["evidence"]["file"] = named
    (tmp_path / "audit.json").write_text(dump_json(document))
    (tmp_path / EVIDENCE_FILE).write_bytes(files.evidence)
    if named in (EVIDENCE_FILE, None, f"/elsewhere/{EVIDENCE_FILE}"):
        assert all(check.holds for check in verify.verify_files(tmp_path, "model")[0])
    else:
        with pytest.raises(InputError, match=r"belongs next to the report|evidence\.file must be"):
            verify.verify_files(tmp_path, "model")
    assert {path.resolve().parent for path in read} == {tmp_path.resolve()}


def test_a_digest_from_elsewhere_is_held_against_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "load_model", lambda *_, **__: SimpleNamespace(module=network(), sha256=SHA))
    files = audit()
    written = dump_json(files.document).encode()
    (tmp_path / "audit.json").write_bytes(written)
    (tmp_path / EVIDENCE_FILE).write_bytes(files.evidence)
    digest = hashlib.sha256(written).hexdigest()
    checks, _ = verify.verify_files(tmp_path, "model", sha256=f" {digest.upper()}\n")
    assert all(check.holds for check in checks)
    checks, closing = verify.verify_files(tmp_path, "model", sha256="0" * 64)
    assert [check.name for check in checks if not check.holds] == ["published digest"]
    assert digest in checks[0].detail
    assert "does not hold: published digest" in closing
    alone, _ = verify.verify_files(tmp_path / EVIDENCE_FILE, "model", sha256=hashlib.sha256(files.evidence).hexdigest())
    assert all(check.holds for check in alone)
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        verify.verify_files(tmp_path, "model", sha256="latest")


def test_evidence_of_an_earlier_version_says_what_it_lacks() -> None:
    files = audit()
    tensors = {name: tensor for name, tensor in load(files.evidence).items() if not name.startswith("rest")}
    files.write(tensors, files.metadata())
    assert failures(files) == set()
    checks = verify_audit(files.document, read_evidence(files.evidence, "e"), network(), SHA)
    assert "lacks the other 2" in next(check.detail for check in checks if check.name == "clean points")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"[]", b'{"schema_version": 1}'])
def test_a_report_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_bytes(content)
    with pytest.raises(InputError, match=r"audit\.json is not valid JSON|not a maskaudit report|lacks the section"):
        read_report(tmp_path / "audit.json")


def test_a_missing_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_report(tmp_path / "audit.json")
