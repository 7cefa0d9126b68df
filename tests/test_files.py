"""Files are read within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskaudit.errors import InputError
from maskaudit.files import read_bounded


def test_reading_sets_aside_no_memory_for_what_is_not_there(tmp_path: Path) -> None:
    """The size of a pipe and of some files of the system is 0, so that the limit is all that is known."""
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert read_bounded(empty, 1 << 45, "It") == b""
    assert read_bounded(Path("/proc/self/status"), 1 << 45, "It").startswith(b"Name:")


def test_more_than_the_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2000))
    assert read_bounded(path, 2000, "It") == bytes(2000)
    for place, most in ((path, 1999), (Path("/proc/self/status"), 10)):
        with pytest.raises(InputError, match="It is larger than"):
            read_bounded(place, most, "It")
