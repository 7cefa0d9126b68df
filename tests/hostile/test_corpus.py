"""Every hostile file is refused by our own error or has no effect; nothing runs, crashes, hangs or takes all memory."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzzing import running, samples
from benchmarks.fuzzing.readers import AUDIT, EVIDENCE, JOURNAL, MODEL, READERS
from maskaudit.auditing.journal import Journal
from tests.hostile import corpus, documents
from tests.hostile.case import MARKER, MOST_BYTES, MOST_TOGETHER, Case, Link, Part, put

BY_NAME = {reader.name: reader for reader in READERS}
#: Far above what any of them takes: a reader that is slow is not a reader that hangs.
LIMIT = 60.0

Place = Callable[[str], Path]


@functools.cache
def companions() -> dict[str, bytes]:
    """The sound files that readers look for beside the one they are given."""
    return {
        "b/other.png": samples.image(), MODEL: samples.checkpoint(), AUDIT: json.dumps(documents.report()).encode(),
        EVIDENCE: documents.evidence(),
    }  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a file of a reader goes, with what its command needs next to it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, content in companions().items():
        (tmp_path / name).write_bytes(content)
    Journal(tmp_path / JOURNAL, {}, resume=False)
    return lambda name: tmp_path / BY_NAME[name].file


def parts(case: Case) -> dict[str, Part]:
    """The files of a case: out of the corpus, or made."""
    there = corpus.FOLDER / case.name
    if not case.committed or there.is_symlink():
        return case.parts
    files = (
        {"" if path.name == corpus.MAIN else path.name: path for path in there.iterdir()}
        if there.is_dir()
        else {"": there}
    )
    return {name: Link(os.readlink(path)) if path.is_symlink() else path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize("name", corpus.cases())
def test_hostile_file_does_no_harm(name: str, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    case = corpus.cases()[name]
    path = place(case.reader)
    for part, content in parts(case).items():
        put(content, path.parent / part if part else path)
    kind, what = running.examine(BY_NAME[case.reader], path, limit=LIMIT)
    assert kind in ("accepted", "refused"), what
    assert case.outcome == "either" or kind == case.outcome, what
    assert len(what.splitlines()) <= 1
    assert not list(path.parent.rglob(MARKER)), "code of the file ran"
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", [reader.name for reader in READERS if reader.name != "pickle"])
def test_valid_file_is_accepted(name: str, place: Place) -> None:
    path = place(name)
    folder = path.parent if path.parent.name not in ("a", JOURNAL) else path.parent.parent
    (folder / "plan.json").write_bytes(samples.plan())
    for seed in BY_NAME[name].seeds(folder):
        path.write_bytes(seed)
        assert running.examine(BY_NAME[name], path, limit=LIMIT) == ("accepted", "")


def test_corpus_is_what_the_script_writes(tmp_path: Path) -> None:
    corpus.write(tmp_path / "corpus")
    new, old = (
        {path.relative_to(root): path for path in root.rglob("*") if path.is_symlink() or path.is_file()}
        for root in (tmp_path / "corpus", corpus.FOLDER)
    )
    assert set(new) == set(old)
    for name, path in new.items():
        if path.is_symlink():
            assert os.readlink(path) == os.readlink(old[name])
        elif corpus.cases()[name.parts[0]].portable:
            assert path.read_bytes() == old[name].read_bytes(), name


def test_corpus_is_small_and_large_enough() -> None:
    sizes = [path.stat().st_size for path in corpus.FOLDER.rglob("*") if not path.is_symlink() and path.is_file()]
    assert len(sizes) >= 80
    assert max(sizes) <= MOST_BYTES
    assert sum(sizes) <= MOST_TOGETHER


def test_the_payload_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pickles of the corpus hold does act where somebody unpickles it, or the other tests show nothing."""
    import pickle

    from tests.hostile.pickles import CALLS

    monkeypatch.chdir(tmp_path)
    for what in ("reduce", "instance", "object", "reduce-stack-global", "memo", "eval"):
        pickle.loads(CALLS[what])
        (tmp_path / MARKER).rmdir()


@pytest.mark.parametrize("damage", ["code", "constants"])
def test_damaged_torchscript_ends_in_one_sentence(tmp_path: Path, damage: str) -> None:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(samples.torchscript())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith(".py" if damage == "code" else "/data.pkl"))
    members[name] = members[name][: len(members[name]) // 2]
    (tmp_path / "model.pt").write_bytes(samples.zipped(members))
    command = [sys.executable, "-m", "maskaudit", "inspect", "model.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (2, 4)
    assert done.stdout == ""
    assert done.stderr.startswith("maskaudit: ")
    assert len(done.stderr.splitlines()) == 1
