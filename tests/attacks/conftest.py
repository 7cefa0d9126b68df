"""Trained subjects, once per session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests import `subjects` under any pytest import mode

from subjects import Subjects, build_subjects  # noqa: E402


@pytest.fixture(scope="session")
def subjects() -> Subjects:
    return build_subjects()
