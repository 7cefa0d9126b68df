"""A whole audit on a second device: nothing is mixed with the CPU, and the verdict is that of the CPU."""

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

#: Phases that must have met points on the second device, by a model that needs them.
NEEDED = {
    "plain": {"pgd", "apgd-ce", "apgd-targeted", "noise", "transfer", "square", "finite-differences", "decision"},
    "quantised": {"pgd", "apgd-ce", "repaired"},
}


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


@pytest.mark.parametrize("name", NEEDED)
def test_an_audit_mixes_no_devices_and_says_what_it_says_on_the_cpu(name: str, library: Path) -> None:
    outcome = audited(library, name, "cpu", NAME)
    near, far = outcome["reports"]["cpu"], outcome["reports"][NAME]
    assert outcome["kernels"] > 1000, "hardly anything ran on the device"
    assert "error" not in far, far
    broken = [(row["name"], row["reason"]) for row in far["attacks"] if row["status"] == "error"]
    failed = [(row["rule"], row["reason"]) for row in far["probes"] if row["status"] == "error"]
    assert (broken, failed) == ([], [])
    assert {row["name"] for row in far["attacks"] if row["status"] == "ran"} >= NEEDED[name]
    assert far["verdict"]["label"] == near["verdict"]["label"]
    assert far["accuracy"]["clean"] == near["accuracy"]["clean"]


def test_a_model_that_mixes_devices_is_caught(library: Path) -> None:
    error = audited(library, "mixing", NAME)["reports"][NAME]["error"]
    assert "second device and of the CPU" in error or "same device" in error
