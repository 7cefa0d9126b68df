"""The audit as data: frozen dataclasses and the versioned JSON document (schema version 1).

Nothing here knows torch. Field meanings are the contract of the JSON; renderers
read the dictionary that `AuditReport.to_dict` returns and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import PurePath
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from maskaudit.declared.kinds import shown
from maskaudit.declared.parsing import writable
from maskaudit.errors import InputError

SCHEMA_VERSION = 1

#: The file of examples next to a report.
EVIDENCE_FILE = "evidence.safetensors"

Label = Literal["masked", "suspect", "clear", "inconclusive"]
ClaimStatus = Literal["refuted", "not_refuted", "no_claim"]
ProbeStatus = Literal["pass", "finding", "not_applicable", "error"]
Role = Literal["reference", "strong", "challenger", "repaired", "second_opinion", "exact", "sanity"]
Confidence = Literal["low", "medium", "high"]
Family = Literal["cross_entropy", "other_loss"]
#: A part of the search that no verdict can do without; "" for attacks of which none is needed.
Part = Literal["", "reference", "cross_entropy", "other_loss", "gradient_free"]
Norm = Literal["Linf", "L2"]


@dataclass(frozen=True)
class Rate:
    """A share of points with its exact interval: `value` in [low, high], out of `n` points."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Location:
    """Where in the model; empty strings and None where unknown."""

    module: str = ""
    op: str = ""
    file: str | None = None
    line: int | None = None

    @property
    def source(self) -> str:
        """`net.py:14`: the name of the file, and the line; empty where there is no file."""
        return f"{PurePath(self.file).name}:{self.line}" if self.file else ""

    @property
    def words(self) -> str:
        """`tanh in layers.1 (net.py:14)`, as far as known."""
        return place_in_words(self.op, self.module, self.source)


def place_in_words(op: str, module: str, source: str) -> str:
    """`tanh in layers.1 (net.py:14)`; what is empty is left out."""
    spot = " ".join(part for part in (op, module and f"in {module}") if part)
    return f"{spot} ({source})" if spot and source else spot or source


@dataclass(frozen=True)
class Confirmation:
    """What a repair did to points that withstand white-box attacks, `points` of them.

    `alone` and `together` count those broken through this repair by itself, and through all repairs at once;
    None where that was not tried.
    """

    repair: str
    alone: int | None
    together: int | None
    points: int


@dataclass(frozen=True)
class Mechanism:
    """How the gradients are blinded, and which repair confirmed it."""

    id: str
    title: str
    confidence: Confidence
    locations: tuple[Location, ...] = ()
    confirmed_by: tuple[Confirmation, ...] = ()


@dataclass(frozen=True)
class ProbeFinding:
    """One thing a probe saw at one place."""

    message: str
    location: Location = Location()


@dataclass(frozen=True)
class ProbeResult:
    """What one probe measured and how it was graded.

    `value` with `unit` is the headline figure, `low`/`high` its interval where it is a rate over `n`
    points; `threshold` is the limit it was graded against. `details` holds further figures (JSON types).
    """

    rule: str
    title: str
    status: ProbeStatus
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int = 0
    threshold: float | None = None
    reason: str = ""
    meaning: str = ""
    remedy: str = ""
    sources: tuple[str, ...] = ()
    findings: tuple[ProbeFinding, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class AttackRow:
    """One attack's outcome over the points it was given, as re-scored by independent code.

    `robust_accuracy` is the fraction of all drawn points that withstand it, with `interval` around it; both are None
    unless it met every correctly classified point. `broken` counts the points broken by this attack, `attempted`
    those it was run on, `new` those that no earlier row had broken. `family` is the loss that a white-box attack
    follows, None for other attacks. `curve` lists [step, points broken by then]. `part` is the essential part of the
    search that it belongs to, and `decisive` says that the verdict is left open where it ends in an error.
    """

    name: str
    title: str
    kind: str
    role: Role
    family: Family | None
    robust_accuracy: float | None
    broken: int
    attempted: int
    new: int
    queries: int
    forwards: int
    backwards: int
    seconds: float
    status: Literal["ran", "skipped", "error"] = "ran"
    reason: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    curve: tuple[tuple[int, int], ...] = ()
    interval: Rate | None = None
    part: Part = ""
    decisive: bool = False


@dataclass(frozen=True)
class Verdict:
    """The judgement: label, one sentence, mechanisms, and the reasons in order of weight."""

    label: Label
    sentence: str
    mechanisms: tuple[Mechanism, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A claimed robust accuracy and whether the audit refutes it."""

    claimed: float | None
    status: ClaimStatus


@dataclass(frozen=True)
class Partial:
    """Why an audit ended before it was finished, as a sentence; what it had found by then is in the report.

    `judged` says that its verdict had been reached before.
    """

    reason: str
    judged: bool = False


@dataclass(frozen=True)
class BranchRow:
    """One branch of a network, in numbers of points: see `maskaudit.auditing.branches`.

    Attributes:
        branch: path of the module that ends it.
        points: points searched.
        whole: broken through the gradient of the whole network; alone: through that of the branch; masked: through
            that of everything else.
        hides: broken with the branch masked and not through the whole gradient; hidden: broken through the branch alone
            and not through the whole gradient.
        no_gradient: points at which no gradient comes through the branch.
        without_correct: answered rightly by the network without the branch.
        without_fooled: of these, fooled by what was found through the branch alone.
    """

    branch: str
    points: int
    whole: int
    alone: int
    masked: int
    hides: int
    hidden: int
    no_gradient: int
    without_correct: int
    without_fooled: int


@dataclass(frozen=True)
class AuditReport:
    """Everything an audit found; `to_dict` is the JSON contract.

    `partial` says why the audit ended before it was finished; None where it was finished.
    """

    tool: dict[str, Any]
    environment: dict[str, Any]
    target: dict[str, Any]
    threat: dict[str, Any]
    settings: dict[str, Any]
    verdict: Verdict
    claim: Claim
    accuracy: dict[str, Rate | None]
    masking: dict[str, Any]
    power: dict[str, Any]
    probes: tuple[ProbeResult, ...]
    attacks: tuple[AttackRow, ...]
    points: dict[str, Any]
    evidence: dict[str, Any]
    figures: dict[str, Any]
    notes: tuple[str, ...] = ()
    trace: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    partial: Partial | None = None
    branches: tuple[BranchRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: plain types only, non-finite numbers as null."""
        return {"schema_version": SCHEMA_VERSION, **plain(dataclasses.asdict(self))}

    def with_evidence(self, file: str, content: bytes) -> AuditReport:
        """The same report, naming the evidence file that proves it."""
        digest = hashlib.sha256(content).hexdigest()
        return dataclasses.replace(self, evidence={"file": file, "sha256": digest})

    def to_json(self) -> str:
        """The JSON document as text; same report, same bytes."""
        return dump_json(self.to_dict())


def dump_json(document: dict[str, Any] | list[Any]) -> str:
    """Canonical text of a JSON document."""
    return json.dumps(document, indent=1, sort_keys=False, allow_nan=False, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """JSON types only: tuples become lists, non-finite floats None; texts are what a reader of reports takes.

    Names of a model's modules may be any text: what UTF-8 or a reader cannot take in them becomes U+FFFD.
    """
    if isinstance(value, str):
        return writable(value)
    if isinstance(value, dict):
        return {writable(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    raise TypeError(f"{type(value).__name__} does not belong in a report")


def revived(kind: Any, value: Any) -> Any:
    """A value of a checked JSON document as the type that was written: dataclasses and tuples, however nested.

    Names that a dataclass does not have are left out.

    Raises:
        TypeError: where a field without a default is missing.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if value is None or origin is Literal:
        return value
    if origin in (Union, UnionType):
        return revived(next(one for one in arguments if one is not type(None)), value)
    if origin is tuple:
        return tuple(revived(arguments[0], item) for item in value)
    if not dataclasses.is_dataclass(kind):
        return value
    hints = get_type_hints(kind)
    return kind(**{name: revived(hint, value[name]) for name, hint in hints.items() if name in value})  # type: ignore[operator]


#: Fields, wherever they are, that tell how an audit was run and not what it found. In everything else two audits of the
#: same model agree, for any number of workers and after any number of interruptions.
RUN_FIELDS = frozenset({"seconds", "total_seconds", "command", "memory", "peak_memory", "points_per_pass"})


def without_run_fields(document: Any) -> Any:
    """A report, or any part of one, without the fields that only tell how the audit was run."""
    if isinstance(document, dict):
        return {key: without_run_fields(value) for key, value in document.items() if key not in RUN_FIELDS}
    return [without_run_fields(item) for item in document] if isinstance(document, list) else document


def check_document(document: Any) -> dict[str, Any]:
    """Accept a parsed JSON report of this schema, or say in one sentence why not.

    Raises:
        InputError: not a maskaudit report, or written by a newer major schema.
    """
    if not isinstance(document, dict) or "schema_version" not in document:
        raise InputError("This is not a maskaudit report: expected a JSON object with a schema_version.")
    version = document["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"The report's schema_version must be a whole number from 1, got {shown(version)}.")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"The report has schema version {shown(version)}, this maskaudit reads up to {SCHEMA_VERSION}: "
            "upgrade maskaudit."
        )
    missing = [name for name in REQUIRED_SECTIONS if name not in document]
    if missing:
        raise InputError(f"The report lacks the section(s) {', '.join(missing)}: it is truncated or was edited.")
    return document


REQUIRED_SECTIONS = tuple(
    f.name
    for f in dataclasses.fields(AuditReport)
    if f.name not in ("figures", "notes", "trace", "timing", "plan", "partial", "branches")
)
