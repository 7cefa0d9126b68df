"""Files that are two things at once, or larger than they look, are refused before a reader is given them."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from maskaudit.errors import InputError
from maskaudit.loading import archive
from maskaudit.loading.sniff import LEGACY_START, read_file
from maskaudit.sources import load_model

ARCH = "mlp(in_features=4, hidden=(3,), num_classes=2)"


class Touch:
    """Pickled, it is a command that leaves a file behind."""

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch OWNED",)


def state() -> dict[str, torch.Tensor]:
    from maskaudit.networks.registry import build

    return build(ARCH).state_dict()


def saved() -> bytes:
    stream = io.BytesIO()
    torch.save(state(), stream)
    return stream.getvalue()


def scripted() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(4, 2)), stream)
    return stream.getvalue()


def small_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("a/data.pkl", pickle.dumps(Touch()))
    return stream.getvalue()


def tar(kind: int) -> bytes:
    """A tar whose first member's name is the start of a legacy checkpoint, as torch's oldest branch reads it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as made:
        for name in (LEGACY_START.decode("utf-8", "surrogateescape"), "storages", "tensors", "pickle"):
            content = pickle.dumps(Touch())
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def old_tar() -> bytes:
    """The same without the mark of newer versions; only the checksum tells that it is a tar."""
    block = bytearray(tar(tarfile.USTAR_FORMAT))
    block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def doubled() -> bytes:
    stream = io.BytesIO(saved())
    with zipfile.ZipFile(stream, "a") as made:
        name = next(item for item in made.namelist() if item.endswith("data.pkl"))
        made.writestr(name, pickle.dumps(Touch()))
    return stream.getvalue()


def overlapping() -> bytes:
    """Two names in the directory for one stretch of the file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("a/data.pkl", b"x" * 100)
        made.filelist.append(twin := zipfile.ZipInfo("a/data/0"))
        first = made.filelist[0]
        twin.header_offset, twin.CRC = first.header_offset, first.CRC
        twin.compress_size = twin.file_size = first.file_size
    return stream.getvalue()


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a/data.pkl", bytes(2**20))
    return stream.getvalue()


def legacy_state() -> bytes:
    stream = io.BytesIO()
    torch.save(state(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


AMBIGUOUS: dict[str, tuple[Callable[[], bytes], str]] = {
    "tar and legacy": (lambda: tar(tarfile.USTAR_FORMAT), "is a tar archive"),
    "tar of GNU and legacy": (lambda: tar(tarfile.GNU_FORMAT), "is a tar archive"),
    "oldest tar and legacy": (old_tar, "is a tar archive"),
    "legacy and zip": (lambda: legacy_state() + small_zip(), "starts as legacy and ends as a zip"),
    "pickle and zip": (lambda: pickle.dumps(Touch(), 2) + small_zip(), "starts as pickle and ends as a zip"),
    "safetensors and zip": (lambda: safetensors.torch.save(state()) + small_zip(), "starts as safetensors and ends"),
    "zip and zip": (lambda: saved() + small_zip(), "bytes before its archive"),
    "zip and a tail": (lambda: saved() + b"tail", "bytes after|truncated or damaged"),
    "zip and a comment": (lambda: small_zip()[:-2] + b"\x04\0tail", "bytes after"),
    "two members of one name": (doubled, "twice"),
    "overlapping members": (overlapping, "overlap"),
    "bomb": (bomb, "many times its size"),
    "zeros": (lambda: bytes(4096), "not a model format"),
}


@pytest.mark.parametrize(("make", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refused_before_torch_sees_it(
    make: Callable[[], bytes], message: str, trust: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(archive, "EXPANSION_ALLOWANCE", 2**16)
    for owner, name in ((torch, "load"), (torch.jit, "load"), (pickle, "loads"), (safetensors.torch, "load")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("a reader was called"))
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model("m.pt", arch=ARCH, trust_pickle=trust)
    assert not (tmp_path / "OWNED").exists()


@pytest.mark.parametrize("make", [saved, legacy_state, scripted, lambda: safetensors.torch.save(state())])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_writes_is_not_ambiguous(make: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(make())
    load_model(str(tmp_path / "m"), arch=ARCH)


def test_ends_as_zip_wants_the_end_of_the_file() -> None:
    assert archive.ends_as_zip(small_zip())
    assert archive.ends_as_zip(b"anything" + small_zip())
    assert not archive.ends_as_zip(small_zip() + b"x")
    assert not archive.ends_as_zip(b"weights with PK\x05\x06 among them, as chance has it once in a while" + bytes(40))


def test_a_file_larger_than_a_share_of_memory_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[read_file.__module__], "largest_file", lambda: 2**20)
    (tmp_path / "m.pt").write_bytes(b"PK\x03\x04")
    os.truncate(tmp_path / "m.pt", 2**40)  # a sparse file: it takes no room on the disk
    with pytest.raises(InputError, match="larger than"):
        load_model(str(tmp_path / "m.pt"))


def test_a_sparse_file_of_no_format_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "m.pt").touch()
    os.truncate(tmp_path / "m.pt", 2**42)
    with pytest.raises(InputError, match="not a model format"):
        load_model(str(tmp_path / "m.pt"))


TENSORS = {
    "sparse": lambda: torch.eye(3, 4).to_sparse(),
    "compressed": lambda: torch.eye(3, 4).to_sparse_csr(),
    "without values": lambda: torch.empty(3, 4, device="meta"),
    "complex in place of real": lambda: torch.zeros(3, 4, dtype=torch.complex64),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(4), torch.zeros(3)]),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore:.*(prototype|beta state)")
def test_tensors_that_are_no_plain_weights_are_refused(kind: str, tmp_path: Path) -> None:
    torch.save({**state(), "1.weight": TENSORS[kind]()}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"m\.pt"):
        load_model(str(tmp_path / "m.pt"), arch=ARCH)


def test_a_name_of_very_many_prefixes_takes_no_time(tmp_path: Path) -> None:
    torch.save({"module." * 100_000 + "weight": torch.zeros(1)}, tmp_path / "m")
    with pytest.raises(InputError, match="missing"):
        load_model(str(tmp_path / "m"), arch=ARCH)


KEYS = {
    "deep": b"K\x01" + b"\x85" * 3_000_000,
    "doubled": b"K\x01" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60)),
    "doubled otherwise": b"K\x01" + b"2\x86" * 60,
    "marked": b"(" * 3000 + b"K\x01" + b"t" * 3000,
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("old", [False, True])
def test_a_key_whose_hash_would_not_end_is_refused(key: bytes, old: bool, tmp_path: Path) -> None:
    crafted = b"\x80\x02}" + key + b"K\x01s."
    if old:
        start = legacy_state()
        place = start.index(b".", start.index(b"little_endian")) + 1
        (tmp_path / "m.pt").write_bytes(start[:place] + crafted + b"\x80\x02]q\0.")
    else:
        with zipfile.ZipFile(tmp_path / "m.pt", "w") as made:
            made.writestr("archive/data.pkl", crafted)
            made.writestr("archive/version", "3")
    with pytest.raises(InputError, match="nests its objects too deep"):
        load_model(str(tmp_path / "m.pt"), arch=ARCH)
