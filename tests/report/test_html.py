"""The HTML report: well formed, self-contained, small, accessible in structure, deaf to what a document says."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from maskaudit.report import html, render
from maskaudit.report.words import TERMS

from . import sample

VOID = {"meta", "img", "br", "link", "input", "hr"}
#: Bytes that a report may have.
LIMIT = 1_000_000


class Page(HTMLParser):
    """Checks nesting and collects elements and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@cache
def rendered(name: str) -> str:
    """The HTML of a sample, drawn once for all tests."""
    report = getattr(sample, name)()
    return render(report if isinstance(report, dict) else report.to_dict(), "html")


@pytest.fixture(params=["masked", "clear", "inconclusive", "hostile"])
def source(request: pytest.FixtureRequest) -> str:
    return rendered(request.param)


@pytest.fixture
def page(source: str) -> Page:
    return Page(source)


def test_well_formed_with_unique_ids(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
        target = attributes.get("href") or attributes.get("xlink:href") or ""
        assert not target.startswith("#") or target[1:] in ids


def test_nothing_is_fetched_and_nothing_runs(source: str, page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    assert "@import" not in style.group(1)
    assert "url(" not in style.group(1)
    policies = [a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_small(source: str) -> None:
    assert len(source.encode("utf-8")) < LIMIT


def test_headings_do_not_skip_a_level_and_images_have_text(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(attributes.get("alt") for attributes in page.attributes("img"))
    for attributes in page.attributes("svg"):
        assert attributes.get("aria-hidden") == "true" or attributes.get("aria-labelledby")
    assert {"main", "header", "nav", "footer"} <= {tag for tag, _ in page.elements}
    assert all(attributes.get("scope") for attributes in page.attributes("th"))
    assert len(page.attributes("caption")) == len(page.attributes("table"))


def test_what_a_document_says_stays_text() -> None:
    page = Page(rendered("hostile"))
    shown = " ".join(page.words)
    assert "<script>alert(1)</script>" in shown
    assert "{{ 7*7 }}" in shown
    assert {"points", "test", "repair", "checklist", "paper"} <= {a.get("id") for _, a in page.elements}
    assert {(attributes.get("src") or "")[:5] for attributes in page.attributes("img")} == {"data:"}


def test_the_verdict_and_the_contents_lead_to_the_glossary() -> None:
    html_page = rendered("masked")
    verdict = html_page.partition('id="verdict"')[2].partition("<nav")[0]
    assert 'href="#glossary"' in verdict
    page = Page(html_page)
    assert {"glossary"} <= {attributes.get("id") for _, attributes in page.elements}
    assert all(term in page.words and meaning in page.words for term, meaning in TERMS)


def test_first_screen_has_verdict_axes_proof_and_reason() -> None:
    page = Page(rendered("masked"))
    shown = " ".join(" ".join(page.words).split())
    first = shown[shown.index("Skip to the verdict") : shown.index("Values marked")]
    for part in (
        "Gradient health",
        "Robust accuracy",
        "196 points broken",
        "verify audit.json",
        "nets.py",
        "refuted",
    ):
        assert part in first


def test_defaults_are_marked() -> None:
    shown = " ".join(" ".join(Page(rendered("masked")).words).split())
    assert "digits default" in shown
    assert "Bounds 0 to 1 default" in shown


def test_findings_are_worst_first() -> None:
    source = rendered("masked")
    rules = ("zero-gradient", "unbounded-attack", "loss-decision-gradient-ratio")
    order = [source.index(f"<code>{rule}</code>") for rule in rules]
    assert order[0] == min(order)


def test_figures_follow_the_page_colours() -> None:
    source = rendered("masked")
    for variable in ("--best", "--strong", "--challenger", "--band-0", "--ink"):
        assert f"var({variable})" in source
    assert "#0101" not in source


def _large() -> dict[str, Any]:
    """1,000 points, the largest images, a surface of noise and many attacks."""
    document = sample.masked().to_dict()
    document["points"] = {"index": list(range(1000)), "label": [0] * 1000, "broken_by": [["apgd-margin"] * 12] * 1000}
    document["figures"]["strips"] = [sample.strip(i, side=64, channels=3) for i in range(12)]
    grid = [i / 100 for i in range(101)]
    noise = [[((31 * i * j + 7 * i) % 17) - 8.0 for i in range(101)] for j in range(101)]
    document["figures"]["surface"] |= {"u": grid, "v": grid, "margin": noise, "loss": noise}
    document["attacks"] = [{**row, "curve": [[i, i // 60] for i in range(10_000)]} for row in document["attacks"] * 3]
    document["probes"] *= 5
    return document


@pytest.mark.heavy
def test_a_large_audit_stays_small() -> None:
    source = render(_large(), "html")
    assert len(source.encode("utf-8")) < LIMIT
    assert "<image" in source


def test_surface_cells_may_be_missing() -> None:
    document = sample.masked().to_dict()
    document["figures"]["surface"]["loss"][0][0] = None
    assert 'class="surface loss"' in render(document, "html")


def test_templates_are_found_in_the_checkout_as_in_the_package() -> None:
    assert all((folder / "report.html").is_file() for folder in html.folders()[-1:])
