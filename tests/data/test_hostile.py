"""Data files as an attacker would make them: one sentence, bounded memory, nothing runs."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskaudit.data import folder, idx, load_data
from maskaudit.errors import InputError, MaskauditError

X, Y = np.random.default_rng(0).random((6, 5)).astype(np.float32), np.arange(6) % 2


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def raw(header: str | bytes, content: bytes = b"", version: bytes = b"\x01\x00", claimed: int | None = None) -> bytes:
    """An array of which the header is what an attacker wants."""
    text = header.encode("latin1") if isinstance(header, str) else header
    length = len(text) if claimed is None else claimed
    return b"\x93NUMPY" + version + length.to_bytes(2 if version == b"\x01\x00" else 4, "little") + text + content


def described(descr: Any, shape: Any, content: bytes = bytes(64)) -> bytes:
    return raw(repr({"descr": descr, "fortran_order": False, "shape": shape}), content)


class Touch:
    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch OWNED",)


HEADERS = {
    "unfinished, which ends in tokenize.TokenError": raw("{'descr': '<f4', 'shape': (1L, ("),
    "an open text": raw("{'descr': '''"),
    "deep": raw("(" * 9000),
    "deep minus": raw("-" * 9000 + "1"),
    "longer than numpy parses": raw("{" + " " * 60_000 + "}"),
    "claims gigabytes": raw("{}", version=b"\x02\x00", claimed=2**32 - 1),
    "unknown version": raw("{}", version=b"\x09\x00"),
    "no header": b"\x93NUMPY",
    "no array": b"",
    "not latin": raw(b"\xff\xfe\x00"),
    "NUL": raw("{'descr': '<f4\0'}"),
    "a pickle": pickle.dumps(Touch()),
    "objects": npy(np.array([Touch(), Touch()], dtype=object)),
    "objects in disguise": described("|O8", (1,), pickle.dumps(Touch())),
    "objects in a field": described([("a", "<f4"), ("b", "|O")], (6,)),
    "fields": described([("a", "<f4")] * 2, (6,)),
    "nested fields": described("f4,(2,3)f4", (6,)),
    "dates": described("<M8[s]", (6,)),
    "unknown type": described("<x9", (6,)),
    "type of a billion characters": described("<U1000000000", (6,)),
    "negative": described("<f4", (-6, -5)),
    "huge": described("<f4", (10**12, 10**12)),
    "beyond 64 bits": described("<f4", (10**30,)),
    "empty and huge": described("<f4", (0, 2**62, 2**62)),
    "texts as shape": described("<f4", ("6", "5")),
    "flags as shape": described("<f4", (True, True), b"\0" * 4),
    "more content than announced": described("<f4", (2, 5), bytes(4000)),
    "less content than announced": described("<f4", (6, 5000), bytes(40)),
    "another key": raw(repr({"descr": "<f4", "fortran_order": False, "shape": (6,), "x": 1})),
}


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return str(path)


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("key", ["x", "y", "num_classes", "class_names"])
@pytest.mark.filterwarnings("error")
def test_no_array_of_an_attacker_gets_through(
    key: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    members = {"x.npy": npy(X), "y.npy": npy(Y)} | {f"{key}.npy": content}
    with pytest.raises(InputError) as refusal:
        load_data(archive(tmp_path / "d.npz", members))
    text = str(refusal.value)
    assert text.startswith(str(tmp_path / "d.npz"))
    assert text.isprintable()
    assert len(text) < 500
    assert not Path("OWNED").exists()


NAMES = {
    "one name twice": ([("x.npy", X), ("y.npy", Y), ("x.npy", X * 0)], "one name"),
    "the name without suffix": ([("x.npy", X), ("y.npy", Y), ("y", 1 - Y)], "one name"),
    "a path": ([("../x.npy", X), ("y.npy", Y)], "expected the arrays x and y"),
    "control characters": ([("\x1b[2J\u202ex.npy", X), ("y.npy", Y)], "expected the arrays x and y"),
}


@pytest.mark.parametrize(("members", "message"), NAMES.values(), ids=NAMES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_members_play_no_tricks(members: list[tuple[str, Any]], message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as made:
        for name, array in members:
            made.writestr(name, npy(array))
    with pytest.raises(InputError, match=message) as refusal:
        load_data(str(tmp_path / "d.npz"))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_whose_memory_the_file_chooses_are_refused(method: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="packed in an unusual way"):
        load_data(archive(tmp_path / "d.npz", {"x.npy": npy(X), "y.npy": npy(Y)}, method))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskaudit.data.npy.largest_file", lambda: 2**20)
    x = np.zeros((2**10, 2**9), dtype=np.uint8)  # as float32 it takes 2 MiB
    source = archive(tmp_path / "d.npz", {"x.npy": npy(x), "y.npy": npy(np.arange(2**10) % 2)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="a quarter of the memory"):
        load_data(source)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[31m", "\u202e", "\ud800", "x" * 2000], ids=ascii)
def test_class_names_are_plain_lines(name: str, tmp_path: Path) -> None:
    names = np.array([name.replace("\0", "\0."), "b"]) if "\0" in name else np.array([name, "b"])
    with pytest.raises(InputError, match=r"class_names: \[0\] must be a text"):
        load_data(archive(tmp_path / "d.npz", {"x.npy": npy(X), "y.npy": npy(Y), "class_names.npy": npy(names)}))


def test_characters_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    content = described("<U1", (2,), struct.pack("<II", 0x110000, 0x61))
    with pytest.raises(InputError, match="characters that do not exist"):
        load_data(archive(tmp_path / "d.npz", {"x.npy": npy(X), "y.npy": npy(Y), "class_names.npy": content}))


@pytest.mark.parametrize("classes", [2**62, -1, 0, 10**7])
def test_an_absurd_number_of_classes_is_refused(classes: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="classes"):
        load_data(
            archive(tmp_path / "d.npz", {"x.npy": npy(X), "y.npy": npy(Y), "num_classes.npy": npy(np.array(classes))})
        )


def test_layouts_that_numpy_writes_are_read(tmp_path: Path) -> None:
    fortran = np.asfortranarray(np.arange(30, dtype=">f8").reshape(6, 5) / 30)
    data = load_data(archive(tmp_path / "d.npz", {"x.npy": npy(fortran), "y.npy": npy(Y.astype(">u2"))}))
    assert np.array_equal(data.x.numpy(), fortran.astype(np.float32))
    assert data.y.tolist() == Y.tolist()


def mutants(good: bytes, count: int, seed: int) -> list[bytes]:
    """Copies with a few bytes changed, cut or doubled."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(len(bad))
            match rng.randrange(4):
                case 0:
                    bad[place] = rng.randrange(256)
                case 1:
                    bad[place] ^= 1 << rng.randrange(8)
                case 2:
                    del bad[place : place + rng.randrange(1, 9)]
                case _:
                    bad[place:place] = bad[place : place + rng.randrange(1, 9)]
        made.append(bytes(bad))
    return made


def refusal(load: Callable[[], object]) -> str:
    """The sentence with which something is refused; empty if it is not. Any other exception ends the test."""
    try:
        load()
    except MaskauditError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_archives_give_points_or_a_sentence(method: int, tmp_path: Path) -> None:
    names = npy(np.array(["cat", "dog"]))
    path = tmp_path / "d.npz"
    archive(path, {"x.npy": npy(X), "y.npy": npy(Y), "class_names.npy": names}, method)
    for bad in mutants(path.read_bytes(), 300, seed=method):
        path.write_bytes(bad)
        assert refusal(lambda: load_data(str(path))).isprintable()


def images(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(stream, format=kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_images_give_points_or_a_sentence(kind: str, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"0.{kind.lower()}").write_bytes(images(kind))
    for bad in mutants(images(kind), 200, seed=5):
        (tmp_path / "dog" / f"0.{kind.lower()}").write_bytes(bad)
        assert refusal(lambda: load_data(str(tmp_path))).isprintable()


def test_damaged_idx_files_give_arrays_or_a_sentence(tmp_path: Path) -> None:
    plain = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 2) + bytes(range(12))
    for good in (plain, gzip.compress(plain)):
        for bad in mutants(good, 200, seed=len(good)):
            (tmp_path / "images").write_bytes(bad)
            assert refusal(lambda: idx.read(tmp_path / "images")).isprintable()


def test_an_idx_bomb_is_unpacked_only_as_far_as_its_header_announces(tmp_path: Path) -> None:
    content = zlib.compress(struct.pack(">HBB1I", 0, 8, 1, 4) + bytes(2**24))
    body = content[2:-4]  # deflate without the wrapping of zlib
    (tmp_path / "labels").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + bytes(8))
    with pytest.raises(InputError, match="more than the 4 bytes"):
        idx.read(tmp_path / "labels")


def test_folders_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(images("PNG"))
    assert len(load_data(str(tmp_path))) == 6
    monkeypatch.setattr(folder, "MAX_FILE", 20)
    with pytest.raises(InputError, match=r"0\.png is larger than"):
        load_data(str(tmp_path))
    monkeypatch.setattr(folder, "MAX_ENTRIES", 2)
    with pytest.raises(InputError, match="more than 2 entries"):
        load_data(str(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(folder, "largest_file", lambda: 100)
    with pytest.raises(InputError, match="a quarter of the memory"):
        load_data(str(tmp_path))


def test_a_folder_whose_name_is_no_plain_line_is_refused(tmp_path: Path) -> None:
    for name in (b"cat", b"d\xffg"):
        (tmp_path / os.fsdecode(name)).mkdir()
        (tmp_path / os.fsdecode(name) / "0.png").write_bytes(images("PNG"))
    with pytest.raises(InputError, match=r"class_names: \[1\] must be a text"):
        load_data(str(tmp_path))
