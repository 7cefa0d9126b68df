"""What holds for the package as a whole."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_LOOSE_MODULES = 15


def test_the_wheel_holds_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "maskaudit").rglob("__init__.py")}
    assert set(listed) == there | {"maskaudit.report.templates"}


def test_few_modules_lie_loose_in_the_root() -> None:
    assert len(list((ROOT / "maskaudit").glob("*.py"))) <= MOST_LOOSE_MODULES
