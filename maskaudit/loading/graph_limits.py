"""What a converted program may cost, and its rehearsal: a pass on shapes alone, before anything is computed.

The rehearsal runs every operation on tensors without data (torch's meta device), so that sizes beyond the limits
are met before memory is taken. Sizes are functions of the input's shape: values of the input cannot become
sizes, because the tensors that stand for them hold none. Constants of a few numbers are computed, for exported
files calculate shapes with them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from maskaudit.loading.op_guards import check_arguments, check_values

#: Operations of a program, those of its parts included.
MAX_NODES = 10_000
#: Length of a name, and how many dotted parts it may have.
MAX_NAME, MAX_PARTS = 1_000, 32
#: Axes of a tensor (torch's own loops take 64).
MAX_AXES = 32
#: Points per batch that a program may insist on, and numbers in the input that it states.
MAX_FIXED_BATCH, MAX_INPUT = 65_536, 2**26
#: Bytes of one operation's result, and of all that is alive at once (at most what the machine has).
MAX_RESULT, MAX_ALIVE = 4 * 2**30, 16 * 2**30
#: Floating-point operations of a pass, per point (the largest vision transformers take some 10¹²).
MAX_WORK = 1e13
#: Numbers in a constant that the rehearsal still computes.
MAX_COMPUTED = 4_096
#: What a program may cost if it is to be tried at load: floating-point operations, bytes alive at once.
TRIAL_WORK, TRIAL_ALIVE = 2e10, 256 * 2**20


class TooLarge(ValueError):
    """A program goes beyond a limit; the message says which."""


def check_name(name: str) -> str:
    """A name from a file.

    Raises:
        TooLarge: when it is too long, or has too many dotted parts.
    """
    if len(name) > MAX_NAME or name.count(".") >= MAX_PARTS:
        raise TooLarge(f"a name has {len(name)} characters and {name.count('.')} dots, "
                       f"{MAX_NAME} and {MAX_PARTS - 1} are read")  # fmt: skip
    return name


def check_count(found: int, limit: int, what: str) -> None:
    """Refuse more than `limit` of something.

    Raises:
        TooLarge: when there are more.
    """
    if found > limit:
        raise TooLarge(f"it has {found} {what}, {limit} are read")


def input_shape(sizes: Iterable[object]) -> list[int | None]:
    """The shape of the input as a file states it: at least the batch axis; None where it is open.

    Raises:
        ValueError: when it is no shape of a batch, or states too many numbers.
    """
    shape = list(sizes)
    if not shape or len(shape) > MAX_AXES:
        raise ValueError(f"its input has {len(shape)} axes, expected a batch axis and those of a point")
    for size in shape:
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"its input has the size {str(size)[:40]!r}, expected a whole number above 0")
    found = [size for size in shape if isinstance(size, int)]
    if (isinstance(shape[0], int) and shape[0] > MAX_FIXED_BATCH) or math.prod(found) > MAX_INPUT:
        raise TooLarge(f"its input is stated as {' x '.join(str(size) for size in found)[:80]} numbers, "
                       f"{MAX_INPUT} are read, in batches of at most {MAX_FIXED_BATCH}")  # fmt: skip
    return [size if isinstance(size, int) else None for size in shape]


@functools.cache
def _most_alive() -> int:
    """`MAX_ALIVE`, or what the machine has if that is less."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return min(MAX_ALIVE, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return MAX_ALIVE


class Rehearsal(TorchDispatchMode):
    """Within it, operations run on tensors without data, and are checked against the limits.

    Attributes:
        work: floating-point operations so far, roughly.
        alive: largest number of bytes that results took at one time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work, self.alive, self._now = 0.0, 0, 0
        self._watched: set[weakref.ref[Tensor]] = set()
        self._seen: dict[Any, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch is to wrap the mode for torch.compile, which would take seconds to import."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        check_arguments(func, args, kwargs)
        real = all(not t.is_meta and t.numel() <= MAX_COMPUTED for t in given)
        if real and torch.Tag.data_dependent_output in func.tags:  # a number out of a constant
            return func(*args, **kwargs)
        result = self._shapes(func, args, kwargs)
        found = list(_tensors(result))
        self._measure(func, args, given, found)
        if real and all(t.numel() <= MAX_COMPUTED for t in found):
            check_values(func, args)
            return func(*args, **kwargs)
        return result

    def _shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result without data; what was asked before (layers repeat) is not worked out again."""
        if func._schema.is_mutable:
            return func(*_mapped(_without_data, args), **_mapped(_without_data, kwargs))
        key = (func, _described(args), _described(kwargs))
        if key not in self._seen:
            kwargs = _mapped(_without_data, kwargs)
            if any(argument.name == "device" for argument in func._schema.arguments):
                kwargs["device"] = torch.device("meta")
            self._seen[key] = func(*_mapped(_without_data, args), **kwargs)
        return _mapped(_alike, self._seen[key])

    def _measure(self, func: Any, args: Any, given: list[Tensor], found: list[Tensor]) -> None:
        new = bool(func._schema.returns) and func._schema.returns[0].alias_info is None
        for result in found:
            size = result.numel() * result.element_size()
            if result.dim() > MAX_AXES:
                raise TooLarge(f"{func} makes a tensor of {result.dim()} axes, {MAX_AXES} are allowed")
            if size > MAX_RESULT:
                raise TooLarge(f"{func} makes a tensor of {size} bytes, {MAX_RESULT} are allowed")
            if new:
                self._watch(result, size)
        if self.alive > _most_alive():
            raise TooLarge(f"it needs {self.alive} bytes at once, {_most_alive()} are allowed")
        self.work += sum(t.numel() for t in (*given, *found)) + _products(func, args, found)

    def _watch(self, result: Tensor, size: int) -> None:
        def gone(reference: weakref.ref[Tensor]) -> None:
            self._watched.discard(reference)
            self._now -= size

        self._now += size
        self.alive = max(self.alive, self._now)
        self._watched.add(weakref.ref(result, gone))


@contextlib.contextmanager
def rehearsing() -> Iterator[Rehearsal]:
    """A rehearsal that is hidden from what observes torch."""
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad(), Rehearsal() as rehearsal:
        yield rehearsal


def stand_in(tensor: Tensor) -> Tensor:
    """A copy of a small constant, the mere shape of a large one."""
    if tensor.numel() <= MAX_COMPUTED and not tensor.is_meta:
        return tensor.detach().to("cpu", copy=True)
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def on_one_device(items: Any) -> Any:
    """Arguments of an operation, all tensors among them without data as soon as one is.

    torch compares the devices of some operations before it takes them apart (`_weight_norm`).
    """
    return _mapped(_without_data, items) if any(tensor.is_meta for tensor in _tensors(items)) else items


def _without_data(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item if item.is_meta else torch.empty_like(item, device="meta")
    return torch.device("meta") if isinstance(item, torch.device) else item


def _mapped(change: Callable[[Any], Any], items: Any) -> Any:
    if isinstance(items, (tuple, list)):
        changed = [_mapped(change, item) for item in items]
        return tuple(changed) if isinstance(items, tuple) else changed
    if isinstance(items, dict):
        return {name: _mapped(change, item) for name, item in items.items()}
    return change(items)


def _alike(item: Any) -> Any:
    if not isinstance(item, Tensor):
        return item
    return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")


def _described(item: Any) -> Any:
    """A key of an argument: of a tensor its shape, strides and type."""
    if isinstance(item, Tensor):
        return item.shape, item.stride(), item.dtype
    if isinstance(item, (tuple, list)):
        return tuple(map(_described, item))
    if isinstance(item, dict):
        return tuple((name, _described(value)) for name, value in item.items())
    return type(item), item


def _tensors(items: Any) -> Iterator[Tensor]:
    if isinstance(items, Tensor):
        yield items
    elif isinstance(items, dict):
        yield from _tensors(list(items.values()))
    elif isinstance(items, (tuple, list)):
        for item in items:
            yield from _tensors(item)


def _products(func: Any, args: Any, found: list[Tensor]) -> float:
    """Multiplications and additions of a matrix product, convolution or pooling."""
    name, size = func._schema.name.removeprefix("aten::"), found[0].numel() if found else 0
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        return 2.0 * size * args[name.startswith(("add", "badd"))].shape[-1]
    if name in ("convolution", "_convolution"):
        each = args[1].numel() / max(1, args[1].shape[0])
        return 2.0 * each * (args[0].numel() if args[6] else size)
    if "_pool" in name and len(args) > 1 and isinstance(args[1], (list, tuple)):
        return float(size) * math.prod(args[1]) if "adaptive" not in name else 0.0
    return 0.0
