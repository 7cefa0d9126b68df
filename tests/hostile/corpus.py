"""The corpus of hostile files: `python -m tests.hostile.corpus` writes it anew.

Each file is named for its reader, what is wrong with it, and what must become of it. None of them executes anything:
where one names code, that code would make a folder, and no run of the tests may leave one behind. Files that are large
are made when they are needed.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from tests.hostile import checkpoints, documents, pickles, points, programs
from tests.hostile.case import Case, put

FOLDER = Path(__file__).resolve().parent / "corpus"
#: What a case with several files is called inside its folder, in the corpus.
MAIN = "file"


@functools.cache
def cases() -> dict[str, Case]:
    """All cases by name."""
    every = [case for part in (checkpoints, pickles, programs, points, documents) for case in part.cases()]
    named = {case.name: case for case in every}
    if len(named) != len(every):
        raise ValueError("two hostile files have one name")
    return named


def write(folder: Path = FOLDER) -> int:
    """Write the committed part of the corpus, in place of what is there; returns the number of files."""
    shutil.rmtree(folder, ignore_errors=True)
    kept = [case for case in cases().values() if case.committed]
    for case in kept:
        parts = case.parts
        for name, part in parts.items():
            put(part, folder / case.name / (name or MAIN) if len(parts) > 1 else folder / case.name)
    return len(kept)


if __name__ == "__main__":
    print(f"{write()} hostile files in {FOLDER}")
