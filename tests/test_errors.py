"""Names that are nearly right are offered in place of those that are wrong."""

from __future__ import annotations

import pytest

from maskaudit.command.rules import explain_rule
from maskaudit.errors import UsageError, meant
from maskaudit.sources import load_model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pgd", " (did you mean pgd-at?)"),
        ("Small CNN", " (did you mean small_cnn?)"),
        ("zerogradient", " (did you mean zero-gradient?)"),
        ("entirely other", ""),
        ("", ""),
    ],
)
def test_the_nearest_names(name: str, expected: str) -> None:
    assert meant(name, ["pgd-at", "small_cnn", "zero-gradient", "vit"]) == expected


def test_zoo_and_rules_say_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"The zoo has no model 'pgd' .did you mean pgd-at\?"):
        load_model("zoo:pgd")
    with pytest.raises(UsageError, match=r"no probe, attack or mechanism 'zerogradient' .did you mean zero-gradient"):
        explain_rule("zerogradient")
