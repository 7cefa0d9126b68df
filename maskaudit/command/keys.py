"""The options of an audit as TOML files have them: one key each, with its type, range and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from maskaudit.command.status import FAIL_ON
from maskaudit.declared import Checked, Choice, Items, Kind, Number, Text, Whole
from maskaudit.declared.parsing import parse_toml
from maskaudit.errors import UsageError
from maskaudit.files import read_bounded
from maskaudit.settings import BUDGETS
from maskaudit.threat import Norm

PYPROJECT = "pyproject.toml"

#: Largest configuration, in bytes.
MAX_BYTES = 1 << 20
#: Most entries of any other list.
MAX_LIST = 10_000
_LARGEST_INPUT = 1e6
_LARGEST_COUNT = 2**31 - 1

WORD = Text(shortest=1)
WORDS = Items(WORD, MAX_LIST, single=True)
WHOLE = Whole(1, _LARGEST_COUNT)
SHARE = Number(0, 1, quotient=True)
_INPUT = Number(-_LARGEST_INPUT, _LARGEST_INPUT, quotient=True)

#: Settings of an audit that may be said once for all models.
DEFAULTS: dict[str, Kind[Any]] = {
    "arch": WORD,
    "data": WORD,
    "norm": Choice(*get_args(Norm)),
    "eps": Number(0, _LARGEST_INPUT, above=True, quotient=True),
    "bounds": Checked(Items(_INPUT, 2, 2), "two numbers, smallest first, such as [0, 1]", lambda b: b[0] < b[1]),
    "mean": Items(_INPUT, MAX_LIST, 1),
    "std": Items(Number(0, _LARGEST_INPUT, above=True, quotient=True), MAX_LIST, 1),
    "outputs": Choice("logits", "probabilities", "auto"),
    "reject_class": Whole(0, _LARGEST_COUNT),
    "budget": Choice(*BUDGETS),
    "samples": WHOLE,
    "seed": Whole(0, 2**63 - 1),
    "surrogates": WORDS,
    "select": WORDS,
    "ignore": WORDS,
    "attacks": WORDS,
    "device": WORD,
    "batch_size": WHOLE,
    "call_timeout": Number(0, _LARGEST_COUNT, quotient=True),
    "fail_on": Choice(*FAIL_ON),
}


def section(file: Path) -> dict[str, Any] | None:
    """The gate's part of a TOML file; None for a pyproject.toml without one."""
    where = f"The configuration {file}"
    document: dict[str, Any] = parse_toml(read_bounded(file, MAX_BYTES, where), where)
    tool = document.get("tool")
    section = tool.get("maskaudit") if isinstance(tool, dict) else None
    if file.name == PYPROJECT or section is not None:
        if section is not None and not isinstance(section, dict):
            raise UsageError(f"tool.maskaudit in {file} must be a table, [tool.maskaudit].")
        return section
    return document
