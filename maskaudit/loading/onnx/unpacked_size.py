"""How much an ONNX file would unpack to, counted on its bytes before the package onnx parses it.

Protocol buffers state a message in two bytes that takes a hundred in memory. The encoding:
protobuf.dev/programming-guides/encoding; the numbers of fields: onnx.proto of the package onnx.
"""

from __future__ import annotations

#: Fields that a model may have in all its messages.
MAX_FIELDS = 1_000_000
#: Of each message that is looked into, the numbers of the fields that hold messages, and which.
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "leaf", 14: "leaf", 20: "leaf", 25: "function"},
    "graph": {
        1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "leaf", 15: "sparse", 16: "leaf",
    },
    "function": {7: "node", 9: "leaf", 11: "attribute", 12: "value", 14: "leaf"},
    "node": {5: "attribute", 9: "leaf", 10: "leaf"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 14: "type", 15: "type", 22: "sparse", 23: "sparse",
    },
    "tensor": {3: "leaf", 13: "leaf", 16: "leaf"},
    "sparse": {1: "tensor", 2: "tensor"},
    "value": {2: "type", 4: "leaf"},
    "type": {1: "tensor type", 4: "type", 5: "type", 8: "tensor type", 9: "type"},
    "tensor type": {2: "shape"},
    "shape": {1: "leaf"},
    "leaf": {},
}  # fmt: skip


def count_fields(data: bytes, limit: int = MAX_FIELDS) -> int:
    """Fields in all messages of a model, or `limit` + 1 when there are more.

    Raises:
        ValueError: when the bytes are no protocol buffer.
    """
    found, waiting = 0, [("model", 0, len(data))]
    while waiting:
        kind, at, end = waiting.pop()
        inside = MESSAGES[kind]
        while at < end:
            found += 1
            if found > limit:
                return found
            key, at = _number(data, at, end)
            field, wire = key >> 3, key & 7
            if wire == 0:
                _, at = _number(data, at, end)
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            elif wire == 2:
                length, at = _number(data, at, end)
                if field in inside:
                    waiting.append((inside[field], at, at + length))
                at += length
            else:
                raise ValueError("it is not a protocol buffer")
            if at > end:
                raise ValueError("a part of it ends too early")
    return found


def _number(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A variable-length whole number, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number in it has no end")
