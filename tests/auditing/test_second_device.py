"""An audit on a second device: what mixes its tensors with the CPU's is refused there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.second_device import NAME, built, compiler

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.heavy, pytest.mark.skipif(compiler() is None, reason="the device is built by a C++ compiler")]


@pytest.fixture(scope="module")
def library(zoo_cache: Path) -> Path:
    return built(zoo_cache)


def audited(library: Path, name: str, *devices: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.second_device", str(library), name, *devices],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def test_a_model_that_mixes_devices_is_caught(library: Path) -> None:
    error = audited(library, "mixing", NAME)["reports"][NAME]["error"]
    assert "second device and of the CPU" in error or "same device" in error
