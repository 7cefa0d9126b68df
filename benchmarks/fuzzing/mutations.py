"""Mutations: bytes of a valid file and a random generator in, bytes of a damaged or hostile one out.

Byte-level mutations know nothing of the format. Structure-aware ones take a file apart, change a value inside and
put it together again, so that a mutant gets past the outer checks: trees of JSON and TOML, headers of safetensors and
npy, members of archives, opcodes of pickles, fields of protocol buffers.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import safetensors.torch
import torch

from benchmarks.fuzzing import hostile
from maskaudit.declared.parsing import parse_toml
from maskaudit.errors import MaskauditError

Mutation = Callable[[bytes, Random], bytes]

#: Most bytes that a mutant may have; files that are large by themselves have cases of their own in the corpus.
MOST_BYTES = 1 << 20
_DIGITS = re.compile(rb"\d+")
#: Opcodes that would call, import or build something; what they name would leave a mark.
PICKLE_CALLS: tuple[bytes, ...] = (
    b"cos\nmkdir\n(X\x06\x00\x00\x00markertR",
    b"(X\x06\x00\x00\x00markerios\nmkdir\n",
    b"cbuiltins\neval\n(X\x01\x00\x00\x00\x31tR",
    b"\x82\x01",
    b"\x84\xff\xff\xff\x7f",
    b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93",
    b"}b",
    b"R",
    b"b",
    b"o",
    b"\x81",
    b"\x92",
    b"Q",
    b"0",
    b"1",
    b"2",
    b"h\xff",
    b"j\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"\x8a\xffx",
    b"I9" + b"9" * 5000 + b"\n",
    b"]" * 2000 + b"a" * 1999,
    b"(" * 2000 + b"t" * 1999,
    b"}",
    b"N",
    b"K\x07",
    b"G\x7f\xf0\0\0\0\0\0\0",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"ccollections\nOrderedDict\n)R",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch.serialization\n_get_layout\n",
)


def damage(data: bytes, rng: Random) -> bytes:
    """One byte-level change: flip, set, insert, delete, repeat, cut, or an interesting number."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(4))
    content, kind, place = bytearray(data), rng.randrange(10), rng.randrange(len(data))
    length = min(1 << rng.randrange(0, 12), len(data) - place)
    if kind == 0:
        content[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x2E, 0x0A, 0x22, rng.randrange(256)))
    elif kind == 2:
        content[place:place] = rng.choice(
            (b"\0", b"\xff" * 8, b"(" * 64, b"{", b'"', bytes(rng.randrange(256) for _ in range(8)))
        )
    elif kind == 3:
        del content[place : place + length]
    elif kind == 4:
        content[place:place] = content[place : place + length] * rng.choice((1, 2, 16))
    elif kind == 5:
        del content[place:]
    elif kind in (6, 7):
        size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
        number = rng.choice(hostile.NUMBERS) & ((1 << 8 * size) - 1)
        content[place : place + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
    elif kind == 8:
        other = rng.randrange(len(data))
        content[place : place + length] = data[other : other + length]
    else:
        return number_changed(data, rng)
    return bytes(content[:MOST_BYTES])


def number_changed(data: bytes, rng: Random) -> bytes:
    """One decimal number of a text replaced by another."""
    found = list(_DIGITS.finditer(data[: 1 << 16]))
    if not found:
        return data[::-1]
    match = rng.choice(found)
    new = rng.choice((b"-1", b"1e999", b"9" * 5000, str(rng.choice(hostile.NUMBERS)).encode()))
    return data[: match.start()] + new + data[match.end() :]


def json_tree(*words: str) -> Mutation:
    """Values of a JSON text changed."""

    def run(data: bytes, rng: Random) -> bytes:
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError):
            return damage(data, rng)
        return dumped(tree_changed(tree, rng, words))

    return run


def dumped(tree: Any, tokens: tuple[str, ...] = hostile.RAW) -> bytes:
    """JSON as bytes; what cannot be dumped any more is left as null."""
    try:
        return hostile.filled(json.dumps(tree), tokens).encode("utf-8", "surrogatepass")[:MOST_BYTES]
    except (ValueError, RecursionError):
        return b"null"


def tree_changed(tree: Any, rng: Random, words: tuple[str, ...] = ()) -> Any:
    """The tree with one value replaced, removed, repeated, moved, renamed, wrapped or nudged."""
    owner, key = _slot(tree, rng)
    if owner is None:
        return hostile.value(rng, words)
    kind = rng.randrange(12)
    old = owner[key]
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, list):
        owner.insert(key, old)
    elif kind == 1:
        owner[rng.choice((*words, *hostile.TEXTS))] = owner.pop(key)
    elif kind == 2:
        other, place = _slot(tree, rng)
        owner[key] = copy.deepcopy(other[place])
    elif kind == 3:
        owner[key] = [old] if rng.random() < 0.5 else {"value": old}
    elif kind == 4 and isinstance(old, list):
        owner[key] = old * rng.choice((0, 2, 100)) if len(old) < 100 else old[:1]
    elif kind in (4, 5):
        owner[key] = _nudged(old, rng)
    elif kind == 6 and isinstance(owner, dict):
        owner[rng.choice((*words, *hostile.TEXTS))] = hostile.value(rng, words)
    else:
        owner[key] = hostile.value(rng, words)
    return tree


def _slot(tree: Any, rng: Random) -> tuple[Any, Any]:
    """A container inside the tree and one of its keys, by a walk that may stop early; (None, None) at a leaf."""
    owner, key, node = None, None, tree
    while isinstance(node, (dict, list)) and node and (owner is None or rng.random() < 0.85):
        owner = node
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = owner[key]
    return owner, key


def _nudged(old: Any, rng: Random) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, (int, float)):
        return rng.choice(
            (-old, old + 1, old * 1000, old / 3, str(old), float(old), int(old) if abs(old) < 1e300 else 0)
        )
    if isinstance(old, str):
        place = rng.randrange(len(old) + 1)
        return old[:place] + rng.choice(hostile.TEXTS)[:2000] + old[place:]
    return hostile.value(rng)


def safetensors_header(*words: str) -> Mutation:
    """The header of a safetensors file changed: an entry, or a value of the JSON text inside its metadata."""

    def run(data: bytes, rng: Random) -> bytes:
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + length])
        except (ValueError, RecursionError):
            return damage(data, rng)
        outer = header.get("__metadata__") if isinstance(header, dict) else None
        if isinstance(outer, dict) and outer and rng.random() < 0.75:
            key = rng.choice(list(outer))
            outer[key] = json_tree(*words)(str(outer[key]).encode("utf-8", "replace"), rng).decode("utf-8", "replace")
        else:
            header = tree_changed(header, rng, words)
        text = dumped(header)
        stated = len(text) if rng.random() < 0.95 else rng.choice(hostile.NUMBERS) & (2**64 - 1)
        return struct.pack("<Q", stated) + text + data[8 + length :]

    return run


def json_tensor(name: str, *words: str) -> Mutation:
    """Values of the JSON text that a tensor of bytes in safetensors holds."""

    def run(data: bytes, rng: Random) -> bytes:
        try:
            tensors = safetensors.torch.load(data)
            text = json_tree(*words)(tensors[name].numpy().tobytes(), rng)
        except Exception:  # damaged by an earlier mutation
            return damage(data, rng)
        return safetensors.torch.save({**tensors, name: torch.frombuffer(bytearray(text or b" "), dtype=torch.uint8)})

    return run


def archive(inner: Callable[[str], Mutation]) -> Mutation:
    """A zip whose members are changed by `inner(name)`, renamed, repeated, left out or packed otherwise."""

    def run(data: bytes, rng: Random) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                members = [(name, packed.read(name)) for name in packed.namelist()]
        except Exception:  # already damaged by an earlier mutation
            return damage(data, rng)
        if not members:
            return damage(data, rng)
        place, kind = rng.randrange(len(members)), rng.randrange(12)
        name, content = members[place]
        if kind == 0:
            members[place] = (
                rng.choice((*hostile.TEXTS[:-8], name.upper(), "/" + name, "../" + name, name + "/")),
                content,
            )
        elif kind == 1:
            del members[place]
        elif kind == 2:
            members.append((name, inner(name)(content, rng)))
        elif kind == 3:
            members[place] = (name, members[rng.randrange(len(members))][1])
        else:
            members[place] = (name, inner(name)(content, rng))
        return _packed(members, rng)

    return run


def _packed(members: list[tuple[str, bytes]], rng: Random) -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as packed:
        warnings.simplefilter("ignore")  # repeated names are meant
        for name, content in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode()[:60_000] or "x")
            info.compress_type = method
            packed.writestr(info, content)
    return buffer.getvalue()


_NPY_TYPES = (
    "'<f4'",
    "'|O'",
    "'>f8'",
    "'<i8'",
    "'|u1'",
    "'<U9'",
    "'|V0'",
    "'|S0'",
    "[('a', '<f4')]",
    "'<M8[ns]'",
    "'|b1'",
    "'<f2'",
    "'<c8'",
    "1",
    "None",
    "'" + "x" * 3000 + "'",
    "[('a', [('b', '|O')])]",
    "'<f99'",
)
_NPY_VALUES = (
    "()",
    "(0,)",
    "(-1,)",
    "(1,)",
    "(10**9, 10**9)",
    "(1000000000000,)",
    "(2, 2, 2, 2, 2)",
    "(True,)",
    "(1.5,)",
    "[]",
    "None",
    "'",
    '"""',
    "(" * 300,
    "{",
    "\\",
    "#",
    "\t\n  x\n y",
    "0x",
    "1_",
    "(9" + "9" * 5000 + ",)",
    "(0, 1, 8, 8)",
    "(3, 0)",
)


def npy_header(data: bytes, rng: Random) -> bytes:
    """The header of a .npy member: type, order or shape changed, or its text broken."""
    if data[:6] != b"\x93NUMPY" or rng.random() < 0.2:
        return damage(data, rng)
    length = struct.unpack("<H", data[8:10])[0]
    text = data[10 : 10 + length].decode("latin-1")
    kind = rng.randrange(5)
    if kind == 0:
        text = re.sub(r"('descr': )('[^']*')", lambda m: m[1] + rng.choice(_NPY_TYPES), text)
    elif kind == 1:
        text = re.sub(r"('shape': )\([^)]*\)", lambda m: m[1] + rng.choice(_NPY_VALUES), text)
    elif kind == 2:
        text = text.replace("False", rng.choice(("True", "1", "None", "''", "x")))
    elif kind == 3:
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(_NPY_VALUES) + text[place:]
    else:
        text = damage(text.encode("latin-1"), rng).decode("latin-1")
    coded = text.encode("latin-1", "replace")[:60_000]
    version = rng.choice((1, 1, 1, 1, 2, 3, 9))
    stated = struct.pack("<H" if version == 1 else "<I", len(coded))
    return data[:6] + bytes((version, 0)) + stated + coded + data[10 + length :]


#: What the cell of a table may hold beside the texts that every reader gets.
_CELLS = ("nan", "inf", "-1", "1e999", "0x1f", "1_0", "٣", "1,5", '"', '"a\nb"', "'", "=1+1", "\0", "\ufeff", "", " ",
          "True", "9" * 400, "1" * 1001)  # fmt: skip


def cells(data: bytes, rng: Random) -> bytes:
    """One cell of a text table changed, or a line, a column or the separator."""
    text = data.decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    separator = max(",;\t|", key=lines[0].count)
    place, kind = rng.randrange(len(lines)), rng.randrange(8)
    row = lines[place].split(separator)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines[place:place] = [lines[place]] * rng.choice((1, 3, 3000))
    elif kind == 2:
        lines = [line + separator + rng.choice((*_CELLS, *hostile.TEXTS)) for line in lines]
    elif kind == 3:
        lines = [line.replace(separator, rng.choice(("\t", "|", ";", ",", "::"))) for line in lines]
    elif kind == 4:
        lines[place] = separator.join(row * rng.choice((0, 2, 2000)))
    else:
        row[rng.randrange(len(row))] = rng.choice((*_CELLS, *hostile.TEXTS, *map(str, hostile.NUMBERS)))
        lines[place] = separator.join(row)
    return "\n".join(lines).encode("utf-8", "surrogatepass")[:MOST_BYTES]


_TAR_TYPES = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE,
              tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, b"?")  # fmt: skip


def tar_members(data: bytes, rng: Random) -> bytes:
    """A member of a tar archive changed, renamed, repeated, left out, or made a link, a device or a header."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = [(entry, archive.extractfile(entry)) for entry in archive.getmembers()]
            content = [(entry, stream.read() if stream else b"") for entry, stream in members]
    except Exception:  # already damaged by an earlier mutation
        return damage(data, rng)
    if not content:
        return damage(data, rng)
    place, kind = rng.randrange(len(content)), rng.randrange(7)
    entry, inner = content[place]
    if kind == 0:
        del content[place]
    elif kind == 1:
        content.append((entry, damage(inner, rng)))
    elif kind == 2:
        entry.name = rng.choice((*hostile.TEXTS[:-8], "../" + entry.name, "/" + entry.name, entry.name + ".cls"))
    elif kind == 3:
        entry.type, entry.linkname = rng.choice(_TAR_TYPES), rng.choice(("1.png", "/etc/passwd", "../" * 90))
    elif kind == 4:
        content[place] = (entry, rng.choice(hostile.TEXTS).encode("utf-8", "surrogatepass")[:4096])
    elif kind == 5:
        entry.pax_headers = {rng.choice(("size", "path", "GNU.sparse.map", "mtime")): rng.choice(hostile.TEXTS[:60])}
    else:
        content[place] = (entry, damage(inner, rng))
    return _tarred(content, rng)


def _tarred(content: list[tuple[tarfile.TarInfo, bytes]], rng: Random) -> bytes:
    buffer = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        for entry, inner in content:
            entry.size = len(inner) if rng.random() < 0.97 else rng.choice(hostile.NUMBERS) & (2**33 - 1)
            archive.addfile(entry, io.BytesIO(inner.ljust(min(entry.size, MOST_BYTES), b"\0")))
    return buffer.getvalue()[:MOST_BYTES]


def pickle_ops(data: bytes, rng: Random) -> bytes:
    """One opcode of a pickle removed or repeated, or hostile ones put before it."""
    try:
        places = [position for _, _, position in pickletools.genops(data)]
    except Exception:  # damaged by an earlier mutation
        return damage(data, rng)
    at = rng.randrange(len(places))
    start, end = places[at], places[at + 1] if at + 1 < len(places) else len(data)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:start] + data[end:]
    if kind == 1:
        return data[:end] + data[start:end] + data[end:]
    if kind == 2:
        return damage(data, rng)
    return data[:start] + rng.choice(PICKLE_CALLS) + data[start:]


#: TOML values that the JSON ones do not cover.
TOML_RAW = (
    "9" * 5000,
    "-" + "9" * 400,
    "inf",
    "-inf",
    "nan",
    "1979-05-27",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "9999-12-31",
    "0001-01-01",
    "0x" + "f" * 4000,
    "0b" + "1" * 9000,
    "1e999",
    "1_000",
    "[" * 900 + "]" * 900,
    "{a = {b = {c = 1}}}",
    "'''x\ny'''",
    '"\\U0010FFFF"',
    '"\\u0000"',
    "",
    "[1, 'a', {}]",
    "{a.b.c = 1, a.b.d = 2}",
    ".".join("a" * 900) + " = 1",
    "2027-13-45",
)


def toml_tree(*words: str) -> Mutation:
    """Values of a TOML text changed."""

    def run(data: bytes, rng: Random) -> bytes:
        try:
            tree = parse_toml(data, "a mutant")  # the library itself takes 1 TB for a megabyte of dotted keys
        except MaskauditError:
            return damage(data, rng)
        tree = tree_changed(tree, rng, words)
        if not isinstance(tree, dict):
            return str(tree).encode("utf-8", "replace")
        text = "".join(f"{_toml_key(key)} = {_toml_value(item)}\n" for key, item in tree.items())
        return hostile.filled(text, TOML_RAW).encode("utf-8", "replace")[:MOST_BYTES]

    return run


#: Statements that no tree of values can express: dotted keys and headers, long or deep, and what repeats or clashes.
_TOML_LINES = (
    "{word}.{word}.{word} = 1",
    ".".join("a" * 40) + " = 1",
    ".".join("a" * 30_000) + " = 1",
    "[" + ".".join("b" * 30_000) + "]",
    "[[" + ".".join("{word}" for _ in range(9)) + "]]",
    "\n".join("{word}." * 8 + f"k{n} = 1" for n in range(300)),
    "\n".join(f"[t{n}.u]" for n in range(3000)),
    "[[{word}]]\n" * 3000,
    "x = " + "{a.b = [" * 300 + "]}" * 300,
    "[{word}]",
    "[[{word}]]",
    "{word} = {word}",
    '"{word}"."".\'{word}\' = {number}',
    "{word} = [{number}, {number},",
    '{word} = """',
    "# \x01",
)


def toml_lines(*words: str) -> Mutation:
    """Statements put between the lines of a TOML text."""

    def run(data: bytes, rng: Random) -> bytes:
        lines = data.decode("utf-8", "replace").split("\n")
        for _ in range(rng.choice((1, 1, 2, 5))):
            statement = rng.choice(_TOML_LINES)
            while "{word}" in statement:
                statement = statement.replace("{word}", rng.choice(words), 1 if rng.random() < 0.8 else -1)
            statement = statement.replace("{number}", str(rng.choice(hostile.NUMBERS)))
            lines.insert(rng.randrange(len(lines) + 1), statement)
        return "\n".join(lines).encode("utf-8", "replace")[:MOST_BYTES]

    return run


def _toml_key(key: object) -> str:
    return json.dumps(str(key).encode("utf-8", "replace").decode())


def _toml_value(item: Any) -> str:
    if isinstance(item, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(inner)}" for key, inner in item.items()) + "}"
    if isinstance(item, list):
        return "[" + ", ".join(map(_toml_value, item)) + "]"
    if item is None:
        return "{}"
    if isinstance(item, (bool, int, float)):
        return repr(item).lower()
    return item.isoformat() if hasattr(item, "isoformat") else json.dumps(str(item))


def protobuf(*words: str) -> Mutation:
    """A field of an ONNX model changed, found by the schema itself."""

    def run(data: bytes, rng: Random) -> bytes:
        import onnx

        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except Exception:  # damaged by an earlier mutation
            return damage(data, rng)
        _field_changed(model, rng, words)
        try:
            return model.SerializeToString()[:MOST_BYTES]
        except Exception:  # a required field is gone
            return damage(data, rng)

    return run


def _field_changed(message: Any, rng: Random, words: tuple[str, ...]) -> None:
    """Change one field of a message, or go down into one of its messages."""
    fields = message.ListFields()
    below = [value for field, value in fields if field.message_type is not None]
    if below and rng.random() < 0.8:
        inner = rng.choice(below)
        if not hasattr(inner, "DESCRIPTOR"):  # a repeated field
            kind = rng.randrange(8)
            if kind == 0:
                del inner[rng.randrange(len(inner))]
                return
            if kind == 1:
                for _ in range(rng.choice((1, 1, 50))):
                    inner.add().CopyFrom(rng.choice(inner))
                return
            inner = rng.choice(inner)
        _field_changed(inner, rng, words)
        return
    chosen = rng.choice([f for f, _ in fields] if fields and rng.random() < 0.8 else list(message.DESCRIPTOR.fields))
    if chosen.message_type is not None:
        return
    if rng.random() < 0.1:
        message.ClearField(chosen.name)
        return
    new = _field_value(getattr(message, chosen.name), chosen, rng, words)
    try:
        if hasattr(getattr(message, chosen.name), "extend"):
            held = getattr(message, chosen.name)
            if held and rng.random() < 0.7:
                held[rng.randrange(len(held))] = new
            else:
                held.extend([new] * rng.choice((1, 1, 3, 1000)))
        else:
            setattr(message, chosen.name, new)
    except (TypeError, ValueError):
        message.ClearField(chosen.name)


def _field_value(old: Any, field: Any, rng: Random, words: tuple[str, ...]) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING and field.type == field.TYPE_BYTES:
        return damage(old if isinstance(old, bytes) else b"x", rng)
    if field.cpp_type == field.CPPTYPE_STRING:
        pool = words if words and rng.random() < 0.6 else hostile.TEXTS
        return rng.choice(pool).encode("utf-8", "replace").decode()
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((*hostile.FLOATS, float("inf"), float("nan")))
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.randrange(0, 24)
    return rng.choice(hostile.NUMBERS)
