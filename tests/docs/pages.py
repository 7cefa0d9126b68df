"""The pages of the site: their code blocks, links and anchors, and the generator as a module."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: the language that its fence names, the line of the page it starts on, its text."""

    language: str
    line: int
    text: str


def pages() -> list[Path]:
    """Every page, and the README, which links to them."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[Block]:
    """The fenced blocks of a page in one language."""
    text = read(path)
    found = [Block(m[1], text.count("\n", 0, m.start()) + 2, m[2]) for m in _FENCE.finditer(text)]
    return [block for block in found if block.language == language]


def without_code(path: Path) -> str:
    """A page without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "code", _FENCE.sub("", read(path)))


def links(path: Path) -> list[tuple[str, str]]:
    """(page or file, anchor) of every link that stays inside the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(path))
    return [(t.partition("#")[0], t.partition("#")[2]) for t in targets if not re.match(r"[a-z]+:", t)]


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as the generator of the site makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", read(path)), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def generator() -> ModuleType:
    """`docs/generate.py`, which is a script and not part of a package."""
    name = "maskaudit_docs_generate"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DOCS / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        path = list(sys.path)
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path[:] = path
    return sys.modules[name]
