"""Reports: one file per format, each a function of the parsed JSON document and of nothing else.

A report can therefore be rendered again years later, from `audit.json` alone.
The file with the adversarial examples is evidence, not a format of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from maskaudit.errors import UsageError
from maskaudit.results import check_document, dump_json, plain

Renderer = Callable[[dict[str, Any]], str]


def _renderer(module: str) -> Renderer:
    """The renderer of a format, imported when it is used: HTML needs matplotlib and Jinja2, the others do not."""

    def rendered(document: dict[str, Any]) -> str:
        return import_module(f"maskaudit.report.{module}").render(document)

    return rendered


def _json(document: dict[str, Any]) -> str:
    """The document itself in canonical form; lone surrogates, which no file can hold, become question marks."""
    return dump_json(plain(document)).encode("utf-8", "replace").decode("utf-8")


FORMATS: dict[str, Renderer] = {
    "html": _renderer("html"),
    "json": _json,
    "md": _renderer("markdown"),
    "text": _renderer("text"),
    "sarif": _renderer("sarif"),
    "junit": _renderer("junit"),
}


def render(document: dict[str, Any], fmt: str) -> str:
    """Render a parsed JSON report.

    Args:
        document: what `json.load` gave for an `audit.json`.
        fmt: a key of `FORMATS`.

    Raises:
        UsageError: for an unknown format.
        InputError: when the document is not a maskaudit report that this version can read.
    """
    if fmt not in FORMATS:
        raise UsageError(f"The format must be one of {', '.join(FORMATS)}, got {fmt!r}.")
    return FORMATS[fmt](check_document(document))


__all__ = ["FORMATS", "Renderer", "render"]
