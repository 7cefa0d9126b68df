"""A package of another author, installed next to this one, adds a probe, an attack, a repair and a format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskaudit.data import load_data

from ..docs.pages import ROOT

pytestmark = pytest.mark.heavy

PACKAGE = '''
"""Mean brightness: how light the points are

The mean of all input values.

Raised when
    Never: the figure informs.

What it means
    Nothing about the model.

What to do
    Nothing.

Source
    - this package
"""

import contextlib

import numpy as np
import torch
from torch import nn

from maskaudit.attacks.interface import AttackSpec, Attempt
from maskaudit.auditing.catalogue import RepairPlugin
from maskaudit.loading.interface import Contents
from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement


def measure(context):
    return Measurement(float(context.x.mean()), "brightness", len(context.x))


def towards_grey(target, x, y, *, threat, rng):
    """One step of full size towards grey."""
    never = torch.full((len(x),), -1)
    return Attempt(threat.project(x + threat.eps * (0.5 - x).sign(), x), never, torch.zeros_like(never))


@contextlib.contextmanager
def unchanged(model):
    yield model


def read_centres(name):
    """`centres:FILE.npy`, the mean input of every class (K, D): the nearest one is the answer."""
    centres = torch.from_numpy(np.load(name, allow_pickle=False))
    layer = nn.Linear(centres.shape[1], len(centres))
    layer.load_state_dict({"weight": centres, "bias": -centres.square().sum(1) / 2})
    return Contents(nn.Sequential(nn.Flatten(), layer), "centres")


PROBE = documented_probe("mean-brightness", measure, needs=(), docstring=__doc__)
ATTACK = AttackSpec("towards-grey", "One step towards grey", kind="random", role="challenger", run=towards_grey)
REPAIR = RepairPlugin("no-repair", "A repair that changes nothing", unchanged)
'''
ENTRY_POINTS = """
[maskaudit.probes]
brightness = other_author:PROBE
[maskaudit.attacks]
grey = other_author:ATTACK
[maskaudit.repairs]
nothing = other_author:REPAIR
[maskaudit.formats]
centres = other_author:read_centres
broken = other_author:missing
"""
GENERATE = """
import sys
sys.path.insert(0, "docs")
from generate import generated
for path, content in generated().items():
    if path.stem in ("probes", "attacks"):
        print(content)
"""
Child = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its metadata, as an installer leaves them, and a file of its format."""
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / "other_author-1.0.dist-info"
    metadata.mkdir()
    (folder / "other_author.py").write_text(PACKAGE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-author\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture(scope="module")
def child(folder: Path) -> Child:
    """Runs Python where the package is installed."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    return run


def test_they_are_listed_and_explained(child: Child) -> None:
    listed = child("-m", "maskaudit", "probes").stdout
    assert {"mean-brightness", "towards-grey", "no-repair"} <= set(listed.split())


def test_an_audit_runs_and_reports_them(child: Child, folder: Path) -> None:
    import numpy as np

    data = load_data("digits", split="train")
    np.save(folder / "net.npy", torch.stack([data.x[data.y == k].mean(0).flatten() for k in range(10)]).numpy())
    chosen = [part for name in ("mean-brightness", "towards-grey", "no-repair") for part in ("--select", name)]
    done = child(
        "-m", "maskaudit", "check", f"centres:{folder / 'net.npy'}", "--data", "digits", "--budget", "quick",
        "--samples", "32", "--fail-on", "never", "--json", *chosen,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["target"]["format"] == "centres"
    assert {row["rule"]: row["status"] for row in report["probes"]}["mean-brightness"] == "pass"
    status = {row["name"]: row["status"] for row in report["attacks"]}
    assert (status["towards-grey"], status["no-repair"]) == ("ran", "ran")


def test_the_documentation_describes_them(child: Child) -> None:
    pages = child("-c", GENERATE).stdout
    for title in ("mean-brightness", "towards-grey", "One step of full size towards grey", "no-repair"):
        assert title in pages


def test_a_format_whose_package_is_broken_is_one_sentence(child: Child) -> None:
    done = child("-m", "maskaudit", "check", "broken:x")
    assert done.returncode == 2
    assert "plug-in for broken: (other_author:missing) cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
