"""The HTML reports of five zoo models in a real browser: quiet, self-contained, accessible, printable, phone-sized."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskaudit.command.jobs import audit_source
from maskaudit.gate import page as gate_page
from maskaudit.report import render
from maskaudit.settings import AuditSettings

from . import chromium

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())]

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
#: Masked in different ways, and clear; only two networks have to be trained for them.
MODELS = ("standard", "pgd-at", "quantised", "zero-backward", "pgd-at-x100")
#: Pages that a printed report may have, with everything unfolded.
MOST_PAGES = 20
LIMIT = 1_000_000


@pytest.fixture(scope="session")
def launched() -> Iterator[Any]:
    with chromium.browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def axe() -> str:
    source = chromium.axe_source()
    assert source is not None
    return source.read_text(encoding="utf-8")


@pytest.fixture(params=MODELS)
def report(request: pytest.FixtureRequest, zoo_cache: Path, tmp_path: Path) -> Path:
    """The report of one audit, made where it is read: one test per model asks everything of it."""
    command = f"maskaudit check zoo:{request.param} --budget quick"
    settings = AuditSettings(budget="quick", samples=40, claim=0.5, command=command)
    document = (
        audit_source(f"zoo:{request.param}", settings).report.with_evidence("evidence.safetensors", b"").to_dict()
    )
    file = tmp_path / "report.html"
    file.write_text(render(document, "html"), encoding="utf-8")
    return file


def test_report_in_chromium(report: Path, launched: Any, axe: str) -> None:
    assert report.stat().st_size < LIMIT
    with chromium.opened(launched, report, viewport=chromium.DESKTOP) as desktop:
        _first_screen_holds_verdict_reason_and_proof(desktop.page)
        _keyboard_reaches_the_verdict(desktop.page)
        _prints_on_few_pages(desktop.page)
        desktop.open_all()
        assert desktop.axe(axe) == []
        assert desktop.too_wide() == []
        _quiet(desktop)
    with chromium.opened(launched, report, viewport=chromium.PHONE, scheme="dark") as phone:
        assert phone.too_wide() == []
        phone.open_all()
        assert phone.too_wide() == []
        assert phone.axe(axe) == []
        _quiet(phone)


def _quiet(watched: chromium.Watched) -> None:
    """Nothing on the console, nothing asked of the network."""
    assert watched.messages == []
    assert watched.asked == []


def _first_screen_holds_verdict_reason_and_proof(page: Any) -> None:
    for text in (".stamp", "#verdict-sentence", ".reasons", "#axis-health", "#axis-accuracy", "#proof-title"):
        box = page.locator(text).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= chromium.DESKTOP["height"], text


def _keyboard_reaches_the_verdict(page: Any) -> None:
    """The first stop is the skip link, visible while it has the focus, and it leads to the verdict."""
    page.keyboard.press("Tab")
    box = page.locator(".skip:focus").bounding_box()
    assert box is not None
    assert box["width"] > 50
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def _prints_on_few_pages(page: Any) -> None:
    page.emulate_media(media="print")
    folded = "[...document.querySelectorAll('details > :not(summary)')].filter(part => !part.checkVisibility()).length"
    assert page.evaluate(folded) == 0
    assert page.locator("#paper").is_visible()
    page.emulate_media(media="screen")
    pages = chromium.pdf_pages(page.pdf(format="A4"))
    assert 2 <= pages <= MOST_PAGES


@pytest.mark.parametrize("width", [400, 800, 1200])
def test_the_gate_shows_every_result_without_scrolling(width: int, launched: Any, tmp_path: Path) -> None:
    summary = json.loads((SAMPLES / "gate.json").read_text(encoding="utf-8"))
    summary["models"][0]["name"] = "a-network-with-a-rather-long-name_that-goes-on-and-on.v2"
    file = tmp_path / "index.html"
    file.write_text(gate_page.html(summary), encoding="utf-8")
    for scheme in ("light", "dark"):
        with chromium.opened(launched, file, viewport={"width": width, "height": 900}, scheme=scheme) as gate:
            assert gate.too_wide() == []
            cells = gate.page.locator("td").evaluate_all(
                "all => all.map(e => [e.innerText, e.getBoundingClientRect()])"
            )
            assert {"pass", "FAIL"} <= {text for text, _ in cells}
            assert all(0 <= box["left"] < box["right"] <= width for _, box in cells)
            _quiet(gate)


def test_a_request_and_an_error_would_be_noticed(launched: Any, tmp_path: Path) -> None:
    """The watch itself works: a page that calls out and fails is caught at both."""
    file = tmp_path / "loud.html"
    file.write_text("<!DOCTYPE html><title>x</title><img src='https://example.invalid/x'><script>throw 1</script>")
    with chromium.opened(launched, file, viewport=chromium.DESKTOP) as loud:
        assert loud.asked == ["https://example.invalid/x"]
        assert any("1" in line for line in loud.messages)


def test_a_page_that_is_too_wide_or_illegible_would_be_noticed(launched: Any, axe: str, tmp_path: Path) -> None:
    file = tmp_path / "wide.html"
    file.write_text(
        "<!DOCTYPE html><title>x</title><main><p style='width:900px;color:#ccc;background:#fff'>pale</p></main>"
    )
    with chromium.opened(launched, file, viewport=chromium.PHONE) as wide:
        assert wide.too_wide() == ["P."]
        assert any("color-contrast" in line for line in wide.axe(axe))
