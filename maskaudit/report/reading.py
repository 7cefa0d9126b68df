"""The JSON report as a file that may hold anything: what each field may hold, and the one way to read it.

Sections that are dataclasses (`maskaudit.results`) are declared by their types; the others are declared here. A name
that is not declared may come from a later version: it is kept where it is small, and nothing acts on it.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from maskaudit.declared import (
    Anything,
    Checked,
    Choice,
    Flag,
    Items,
    Kind,
    Number,
    Optional,
    Record,
    Refused,
    Table,
    Whole,
    read,
)
from maskaudit.declared.parsing import parse_json
from maskaudit.files import read_bounded
from maskaudit.results import REQUIRED_SECTIONS, AttackRow, AuditReport, Mechanism, ProbeResult, Rate, check_document

#: Largest report, in bytes: 50,000 points with the names of ten attacks each take half of it.
MAX_BYTES = 32 << 20
MAX_POINTS = 100_000
#: Most attacks and most probes.
MAX_TABLE = 300
#: Most findings of all probes together.
MAX_ALL_FINDINGS = 10_000
#: Most entries of any list that has no limit of its own.
MAX_ROWS = 1000
#: Most steps at which an attack's curve changes: no more than it has points.
MAX_CURVE = MAX_POINTS
#: Longest text, in characters; reports show the beginning of it.
MAX_PROSE = 100_000
#: Longest image of a strip, in characters (base64).
MAX_PIXELS = 1 << 20
#: Most values in all inside one free part of the report: settings of an attack, details of a probe, unknown names.
MAX_FREE = 10_000
_LARGEST = sys.float_info.max

#: Terminal control sequences and characters are removed where a text is shown (`maskaudit.report.coerce.text`).
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Prose(Kind[str]):
    """A text of at most `longest` characters, whatever they are: words of models and errors may be in it."""

    longest: int = MAX_PROSE

    @property
    def expected(self) -> str:
        return f"a text of at most {self.longest} characters"

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or len(value) > self.longest or _UNWRITABLE.search(value):
            raise self.refusal(value)
        return value


def _small(value: Any, most: int = MAX_FREE) -> bool:
    """Whether a tree holds at most `most` values in all, counted no further than that."""
    seen, level = 0, [value]
    while level and seen <= most:
        seen += len(level)
        groups = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [item for group in groups for item in group]
    return seen <= most


@dataclass(frozen=True)
class Open(Record):
    """An object with declared fields; further names may come from a later version, and are few and small."""

    ignore_unknown: bool = True

    def read(self, value: Any) -> dict[str, Any]:
        found = super().read(value)
        if not _small([item for name, item in value.items() if name not in self.fields]):
            raise Refused(f"must hold at most {MAX_FREE} values under names that are not declared")
        return found


PROSE = Prose()
FLAG = Flag()
NUMBER = Number(-_LARGEST, _LARGEST)
SHARE = Number(0, 1)
COUNT = Whole(0, 2**63 - 1)
LABEL = Whole(-(2**63), 2**63 - 1)
WORDS = Items(PROSE, MAX_ROWS)
NUMBERS = Items(NUMBER, 10 * MAX_ROWS)
FREE = Checked(Table(Anything(), MAX_ROWS), f"an object of at most {MAX_FREE} values in all", lambda one: _small(one))


def _optional(**fields: Kind[Any]) -> dict[str, Kind[Any]]:
    """Fields that may be null, for sections whose values are not always known."""
    return {name: Optional(kind) for name, kind in fields.items()}


#: Fields of dataclasses whose type does not say enough.
_CLOSER: dict[tuple[str, str], Kind[Any]] = {
    **{("Rate", name): SHARE for name in ("value", "low", "high")},
    ("Claim", "claimed"): Optional(SHARE),
    ("AttackRow", "robust_accuracy"): Optional(SHARE),
    ("AttackRow", "curve"): Items(Items(NUMBER, 2, 2), MAX_CURVE),
}


def _kind(hint: Any) -> Kind[Any]:
    """The declaration of a type as `maskaudit.results` uses them."""
    simple: dict[Any, Kind[Any]] = {str: PROSE, bool: FLAG, int: COUNT, float: NUMBER}
    if hint in simple:
        return simple[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return Choice(*arguments)
    if origin in (Union, UnionType):
        return Optional(_kind(next(one for one in arguments if one is not type(None))))
    if origin is tuple:
        return Items(_kind(arguments[0]), MAX_ROWS)
    if dataclasses.is_dataclass(hint):
        return Open(_fields(hint))
    return FREE


def _fields(of: Any) -> dict[str, Kind[Any]]:
    hints = get_type_hints(of)
    return {name: _CLOSER.get((of.__name__, name)) or _kind(hints[name]) for name in hints}


RATE = Optional(_kind(Rate))
_SCREEN = Open(
    {
        **_optional(fired=FLAG, reasons=WORDS),
        "indicators": Table(Open(_optional(value=NUMBER, threshold=NUMBER, fired=FLAG)), MAX_ROWS),
    }
)
_LEVEL = Open(_optional(slack=SHARE, clear_limit=SHARE, unproven=PROSE, drawn=COUNT))
_RULE = Open(
    {
        **_optional(alpha=SHARE, looks=COUNT, test=PROSE, slack=SHARE, gross_slack=SHARE, clear_limit=SHARE),
        **_optional(clear_limit_of_correct=SHARE),
        "limits": Table(_LEVEL, MAX_ROWS),
    }
)
_STRIP = Open(
    {
        **_optional(index=COUNT, label=LABEL, predicted=LABEL, attack=PROSE, distance=NUMBER),
        "shape": Items(COUNT, 16),
        **{name: Prose(MAX_PIXELS) for name in ("clean", "adversarial", "difference")},
    }
)
_AXIS = Items(NUMBER, MAX_ROWS)
_GRID = Items(Items(Optional(NUMBER), MAX_ROWS), MAX_ROWS)
_SURFACE = Open(
    {
        **_optional(point=COUNT, u_label=PROSE, v_label=PROSE),
        **_optional(u=_AXIS, v=_AXIS, margin=_GRID, loss=_GRID),
        **_optional(gradient_at=Items(NUMBER, 2, 2), challenger_at=Items(NUMBER, 2, 2)),
    }
)
_POINTS = Open(
    {
        "index": Items(COUNT, MAX_POINTS),
        **{name: Items(LABEL, MAX_POINTS) for name in ("label", "predicted")},
        "correct": Items(FLAG, MAX_POINTS),
        "broken_by": Items(WORDS, MAX_POINTS),
        **_optional(certified=Items(FLAG, MAX_POINTS)),
    }
)
_STAGE = Open(
    {
        **_optional(row=PROSE, sentences=WORDS, status=PROSE, reason=PROSE, loss=PROSE, start=PROSE, purpose=PROSE),
        **_optional(steps=COUNT, step=NUMBER, restarts=COUNT, targets=COUNT, draws=COUNT),
        **_optional(attempted=COUNT, broken=COUNT, new=COUNT, queries=COUNT, forwards=COUNT, backwards=COUNT),
        "seconds": NUMBER,
        "repairs": Items(FREE, MAX_ROWS),  # read by `maskaudit.repairs.plan_file` where it is acted on
    }
)

#: Sections that are no dataclasses, and tables with limits of their own.
SECTIONS: dict[str, Kind[Any]] = {
    "tool": Open(_optional(name=PROSE, version=PROSE)),
    "environment": Open(
        _optional(
            python=PROSE, torch=PROSE, torchattacks=PROSE, platform=PROSE, cpus=COUNT, threads=COUNT, device=PROSE
        )
    ),
    "target": Open(
        {
            **_optional(
                source=PROSE, format=PROSE, sha256=PROSE, parameters=COUNT, name=PROSE, arch=PROSE, weights=PROSE
            ),
            **_optional(
                architecture=PROSE, method=PROSE, outputs=PROSE, random=FLAG, reject_class=COUNT, classes=COUNT
            ),
            **_optional(depends_on=Record(_optional(batch=FLAG, state=FLAG, random=FLAG), ignore_unknown=True)),
            **_optional(notes=WORDS, trusted_code=WORDS),
        }
    ),
    "threat": Open(
        _optional(norm=Choice("Linf", "L2"), eps=Number(0, _LARGEST, above=True), bounds=Items(NUMBER, 2, 2))
    ),
    "settings": Open(
        {
            **_optional(seed=COUNT, budget=PROSE, samples=COUNT, looks=Items(COUNT, MAX_ROWS), data=PROSE),
            **_optional(
                split=PROSE, input_shape=Items(COUNT, 16), mean=NUMBERS, std=NUMBERS, batch_size=COUNT, memory=COUNT
            ),
            **_optional(
                select=WORDS, ignore=WORDS, extra_attacks=WORDS, branches=WORDS, draws=COUNT, fail_on=PROSE, alpha=SHARE
            ),
            **_optional(defaults=WORDS, command=PROSE, left_out=Table(PROSE, MAX_ROWS), precision=SHARE),
            **_optional(certify=FLAG, black_box=FLAG),
        }
    ),
    "accuracy": Table(RATE, MAX_ROWS),
    "masking": Open(
        {
            "gradient_level": RATE,
            "loss_level": RATE,
            "screen": _SCREEN,
            "rule": _RULE,
            "traced": Items(_kind(Mechanism), MAX_ROWS),
            **_optional(searched=COUNT, matched=COUNT, unfinished=PROSE),
        }
    ),
    "power": Open(
        {
            **_optional(passed=FLAG, method=PROSE, sentence=PROSE, random_search_found=COUNT),
            **_optional(value=SHARE, low=SHARE, high=SHARE, n=COUNT),
        }
    ),
    "points": Checked(
        _POINTS,
        "an object whose lists are of one length",
        lambda points: len({len(points[name]) for name in _POINTS.fields if points.get(name) is not None}) < 2,
    ),
    "evidence": Open(_optional(file=Prose(255), sha256=PROSE, count=COUNT)),
    "figures": Open(
        {
            "eps_curve": Items(
                Open(_optional(eps=NUMBER, reference=SHARE, strong=SHARE, best_known=SHARE, n=COUNT)), MAX_ROWS
            ),
            "surface": Optional(_SURFACE),
            "strips": Items(_STRIP, MAX_ROWS),
            "gradient_flow": Items(
                Open(_optional(name=PROSE, norm=NUMBER, zero_share=SHARE, culprit=FLAG)), 100 * 10 * MAX_ROWS
            ),
        }
    ),
    "probes": Checked(
        Items(_kind(ProbeResult), MAX_TABLE),
        f"a list of at most {MAX_TABLE} probes with at most {MAX_ALL_FINDINGS} findings in all",
        lambda probes: sum(len(probe.get("findings", ())) for probe in probes) <= MAX_ALL_FINDINGS,
    ),
    "attacks": Items(_kind(AttackRow), MAX_TABLE),
    "trace": Anything(),  # no format shows it
    "timing": Open(
        _optional(total_seconds=NUMBER, forwards=COUNT, backwards=COUNT, peak_memory=COUNT, points_per_pass=COUNT)
    ),
    "plan": Open({**_optional(plan_version=COUNT, source=PROSE), "stages": Items(_STAGE, MAX_ROWS)}),
}

REPORT = Record(
    {"schema_version": Whole(1, 2**31), **_fields(AuditReport), **SECTIONS},
    required=("schema_version", *REQUIRED_SECTIONS),
    ignore_unknown=True,
)


def read_report(path: Path) -> dict[str, Any]:
    """Parse an audit.json and hold it against its declaration.

    Returns:
        The document as it is, since its digest and its JSON form are those of the file.

    Raises:
        InputError: when it cannot be read, is not a report of this schema, or a field holds what it must not.
    """
    where = f"The report {path}"
    return parse_report(read_bounded(path, MAX_BYTES, where), where)


def parse_report(content: bytes | str, where: str) -> dict[str, Any]:
    """The content of an audit.json; see `read_report`. `where` is what messages call the file."""
    document = check_document(parse_json(content, where, most=MAX_BYTES))
    read(REPORT, document, where)
    return document
