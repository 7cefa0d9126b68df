"""Read a plan from a file that nobody vouches for: every field is checked, every error is one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from maskaudit.errors import InputError
from maskaudit.repairs.interface import Repair
from maskaudit.repairs.plan import PLAN_LOSSES, PLAN_VERSION, PURPOSES, STARTS, Plan, Stage
from maskaudit.results import Location
from maskaudit.trace.records import Remedy

#: Larger files are no plans: a stage takes a few hundred bytes.
MAX_BYTES = 1 << 20
MAX_STAGES = 300
MAX_REPAIRS = 300
#: Most gradient steps per point that one stage may take; beyond it is a slip of the pen.
MAX_STEPS = 100_000
MAX_RUNS = 1000
MAX_DRAWS = 1024
MAX_NAME = 1000
MAX_SCALE = 1e300

REMEDIES: tuple[str, ...] = tuple(name for name in get_args(Remedy) if name != "none")

_PLAN_KEYS = ("plan_version", "stages")
_STAGE_KEYS = ("repairs", "loss", "start", "steps", "step", "restarts", "targets", "draws", "purpose")
_REPAIR_KEYS = ("remedy", "module", "op", "line", "scale")


def read_plan(path: Path) -> Plan:
    """The plan in a JSON file, as `--out DIR` saves it.

    Raises:
        InputError: the file cannot be read or is not such a plan; the sentence says where and why.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"The plan {path} cannot be read: {error.strerror or error}.") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"The plan {path} is larger than {MAX_BYTES >> 20} MiB: this is no plan of an attack.")
    try:
        document = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The plan {path} is not valid JSON: {error}.") from error
    return parse_plan(document, str(path))


def parse_plan(document: Any, name: str = "plan") -> Plan:
    """A plan from parsed JSON; see `read_plan`."""
    where = f"The plan {name}"
    fields = _object(document, _PLAN_KEYS, ("plan_version", "stages"), where)
    version = fields["plan_version"]
    if type(version) is not int or version != PLAN_VERSION:
        raise InputError(f"{where} has plan_version {version!r}; this maskaudit reads version {PLAN_VERSION}.")
    stages = _list(fields["stages"], MAX_STAGES, f"{where}: stages")
    return Plan(tuple(_stage(item, f"{where}, stage {n}") for n, item in enumerate(stages, start=1)), "file")


def plan_document(report: dict[str, Any]) -> dict[str, Any]:
    """The plan file that repeats the adaptive attack of a report (its JSON document); no stage where there was none.

    Raises:
        InputError: what the report calls its plan is none.
    """
    ran = report.get("plan") or {"stages": []}
    if not isinstance(ran, dict) or not isinstance(ran.get("stages"), list):
        raise InputError("The plan of this report is not an object with stages: it is truncated or was edited.")
    stages = [
        {key: value for key, value in stage.items() if key in _STAGE_KEYS} if isinstance(stage, dict) else stage
        for stage in ran["stages"]
    ]
    return parse_plan({"plan_version": PLAN_VERSION, "stages": stages}, "of the report").to_dict()


def _stage(item: Any, where: str) -> Stage:
    fields = _object(item, _STAGE_KEYS, ("loss",), where)
    usual = Stage()
    repairs = _list(fields.get("repairs", []), MAX_REPAIRS, f"{where}: repairs")
    return Stage(
        repairs=tuple(_repair(repair, f"{where}, repair {n}") for n, repair in enumerate(repairs, start=1)),
        loss=_name(fields["loss"], PLAN_LOSSES, f"{where}: loss"),
        start=_name(fields.get("start", usual.start), STARTS, f"{where}: start"),
        steps=_whole(fields.get("steps", usual.steps), 1, MAX_STEPS, f"{where}: steps"),
        step=_optional_number(fields.get("step"), 0.0, 10.0, f"{where}: step"),
        restarts=_whole(fields.get("restarts", 1), 1, MAX_RUNS, f"{where}: restarts"),
        targets=_whole(fields.get("targets", 1), 1, MAX_RUNS, f"{where}: targets"),
        draws=_whole(fields.get("draws", 0), 0, MAX_DRAWS, f"{where}: draws"),
        purpose=_name(fields.get("purpose", usual.purpose), PURPOSES, f"{where}: purpose"),
    )


def _repair(item: Any, where: str) -> Repair:
    fields = _object(item, _REPAIR_KEYS, ("remedy", "module", "op"), where)
    line = fields.get("line")
    return Repair(
        remedy=_name(fields["remedy"], REMEDIES, f"{where}: remedy"),
        location=Location(
            _text(fields["module"], f"{where}: module"),
            _text(fields["op"], f"{where}: op"),
            None,
            None if line is None else _whole(line, 1, 10**9, f"{where}: line"),
        ),
        mechanism="",
        sentence="",
        scale=_number(fields.get("scale", 1.0), 0.0, MAX_SCALE, f"{where}: scale"),
    )


# --- values -----------------------------------------------------------------------------------------


def _object(value: Any, known: Sequence[str], needed: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {_kind(value)}.")
    for key in value:
        if key not in known:
            raise InputError(f"{where} has the unknown field {key[:MAX_NAME]!r}; known: {', '.join(known)}.")
    for key in needed:
        if key not in value:
            raise InputError(f"{where} lacks the field {key!r}.")
    return value


def _list(value: Any, most: int, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, found {_kind(value)}.")
    if len(value) > most:
        raise InputError(f"{where}: at most {most} entries, found {len(value)}.")
    return value


def _name(value: Any, known: Sequence[str], where: str) -> Any:
    if not isinstance(value, str) or value not in known:
        shown = repr(value[:MAX_NAME]) if isinstance(value, str) else _kind(value)
        raise InputError(f"{where} must be one of {', '.join(known)}; found {shown}.")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        found = f"{len(value)} characters" if isinstance(value, str) else _kind(value)
        raise InputError(f"{where}: expected a text of at most {MAX_NAME} characters, found {found}.")
    return value


def _whole(value: Any, low: int, high: int, where: str) -> int:
    if type(value) is not int or not low <= value <= high:
        shown = value if type(value) is int and abs(value) < 10**12 else _kind(value)
        raise InputError(f"{where} must be a whole number from {low} to {high}; found {shown}.")
    return value


def _number(value: Any, above: float, most: float, where: str) -> float:
    if type(value) not in (int, float) or not above < value <= most:
        shown = f"{value:g}" if type(value) is float else _kind(value)
        raise InputError(f"{where} must be a number above {above:g} and at most {most:g}; found {shown}.")
    return float(value)


def _optional_number(value: Any, above: float, most: float, where: str) -> float | None:
    return None if value is None else _number(value, above, most, where)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
