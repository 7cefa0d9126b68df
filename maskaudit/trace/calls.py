"""Calls of torch: their names, the tensors they read, and which of them say something about the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.graph import Node

from maskaudit.errors import first_line
from maskaudit.trace.scripted import node_kind

#: Calls that take data out of torch.
ESCAPES = frozenset({"numpy", "tolist", "item", "__array__", "__float__", "__int__", "__index__"})
#: Periodic ops: their inputs are kept, to see how far a small perturbation moves the phase.
PERIODIC = frozenset({"sin", "cos", "tan", "sin_", "cos_", "remainder", "fmod", "frac", "__mod__"})
#: Calls that show optimisation inside the forward pass.
OPTIMISES = frozenset({"backward", "grad"})
#: Ops that may take their statistics from the batch at hand.
NORMALISERS = frozenset({"batch_norm", "native_batch_norm", "_native_batch_norm_legit"})
#: Ops that read one tensor, and type or shape of another.
TYPED_AFTER = frozenset({"to", "type_as", "view_as", "expand_as", "reshape_as"})
#: Calls that hand out memory with whatever was in it.
UNSET = frozenset({"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"})
#: Calls that only ask about a tensor; never recorded.
PROPERTIES = frozenset({
    "shape", "size", "dim", "ndim", "device", "dtype", "requires_grad", "is_floating_point", "numel", "__len__",
    "stride", "is_contiguous", "layout", "grad_fn", "is_leaf", "grad", "is_cuda", "element_size", "requires_grad_",
    "is_complex", "is_sparse", "is_quantized", "names", "_version", "data_ptr", "storage_offset", "__repr__",
    "__format__", "__hash__", "__bool__", "is_nested", "ndimension", "get_device", "_is_view", "nelement",
})  # fmt: skip


def op_name(func: Callable[..., Any]) -> str:
    """Short name of a torch call: `conv2d`, `round`, `data`, `__getitem__`; `aten.round.default` is `round`."""
    if isinstance(func, OpOverload):
        return func._opname
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        owner = getattr(func, "__self__", None)
        name = getattr(owner, "__name__", name)
    return name


def node_op_name(node: Node) -> str:
    """The name of the operation behind a node of the graph: `RoundBackward0` → `round`."""
    return node_kind(node) or node.name()


def called(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str]:
    """The result of a call of torch, made off the graph where torch refuses it on data with a gradient.

    `numpy()`, `out=`, tensors of inference mode: such a call works as long as no gradient is asked for.

    Returns:
        The result, and what torch reported; "" where it did not refuse.
    """
    try:
        return func(*args, **kwargs), ""
    except (RuntimeError, NotImplementedError) as error:
        originals: dict[int, Tensor] = {}
        if not any(tensor.requires_grad for tensor in tensors_of((args, kwargs))):
            raise

        def detached(tensor: Tensor) -> Tensor:
            bare = tensor.detach()
            originals[id(bare)] = tensor
            return bare

        with torch.no_grad():
            try:
                output = func(*mapped(args, detached), **mapped(kwargs, detached))
            except Exception:
                raise error from None
        if isinstance(output, Tensor):  # what works in place, or into `out`, answers with the tensor that it was given
            output = originals.get(id(output), output)
        return output, first_line(error)


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Nested tuples, lists and dictionaries with every tensor changed; all else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(mapped(item, change) for item in value)
    if type(value) is dict:
        return {key: mapped(item, change) for key, item in value.items()}
    return value


def tensors_of(value: Any) -> tuple[Tensor, ...]:
    """All tensors in nested tuples, lists and dictionaries, in order."""
    found: list[Tensor] = []
    _collect(value, found)
    return tuple(found)


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif value is None or isinstance(value, (int, float, str)):
        return
    elif isinstance(value, (tuple, list)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)
    elif hasattr(value, "logits") and isinstance(value.logits, Tensor):
        found.append(value.logits)


def may_write(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call may write to a tensor that it is given, or hand its memory out of torch.

    Either its name shows it, or an argument that is `True`, as `inplace` would be.
    """
    if name in ("numpy", "__array__", "__setitem__") or (name.endswith("_") and not name.endswith("__")):
        return True
    flags = any(value is True for value in (*args, *kwargs.values()))
    return flags or name.startswith("__i") or kwargs.get("out") is not None


def data_inputs(name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors whose data an op reads; `t.to(other)` and `zeros_like(t)` take type and shape from others only."""
    if name in TYPED_AFTER:
        return inputs[:1]
    return () if name.endswith("_like") or name.startswith("new_") else inputs


def batch_statistics(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of batch normalisation uses the statistics of its own batch."""
    place = 5  # of `training`, in torch.nn.functional and in aten alike
    return bool(kwargs.get("training", args[place] if len(args) > place else False))
