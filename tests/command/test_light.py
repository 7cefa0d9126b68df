"""What needs no model loads no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "docs" / "samples"

#: Runs the command line in this process and tells at its end whether torch was loaded.
PROGRAM = """
import sys
from maskaudit.command import supervise
supervise.possible = lambda: False  # what a child would load counts as well
from maskaudit.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""

LIGHT = {
    "help": (["--help"], 0),
    "help of a command": (["check", "--help"], 0),
    "help among short options": (["check", "-qh"], 0),
    "help of a command within": (["zoo", "list", "-h"], 0),
    "version": (["--version"], 0),
    "unknown command": (["frobnicate"], 2),
    "unknown option": (["check", "m.pt", "--frobnicate"], 2),
    "wrong value": (["check", "m.pt", "--eps", "small"], 2),
    "wrong format": (["check", "m.pt", "-o", "pdf=x"], 2),
    "two ways to run": (["check", "m.pt", "--workers", "2", "--ray", "auto"], 2),
    "no configuration": (["check", "m.pt", "--config", "none.toml"], 2),
    "wrong configuration": (["check", "m.pt", "--config", "wrong.toml"], 2),
    "gate without one": (["gate", "--config", "none.toml"], 2),
    "gate with a wrong one": (["gate", "--config", "wrong.toml"], 2),
    "inspect": (["inspect", "m.pt", "--bounds", "1,0"], 2),
    "train": (["train", "pgd-at", "--out", "m", "--norm", "L7"], 2),
    "report": (
        ["report", str(SAMPLES / "masked.json"), *(w for f in ("html", "md", "text", "json", "sarif", "junit")
                                                     for w in ("-o", f"{f}=out.{f}"))],
        0,
    ),
    "probes": (["probes"], 0),
    "explain": (["explain", "zero-gradient"], 0),
    "explain what there is not": (["explain", "nothing"], 2),
    "report of a file that is none": (["report", "wrong.toml", "-o", "text=out"], 2),
    "compare": (["compare", str(SAMPLES / "masked.json"), str(SAMPLES / "masked.json")], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", LIGHT)
def test_torch_is_not_loaded(name: str, tmp_path: Path) -> None:
    arguments, status = LIGHT[name]
    (tmp_path / "wrong.toml").write_text('claim = "x"\n[check]\nclaim = "x"\n')
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "False", done.stderr


def test_matplotlib_waits_for_a_picture() -> None:
    program = "import sys, maskaudit.api; print([m for m in sys.modules if m.startswith('matplotlib')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
