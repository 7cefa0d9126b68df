"""Terminal text and Markdown: every fact once, escaped for where it is shown."""

from __future__ import annotations

import re

from maskaudit.report import render
from maskaudit.report.markdown import escape
from maskaudit.report.text import WIDTH
from maskaudit.report.text import render as render_text

from . import sample


def test_text_fits_and_leads_with_the_verdict() -> None:
    lines = render(sample.masked().to_dict(), "text").splitlines()
    assert lines[0].startswith("MASKED  Robustness is overstated")
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    for part in (
        "71.5% [64.9-77.3%]",
        "70.0%: refuted",
        "fc2 (maskaudit/zoo/nets.py:41)",
        "196 points broken",
    ):
        assert part in text


def test_the_line_that_checks_the_proof_can_be_run_as_it_is() -> None:
    document = sample.masked().to_dict()
    document["target"] |= {
        "source": "net.pt",
        "arch": "",
        "weights": "ema",
        "trusted_code": ["--trust-pickle: nets.Net"],
    }
    line = "maskaudit verify audit.json net.pt --weights ema --trust-pickle"
    assert all(line in " ".join(render(document, form).split()) for form in ("text", "md", "junit", "html"))
    assert "maskaudit verify 'my run/audit.json' net.pt" in render_text(document, file="my run/audit.json")
    document["target"]["trusted_code"] = ["file nets.py"]
    assert "--trust-pickle" not in render(document, "text")


def test_colour_only_on_request_and_only_ours() -> None:
    document = sample.masked().to_dict()
    plain, coloured = render_text(document), render_text(document, color=True)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    hostile = render_text(sample.hostile(), color=True)
    assert set(re.findall(r"\x1b\[[0-9;]*m", hostile)) <= {"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[1;31m"}
    assert hostile.count("\x1b") == len(re.findall(r"\x1b\[[0-9;]*m", hostile))


def test_only_a_place_is_introduced_by_at() -> None:
    document = sample.masked().to_dict()
    finding = next(probe for probe in document["probes"] if probe["status"] == "finding")
    known = finding["findings"][0]
    unknown = dict.fromkeys(known["location"], "") | {"line": None}
    finding["findings"] = [known, {"message": "Cross-entropy has no usable gradient.", "location": unknown}]
    lines = [line.strip() for line in render(document, "text").splitlines()]
    assert "- Cross-entropy has no usable gradient." in lines
    assert any(line.startswith("- at ") and known["location"]["module"] in line for line in lines)


def test_the_label_reads_on_in_the_column_of_facts() -> None:
    line = next(line for line in render(sample.masked().to_dict(), "text").splitlines() if "gradient health" in line)
    assert line.split() == ["gradient", "health", "masked"]


def test_markdown_tables_keep_their_columns() -> None:
    for report in (sample.masked().to_dict(), sample.hostile()):
        lines = render(report, "md").splitlines()
        tables = [i for i, line in enumerate(lines) if re.fullmatch(r"\| (-+:? \| )*-+:? \|", line)]
        assert len(tables) >= 3
        for start in tables:
            columns = lines[start].count("|")
            row = start - 1
            while row < len(lines) and lines[row].startswith("|"):
                assert lines[row].count("|") == columns, lines[row]
                row += 1


def test_markdown_is_deaf_to_what_a_document_says() -> None:
    markdown = render(sample.hostile(), "md")
    prose = re.sub(r"(?ms)^(`{3,})(?:sh|tex|bibtex|md)\n.*?^\1$", "", markdown)
    assert "<script" not in prose
    assert "<img" not in prose
    assert "](" not in prose
    assert "@team" not in prose
    assert "http:" not in prose
    assert set(re.findall(r"<[^>]*>", prose)) <= {
        "<code>", "</code>", "<br>", "<!-- -->", "<details>", "</details>", "<summary>", "</summary>",
    }  # fmt: skip


def test_markdown_fence_outgrows_backticks() -> None:
    document = sample.masked().to_dict()
    document["settings"]["command"] = "maskaudit check ````x"
    assert "\n`````sh\n" in render(document, "md")


def test_escape() -> None:
    assert escape("a|b") == "a&#124;b"
    assert escape("see https://x.example and www.y.example") == "see https&#58;//x.example and www&#46;y.example"
    assert escape("3:4 plain, nets.py:41") == "3:4 plain, nets.py&#58;41"
