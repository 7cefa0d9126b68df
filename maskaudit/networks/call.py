"""`name(key=value)` with literal values, read without running anything: it may come from a model file."""

from __future__ import annotations

import ast
import re
from typing import Any

from maskaudit.declared.kinds import shown
from maskaudit.errors import UsageError


def read_call(text: str, spec: str, example: str) -> tuple[str, dict[str, Any]]:
    """Name (may be dotted) and keyword arguments of a call.

    Args:
        text: the call, the brackets left out where nothing is given.
        spec: what it is a part of, and example: how that may look; for messages.

    Raises:
        UsageError: for anything else than a name and keyword arguments that are Python literals.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"{shown(spec)} is not an architecture; write it as {example}.") from None
    keywords: list[ast.keyword] = []
    if isinstance(tree, ast.Call):
        if tree.args or any(keyword.arg is None for keyword in tree.keywords):
            raise UsageError(f"In {shown(spec)}, name the arguments, as in {text.split('(')[0].strip()}(width=2).")
        keywords, tree = tree.keywords, tree.func
    name = _dotted(tree)
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        raise UsageError(f"{shown(spec)} is not an architecture; write it as {example}.")
    return name, {str(keyword.arg): _literal(keyword, spec) for keyword in keywords}


def _dotted(tree: ast.expr) -> str:
    """`a.b.c` of an expression that is such a name; empty for any other."""
    names: list[str] = []
    while isinstance(tree, ast.Attribute):
        names.append(tree.attr)
        tree = tree.value
    return ".".join([tree.id, *reversed(names)]) if isinstance(tree, ast.Name) else ""


def _literal(keyword: ast.keyword, spec: str) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise UsageError(
            f"In {shown(spec)}, the value of {keyword.arg} must be a plain number, text, list or dict."
        ) from None
