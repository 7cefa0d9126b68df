"""Hostile data: .npz archives, IDX files and folders of images."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

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
        ("labels-fractions", np.array([0.0, 1.0])),
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
