"""The command line as a user meets it: one good audit end to end, and every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from maskaudit.cli import cli

from .calling import Done, command

ROOT = Path(__file__).parents[2]


def maskaudit(*arguments: str, cwd: Path) -> Done:
    """Run the command to its end."""
    return command(*arguments, cwd=cwd).end()


def in_a_fresh_process(*arguments: str) -> Done:
    """The same by the interpreter's own start."""
    done = subprocess.run(
        [sys.executable, "-m", "maskaudit.cli", *arguments],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def audited(standard_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A quick audit of the standard network with all of `--out`'s files, and `--json` on stdout."""
    out = tmp_path_factory.mktemp("audit")
    return out, in_a_fresh_process(
        "check", str(standard_file), "--budget", "quick", "--json", "--out", str(out), "--claim", "0.9"
    )


class TestCheck:
    @pytest.mark.heavy
    def test_a_refuted_claim_fails_the_build(self, audited: tuple[Path, Done]) -> None:
        _, result = audited
        document = json.loads(result.out)
        assert document["claim"] == {"claimed": 0.9, "status": "refuted"}
        assert result.status == 1, result.err

    def test_stdout_is_one_json_document_and_progress_goes_to_stderr(self, audited: tuple[Path, Done]) -> None:
        out, result = audited
        document = json.loads(result.out)
        assert document == json.loads((out / "audit.json").read_text())
        assert "fgsm" in result.err

    def test_the_file_alone_brings_data_threat_and_architecture(self, audited: tuple[Path, Done]) -> None:
        document = json.loads(audited[1].out)
        assert document["threat"] == {"norm": "Linf", "eps": 0.2, "bounds": [0.0, 1.0]}
        assert document["settings"]["data"] == "digits"
        assert any("eps" in name for name in document["settings"]["defaults"])

    def test_a_standard_network_is_clear_and_not_robust(self, audited: tuple[Path, Done]) -> None:
        document = json.loads(audited[1].out)
        assert document["verdict"]["label"] == "clear"
        assert document["accuracy"]["clean"]["value"] > 0.93
        assert document["accuracy"]["best_known"]["value"] == 0.0

    def test_out_writes_its_files_and_leaves_no_journal(self, audited: tuple[Path, Done]) -> None:
        out, _ = audited
        assert sorted(p.name for p in out.iterdir()) == [
            "audit.json",
            "evidence.safetensors",
            "plan.json",
            "report.html",
            "summary.md",
        ]
        assert (out / "report.html").stat().st_size < 1_000_000

    def test_verify_confirms_and_notices_changes(
        self, audited: tuple[Path, Done], standard_file: Path, tmp_path: Path
    ) -> None:
        out, _ = audited
        good = maskaudit("verify", str(out), str(standard_file), cwd=tmp_path)
        assert good.status == 0, good.out + good.err
        assert "FAIL" not in good.out

        altered = tmp_path / "altered.safetensors"
        from maskaudit.loading import read_metadata

        weights = load_file(standard_file)
        name = next(iter(weights))
        weights[name] = weights[name] + 0.5
        save_file(weights, altered, metadata={"maskaudit": json.dumps(read_metadata(standard_file))})
        other = maskaudit("verify", str(out), str(altered), cwd=tmp_path)
        assert other.status == 1
        assert "FAIL  model" in other.out

    def test_an_old_report_can_be_rendered_again(self, audited: tuple[Path, Done], tmp_path: Path) -> None:
        out, _ = audited
        again = tmp_path / "again.html"
        assert maskaudit("report", str(out / "audit.json"), "-o", f"html={again}", cwd=tmp_path).status == 0
        assert again.read_bytes() == (out / "report.html").read_bytes()


def _write_npz(path: Path, x: np.ndarray, y: np.ndarray) -> str:
    np.savez(path, x=x, y=y)
    return str(path)


@dataclass(frozen=True)
class Bad:
    """A wrong call: arguments (MODEL stands for a good model file), exit status, and words of the sentence."""

    name: str
    arguments: tuple[str, ...]
    status: int
    says: tuple[str, ...]
    files: dict[str, object] = field(default_factory=dict)


X = np.full((8, 1, 8, 8), 0.5, dtype=np.float32)
Y = np.arange(8) % 10

BAD = [
    Bad("no such file", ("check", "missing.pt"), 2, ("missing.pt",)),
    Bad("empty file", ("check", "empty.pt"), 2, ("empty.pt",), {"empty.pt": b""}),
    Bad("zero eps", ("check", "MODEL", "--eps", "0"), 2, ("--eps must be a number above 0",)),
    Bad("negative eps", ("check", "MODEL", "--eps", "-0.1"), 2, ("--eps must be",)),
    Bad("eps in words", ("check", "MODEL", "--eps", "small"), 2, ("8/255",)),
    Bad("bounds turned round", ("check", "MODEL", "--bounds", "1,0"), 2, ("bounds",)),
    Bad("claim in percent", ("check", "MODEL", "--claim", "53"), 2, ("--claim must be a number from 0 to 1",)),
    Bad("unknown budget", ("check", "MODEL", "--budget", "huge"), 2, ("quick",)),
    Bad("unknown rule", ("check", "MODEL", "--ignore", "nonsense"), 2, ("nonsense", "maskaudit probes")),
    Bad("unknown attack", ("check", "MODEL", "--attack", "nonsense"), 2, ("torchattacks:",)),
    Bad("unknown format", ("check", "MODEL", "-o", "pdf=x.pdf"), 2, ("pdf", "html")),
    Bad("unwritable output", ("check", "MODEL", "--out", "/proc/nowhere"), 2, ("/proc/nowhere",)),
    Bad("resume without a folder", ("check", "MODEL", "--resume"), 2, ("--out",)),
    Bad("no workers", ("check", "MODEL", "--workers", "0"), 2, ("from 1 to",)),
    Bad("workers and a cluster", ("check", "MODEL", "--workers", "2", "--ray", "auto"), 2, ("not both",)),
    Bad("no configuration", ("check", "MODEL", "--config", "none.toml"), 2, ("none.toml",)),
    Bad("unknown key", ("check", "MODEL", "--config", "c.toml"), 2, ("sample ", "did you mean samples"),
        {"c.toml": b"[check]\nsample = 5\n"}),
    Bad("damaged program", ("check", "m.pt2"), 2, ("damaged",), {"m.pt2": b"PK\x03\x04archive_format"}),
    Bad("no data", ("check", "MODEL", "--data", "none.npz"), 2, ("none.npz",)),
    Bad("wrong shape", ("check", "MODEL", "--data", "x.npz"), 2, ("--data",),
        {"x.npz": (np.full((8, 3, 9, 9), 0.5, np.float32), Y)}),
    Bad("label out of range", ("check", "MODEL", "--data", "x.npz"), 2, ("labels",), {"x.npz": (X, Y + 90)}),
    Bad("outside bounds", ("check", "MODEL", "--data", "x.npz"), 2, ("--bounds",), {"x.npz": (X * 300, Y)}),
    Bad("NaN in the data", ("check", "MODEL", "--data", "x.npz"), 2, ("finite",), {"x.npz": (X * np.nan, Y)}),
    Bad("state dict without a module", ("check", "state.pt"), 2, ("--arch",), {"state.pt": nn.Linear(64, 10)}),
    Bad("train into a folder", ("train", "standard", "--out", "."), 2, ("is a folder",)),
    Bad("train into a device", ("train", "standard", "--out", "/dev/full"), 2, ("a device or a pipe",)),
    Bad("unknown method", ("train", "magic", "--out", "m.safetensors"), 2, ("magic", "pgd-at")),
    Bad("unknown zoo model", ("check", "zoo:nonsense"), 2, ("zoo list",)),
    Bad("unknown command", ("frobnicate",), 2, ("frobnicate",)),
    Bad("no report", ("verify", ".", "MODEL"), 2, ("audit.json",)),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_gives_one_sentence_and_its_status(bad: Bad, standard_file: Path, tmp_path: Path) -> None:
    for name, content in bad.files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif isinstance(content, nn.Module):
            torch.save(content.state_dict(), tmp_path / name)
        else:
            _write_npz(tmp_path / name, *content)  # type: ignore[misc]
    arguments = [str(standard_file) if a == "MODEL" else a for a in bad.arguments]
    result = maskaudit(*arguments, cwd=tmp_path)
    assert result.status == bad.status, result.err
    assert "Traceback" not in result.err
    for words in bad.says:
        assert words in result.err
    assert result.out == ""


def test_an_exported_program_is_checked_by_workers_with_options_from_a_file(net: nn.Module, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(net, (torch.rand(1, 1, 8, 8),)), tmp_path / "m.pt2")
    (tmp_path / "maskaudit.toml").write_text(
        '[check]\nbudget = "quick"\nsamples = 40\nselect = ["square"]\nout = "here"\n'
    )
    result = maskaudit(
        "check", "m.pt2", "--config", "maskaudit.toml", "--workers", "2", "--json", "--fail-on", "never", cwd=tmp_path
    )
    assert result.status == 0, result.err
    document = json.loads(result.out)
    assert document["target"]["format"] == "pt2"
    assert document["settings"]["samples"] == 40
    rows = {row["name"]: row for row in document["attacks"]}
    assert rows["square"]["broken"] > 20
    assert rows["square"]["forwards"] > rows["square"]["queries"] > 0, "passes of the workers are counted"
    assert "noise" not in rows
    assert (tmp_path / "here" / "audit.json").is_file()


MODELS = """
import torch
from torch import nn

class Nan(nn.Module):
    def forward(self, x): return torch.full((len(x), 10), float("nan"))

class Raises(nn.Module):
    def forward(self, x): raise KeyError("lost")

class Single(nn.Module):
    def forward(self, x): return x.flatten(1).sum(dim=1, keepdim=True)

class Constant(nn.Module):
    def forward(self, x): return torch.zeros(len(x), 11).index_fill(1, torch.tensor([10]), 1.0) + 0 * x.sum()

class Late(nn.Module):
    def __init__(self): super().__init__(); self.calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls > 40: raise RuntimeError("out of luck")
        return x.flatten(1)[:, :10] * 10
"""


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        ("Nan", 4, "NaN"),
        ("Raises", 4, "KeyError"),
        ("Single", 2, "model's 2 classes"),
        ("Constant", 3, "classified correctly"),
        ("Late", 4, "out of luck"),
    ],
)
def test_models_that_fail(model: str, status: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad_models.py").write_text(MODELS)
    result = maskaudit("check", f"py:bad_models:{model}", "--samples", "40", "--out", "out", cwd=tmp_path)
    assert result.status == status, result.err
    assert "Traceback" not in result.err
    assert says in result.err + result.out
    if model in ("Constant", "Late"):
        assert json.loads((tmp_path / "out" / "audit.json").read_text())["verdict"]["label"] == "inconclusive"


def test_an_error_under_json_is_one_document(tmp_path: Path) -> None:
    result = maskaudit("check", "missing.pt", "--json", cwd=tmp_path)
    assert json.loads(result.out)["error"]["exit_status"] == result.status == 2


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in cli.commands:
        assert f"maskaudit {name}" in readme
