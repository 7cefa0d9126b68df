"""Where a TOML file has what is meant for maskaudit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskaudit.declared.parsing import parse_toml
from maskaudit.errors import UsageError
from maskaudit.files import read_bounded

PYPROJECT = "pyproject.toml"

#: Largest configuration, in bytes.
MAX_BYTES = 1 << 20


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
