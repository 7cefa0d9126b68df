"""Trained subjects, once per session."""

from __future__ import annotations

import pytest

from tests.attacks.subjects import Subjects, build_subjects


@pytest.fixture(scope="session")
def subjects() -> Subjects:
    """A standard and a PGD-trained digits network with the test points that both classify correctly."""
    return build_subjects()
