"""One hostile file: what reads it, what is wrong with it, and what must become of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: `refused`: by our own error. `accepted`: its tricks have no effect. `either`: harmless whichever way.
Outcome = Literal["refused", "accepted", "either"]

#: Largest file of the committed corpus, and all of it together, in bytes.
MOST_BYTES, MOST_TOGETHER = 20_480, 1_200_000
#: What a file's payload would make if it ran; no test run may leave one behind.
MARKER = "hostile-marker"


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Sparse:
    """A file of zeros that takes no room on the disk, `start` before them."""

    size: int
    start: bytes = b""


Part = bytes | Link | Sparse
Content = Part | dict[str, Part]


@dataclass(frozen=True)
class Case:
    """A hostile file.

    Attributes:
        reader: name in `benchmarks.fuzzing.readers.READERS`.
        what: a few words with hyphens, for the file name.
        outcome: what must become of it.
        content: the file; or several next to each other, by relative path, the one that is opened under `""`; or what
            makes either, where that takes long.
        committed: whether it lies in the corpus; large ones are made when they are needed.
        portable: whether the same bytes come out with every version of torch and of the other writers.
    """

    reader: str
    what: str
    outcome: Outcome
    content: Content | Callable[[], Content]
    committed: bool = True
    portable: bool = True

    @property
    def name(self) -> str:
        """Name in the corpus: reader, what is wrong, outcome."""
        return f"{self.reader.replace(' ', '-').replace(',', '')}.{self.what}.{self.outcome}"

    @property
    def parts(self) -> dict[str, Part]:
        """All files, the one that is opened under the empty name."""
        content = self.content() if callable(self.content) else self.content
        return content if isinstance(content, dict) else {"": content}


def put(part: Part, path: Path) -> None:
    """Write one part; a file or link that is there already is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if isinstance(part, Link):
        path.symlink_to(part.target)
    elif isinstance(part, Sparse):
        with path.open("wb") as stream:
            stream.write(part.start)
            os.truncate(stream.fileno(), part.size)
    else:
        path.write_bytes(part)
