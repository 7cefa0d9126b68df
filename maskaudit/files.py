"""Files: written whole or not at all, and named in reports without telling where on a disk they lie."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import sys
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file in the same folder, then rename it.

    Raises:
        OSError: when the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def shown_path(name: str) -> str:
    """A source file as reports name it: relative to the working folder, or to the import path it was found on."""
    return _relative(name, (os.getcwd(), *sorted((root for root in sys.path if root), key=len, reverse=True)))


@functools.lru_cache(maxsize=4096)
def _relative(name: str, roots: tuple[str, ...]) -> str:
    path = Path(name)
    for root in roots:
        with contextlib.suppress(ValueError):
            return path.relative_to(root).as_posix()
    return path.as_posix()
