"""GitHub annotations: escaped, few, worst first, at the place that GitHub understands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from maskaudit.errors import InputError
from maskaudit.report.github import MAX_ANNOTATIONS, SUMMARY_LIMIT, Annotated, Annotation, append_summary, collect

from ..report import sample

COMMAND = re.compile(r"::(error|warning|notice)( (file|line|title)=[^,:\n\r]*(,(line|title)=[^,:\n\r]*)*)?::[^\n\r]*")


def test_escaping() -> None:
    annotation = Annotation("error", "50% of a\r\nb: c, d", "t: u, v%", "a,b:c.py", 3)
    assert str(annotation) == "::error file=a%2Cb%3Ac.py,line=3,title=t%3A u%2C v%25::50%25 of a%0D%0Ab: c, d"
    assert str(Annotation("notice", "x")) == "::notice::x"
    assert str(Annotation("notice", "x", line=4)) == "::notice::x", "a line without a file means nothing"


def test_nothing_in_a_report_forms_a_command_of_its_own() -> None:
    audit = Annotated("a\n::error::b", 1, sample.hostile(), "out of\n::error::luck", "c\n::d")
    for annotation in collect([audit]):
        assert COMMAND.fullmatch(str(annotation)), str(annotation)


def test_worst_first_and_few() -> None:
    documents = [sample.clear().to_dict(), *(sample.masked().to_dict() for _ in range(4))]
    found = collect([Annotated(f"net{i}", int(i > 0), one) for i, one in enumerate(documents)])
    assert len(found) == MAX_ANNOTATIONS
    assert [one.level for one in found] == sorted(
        (one.level for one in found), key=["error", "warning", "notice"].index
    )
    assert found[-1].message == "3 more in the report."


def test_levels_follow_the_status() -> None:
    masked, inconclusive = sample.masked().to_dict(), sample.inconclusive().to_dict()
    assert {one.level for one in collect([Annotated("net", 0, masked)])} == {"notice"}
    assert [one.level for one in collect([Annotated("net", 3, inconclusive)])] == ["warning"]
    assert collect([Annotated("net", 0, sample.clear().to_dict())]) == []
    (failed,) = collect([Annotated("net", 2, None, "no such file", "maskaudit.toml")])
    assert str(failed) == "::error file=maskaudit.toml,title=maskaudit%3A net::no such file"


def test_files_are_relative_to_the_checkout(tmp_path: Path) -> None:
    document = sample.masked().to_dict()
    place = document["verdict"]["mechanisms"][0]["locations"][0]
    place["file"] = str(tmp_path / "src" / "net.py")
    assert collect([Annotated("net", 1, document)], root=tmp_path)[0].file == "src/net.py"
    place["file"] = "/elsewhere/net.py"
    assert collect([Annotated("net", 1, document)], root=tmp_path)[0].file == "/elsewhere/net.py"


def test_the_step_summary_is_appended_and_stays_below_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    assert not append_summary("x", {})
    assert append_summary("first", {"GITHUB_STEP_SUMMARY": str(file)})
    assert append_summary("é" * SUMMARY_LIMIT, {"GITHUB_STEP_SUMMARY": str(file)})
    content = file.read_bytes()
    assert content.startswith(b"first\n\n")
    assert SUMMARY_LIMIT - 1 <= len(content) <= SUMMARY_LIMIT
    content.decode("utf-8")
    with pytest.raises(InputError, match="step summary"):
        append_summary("x", {"GITHUB_STEP_SUMMARY": str(tmp_path)})
