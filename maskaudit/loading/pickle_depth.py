"""How deep the tuples of a pickle nest, read from its opcodes before torch's safe loader builds them.

That loader builds any tuple, and a tuple used as a key is hashed without a limit: three million levels end the process,
and sixty levels that each hold the one below twice never end. The opcodes are played with sizes in place of objects.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

#: Deepest nesting, and most leaves of one object with everything inside it, each counted as often as it is reached.
MAX_DEPTH = 64
MAX_SIZE = 1_000_000

Size = tuple[int, int]
_LEAF: Size = (0, 1)
_MARK: Size = (-1, 0)
_TUPLES = frozenset(
    {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "FROZENSET"}
)


def check(data: bytes, pickles: int) -> None:
    """Look at the first pickles in a buffer.

    Raises:
        ValueError: for an object that is nested too deep or too large, or a damaged pickle.
    """
    stream = io.BytesIO(data)
    for _ in range(pickles):
        stack: list[Size] = []
        memo: dict[Any, Size] = {}
        for opcode, argument, _place in pickletools.genops(stream):
            try:
                _play(opcode, argument, stack, memo)
            except (IndexError, KeyError) as error:
                raise ValueError("a pickle uses a value that it has not stored") from error


def _play(opcode: pickletools.OpcodeInfo, argument: Any, stack: list[Size], memo: dict[Any, Size]) -> None:
    name = opcode.name
    if name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "DUP":
        stack.append(stack[-1])
    else:
        taken = _take(opcode, stack)
        stack += [_around(taken) if name in _TUPLES else _LEAF] * len(opcode.stack_after)


def _take(opcode: pickletools.OpcodeInfo, stack: list[Size]) -> list[Size]:
    """What an opcode takes from the stack: a fixed number, or everything down to the mark and what lies below it."""
    fixed = [item for item in opcode.stack_before if item not in (pickletools.markobject, pickletools.stackslice)]
    taken: list[Size] = []
    if len(fixed) < len(opcode.stack_before) or opcode.name == "POP_MARK":
        while (item := stack.pop()) != _MARK:
            taken.append(item)
    for _ in fixed:
        taken.append(stack.pop())
    return taken


def _around(taken: list[Size]) -> Size:
    depth, size = 1 + max((depth for depth, _ in taken), default=0), 1 + sum(size for _, size in taken)
    if depth > MAX_DEPTH or size > MAX_SIZE:
        raise ValueError("a pickle nests its objects too deep")
    return depth, size
