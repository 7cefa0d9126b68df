"""Hostile files for torch.load: pickles whose only effect would be a folder, and archives that lie."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import torch

from benchmarks.fuzzing import samples
from tests.hostile.case import MARKER, Case, Sparse


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


_NAME = _text(MARKER)
#: Every way a pickle can call something, around one call of os.mkdir.
CALLS: dict[str, bytes] = {
    "reduce": b"cposix\nmkdir\n(" + _NAME + b"tR.",
    "reduce-stack-global": b"\x80\x04" + _text("posix") + _text("mkdir") + b"\x93(" + _NAME + b"tR.",
    "instance": b"(" + _NAME + b"iposix\nmkdir\n.",
    "object": b"(cposix\nmkdir\n" + _NAME + b"o.",
    "new-object": b"\x80\x02cposix\nmkdir\n(" + _NAME + b"t\x81.",
    "new-object-keywords": b"\x80\x04cposix\nmkdir\n(" + _NAME + b"t}\x92.",
    "build": b"\x80\x02ccollections\nOrderedDict\n)R}(" + _text("__setstate__") + b"cposix\nmkdir\nub" + _NAME + b"b.",
    "extension": b"\x80\x02\x82\x01(" + _NAME + b"tR.",
    "extension-four-bytes": b"\x80\x02\x84\x01\x00\x00\x00(" + _NAME + b"tR.",
    "eval": b"cbuiltins\neval\n(" + _text(f"__import__('os').mkdir('{MARKER}')") + b"tR.",
    "getattr": b"cbuiltins\ngetattr\n(cposix\n__builtins__\n" + _text("eval") + b"tR.",
    "torch-load": b"ctorch.hub\nload_state_dict_from_url\n(" + _text("http://127.0.0.1:9/x") + b"tR.",
    "partial": b"cfunctools\npartial\n(cposix\nmkdir\n" + _NAME + b"tR)R.",
    "memo": b"cposix\nmkdir\nq\x010h\x01(" + _NAME + b"tR.",
    "second-pickle": pickle.dumps({"w": 1}, 2) + b"cposix\nmkdir\n(" + _NAME + b"tR.",
    "persistent-identity": b"\x80\x02(" + _text("storage") + b"cposix\nmkdir\n" + _NAME + _text("cpu") + b"K\x01tQ.",
}
#: Pickles that call nothing and cost much, or are no pickles.
ODD: dict[str, bytes] = {
    "integer-of-many-digits": b"I" + b"9" * 5000 + b"\n.",
    "nested-lists": b"]" * 5000 + b"a" * 4999 + b".",
    "nested-tuples": b"N" + b"\x85" * 5000 + b".",
    "marks-only": b"(" * 10_000 + b".",
    "claims-huge-text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "claims-huge-bytes": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
    "memo-index-huge": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "references-grow": b"\x80\x02]q\x00" + b"".join(b"(h\x00h\x00lq" + bytes((i,)) for i in range(1, 60)) + b".",
    "no-stop": b"\x80\x02}q\x00",
    "stack-underflow": b"\x80\x02R.",
    "set-item-of-number": b"\x80\x02K\x01K\x02K\x03s.",
    "unhashable-key": b"\x80\x02}]K\x01s.",
    "state-is-number": b"\x80\x02K\x07.",
    "empty-dict": b"\x80\x02}.",
}
LEGACY_HEAD = b"".join(pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def cases() -> Iterator[Case]:
    """All of them."""
    for what, content in {**CALLS, **ODD}.items():
        proto = content if content.startswith(b"\x80") else b"\x80\x02" + content
        yield Case("state dict", f"archive-{what}", "refused", _archive(proto))
        yield Case("pickle", f"plain-{what}", "refused", proto)
    for what in ("reduce", "build", "instance", "nested-lists"):
        yield Case("pickle", f"legacy-{what}", "refused", LEGACY_HEAD + CALLS.get(what, ODD.get(what, b"")))
    yield Case("pickle", "tar-and-legacy", "refused", _tar_and_legacy())
    yield Case("pickle", "tar", "refused", _tar())
    yield Case("pickle", "legacy-cut", "refused", samples.saved(samples.state(), legacy=True)[:-200], portable=False)
    yield from _archives()
    yield from _tensors()


def _archive(data: bytes, **more: bytes) -> bytes:
    """A torch.save archive around a pickle."""
    return samples.zipped(
        {
            "archive/data.pkl": data,
            "archive/version": b"3\n",
            "archive/byteorder": b"little",
            **{f"archive/{name}": content for name, content in more.items()},
        }
    )


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in (("storages", b""), ("tensors", b""), ("pickle", b"\x80\x02" + CALLS["reduce"])):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _tar_and_legacy() -> bytes:
    """A tar archive whose first member's name is the start of a legacy file: two readers see two files."""
    head, rest = LEGACY_HEAD[:90], _tar()
    content = bytearray(rest)
    content[: len(head)] = head
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    return bytes(content)


def _archives() -> Iterator[Case]:
    """Zip archives that lie."""
    good = pickle.dumps({"w": 1.0}, 2)
    bad = b"\x80\x02" + CALLS["reduce"]
    yield Case("state dict", "zip-two-pickles", "refused", _twice(good, bad))
    yield Case("state dict", "zip-absolute-name", "refused", samples.zipped({"/etc/data.pkl": bad}))
    yield Case("state dict", "zip-parent-name", "refused", samples.zipped({"../../data.pkl": bad}))
    yield Case("state dict", "zip-long-name", "refused", samples.zipped({"a" * 9000 + "/data.pkl": good}))
    yield Case("state dict", "zip-many-members", "refused", samples.zipped({f"a/{i}": b"" for i in range(150)}))
    yield Case("state dict", "zip-no-members", "refused", b"PK\x05\x06" + bytes(18))
    yield Case("state dict", "zip-bytes-before", "refused", b"#!/bin/sh\n" + _archive(good))
    yield Case("state dict", "zip-cut", "refused", _archive(good)[:-30])
    yield Case("state dict", "zip-encrypted", "refused", _flagged(_archive(good)))
    yield Case("state dict", "zip-checksum", "refused", _archive(good).replace(good, good[:-2] + b"N."))
    yield Case(
        "state dict",
        "zip-byteorder",
        "refused",
        samples.zipped({"archive/data.pkl": good, "archive/version": b"3", "archive/byteorder": b"middle"}),
    )
    yield Case(
        "state dict",
        "zip-version-huge",
        "refused",
        samples.zipped({"archive/data.pkl": good, "archive/version": b"9" * 5000}),
    )
    yield Case("state dict", "zip-nothing-known", "refused", samples.zipped({"readme.txt": b"x"}))
    yield Case("state dict", "zip-bomb", "refused", _bomb, committed=False)
    yield Case("state dict", "sparse-zeros", "refused", Sparse(3 * 2**30), committed=False)
    yield Case("state dict", "sparse-behind-zip", "refused", Sparse(3 * 2**30, _archive(good)), committed=False)


def _twice(first: bytes, second: bytes) -> bytes:
    """One name twice: readers differ in which of the two they take."""
    content = samples.zipped({"archive/data.pkl": first, "archive/data.pkm": second, "archive/version": b"3\n"})
    return content.replace(b"data.pkm", b"data.pkl")


def _flagged(content: bytes) -> bytes:
    """Marked as encrypted."""
    content = content.replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00")
    return content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")


def _bomb() -> bytes:
    """Some 600 MB of zeros in half a megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open(zipfile.ZipInfo("archive/data.pkl"), "w") as member:
            member._compressor = zlib.compressobj(9, zlib.DEFLATED, -15)  # type: ignore[attr-defined]
            for _ in range(600):
                member.write(bytes(2**20))
    return buffer.getvalue()


def _tensors() -> Iterator[Case]:
    """Tensors that claim more than there is, or are of a kind that no plain network has."""
    layouts = {
        "sparse-indices": torch.sparse_coo_tensor(torch.tensor([[0, 99]]), torch.ones(2), (8,), check_invariants=False),
        "expanded": torch.ones(1).expand(8),
        "complex": torch.ones(8, dtype=torch.complex64),
        "whole-numbers": torch.ones(8, dtype=torch.int64),
        "infinite": torch.full((8,), float("inf")),
        "empty": torch.empty(0),
        "scalar": torch.tensor(1.0),
        "meta": torch.empty(8, device="meta"),
    }
    for what, tensor in layouts.items():
        outcome = "either" if what in ("whole-numbers", "infinite", "expanded", "complex") else "refused"
        content = samples.saved({**samples.state(), sorted(samples.state())[0]: tensor})
        yield Case("state dict", f"tensor-{what}", outcome, content, portable=False)  # type: ignore[arg-type]
    stored = samples.saved({"w": torch.zeros(3)})
    for what, old, new in (
        ("size-huge", b"K\x00K\x03\x85", b"K\x00\x8a\x06\0\0\0\0\0\x10\x85"),
        ("size-negative", b"K\x00K\x03\x85", b"K\x00J\xff\xff\xff\xff\x85"),
        ("offset-huge", b"K\x00K\x03\x85", b"\x8a\x06\0\0\0\0\0\x10K\x03\x85"),
        ("stride-negative", b"K\x01\x85", b"J\xff\xff\xff\xff\x85"),
        ("storage-size-huge", b"cpuq\x06K\x03t", b"cpuq\x06\x8a\x06\0\0\0\0\0\x10t"),
    ):
        yield Case("state dict", f"tensor-{what}", "refused", _edited(stored, old, new), portable=False)


def _edited(archive: bytes, old: bytes, new: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    if old not in members[name]:
        raise ValueError(f"this torch writes pickles without {old!r}")
    members[name] = members[name].replace(old, new, 1)
    return samples.zipped(members)
