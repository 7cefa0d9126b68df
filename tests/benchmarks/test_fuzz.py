"""The fuzz benchmark names what it finds: an exception, an endless message, an act, a crash, a hang."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzzing import running, samples
from benchmarks.fuzzing.mutations import json_tree, safetensors_header, toml_tree
from benchmarks.fuzzing.readers import READERS, Reader
from maskaudit.errors import InputError

SEEDS = [b"valid"]


def broken(data: bytes) -> None:
    """A reader with every fault, by the last byte of the file."""
    kind = data[-1] % 8 if data else 0
    if kind == 1:
        raise ValueError("not ours")
    if kind == 2:
        raise InputError("a" * 10_000)
    if kind == 3:
        os.system("true")
    if kind == 4:
        os.abort()
    if kind == 5:
        time.sleep(60)
    if kind == 6:
        raise InputError("refused")
    while kind == 7:
        pass


def reader(read: Callable[[bytes], None]) -> Reader:
    return Reader("broken", "file", lambda path: read(path.read_bytes()), lambda _: SEEDS, (), 0)


def test_every_kind_of_finding_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LIMIT", 0.5)
    monkeypatch.setattr(running, "WAITING", 6.0)
    seeds = [bytes((kind,)) for kind in range(8)]  # the first executions are the valid files themselves
    folders = iter(range(100))

    def folder() -> Path:
        place = tmp_path / str(next(folders))
        place.mkdir()
        return place

    tally = running.fuzz(reader(broken), seeds, folder, seed=0, start=0, count=8, kept=tmp_path / "kept")
    assert (tally.executions, tally.accepted, tally.refused) == (8, 1, 1)
    assert {kind: tally.count(kind) for kind in ("exception", "message", "acted", "crash", "hang")} == {
        "exception": 1,
        "message": 1,
        "acted": 1,
        "crash": 1,
        "hang": 2,
    }
    assert {what: number for (kind, what), number in tally.first.items() if kind == "crash"} == {"SIGABRT": 4}
    assert sorted(path.read_bytes() for path in (tmp_path / "kept").iterdir()) == seeds[1:6]  # one of each finding


def test_mutants_are_the_same_each_time_and_differ_from_each_other() -> None:
    chosen = [one for one in READERS if one.name in ("checkpoint", "npz", "plan", "gate configuration", "pickle")]
    for one in chosen:
        seeds = [samples.plan()] if one.name == "plan" else list(one.seeds(Path()))
        first, again = ([running.mutant(one, seeds, 0, number) for number in range(5, 60)] for _ in range(2))
        assert first == again
        assert len(set(first)) > 45


@pytest.mark.parametrize(
    ("mutate", "valid"),
    [
        (json_tree(), samples.plan()),
        (toml_tree(), samples.GATE.encode()),
        (safetensors_header(), samples.checkpoint()),
    ],
)
def test_structure_survives_mutation(mutate: Callable[..., bytes], valid: bytes) -> None:
    """A structure-aware mutation mostly leaves something that can be parsed, or it tests no more than random bytes."""
    import json
    import tomllib
    from random import Random

    def parses(data: bytes) -> bool:
        try:
            if valid.startswith(b"{"):
                json.loads(data)
            elif valid == samples.GATE.encode():
                tomllib.loads(data.decode())
            else:
                json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        except (ValueError, RecursionError):
            return False
        return True

    assert sum(parses(mutate(valid, Random(number))) for number in range(100)) > 60
