"""A probe's module docstring is its documentation; this file takes it apart.

The docstring opens with a title line and a definition of what is measured, then
has four headed sections, each indented under its heading:

    Raised when / What it means / What to do / Source

`maskaudit explain RULE` prints the whole text; reports carry the sections.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from maskaudit.probes.interface import Measurement, Need, Probe, ProbeContext

HEADINGS = ("Raised when", "What it means", "What to do", "Source")


@dataclass(frozen=True)
class Explanation:
    """The parts of a probe's documentation; all empty when Python strips docstrings (-OO)."""

    title: str = ""
    definition: str = ""
    raised_when: str = ""
    meaning: str = ""
    remedy: str = ""
    sources: tuple[str, ...] = ()


def parse(docstring: str | None) -> Explanation:
    """Split a probe's docstring into its parts; paragraphs become single lines.

    Raises:
        ValueError: when a section is missing or empty.
    """
    if docstring is None:
        return Explanation()
    title, *lines = inspect.cleandoc(docstring).splitlines()
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in lines:
        if line.strip() in HEADINGS and line == line.strip():
            current = line.strip()
            sections[current] = []
        else:
            sections[current].append(line)
    missing = [name for name in HEADINGS if not any(line.strip() for line in sections.get(name, []))]
    if missing:
        raise ValueError(f"the probe documented as {title!r} lacks the section(s) {', '.join(missing)}")
    return Explanation(
        title=title.rstrip("."),
        definition=_joined(sections[""]),
        raised_when=_joined(sections["Raised when"]),
        meaning=_joined(sections["What it means"]),
        remedy=_joined(sections["What to do"]),
        sources=_entries(sections["Source"]),
    )


def documented_probe(
    rule: str, measure: Callable[[ProbeContext], Measurement], *, needs: Iterable[Need], docstring: str | None
) -> Probe:
    """A `Probe` whose title and sources come from its module's docstring."""
    text = parse(docstring)
    return Probe(rule, text.title or rule, frozenset(needs), measure, text.sources)


def explanation(probe: Probe) -> Explanation:
    """The parsed documentation of a probe; empty where a third party's probe has none of this form."""
    try:
        return parse(_module_docstring(probe))
    except ValueError:
        return Explanation(title=probe.title, sources=probe.sources)


def full_text(probe: Probe) -> str:
    """The documentation as printed by `maskaudit explain RULE`."""
    docstring = _module_docstring(probe)
    body = inspect.cleandoc(docstring) if docstring else probe.title
    return f"{probe.rule}\n\n{body}\n"


def _module_docstring(probe: Probe) -> str | None:
    module = sys.modules.get(probe.measure.__module__)
    return module.__doc__ if module is not None else None


def _joined(lines: list[str]) -> str:
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line.strip())
        elif paragraphs[-1]:
            paragraphs.append([])
    return "\n".join(" ".join(words) for words in paragraphs if words)


def _entries(lines: list[str]) -> tuple[str, ...]:
    """One source per entry; entries are separated by blank lines or by a leading dash."""
    text = "\n".join("" if not line.strip() else line.strip() for line in lines)
    for_dashes = text.replace("\n- ", "\n\n- ")
    return tuple(" ".join(part.split()).removeprefix("- ") for part in for_dashes.split("\n\n") if part.strip())
