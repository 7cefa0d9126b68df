"""Taking a probe's docstring apart."""

from __future__ import annotations

import pytest

from maskaudit.probes.docs import Explanation, parse

TEXT = """Title line

A definition
over two lines.

Second paragraph.

Raised when
    It is high.

What it means
    Something.

What to do
    Lower it.

Source
    - First 2020, a title
      continued
    - Second 2021
"""


def test_sections_become_single_lines_per_paragraph() -> None:
    assert parse(TEXT) == Explanation(
        title="Title line",
        definition="A definition over two lines.\nSecond paragraph.",
        raised_when="It is high.",
        meaning="Something.",
        remedy="Lower it.",
        sources=("First 2020, a title continued", "Second 2021"),
    )


@pytest.mark.parametrize("heading", ["Raised when", "What it means", "What to do", "Source"])
def test_a_missing_section_is_named(heading: str) -> None:
    with pytest.raises(ValueError, match=heading):
        parse(TEXT.replace(heading, "Elsewhere"))


def test_stripped_docstrings_give_empty_texts() -> None:
    assert parse(None) == Explanation()
