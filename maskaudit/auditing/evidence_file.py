"""The evidence file: the drawn points, and every adversarial example that the verdict rests on.

A safetensors file with the tensors `clean` (P, …), `label` (P,), `index` (P,) of the points that something broke,
`rest` (Q, …), `rest_label` (Q,), `rest_index` (Q,) of the other drawn points (files of earlier versions lack them),
`examples` (M, …), `example_point` (M,) rows of `clean`, `example_attack` (M,) rows of the attack list in the metadata,
where everything needed to score them anew is kept: threat model, normalisation, output kind, seed and the digest of
the report; for random models also `example_won` (M,), the draws that each won in its proof.
`maskaudit.auditing.evidence` verifies it.
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

from maskaudit.auditing.ledger import Ledger
from maskaudit.declared import Checked, Choice, Flag, Items, Number, Optional, Record, Text, Whole, read
from maskaudit.declared.parsing import parse_json
from maskaudit.errors import InputError
from maskaudit.report.reading import PROSE
from maskaudit.results import dump_json, without_run_fields
from maskaudit.target.form import FIELDS
from maskaudit.threat import Norm

_METADATA_KEY = "maskaudit_evidence"
_TENSORS = ("clean", "label", "index", "examples", "example_point", "example_attack")
_REST = ("rest", "rest_label", "rest_index")

#: Largest evidence file, in bytes: 4,096 points of 3×224×224 with one example each. It is held in memory as a whole.
MAX_BYTES = 5 << 30
#: Largest header of the file; most names of attacks, entries of mean and std, and dimensions in it.
MAX_HEADER = 1 << 20
MAX_ATTACKS = 1000
MAX_CHANNELS = 100_000
MAX_DIMENSIONS = 16
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_INPUT, _LARGEST_VALUE = 1e6, 1e9

_SHARES = Items(Number(0, 1), MAX_CHANNELS, 1)
FEATURES = Record(
    {
        "low": Items(Number(-_LARGEST_VALUE, _LARGEST_VALUE), MAX_CHANNELS, 1),
        "width": Items(Number(0, 2 * _LARGEST_VALUE, above=True), MAX_CHANNELS, 1),
        "scale": _SHARES,
        "step": _SHARES,
        "groups": Items(Items(Whole(0, MAX_CHANNELS), MAX_CHANNELS, 2), MAX_CHANNELS),
    },
    required=("low", "width", "scale", "step", "groups"),
)
#: What the metadata say of how the examples were scored; further names are left out.
THREAT = Record(
    {
        "norm": Choice(*get_args(Norm)),
        "eps": Number(0, _LARGEST_INPUT, above=True),
        "bounds": Checked(
            Items(Number(-_LARGEST_INPUT, _LARGEST_INPUT), 2, 2), "two numbers, smallest first", lambda b: b[0] < b[1]
        ),
        "features": FEATURES,
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


def report_digest(document: dict[str, Any]) -> str:
    """SHA-256 of what a report found; without its evidence section, which names the evidence file in turn."""
    body = {key: without_run_fields(value) for key, value in document.items() if key != "evidence"}
    return hashlib.sha256(dump_json(body).encode()).hexdigest()


def pack_evidence(ledger: Ledger, document: dict[str, Any], scoring: dict[str, Any]) -> bytes:
    """The evidence file's bytes for a finished audit.

    Per broken point it holds the first example of each family that broke it (reference, white-box
    attacks on cross-entropy, white-box attacks on any loss, challengers), and of any other attack
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
    rest = torch.tensor([row for row in range(len(ledger)) if row not in position], dtype=torch.int64)
    tensors = {
        "clean": ledger.x[pick],
        "label": ledger.y[pick],
        "index": torch.tensor([ledger.index[row] for row in rows], dtype=torch.int64),
        "rest": ledger.x[rest],
        "rest_label": ledger.y[rest],
        "rest_index": torch.tensor([ledger.index[row] for row in rest.tolist()], dtype=torch.int64),
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
    families = ledger.families
    kept: list[tuple[int, str]] = []
    for row in ledger.best_known().nonzero().squeeze(1).tolist():
        broke = [name for name, _ in ledger.examples_of(row)]
        first = [
            next((name for name in broke if name in family), None)
            for family in (families.reference, families.cross_entropy, families.strong, families.challengers)
        ]
        kept += [(row, name) for name in dict.fromkeys(filter(None, first)) or broke[:1]]
    return kept


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
    if not all(tensors[name].dim() for name in _TENSORS):
        raise InputError(f"{source} is damaged: its tensors do not fit together.")
    if not any(name in tensors for name in _REST):
        tensors |= {"rest": tensors["clean"][:0], **dict.fromkeys(_REST[1:], tensors["label"][:0])}
    if any(name not in tensors for name in _REST):
        raise InputError(f"{source} lacks some of the tensors {', '.join(_REST)}.")
    scoring = read(SCORING, metadata, f"{source} says in a malformed way how the model was scored")
    if not _fit_together(tensors, len(scoring["attacks"])):
        raise InputError(f"{source} is damaged: its tensors do not fit together.")
    return Evidence(tensors, scoring, hashlib.sha256(data).hexdigest())


def _fit_together(tensors: dict[str, Tensor], attacks: int) -> bool:
    """Whether shapes, types and row numbers are those that the module docstring promises."""
    clean, rest, examples = tensors["clean"], tensors["rest"], tensors["examples"]
    point, attack = tensors["example_point"], tensors["example_attack"]
    if not 2 <= clean.dim() <= MAX_DIMENSIONS or not clean.shape[1:].numel():
        return False
    inputs = (clean, rest, examples)
    if any(one.shape[1:] != clean.shape[1:] or one.dim() != clean.dim() or one.dtype not in _FLOATS for one in inputs):
        return False
    lengths = {
        **dict.fromkeys(("label", "index"), len(clean)), **dict.fromkeys(_REST[1:], len(rest)),
        **dict.fromkeys(("example_point", "example_attack"), len(examples)),
    }  # fmt: skip
    if any(tensors[n].shape != (length,) or tensors[n].dtype != torch.int64 for n, length in lengths.items()):
        return False
    rows = (point >= 0) & (point < len(clean)) & (attack >= 0) & (attack < attacks)
    return bool(rows.all()) and all(bool(one.float().isfinite().all()) for one in (clean, rest))
