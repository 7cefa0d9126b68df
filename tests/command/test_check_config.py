"""`check --config FILE`: what the file says, what the command line overrides, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maskaudit import api
from maskaudit.cli import cli
from maskaudit.command.check_config import read_check_options
from maskaudit.errors import InputError, UsageError


class Stop(Exception):
    """Ends the command where the audit would start."""


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[api.Request]:
    """What `check` asks for, in place of an audit."""
    seen: list[api.Request] = []

    def prepare(request: api.Request) -> Any:
        seen.append(request)
        raise Stop

    monkeypatch.setattr(api, "prepare", prepare)
    return seen


def write(folder: Path, text: str, name: str = "maskaudit.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


FULL = """
eps = "8/255"
bounds = [0, 255]
mean = [0.5, 0.25]
budget = "quick"
samples = 12
attacks = ["torchattacks:PGD"]
select = ["square", "pgd"]
claim = 0.4
reject_class = 3
workers = 2
quiet = true
data = "points.npz"
"""


@pytest.mark.parametrize(
    ("name", "head"), [("maskaudit.toml", "[check]"), ("pyproject.toml", "[tool.maskaudit.check]")]
)
def test_the_file_says_what_the_command_line_leaves_out(
    name: str, head: str, tmp_path: Path, requested: list[api.Request]
) -> None:
    (tmp_path / "points.npz").touch()
    file = write(tmp_path, head + FULL, name)
    arguments = ["check", "m.pt", "--config", file, "--samples", "7", "--select", "noise"]
    assert isinstance(CliRunner().invoke(cli, arguments).exception, Stop)
    (request,) = requested
    settings = request.settings
    assert request.eps == 8 / 255
    assert request.bounds == (0.0, 255.0)
    assert request.data == str(tmp_path / "points.npz")
    assert (settings.mean, settings.budget, settings.claim) == ((0.5, 0.25), "quick", 0.4)
    assert (settings.reject_class, settings.workers, settings.attacks) == (3, 2, ("torchattacks:PGD",))
    assert (settings.samples, settings.select) == (7, ("noise",)), "the command line wins"


def test_without_the_option_no_file_is_read(
    tmp_path: Path, requested: list[api.Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "[check]\nsamples = 5\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(CliRunner().invoke(cli, ["check", "m.pt"]).exception, Stop)
    assert requested[0].settings.samples is None


REFUSED = {
    "unknown key": ("[check]\nsample = 5", UsageError, "sample is not a known field .did you mean samples"),
    "wrong type": ('[check]\nsamples = "many"', UsageError, "samples must be a whole number"),
    "no section": ("[other]\nx = 1", UsageError, r"no section \[check\]"),
    "trust": ("[check]\ntrust_pickle = true", UsageError, "--trust-pickle on the command line"),
    "not a table": ("check = 3", UsageError, "must be an object with the fields"),
    "not TOML": ("[check", InputError, "not valid TOML"),
}


@pytest.mark.parametrize(("text", "error", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(text: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        read_check_options(Path(write(tmp_path, text)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_check_options(tmp_path / "none.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").touch()
    (tmp_path / "s.pt").touch()
    text = '[check]\narch = "net.py:make(width=2)"\nsurrogates = ["s.pt@net.py:make", "zoo:standard"]\n'
    given = read_check_options(
        Path(write(tmp_path, text + 'out = "report"\nreports = ["sarif=a.sarif"]\ndata = "digits"'))
    )
    assert given["arch"] == f"{tmp_path}/net.py:make(width=2)"
    assert list(given["surrogates"]) == [f"{tmp_path}/s.pt@{tmp_path}/net.py:make", "zoo:standard"]
    assert (given["out"], given["outputs_to"], given["data"]) == (
        f"{tmp_path}/report", (f"sarif={tmp_path}/a.sarif",), "digits"
    )  # fmt: skip


def test_the_gate_does_not_mind_the_section(tmp_path: Path) -> None:
    from maskaudit.gate.config import read_config

    file = write(tmp_path, '[[models]]\nmodel = "zoo:standard"\n[check]\nsamples = 5\n')
    assert read_config(Path(file)).entries[0].request.settings.samples is None
