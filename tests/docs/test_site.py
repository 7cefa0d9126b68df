"""Links resolve, and the site builds without a warning and without the network."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import DOCS, ROOT, anchors, links, pages, read


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_links_inside_the_repository_resolve(path: Path) -> None:
    for target, anchor in links(path):
        page = path.parent / target if target else path
        assert page.is_file(), f"{path.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(page), f"{path.name} links to {target}#{anchor}, which is not there"


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": ([\w-]+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE))
    assert listed == {path.name for path in DOCS.glob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed; it is part of the extra dev")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_builds_strictly(site: Path) -> None:
    for path in DOCS.glob("*.md"):
        assert (site / path.with_suffix(".html").name).is_file()
    assert not list(site.glob("*.py"))


def test_no_page_loads_anything_from_the_network(site: Path) -> None:
    for page in site.glob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", html)
        assert loaded == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name
