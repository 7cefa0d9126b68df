"""Evidence: pack, read, verify; and every alteration that verification must notice."""

from __future__ import annotations

import copy
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

from maskaudit.attacks.interface import AttackSpec, Attempt
from maskaudit.auditing.evidence import pack_evidence, read_evidence, read_report, report_digest, verify_audit
from maskaudit.auditing.ledger import Ledger
from maskaudit.command import jobs
from maskaudit.errors import InputError
from maskaudit.results import EVIDENCE_FILE, REQUIRED_SECTIONS, Family, Role, dump_json
from maskaudit.threat import ThreatModel

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


PGD, MARGIN = spec("pgd", "reference", family="cross_entropy"), spec("apgd-margin", "strong")
SQUARE, OPINION = spec("square", "challenger", "score"), spec("torchattacks:PGD", "second_opinion", "external")
SANITY = spec("unbounded", "sanity")


def audited() -> Ledger:
    """Points 0 … 4 correct; 0 falls to all, 1 to margin and square, 2 to square, 3 to the second opinion, 4 to none."""
    ledger = Ledger()
    x = torch.full((POINTS, 2), 0.45)
    x[5] = 0.9
    correct = torch.arange(POINTS) < 5
    ledger.add_points(torch.arange(POINTS) + 50, x, torch.zeros(POINTS, dtype=torch.int64), correct, (~correct).long())
    rows = torch.arange(5)
    fallen = ((PGD, [0]), (MARGIN, [0, 1]), (SQUARE, [0, 1, 2]), (OPINION, [3]), (SANITY, [0, 1, 2, 3, 4]))
    for number, (attack, broken) in enumerate(fallen):
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
    document: dict[str, Any] = {
        "schema_version": 1,
        **{section: {} for section in REQUIRED_SECTIONS},
        "probes": [],
        "attacks": [],
    }
    document["threat"] = {"norm": THREAT.norm, "eps": THREAT.eps, "bounds": list(THREAT.bounds)}
    document["points"] = {
        "index": ledger.index,
        "broken_by": [
            [e.spec.name for e in ledger.entries.values() if row in e.examples and e.spec.role != "sanity"]
            for row in range(len(ledger))
        ],
        "correct": ledger.correct.tolist(),
    }
    unbroken = int((ledger.correct & ~ledger.best_known()).sum())
    document["accuracy"] = {"best_known": {"value": unbroken / len(ledger)}}
    settings = {"threat": document["threat"], "sha256": SHA, "seed": 0, "random": False, "reject_class": None}
    files = Files(document, pack_evidence(ledger, document, {**settings, **scoring}))
    files.write(load(files.evidence), files.metadata())
    return files


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
    "an example outside the ball": (_tensor("examples", _set(0, 0.7)), {"ball and bounds", "misclassified"}),
    "an example that is not a number": (_tensor("examples", _set(0, torch.nan)), {"ball and bounds", "misclassified"}),
    "a label": (_tensor("label", _set(2, 1)), {"clean points", "misclassified", "points"}),
    "a label that the model lacks": (_tensor("label", _set(2, 12)), {"clean points", "misclassified", "points"}),
    "a negative label": (_tensor("label", _set(2, -1)), {"clean points", "misclassified", "points"}),
    "a clean point": (_tensor("clean", _set(2, 0.51)), {"clean points", "misclassified", "points"}),
    "the point an example belongs to": (_tensor("index", _set(3, 99)), {"points"}),
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
    assert failures(files) == {"report"}


def test_a_claim_of_a_broken_point_without_example_is_noticed() -> None:
    files = audit()
    files.document["points"]["broken_by"][4] = ["square"]
    assert failures(files) == {"report", "points", "accuracy"}
    files.sign()
    assert failures(files) == {"points", "accuracy"}


def test_an_accuracy_that_the_points_do_not_bear_out_is_noticed() -> None:
    files = audit()
    files.document["accuracy"]["best_known"]["value"] = 0.0
    files.sign()
    assert failures(files) == {"accuracy"}


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
    monkeypatch.setattr(jobs, "load_model", lambda *_, **__: SimpleNamespace(module=network(), sha256=SHA))
    files = audit()
    document = copy.deepcopy(files.document)
    document["evidence"]["file"] = named
    (tmp_path / "audit.json").write_text(dump_json(document))
    (tmp_path / EVIDENCE_FILE).write_bytes(files.evidence)
    if named in (EVIDENCE_FILE, None, f"/elsewhere/{EVIDENCE_FILE}"):
        assert all(check.holds for check in jobs.verify_files(tmp_path, "model"))
    else:
        with pytest.raises(InputError, match=r"keep it beside the report|evidence\.file must be"):
            jobs.verify_files(tmp_path, "model")
    assert {path.resolve().parent for path in read} == {tmp_path.resolve()}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"[]", b'{"schema_version": 1}'])
def test_a_report_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_bytes(content)
    with pytest.raises(InputError, match=r"audit\.json is not valid JSON|not a maskaudit report|lacks the section"):
        read_report(tmp_path / "audit.json")


def test_a_missing_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_report(tmp_path / "audit.json")
