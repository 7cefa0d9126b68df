"""What holds for every format: any document of the schema renders, or is refused in one sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from maskaudit.errors import InputError, UsageError
from maskaudit.report import FORMATS, images, plots, render, surface, view

from . import sample

SAMPLES = {"masked": sample.masked, "clear": sample.clear, "inconclusive": sample.inconclusive}


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_renders_every_sample(name: str, fmt: str) -> None:
    output = render(SAMPLES[name]().to_dict(), fmt)
    assert output.endswith("\n")
    assert name in output.lower()


@pytest.mark.parametrize("fmt", FORMATS)
def test_same_document_same_bytes(fmt: str) -> None:
    document = sample.masked().to_dict()
    assert render(document, fmt) == render(json.loads(json.dumps(document)), fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_rendering_leaves_the_document_alone(fmt: str) -> None:
    document = sample.masked().to_dict()
    before = copy.deepcopy(document)
    render(document, fmt)
    assert document == before


@pytest.mark.parametrize("fmt", FORMATS)
def test_hostile_strings_can_be_written_and_steer_no_terminal(fmt: str) -> None:
    output = render(sample.hostile(), fmt)
    output.encode("utf-8")
    if fmt != "json":
        assert not set(output) & set("\x00\x1b\x07\u202e\x9b")


def test_json_is_the_document_itself() -> None:
    document = sample.masked().to_dict()
    assert json.loads(render(document, "json")) == document


def test_the_verdict_never_promises() -> None:
    for fmt in ("html", "md", "text"):
        shown = render(sample.clear().to_dict(), fmt).lower()
        assert "no masking found" in shown
        assert "is robust" not in shown
        assert "is safe" not in shown


def _mutations(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values; of long lists only the first member."""
    if path:
        yield path
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _mutations(value, (*path, key))
    elif isinstance(document, list):
        for position, value in enumerate(document[:1]):
            yield from _mutations(value, (*path, position))


def _edited(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    edited = copy.deepcopy(document)
    holder: Any = edited
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return edited


def _render_or_refuse(document: dict[str, Any], fmt: str) -> None:
    try:
        render(document, fmt)
    except InputError as error:
        sentence = str(error)
        if "\n" in sentence:
            raise


@pytest.mark.parametrize("junk", [None, "junk", -1, 1e308, {}, [[None]], float("nan")], ids=repr)
def test_odd_values_anywhere_render_or_give_one_sentence(junk: Any) -> None:
    document = sample.masked().to_dict()
    for path in _mutations(document):
        edited = _edited(document, path, junk)
        for fmt in ("text", "sarif"):
            if path[0] == "schema_version" or path[:2] == ("verdict", "label") or path == ("verdict",):
                _render_or_refuse(edited, fmt)
            else:
                render(edited, fmt)


@pytest.mark.parametrize("junk", [None, -1, 1e308], ids=repr)
@pytest.mark.parametrize("section", sorted(set(sample.masked().to_dict()) - {"schema_version", "verdict"}))
def test_odd_values_render_as_html(section: str, junk: Any) -> None:
    render(_edited(sample.masked().to_dict(), (section,), junk), "html")


@pytest.mark.parametrize("junk", [None, -1, 1e308], ids=repr)
def test_odd_values_inside_figures_draw_or_leave_out(junk: Any) -> None:
    document = sample.masked().to_dict()
    report = view.read(document)
    figures = document["figures"]
    for path in _mutations(figures["eps_curve"]):
        plots.eps_curve(report, _edited(figures["eps_curve"], path, junk))
    for path in _mutations(figures["surface"]):
        plots.surfaces(surface.read(_edited(figures["surface"], path, junk)))
    for path in _mutations(figures["strips"]):
        images.strips(_edited(figures["strips"], path, junk))


def test_optional_sections_may_be_missing() -> None:
    document = sample.masked().to_dict()
    for section in ("figures", "notes", "timing"):
        del document[section]
    for fmt in FORMATS:
        render(document, fmt)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([], "not a maskaudit report"),
        ({}, "not a maskaudit report"),
        ({"schema_version": 99}, "upgrade maskaudit"),
        ({"schema_version": 1}, "lacks the section"),
        ({**sample.masked().to_dict(), "verdict": {"label": "fine"}}, "must be masked, suspect, clear or inconclusive"),
    ],
)
def test_other_documents_are_refused(document: Any, sentence: str) -> None:
    for fmt in FORMATS:
        if fmt == "json" and "verdict" in document:
            continue
        with pytest.raises(InputError, match=sentence):
            render(document, fmt)


def test_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="html, json, md, text, sarif, junit"):
        render(sample.masked().to_dict(), "pdf")
