"""Hostile data: .npz archives, IDX files and folders of images."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.fuzzing import samples
from tests.hostile.case import Case, Link, Outcome, Sparse


def npy(header: str | bytes, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy member with a header of one's own."""
    text = header.encode("latin-1") if isinstance(header, str) else header
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + body


def described(descr: str, shape: str, order: str = "False") -> str:
    """A header as numpy writes it."""
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


_Y = npy(described("'<i8'", "(2,)"), np.array([0, 1]).tobytes())
_X = described("'<f4'", "(2, 4)")
_BODY = np.linspace(0, 1, 8, dtype=np.float32).tobytes()

HEADERS: tuple[tuple[str, bytes, Outcome], ...] = (
    ("header-token-error", npy("{'descr': '<f4', 'shape': (", _BODY), "refused"),
    ("header-open-string", npy("'''", _BODY), "refused"),
    ("header-backslash", npy("\\", _BODY), "refused"),
    ("header-indented", npy("  x\n y\n", _BODY), "refused"),
    ("header-nested", npy("(" * 5000, _BODY), "refused"),
    ("header-call", npy("__import__('os').mkdir('hostile-marker')", _BODY), "refused"),
    ("header-list", npy("[1, 2]", _BODY), "refused"),
    ("header-other-keys", npy("{'a': 1}", _BODY), "refused"),
    ("header-nul", npy("\0" * 64, _BODY), "refused"),
    ("header-empty", npy("", _BODY), "refused"),
    ("header-long-integer", npy(described("'<f4'", "(" + "9" * 5000 + ",)"), _BODY), "refused"),
    ("header-beyond-file", b"\x93NUMPY\x01\x00\xff\xff{", "refused"),
    ("header-version-nine", npy(_X, _BODY, (9, 9)), "refused"),
    ("type-object", npy(described("'|O'", "(2,)"), b"\x80\x02cposix\nmkdir\n(X\x0e\0\0\0hostile-markertR."), "refused"),
    ("type-nested-object", npy(described("[('a', [('b', '|O')])]", "(2,)"), _BODY), "refused"),
    ("type-unknown", npy(described("'<f99'", "(2, 4)"), _BODY), "refused"),
    ("type-number", npy(described("7", "(2, 4)"), _BODY), "refused"),
    ("type-empty", npy(described("'|V0'", "(2, 4)"), _BODY), "refused"),
    ("type-complex", npy(described("'<c8'", "(1, 4)"), _BODY), "refused"),
    ("type-dates", npy(described("'<M8[ns]'", "(2, 2)"), _BODY), "refused"),
    ("type-record", npy(described("[('a', '<f4')]", "(2, 4)"), _BODY), "refused"),
    ("shape-huge", npy(described("'<f4'", "(10000000000,)"), _BODY), "refused"),
    ("shape-overflows", npy(described("'<f4'", "(4294967296, 4294967296, 2)"), _BODY), "refused"),
    ("shape-negative", npy(described("'<f4'", "(-2, -4)"), _BODY), "refused"),
    ("shape-fraction", npy(described("'<f4'", "(2.0, 4)"), _BODY), "refused"),
    ("shape-list", npy(described("'<f4'", "[2, 4]"), _BODY), "refused"),
    ("shape-flags", npy(described("'<f4'", "(True, True)"), _BODY), "refused"),
    ("shape-empty-axis", npy(described("'<f4'", "(2, 0)")), "refused"),
    ("shape-many-axes", npy(described("'<f4'", "(" + "1, " * 100 + ")"), _BODY), "refused"),
    ("order-text", npy(described("'<f4'", "(2, 4)", "'x'"), _BODY), "refused"),
    ("not-an-array", b"hello", "refused"),
    ("values-nan", npy(_X, np.full(8, np.nan, np.float32).tobytes()), "refused"),
    ("values-outside", npy(_X, np.full(8, 7, np.float32).tobytes()), "refused"),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for what, member, outcome in HEADERS:
        yield Case("npz", what, outcome, samples.zipped({"x.npy": member, "y.npy": _Y}))
    good = npy(_X, _BODY)
    labels: tuple[tuple[str, np.ndarray], ...] = (
        ("labels-negative", np.array([0, -1])),
        ("labels-huge", np.array([0, 2**62])),
        ("labels-beyond", np.array([0, 2**64 - 1], np.uint64)),
        ("labels-fractions", np.array([0.0, 0.5])),
        ("labels-too-many", np.arange(9)),
        ("labels-two-axes", np.eye(2, dtype=np.int64)),
    )
    for what, array in labels:
        stated = npy(described(f"'{array.dtype.str}'", str(array.shape)), array.tobytes())
        yield Case("npz", what, "refused", samples.zipped({"x.npy": good, "y.npy": stated}))
    for what, count in (("classes-huge", 2**62), ("classes-negative", -5), ("classes-zero", 0)):
        stated = npy(described("'<i8'", "()"), np.array(count).tobytes())
        outcome: Outcome = "either" if what == "classes-huge" else "refused"
        yield Case("npz", what, outcome, samples.zipped({"x.npy": good, "y.npy": _Y, "num_classes.npy": stated}))
    yield Case(
        "npz",
        "names-markup",
        "either",
        samples.zipped(
            {
                "x.npy": good,
                "y.npy": _Y,
                "class_names.npy": npy(
                    described("'<U9'", "(2,)"),
                    "".join(t.ljust(9, "\0") for t in ("<script>", "\x1b[2J")).encode("utf-32-le"),
                ),
            }
        ),
    )
    yield Case("npz", "member-repeated", "either", _repeated(good))
    yield Case("npz", "member-escapes", "refused", samples.zipped({"../x.npy": good, "/y.npy": _Y}))
    yield Case(
        "npz",
        "many-members",
        "either",
        samples.zipped({"x.npy": good, "y.npy": _Y, **{f"{i}.npy": b"" for i in range(120)}}),
    )
    yield Case("npz", "long-names", "refused", samples.zipped({"é" * 1000 + f"{i}.npy": b"" for i in range(2)}))
    yield Case("npz", "cut", "refused", samples.zipped({"x.npy": good, "y.npy": _Y})[:-40])
    yield Case("npz", "bomb", "refused", _bomb, committed=False)
    yield Case("npz", "sparse", "refused", Sparse(5 * 2**30), committed=False)
    yield from _idx()
    yield from _images()
    yield from _tables()
    yield from _arrays()
    yield from _shards()


def _repeated(good: bytes) -> bytes:
    content = samples.zipped({"x.npy": good, "y.npy": _Y, "z.npy": npy("(" * 50)})
    return content.replace(b"z.npy", b"x.npy")


def _bomb() -> bytes:
    """An array of 3 GiB of which the archive holds the first 400 MB, in 400 KB."""
    count = 3 * 2**30 // 4
    buffer = io.BytesIO()
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", _Y)
        with archive.open(zipfile.ZipInfo("x.npy"), "w", force_zip64=True) as member:
            member._compressor = packer  # type: ignore[attr-defined]
            member.write(npy(described("'<f4'", f"({count},)")))
            for _ in range(24):
                member.write(bytes(2**24))
    return buffer.getvalue()


def _idx() -> Iterator[Case]:
    plain = samples.idx((3, 4, 4))
    table: dict[str, bytes] = {
        "announces-much": bytes((0, 0, 8, 3)) + b"\xff" * 12 + plain[16:],
        "announces-more": bytes((0, 0, 8, 1)) + (10**6).to_bytes(4, "big") + b"x",
        "holds-more": plain + b"x",
        "many-axes": bytes((0, 0, 8, 255)) + plain[4:],
        "no-axes": bytes((0, 0, 8, 0)),
        "other-type": bytes((0, 0, 13, 3)) + plain[4:],
        "cut-header": plain[:7],
        "empty": b"",
        "gzip-cut": samples.packed(plain)[:-10],
        "gzip-checksum": samples.packed(plain)[:-6] + b"\0" * 6,
        "gzip-twice": samples.packed(samples.packed(plain)),
        "gzip-bomb-behind": samples.packed(plain + bytes(2**20)),
    }
    for what, content in table.items():
        yield Case("idx", what, "refused", content)
    yield Case("idx", "sparse", "refused", Sparse(2**31, bytes((0, 0, 8, 1, 0x3F, 255, 255, 255))), committed=False)


def _images() -> Iterator[Case]:
    """The file is one image of class a; class b has a valid grey one of 8×8."""
    plain = samples.image()
    table: dict[str, bytes] = {
        "claims-many-pixels": _png(2**31 - 1, 2**31 - 1),
        "claims-large": _png(60_000, 60_000),
        "no-pixels": _png(0, 0),
        "cut": plain[: len(plain) // 2],
        "only-signature": plain[:8],
        "text": b"not an image",
        "checksum": plain.replace(b"IDAT", b"IDAX"),
        "another-size": samples.image(size=(9, 9)),
        "sixteen-bit": samples.image("I;16"),
        "gif": samples.image("P", "GIF"),
        "script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "postscript": b"%!PS-Adobe\n(x) run\n",
        "text-bomb": _png(8, 8, zlib.compress(bytes(10**7), 9)),
    }
    for what, content in table.items():
        outcome: Outcome = "either" if what in ("cut", "text-bomb") else "refused"
        yield Case("image folder", what, outcome, content, committed=len(content) < 15_000)
    yield Case("image folder", "link-to-nothing", "refused", Link("/nowhere/at/all"))
    yield Case("image folder", "link-to-itself", "refused", Link("mutant.png"))
    yield Case("image folder", "link-to-device", "refused", Link("/dev/zero"), committed=False)
    yield Case("image folder", "sparse", "refused", Sparse(3 * 2**30, plain[:8]), committed=False)


def _png(width: int, height: int, text: bytes = b"") -> bytes:
    """A PNG of a header, perhaps a packed text, and little else."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    comment = chunk(b"zTXt", b"Comment\0\0" + text) if text else b""
    return b"\x89PNG\r\n\x1a\n" + head + comment + chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND", b"")


def _tables() -> Iterator[Case]:
    """Text tables, and files that say what their columns may be."""
    tables: tuple[tuple[str, bytes, Outcome], ...] = (
        ("open-quote", b'a,y\n"1,0\n', "refused"),
        ("ragged", b"a,b,y\n1,2,0\n1,1\n", "refused"),
        ("nul-later", b"a,y\n1,0\n\0,1\n", "refused"),
        ("wide", b",".join(b"c%d" % n for n in range(900)) + b",y\n1,0\n", "refused"),
        ("cell-long", b"a,y\n" + b"1" * 1500 + b",0\n1,1\n", "refused"),
        ("one-column", b"y\n0\n1\n", "refused"),
        ("names-repeated", b"a,a,y\n1,2,0\n1,2,1\n", "refused"),
        ("names-markup", b"<script>,\x1b[2J,y\n1,2,0\n1,2,1\n", "either"),
        ("formula", b"a,y\n=1+1,0\n1,1\n", "refused"),
        ("values-infinite", b"a,y\n1e999,0\n1,1\n", "refused"),
        ("values-nan", b"a,y\nnan,0\n1,1\n", "refused"),
        ("labels-huge", b"a,y\n1,9007199254740991\n1,1\n", "refused"),
        ("labels-negative", b"a,y\n1,-1\n1,1\n", "refused"),
        ("labels-markup", b"a,y\n1,<script>\n1,\x1b[2J\n", "either"),
        ("other-coding", "a,y\n1,0\n1,1\n".encode("utf-16"), "refused"),
        ("not-a-text", b"a,y\n\xff\xfe,0\n", "refused"),
        ("head-only", b"a,y\n", "refused"),
    )
    for what, content, outcome in tables:
        yield Case("table", what, outcome, content)
    described = (
        ("column-unknown", '[[feature]]\ncolumn = "../../etc/passwd"\n'),
        ("column-number-huge", "[[feature]]\ncolumn = 9999999999999999999\n"),
        ("column-repeated", '[[feature]]\ncolumns = ["age", "age"]\n'),
        ("eps-infinite", '[[feature]]\ncolumn = "age"\neps = inf\n'),
        ("eps-quotient-of-zero", '[[feature]]\ncolumn = "age"\neps = "1/0"\n'),
        ("bounds-turned", '[[feature]]\ncolumn = "age"\nbounds = [9, 0]\n'),
        ("bounds-nan", '[[feature]]\ncolumn = "age"\nbounds = [nan, 9]\n'),
        ("integers-too-many", '[[feature]]\ncolumn = "age"\nkind = "integer"\nbounds = [0, 900000000]\n'),
        ("kind-code", "[[feature]]\ncolumn = \"age\"\nkind = \"__import__('os').mkdir('hostile-marker')\"\n"),
        ("all-frozen", '[[feature]]\ncolumns = ["age", "pulse", "red", "blue"]\nkind = "frozen"\n'),
        ("entries-many", '[[feature]]\ncolumn = "age"\n' * 400),
        ("nested", "[[feature]]\ncolumn = " + "[" * 900 + "]" * 900 + "\n"),
        ("other-fields", '[[feature]]\ncolumn = "age"\nrun = "py:os:mkdir"\n'),
    )
    for what, text in described:
        yield Case("features", what, "refused", text.encode())


def _arrays() -> Iterator[Case]:
    """Arrays and tensors in files of their own."""
    for what, content, outcome in HEADERS:
        if what.startswith(("header-token", "header-call", "type-object", "shape-huge", "shape-overflows", "order")):
            yield Case("npy, inputs", what, outcome, content)
    yield Case("npy, labels", "huge", "refused", npy(described("'<i8'", "(3,)"), np.array([0, 1, 2**62]).tobytes()))
    yield Case("npy, labels", "texts", "refused", npy(described("'<U2'", "(3,)"), "abcdef".encode("utf-32-le")))
    yield Case("npy, labels", "too-few", "refused", npy(described("'<i8'", "(2,)"), np.array([0, 1]).tobytes()))
    points, labels = torch.from_numpy(samples.POINTS), torch.from_numpy(samples.LABELS)
    tensors: tuple[tuple[str, object, Outcome], ...] = (
        ("complex", {"x": points.to(torch.complex64), "y": labels}, "refused"),
        ("sparse", {"x": points.flatten(1).to_sparse(), "y": labels}, "refused"),
        ("expanded", {"x": torch.zeros(1).expand(3, 1 << 20, 1 << 10), "y": labels}, "refused"),
        ("overlapping", {"x": torch.zeros(80).as_strided((3, 64), (1, 1)), "y": labels}, "either"),
        ("classes-text", {"x": points, "y": labels, "num_classes": "9" * 90}, "refused"),
        ("other-objects", {"x": [[0.0]] * 3, "y": labels}, "refused"),
    )
    for what, holds, outcome in tensors:
        yield Case("tensors, torch", what, outcome, samples.saved(holds), portable=False)


def _shards() -> Iterator[Case]:
    """Archives of images, and indices of weights in several files."""

    def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as packed:
            for entry, content in members:
                packed.addfile(entry, io.BytesIO(content))
            end = packed.offset
        return buffer.getvalue()[: end + 2 * tarfile.BLOCKSIZE]  # without what fills the last record

    def member(name: str, content: bytes, size: int | None = None, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
        entry = tarfile.TarInfo(name)
        entry.size = len(content) if size is None else size
        if link:
            entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, link, 0
        return entry, content

    picture = samples.image()
    good = (member("1.png", picture), member("1.cls", b"0"), member("2.png", picture), member("2.cls", b"1"))
    beyond = archive(*good[:1])[:-5000] + archive(member("1.cls", b"0" * 600, 600))[:700]
    shards: tuple[tuple[str, bytes, Outcome], ...] = (
        ("member-escapes", archive(*good, member("../hostile-marker", b"x")), "accepted"),
        ("member-absolute", archive(*good, member("/tmp/hostile-marker", b"x")), "accepted"),
        ("links-out", archive(*good[1:], member("1.png", b"", link="/etc/passwd")), "either"),
        ("label-negative", archive(*good[:3], member("2.cls", b"-1")), "refused"),
        ("label-huge", archive(*good[:3], member("2.cls", b"9" * 19)), "refused"),
        ("label-other-digits", archive(*good[:3], member("2.cls", "٣".encode())), "refused"),
        ("label-missing", archive(*good[:3]), "refused"),
        ("image-text", archive(*good[1:], member("1.png", b"<svg onload=alert(1)>")), "refused"),
        ("names-long", archive(*good[:3], member("2.cls", b"1"), member("é" * 900, b"x")), "accepted"),
        ("cut", archive(*good)[:1800], "refused"),
        ("spliced", beyond, "refused"),
    )
    for what, content, outcome in shards:
        yield Case("WebDataset", what, outcome, content)
    for what, place in (
        ("parent", "../model.safetensors"), ("absolute", "/etc/passwd"), ("backslash", "..\\model.safetensors"),
        ("nul", "model\0.safetensors"), ("missing", "none.safetensors"), ("empty", ""), ("device", "/dev/zero"),
        ("itself", "mutant.safetensors.index.json"),
    ):  # fmt: skip
        yield Case("index of shards", f"place-{what}", "refused", samples.index(place))
    listed = {f"t{n}": f"{n}.safetensors" for n in range(300)}
    yield Case("index of shards", "files-many", "refused", json.dumps({"weight_map": listed}).encode())
    yield Case("index of shards", "map-of-numbers", "refused", b'{"weight_map": {"a": 1}}')
    yield Case("index of shards", "map-repeated", "refused", b'{"weight_map": {"a": "b"}, "weight_map": {}}')
