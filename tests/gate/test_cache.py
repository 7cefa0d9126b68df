"""The cache of the gate: an unchanged model is not audited again, a changed one, or a changed question, is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskaudit import api
from maskaudit.errors import UsageError
from maskaudit.gate import summary
from maskaudit.gate.cache import digest_of
from maskaudit.gate.config import read_config
from maskaudit.gate.running import GateResult, run_gate
from maskaudit.settings import Request

CONFIG = """
budget = "quick"
samples = 16
select = ["pgd", "saturation", "noise", "zero-gradient"]

[[models]]
name = "plain"
model = "{model}"
{more}
"""


def gate(folder: Path, model: Path, more: str = "", out: Path | None = None) -> GateResult:
    file = folder / "maskaudit.toml"
    file.write_text(CONFIG.format(model=model.as_posix(), more=more), encoding="utf-8")
    return run_gate(read_config(file), cache=folder / "cache", out=out)


def test_an_unchanged_model_is_not_audited_again(tmp_path: Path, standard_file: Path) -> None:
    first = gate(tmp_path, standard_file, out=tmp_path / "one")
    again = gate(tmp_path, standard_file, out=tmp_path / "two")
    assert [result.outcomes[0].cached for result in (first, again)] == [False, True]
    assert first.status == again.status
    kept = [json.loads((tmp_path / run / "plain" / "audit.json").read_text()) for run in ("one", "two")]
    assert kept[0] == kept[1], "to the second, since it is the same audit"
    evidence = [(tmp_path / run / "plain" / "evidence.safetensors").read_bytes() for run in ("one", "two")]
    assert evidence[0] == evidence[1]
    assert [summary.build(result)["models"][0]["cached"] for result in (first, again)] == [False, True]


@pytest.mark.parametrize("more", ["seed = 1", "eps = 0.1", "claim = 0.5", 'outputs = "logits"'])
def test_another_question_is_audited(more: str, tmp_path: Path, standard_file: Path) -> None:
    gate(tmp_path, standard_file)
    assert not gate(tmp_path, standard_file, more).outcomes[0].cached


def test_another_model_under_the_same_name_is_audited(tmp_path: Path, standard_file: Path) -> None:
    model = tmp_path / "model.safetensors"
    content = bytearray(standard_file.read_bytes())
    model.write_bytes(content)
    gate(tmp_path, model)
    content[-1] ^= 1
    model.write_bytes(content)
    assert not gate(tmp_path, model).outcomes[0].cached


@pytest.mark.parametrize("what", ["audit.json", "evidence", "both"])
def test_what_is_damaged_is_audited_anew(what: str, tmp_path: Path, standard_file: Path) -> None:
    first = gate(tmp_path, standard_file)
    for path in (tmp_path / "cache").iterdir():
        if what == "both" or (path.suffix == ".json") == (what == "audit.json"):
            path.write_bytes(path.read_bytes()[:-9])
    again = gate(tmp_path, standard_file)
    assert not again.outcomes[0].cached
    assert again.status == first.status
    assert gate(tmp_path, standard_file).outcomes[0].cached


def test_code_of_the_user_is_never_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest covers weights, and a change of the code would go unseen."""
    (tmp_path / "of_mine.py").write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert digest_of(api.prepare(Request.of("py:of_mine:make", {"data": "digits"}, where="here"))) is None


def test_the_digest_is_that_of_the_question(standard_file: Path) -> None:
    def digest(**options: Any) -> str | None:
        return digest_of(api.prepare(Request.of(str(standard_file), options, where="here")))

    assert digest() == digest(workers=2)
    assert len({digest(), digest(claim=0.5), digest(seed=2), digest(certified=0.1), digest(ignore=["noise"])}) == 5


def test_another_version_of_a_package_that_reports_depend_on_is_another_question(
    standard_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where a package adds to audits, nothing is kept: its code may change under the same version."""
    prepared = api.prepare(Request.of(str(standard_file), {}, where="here"))

    def install(folder: str, name: str, version: str, points: str = "") -> str | None:
        (info := tmp_path / folder / f"{name}-{version}.dist-info").mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(points)
        with monkeypatch.context() as patched:
            patched.syspath_prepend(str(tmp_path / folder))
            return digest_of(prepared)

    before = digest_of(prepared)
    assert install("a", "unrelated", "1.0") == before
    assert len({before, install("b", "TorchAttacks", "99.1"), install("c", "TorchAttacks", "99.2")}) == 3
    assert install("d", "addition", "1.0", "[maskaudit.probes]\none = addition:PROBE\n") is None
    assert install("e", "reading", "1.0", "[maskaudit.formats]\none = reading:read\n") is None


def test_not_together_with_a_cluster(tmp_path: Path, standard_file: Path) -> None:
    file = tmp_path / "maskaudit.toml"
    file.write_text(CONFIG.format(model=standard_file.as_posix(), more=""), encoding="utf-8")
    with pytest.raises(UsageError, match="leave out --jobs and --cache"):
        run_gate(read_config(file), cache=tmp_path, ray="local")
