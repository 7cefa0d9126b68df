"""The command `gate` and where its summaries go, with prepared reports in place of audits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from maskaudit.auditing.runner import Audit
from maskaudit.cli import cli
from maskaudit.command.terminal import say
from maskaudit.gate import running
from maskaudit.gate.config import GateEntry

from .stub import StubAudit, write_config


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubAudit:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    audit = StubAudit()
    monkeypatch.setattr(running, "audit_entry", audit)
    monkeypatch.chdir(tmp_path)
    return audit


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["gate", "-q", *arguments])


def test_out_and_every_format(tmp_path: Path) -> None:
    write_config(tmp_path, "masked", "clear")
    formats = ("html", "json", "md", "text", "sarif", "junit")
    options = [part for fmt in formats for part in ("-o", f"{fmt}=also/{fmt}.out")]
    result = invoke("--out", "out", *options)
    assert result.exit_code == 1, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "clear", "index.html", "junit.xml", "maskaudit.sarif", "masked", "summary.json", "summary.md",
    ]  # fmt: skip
    assert (tmp_path / "also" / "text.out").read_text() == result.stdout
    for fmt, name in (("json", "summary.json"), ("sarif", "maskaudit.sarif"), ("junit", "junit.xml")):
        assert (tmp_path / "also" / f"{fmt}.out").read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_json_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, "masked")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = invoke("--json")
    assert json.loads(result.stdout)["status"] == result.exit_code == 1
    assert "::error" in result.stderr


def test_every_field_of_the_summary_is_described(tmp_path: Path) -> None:
    write_config(tmp_path, "masked")
    summary = json.loads(invoke("--json").stdout)
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    described = page[page.index("## summary.json of a gate") :]
    model = summary["models"][0]
    assert model["findings"]
    for name in (*summary, *model, *model["findings"][0]):
        assert f"`{name}`" in described, name


def test_the_status_does_not_depend_on_the_format(tmp_path: Path) -> None:
    write_config(tmp_path, "suspect", "inconclusive")
    statuses = {invoke(*options).exit_code for options in ((), ("--json",), ("-o", "junit=j.xml"), ("--out", "o"))}
    assert statuses == {3}
    assert invoke("--fail-on", "suspect").exit_code == 1
    assert invoke("--fail-on", "never").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--config", "none.toml"), "none.toml"),
        (("-o", "evidence=e"), "single model"),
        (("-o", "pdf=x"), "pdf"),
        (("--out", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_wrong_usage_stops_before_anything_is_audited(
    arguments: tuple[str, ...], says: str, stub: StubAudit, tmp_path: Path
) -> None:
    write_config(tmp_path, "masked")
    result = invoke(*arguments)
    assert says in str(result.exception)
    assert getattr(result.exception, "exit_code", None) == 2
    assert stub.seen == []


def test_the_whole_configuration_is_checked_first(stub: StubAudit, tmp_path: Path) -> None:
    write_config(tmp_path, "clear", extra='[[models]]\nmodel = "masked"\nclaim = 7\n')
    assert getattr(invoke().exception, "exit_code", None) == 2
    assert stub.seen == []


def test_an_interruption_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, "clear", "masked")
    finished = StubAudit()

    def interrupted(entry: GateEntry, *arguments: Any) -> Audit:
        if entry.name == "masked":
            raise KeyboardInterrupt
        return finished(entry, *arguments)

    monkeypatch.setattr(running, "audit_entry", interrupted)
    result = invoke("--out", "out")
    assert result.exit_code == 130
    assert "finished models are in out" in result.stderr
    assert (tmp_path / "out" / "clear" / "audit.json").is_file()


def test_github_gets_annotations_and_a_step_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, "masked", "clear")
    steps = tmp_path / "steps.md"
    steps.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(steps))
    result = invoke()
    commands = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert commands[0].startswith(
        "::error file=maskaudit/zoo/nets.py,line=41,title=maskaudit%3A masked%3A masked::Robust"
    )
    assert len(commands) <= 10
    assert steps.read_text().startswith("before\n## maskaudit gate did not pass\n")


def test_no_annotations_elsewhere(tmp_path: Path) -> None:
    write_config(tmp_path, "masked")
    assert "::" not in invoke().stdout


def test_accepted_findings_are_not_annotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    baseline = '[[baseline]]\nrule = "{}"\naccept_masked = true\nreason = "r"\nexpires = 9999-12-31\n'
    write_config(tmp_path, "masked", extra="".join(map(baseline.format, ("maskaudit-verdict", "maskaudit-claim"))))
    result = invoke()
    assert result.exit_code == 0
    assert "::" not in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8"])
def test_every_code_page_can_be_written_to(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    say("ε = 8/255 × ‘net’ \U0001f600\n", stream)
    assert raw.getvalue().decode(encoding).endswith("\n")
