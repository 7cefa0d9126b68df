"""Read a plan from a file that may hold anything: every field is declared, every error is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from maskaudit.declared import Choice, Items, Number, Optional, Record, Text, Whole, read
from maskaudit.declared.parsing import parse_json
from maskaudit.errors import InputError
from maskaudit.files import read_bounded
from maskaudit.results import Location
from maskaudit.settings.plan import PLAN_LOSSES, PLAN_VERSION, PURPOSES, STARTS, Plan, Remedy, Repair, Stage

#: Larger files are no plans: a stage takes a few hundred bytes.
MAX_BYTES = 1 << 20
MAX_STAGES = 300
MAX_REPAIRS = 300
#: Most different repairs in all stages together: each is looked for in the model.
MAX_PLACES = 600
#: Most gradient steps per point that one stage may take; beyond it is a slip of the pen.
MAX_STEPS = 100_000
#: Most gradient steps per point of all stages together: restarts, targets and draws multiply.
MAX_COST = 2_000_000
MAX_RUNS = 1000
MAX_DRAWS = 1024
MAX_SCALE = 1e300

REMEDIES: tuple[str, ...] = tuple(name for name in get_args(Remedy) if name != "none")

_REPAIR = Record(
    {
        "remedy": Choice(*REMEDIES),
        "module": Text(),
        "op": Text(),
        "line": Optional(Whole(1, 10**9)),
        "scale": Number(0, MAX_SCALE, above=True),
    },
    required=("remedy", "module", "op"),
)
_STAGE = Record(
    {
        "repairs": Items(_REPAIR, MAX_REPAIRS),
        "loss": Choice(*PLAN_LOSSES),
        "start": Choice(*STARTS),
        "steps": Whole(1, MAX_STEPS),
        "step": Optional(Number(0, 10, above=True)),
        "restarts": Whole(1, MAX_RUNS),
        "targets": Whole(1, MAX_RUNS),
        "draws": Whole(0, MAX_DRAWS),
        "purpose": Choice(*PURPOSES),
    },
    required=("loss",),
)
PLAN = Record(
    {"plan_version": Whole(PLAN_VERSION, PLAN_VERSION), "stages": Items(_STAGE, MAX_STAGES)},
    required=("plan_version", "stages"),
)


def read_plan(path: Path) -> Plan:
    """The plan in a JSON file, as `--out DIR` saves it.

    Raises:
        InputError: the file cannot be read or is not such a plan; the sentence says where and why.
    """
    where = f"The plan {path}"
    return parse_plan(parse_json(read_bounded(path, MAX_BYTES, where), where), str(path))


def parse_plan(document: Any, name: str = "plan") -> Plan:
    """A plan from parsed JSON; see `read_plan`."""
    where = f"The plan {name}"
    if isinstance(document, dict) and "schema_version" in document:
        raise InputError(f"{where} is a report: write its plan with `maskaudit report {name} -o plan=plan.json`.")
    plan = Plan(tuple(map(_stage, read(PLAN, document, where)["stages"])), "file")
    for what, found, most in (
        ("gradient steps per point", sum(stage.cost for stage in plan.stages), MAX_COST),
        ("different repairs", len(plan.repairs), MAX_PLACES),
    ):
        if found > most:
            raise InputError(f"{where} asks for {found} {what} in all; the limit is {most}: divide it into several.")
    return plan


def plan_document(report: dict[str, Any]) -> dict[str, Any]:
    """The plan file that repeats the adaptive attack of a report (its JSON document); no stage where there was none.

    Raises:
        InputError: what the report calls its plan is none.
    """
    ran = report.get("plan") or {"stages": []}
    if not isinstance(ran, dict) or not isinstance(ran.get("stages"), list):
        raise InputError("The plan of this report is not an object with stages: it is truncated or was edited.")
    stages = [
        {key: value for key, value in stage.items() if key in _STAGE.fields} if isinstance(stage, dict) else stage
        for stage in ran["stages"]
    ]
    return parse_plan({"plan_version": PLAN_VERSION, "stages": stages}, "of the report").to_dict()


def _stage(given: dict[str, Any]) -> Stage:
    return Stage(**{**given, "repairs": tuple(map(_repair, given.get("repairs", ())))})


def _repair(given: dict[str, Any]) -> Repair:
    place = Location(given["module"], given["op"], None, given.get("line"))
    return Repair(given["remedy"], place, mechanism="", sentence="", scale=given.get("scale", 1.0))
