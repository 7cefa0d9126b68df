"""Driving the system's Chromium: launch flags, a page that watches itself, axe, and the pages of a PDF."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: No display, no sandbox (containers have no user namespaces), nothing that talks to the network by itself.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def executable() -> str | None:
    """The browser: `MASKAUDIT_CHROMIUM`, else the first usual name on the path."""
    given = os.environ.get("MASKAUDIT_CHROMIUM")
    return given or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def axe_source() -> Path | None:
    """`axe.min.js`: the file that `MASKAUDIT_AXE` names, else that of the package axe-playwright-python."""
    if given := os.environ.get("MASKAUDIT_AXE"):
        return Path(given)
    if find_spec("axe_playwright_python") is None:
        return None
    file = Path(str(resources.files("axe_playwright_python"))) / "axe.min.js"
    return file if file.is_file() else None


def missing() -> str:
    """What is needed and not there, in one sentence; empty when everything is."""
    if find_spec("playwright") is None or axe_source() is None:
        return "the browser test needs the PyPI package axe-playwright-python, which brings playwright"
    if executable() is None:
        return "the browser test needs Chromium (Debian: chromium), or MASKAUDIT_CHROMIUM with its path"
    return ""


@dataclass
class Watched:
    """A page with everything that it printed and asked for."""

    page: Any
    messages: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def axe(self, source: str) -> list[str]:
        """Serious and critical violations as lines: rule, element, why."""
        self.page.evaluate(source)
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{violation['id']} ({violation['impact']}): {node['target']}: {node['failureSummary']}"
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]

    def open_all(self) -> None:
        """Unfold every `<details>`, so that nothing escapes a check."""
        self.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")

    def too_wide(self) -> list[str]:
        """Elements that make the page itself scroll sideways; their own scrolling regions are allowed."""
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        if not self.page.evaluate(wide):
            return []
        return self.page.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className).slice(0, 5)"
        ) or ["the page"]


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium for several pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=executable(), headless=True, args=list(FLAGS))
        yield launched
        launched.close()


@contextmanager
def opened(launched: Any, file: Path, *, viewport: dict[str, int], scheme: str = "light") -> Iterator[Watched]:
    """The report in a fresh profile, every request of which is noted and, unless it is the file itself, refused."""
    context = launched.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    watched = Watched(context.new_page())
    watched.page.on("console", lambda message: watched.messages.append(f"{message.type}: {message.text}"))
    watched.page.on("pageerror", lambda error: watched.messages.append(f"error: {error}"))

    def decide(route: Any) -> None:
        url = route.request.url
        if url == file.as_uri():
            route.continue_()
        else:
            watched.asked.append(url)
            route.abort()

    context.route("**/*", decide)
    watched.page.goto(file.as_uri())
    yield watched
    context.close()


def pdf_pages(content: bytes) -> int:
    """Number of pages of a PDF, counted in its page tree, compressed or not."""
    streams = re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL)
    parts = [content]
    for stream in streams:
        try:
            parts.append(zlib.decompressobj().decompress(stream))
        except zlib.error:
            continue
    return sum(len(re.findall(rb"/Type\s*/Page(?!s)", part)) for part in parts)
