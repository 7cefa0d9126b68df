"""The evidence file: every adversarial example that the verdict rests on, and its verification.

A safetensors file with the tensors `clean` (P, …), `label` (P,), `index` (P,),
`examples` (M, …), `example_point` (M,) rows of `clean`, `example_attack` (M,) rows of
the attack list in the metadata, where everything needed to score them anew is kept:
threat model, normalisation, output kind, seed and the digest of the report.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from maskaudit.errors import InputError
from maskaudit.ledger import Entry, Ledger
from maskaudit.rescore import rescore
from maskaudit.results import check_document, dump_json
from maskaudit.scores import breaking_margin
from maskaudit.target import Target, usual_batch
from maskaudit.threat import ThreatModel

_METADATA_KEY = "maskaudit_evidence"
_TENSORS = ("clean", "label", "index", "examples", "example_point", "example_attack")


@dataclass(frozen=True)
class Evidence:
    """Parsed evidence; tensors as in the module docstring."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class Check:
    """One thing that `verify` checked: what, whether it holds, and the detail."""

    name: str
    holds: bool
    detail: str


def report_digest(document: dict[str, Any]) -> str:
    """SHA-256 of a report without its evidence section, which names the evidence file in turn."""
    body = {key: value for key, value in document.items() if key != "evidence"}
    return hashlib.sha256(dump_json(body).encode()).hexdigest()


def pack_evidence(ledger: Ledger, document: dict[str, Any], scoring: dict[str, Any]) -> bytes:
    """The evidence file's bytes for a finished audit.

    Per broken point it holds the first example of each family that broke it (reference, own
    gradients on cross-entropy, own gradients on any loss, challengers), and of any other attack
    where no family did.

    Args:
        ledger: the audit's ledger.
        document: the report (`evidence` section ignored).
        scoring: what `rescore` needs: threat, mean, std, outputs, reject_class, random, seed, sha256 of the model.
    """
    kept = _kept_examples(ledger)
    rows = sorted({row for row, _ in kept})
    position = {row: i for i, row in enumerate(rows)}
    names = list(ledger.entries)
    pick = torch.tensor(rows, dtype=torch.int64)
    tensors = {
        "clean": ledger.x[pick],
        "label": ledger.y[pick],
        "index": torch.tensor([ledger.index[row] for row in rows], dtype=torch.int64),
        "examples": torch.stack([ledger.entries[name].examples[row] for row, name in kept])
        if kept
        else torch.empty(0, *ledger.x.shape[1:]),
        "example_point": torch.tensor([position[row] for row, _ in kept], dtype=torch.int64),
        "example_attack": torch.tensor([names.index(name) for _, name in kept], dtype=torch.int64),
    }
    metadata = {"attacks": names, "report_sha256": report_digest(document), **scoring}
    return save_tensors(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)},
    )


def _kept_examples(ledger: Ledger) -> list[tuple[int, str]]:
    """(row, attack name) pairs that prove every family's union, row by row."""
    entries = [entry for entry in ledger.entries.values() if entry.spec.kind != "sanity"]
    families: tuple[list[Entry], ...] = (
        [e for e in entries if e.spec.role == "reference"],
        [e for e in entries if e.spec.role in ("reference", "strong") and e.spec.loss_family == "ce"],
        [e for e in entries if e.spec.role in ("reference", "strong")],
        [e for e in entries if e.spec.role in ("challenger", "repaired")],
        entries,
    )
    kept: list[tuple[int, str]] = []
    for row in ledger.best_known().nonzero().squeeze(1).tolist():
        chosen: list[str] = []
        for family in families[:-1] if any(_breaks(family, row) for family in families[:-1]) else families:
            name = next((e.spec.name for e in family if row in e.examples), None)
            if name is not None and name not in chosen:
                chosen.append(name)
        kept += [(row, name) for name in chosen]
    return kept


def _breaks(family: list[Entry], row: int) -> bool:
    return any(row in entry.examples for entry in family)


def read_evidence(data: bytes, source: str) -> Evidence:
    """Parse an evidence file.

    Raises:
        InputError: when it is truncated, not an evidence file, or its tensors do not fit together.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = json.loads(header["__metadata__"][_METADATA_KEY])
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{source} is not a maskaudit evidence file, or it is damaged.") from error
    if not isinstance(metadata, dict) or any(name not in tensors for name in _TENSORS):
        raise InputError(f"{source} lacks some of the tensors {', '.join(_TENSORS)}.")
    if not _fit_together(tensors):
        raise InputError(f"{source} is damaged: its tensors do not fit together.")
    return Evidence(tensors, metadata, hashlib.sha256(data).hexdigest())


def _fit_together(tensors: dict[str, Tensor]) -> bool:
    """Whether shapes, types and row numbers are those that the module docstring promises."""
    clean, examples, point = tensors["clean"], tensors["examples"], tensors["example_point"]
    if min(clean.dim(), examples.dim()) < 1 or examples.shape[1:] != clean.shape[1:]:
        return False
    lengths = {
        "label": len(clean), "index": len(clean), "example_point": len(examples), "example_attack": len(examples),
    }  # fmt: skip
    if any(tensors[n].shape != (length,) or tensors[n].dtype != torch.int64 for n, length in lengths.items()):
        return False
    return bool(((point >= 0) & (point < len(clean))).all())


def read_report(path: Path) -> dict[str, Any]:
    """Parse and check an audit.json.

    Raises:
        InputError: when it cannot be read or is not a report of this schema.
    """
    try:
        return check_document(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"The report {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"The report {path} is not valid JSON: {error}") from error


def verify_audit(document: dict[str, Any] | None, evidence: Evidence, model: Any, model_sha256: str) -> list[Check]:
    """Score every example anew and hold report, evidence and model against each other.

    Args:
        document: the report, or None to check the evidence alone; evidence: its evidence file.
        model: the reviewer's copy of the model; `model_sha256`: its digest.
    """
    scoring = evidence.metadata
    checks = [] if document is None else _check_report(document, evidence)
    same_model = bool(model_sha256) and scoring.get("sha256") == model_sha256
    checks.append(Check("model", same_model, "same bytes as audited"))
    threat = threat_from(scoring.get("threat"))
    tensors = evidence.tensors
    clean, label, examples = tensors["clean"].float(), tensors["label"], tensors["examples"].float()
    point = tensors["example_point"]
    with _reviewed(model, scoring, threat, usual_batch(clean.shape[1:])) as target:
        right = _right(target, clean, label, random=bool(scoring.get("random")))
        rows = right[point].nonzero().squeeze(1)
        score = rescore(
            target.raw, examples[rows], clean[point[rows]], label[point[rows]], threat=threat,
            random=bool(scoring.get("random")), reject_class=scoring.get("reject_class"),
        )  # fmt: skip
        held = rows[score.broken]
        margin = _smallest_margin(target, examples[held], label[point[held]], scoring.get("reject_class"))
    n, inside, broken = len(point), int(threat.admissible(examples, clean[point]).sum()), int(score.broken.sum())
    checks.append(Check("clean points", bool(right.all()), f"{int(right.sum())} of {len(clean)} bear the right label"))
    checks.append(Check("ball and bounds", inside == n, f"{inside} of {n} examples are admissible"))
    checks.append(Check("misclassified", broken == n, f"{broken} of {n} examples break their point{margin}"))
    if document is None:
        return checks
    proven = {int(i) for i in tensors["index"][point[rows[score.broken]]]}
    return [*checks, *_check_points(document, proven)]


def _smallest_margin(target: Target, examples: Tensor, label: Tensor, reject_class: int | None) -> str:
    """How clearly the weakest of the examples that hold is misclassified, as the end of a sentence."""
    if not len(examples):
        return ""
    margin = breaking_margin(target.raw(examples), label, reject_class).min()
    return f"; smallest margin {float(margin):.3g}"


def _check_report(document: dict[str, Any], evidence: Evidence) -> list[Check]:
    """Whether report and evidence are the pair that the audit wrote."""
    scoring = evidence.metadata
    declared = document["evidence"] if isinstance(document.get("evidence"), dict) else {}
    return [
        Check("report", scoring.get("report_sha256") == report_digest(document), "unaltered since the audit"),
        Check("evidence", declared.get("sha256") == evidence.sha256, "is the file that the report names"),
        Check("threat", scoring.get("threat") == document.get("threat"), "same in report and evidence"),
    ]


def _reviewed(model: Any, scoring: dict[str, Any], threat: ThreatModel, batch_size: int) -> Target:
    """The reviewer's copy of the model, set up as it was for the audit."""
    try:
        return Target(
            model,
            bounds=threat.bounds,
            mean=_floats(scoring.get("mean")),
            std=_floats(scoring.get("std")),
            device=str(scoring.get("device", "cpu")) if torch.cuda.is_available() else "cpu",
            batch_size=batch_size,
            seed=int(scoring.get("seed", 0)),
        )
    except (TypeError, ValueError) as error:
        raise InputError("The evidence says in a malformed way how the model was scored.") from error


def _right(target: Target, clean: Tensor, label: Tensor, *, random: bool) -> Tensor:
    """Clean points (P,) that the model gives their label: a wrong label would make any input an example.

    A random model may waver on a clean point; there only labels that it has no class for are refused.
    """
    if not len(clean):
        return torch.ones(0, dtype=torch.bool)
    answers = target.raw(clean)
    known = (label >= 0) & (label < answers.shape[1])
    return known if random else known & (answers.argmax(dim=1) == label)


def _check_points(document: dict[str, Any], proven: set[int]) -> list[Check]:
    """Every point that the report calls broken has an example that holds, and the stated accuracy is what is left."""
    points, accuracy = document.get("points", {}), document.get("accuracy", {})
    try:
        claimed = {int(i) for i, by in zip(points["index"], points["broken_by"], strict=True) if by}
        standing = sum(bool(right) and not by for right, by in zip(points["correct"], points["broken_by"], strict=True))
        stated = accuracy["best_known"]["value"]
        agrees = abs(float(stated) - standing / len(points["index"])) < 1e-9
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError("The report's points or accuracy section is damaged.") from error
    unproven = claimed - proven
    return [
        Check("points", not unproven, f"{len(claimed - unproven)} of {len(claimed)} broken points are proven"),
        Check("accuracy", agrees, f"best known {float(stated):.1%}, {standing} of {len(points['index'])} points stand"),
    ]


def threat_from(document: Any) -> ThreatModel:
    """The threat model of a report's or evidence file's `threat` section.

    Raises:
        InputError: when the section is missing or malformed.
    """
    try:
        low, high = document["bounds"]
        return ThreatModel(document["norm"], float(document["eps"]), (float(low), float(high)))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("The threat model in the file is missing or malformed.") from error


def _floats(values: Any) -> tuple[float, ...] | None:
    return tuple(float(v) for v in values) if isinstance(values, (list, tuple)) else None
