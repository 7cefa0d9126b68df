"""The evidence file: every adversarial example that the verdict rests on, and its verification.

A safetensors file with the tensors `clean` (P, …), `label` (P,), `index` (P,),
`examples` (M, …), `example_point` (M,) rows of `clean`, `example_attack` (M,) rows of
the attack list in the metadata, where everything needed to score them anew is kept
(for random models also `example_won` (M,), the draws that each won in its proof):
threat model, normalisation, output kind, seed and the digest of the report.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from maskaudit.auditing.ledger import Entry, Ledger
from maskaudit.declared import Checked, Choice, Flag, Items, Number, Optional, Record, Text, Whole, read
from maskaudit.declared.parsing import parse_json
from maskaudit.errors import InputError
from maskaudit.report.reading import PROSE
from maskaudit.report.reading import read_report as read_report
from maskaudit.results import dump_json, findings, plain
from maskaudit.target import Target, usual_batch
from maskaudit.target.form import FIELDS, Form
from maskaudit.target.rescore import rescore
from maskaudit.target.scores import breaking_margin
from maskaudit.threat import Norm, ThreatModel

_METADATA_KEY = "maskaudit_evidence"
_TENSORS = ("clean", "label", "index", "examples", "example_point", "example_attack")

#: Largest evidence file, in bytes: 4,096 points of 3×224×224 with one example each. It is held in memory as a whole.
MAX_BYTES = 5 << 30
#: Largest header of the file; most names of attacks, entries of mean and std, and dimensions in it.
MAX_HEADER = 1 << 20
MAX_ATTACKS = 1000
MAX_CHANNELS = 100_000
MAX_DIMENSIONS = 16
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_INPUT = 1e6

#: What the metadata say of how the examples were scored; further names are left out.
THREAT = Record(
    {
        "norm": Choice(*get_args(Norm)),
        "eps": Number(0, _LARGEST_INPUT, above=True),
        "bounds": Checked(
            Items(Number(-_LARGEST_INPUT, _LARGEST_INPUT), 2, 2), "two numbers, smallest first", lambda b: b[0] < b[1]
        ),
    },
    required=("norm", "eps", "bounds"),
    ignore_unknown=True,
)
SCORING = Record(
    {
        "attacks": Items(PROSE, MAX_ATTACKS),
        "report_sha256": Text(),
        "sha256": Text(),
        "threat": THREAT,
        "mean": Optional(Items(Number(-_LARGEST_INPUT, _LARGEST_INPUT), MAX_CHANNELS, 1)),
        "std": Optional(Items(Number(0, _LARGEST_INPUT, above=True), MAX_CHANNELS, 1)),
        "outputs": Text(),
        "form": FIELDS,
        "reject_class": Optional(Whole(0, 10**9)),
        "random": Flag(),
        "proof": Optional(Record({"draws": Whole(1, 10**6), "wins": Whole(1, 10**6), "error": Number(0, 1)})),
        "seed": Whole(0, 2**63 - 1),
        "device": Text(),
    },
    required=("attacks", "threat"),
    ignore_unknown=True,
)


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
    """SHA-256 of what a report found; without its evidence section, which names the evidence file in turn."""
    body = {key: findings(value) for key, value in document.items() if key != "evidence"}
    return hashlib.sha256(dump_json(body).encode()).hexdigest()


def pack_evidence(ledger: Ledger, document: dict[str, Any], scoring: dict[str, Any]) -> bytes:
    """The evidence file's bytes for a finished audit.

    Per broken point it holds the first example of each family that broke it (reference, own
    gradients on cross-entropy, white-box attacks on any loss, challengers), and of any other attack
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
    if scoring.get("random"):
        won = [ledger.entries[name].won.get(row, 0) for row, name in kept]
        tensors["example_won"] = torch.tensor(won, dtype=torch.int64)
    metadata = {"attacks": names, "report_sha256": report_digest(document), **scoring}
    return save_tensors(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)},
    )


def _kept_examples(ledger: Ledger) -> list[tuple[int, str]]:
    """(row, attack name) pairs that prove every family's union, row by row."""
    entries = [entry for entry in ledger.entries.values() if entry.spec.role != "sanity"]
    families: tuple[list[Entry], ...] = (
        [e for e in entries if e.spec.role == "reference"],
        [e for e in entries if e.spec.role in ("reference", "strong") and e.spec.family == "cross_entropy"],
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
        InputError: when it is truncated, not an evidence file, its tensors do not fit together, or its metadata hold
            what they must not.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = parse_json(data[8 : 8 + length] if length <= MAX_HEADER else b"", source, most=MAX_HEADER)
        metadata = parse_json(header["__metadata__"][_METADATA_KEY], source, most=MAX_HEADER)
        tensors = load_tensors(data)
    except (InputError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source} is not a maskaudit evidence file, or it is damaged.") from error
    if any(name not in tensors for name in _TENSORS):
        raise InputError(f"{source} lacks some of the tensors {', '.join(_TENSORS)}.")
    scoring = read(SCORING, metadata, f"{source} says in a malformed way how the model was scored")
    if not _fit_together(tensors, len(scoring["attacks"])):
        raise InputError(f"{source} is damaged: its tensors do not fit together.")
    return Evidence(tensors, scoring, hashlib.sha256(data).hexdigest())


def _fit_together(tensors: dict[str, Tensor], attacks: int) -> bool:
    """Whether shapes, types and row numbers are those that the module docstring promises."""
    clean, examples = tensors["clean"], tensors["examples"]
    point, attack = tensors["example_point"], tensors["example_attack"]
    if not 2 <= clean.dim() == examples.dim() <= MAX_DIMENSIONS or examples.shape[1:] != clean.shape[1:]:
        return False
    if not clean.shape[1:].numel() or any(tensor.dtype not in _FLOATS for tensor in (clean, examples)):
        return False
    lengths = dict.fromkeys(("label", "index"), len(clean)) | dict.fromkeys(_TENSORS[4:], len(examples))
    if any(tensors[n].shape != (length,) or tensors[n].dtype != torch.int64 for n, length in lengths.items()):
        return False
    rows = (point >= 0) & (point < len(clean)) & (attack >= 0) & (attack < attacks)
    return bool(rows.all()) and bool(clean.float().isfinite().all())


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
    threat = ThreatModel(**{name: scoring["threat"][name] for name in THREAT.fields})
    tensors = evidence.tensors
    clean, label, examples = tensors["clean"].float(), tensors["label"], tensors["examples"].float()
    point, random, reject_class = tensors["example_point"], scoring.get("random", False), scoring.get("reject_class")
    with _reviewed(model, scoring, threat, usual_batch(clean.shape[1:])) as target:
        right = _right(target, clean, label, random=random, reject_class=reject_class)
        rows = right[point].nonzero().squeeze(1)
        score = rescore(
            target.raw, examples[rows], clean[point[rows]], label[point[rows]], threat=threat,
            random=random, reject_class=reject_class,
        )  # fmt: skip
        held = rows[score.broken]
        margin = _smallest_margin(target, examples[held], label[point[held]], reject_class)
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
    reported = document["threat"] if isinstance(document.get("threat"), dict) else {}
    same = all(reported.get(name) == plain(scoring["threat"][name]) for name in THREAT.fields)
    return [
        Check("report", scoring.get("report_sha256") == report_digest(document), "unaltered since the audit"),
        Check("evidence", declared.get("sha256") == evidence.sha256, "is the file that the report names"),
        Check("threat", same, "same in report and evidence"),
    ]


def _reviewed(model: Any, scoring: dict[str, Any], threat: ThreatModel, batch_size: int) -> Target:
    """The reviewer's copy of the model, set up as it was for the audit."""
    cuda = scoring.get("device", "").startswith("cuda") and torch.cuda.is_available()
    return Target(
        model,
        bounds=threat.bounds,
        form=Form.from_dict(scoring.get("form", {})),
        mean=scoring.get("mean"),
        std=scoring.get("std"),
        device="cuda" if cuda else "cpu",
        batch_size=batch_size,
        seed=scoring.get("seed", 0),
    )


def _right(target: Target, clean: Tensor, label: Tensor, *, random: bool, reject_class: int | None) -> Tensor:
    """Clean points (P,) that the model gives their label: a wrong label would make any input an example.

    A random model may waver on a clean point; there only labels that it has no class for are refused.
    """
    if not len(clean):
        return torch.ones(0, dtype=torch.bool)
    answers = target.raw(clean)
    classes = answers.shape[1]
    if reject_class is not None and reject_class >= classes:
        raise InputError(
            f"The evidence says that output {reject_class} means a refusal, but the model has {classes} outputs: "
            "give the model that was audited."
        )
    known = (label >= 0) & (label < classes)
    return known if random else known & (answers.argmax(dim=1) == label)


def _check_points(document: dict[str, Any], proven: set[int]) -> list[Check]:
    """Every point that the report calls broken has an example that holds, and the stated accuracy is what is left."""
    points, accuracy = document.get("points", {}), document.get("accuracy", {})
    try:
        claimed = {int(i) for i, by in zip(points["index"], points["broken_by"], strict=True) if by}
        unbroken = sum(bool(right) and not by for right, by in zip(points["correct"], points["broken_by"], strict=True))
        stated = accuracy["best_known"]["value"]
        agrees = abs(float(stated) - unbroken / len(points["index"])) < 1e-9
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError("The report's points or accuracy section is damaged.") from error
    unproven = claimed - proven
    return [
        Check("points", not unproven, f"{len(claimed - unproven)} of {len(claimed)} broken points are proven"),
        Check(
            "accuracy",
            agrees,
            f"best known {float(stated):.1%}, {unbroken} of {len(points['index'])} points withstand every attack",
        ),
    ]
