"""Record every op of one forward pass: where it ran, what it read, which autograd nodes it made.

A `TorchFunctionMode` sees the calls; two global module hooks keep the module
path (`ModuleScope`); walking `grad_fn.next_functions` from every new output
assigns each autograd node to the op that made it. Nodes that nobody saw being
made (custom Functions, TorchScript) and tensors that come from outside torch
(numpy, PIL) become ops of their own when they are first met.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from maskaudit.files import shown_path
from maskaudit.results import Location
from maskaudit.trace.scope import ModuleScope, Site, user_site
from maskaudit.trace.scripted import ScriptedGraph, node_kind

Kind = Literal["torch", "function", "node", "entry", "escape"]

#: Calls that take data out of torch.
ESCAPES = frozenset({"numpy", "tolist", "item", "__array__", "__float__", "__int__", "__index__"})
#: Periodic ops: their inputs are kept, to see how far a small perturbation moves the phase.
PERIODIC = frozenset({"sin", "cos", "tan", "sin_", "cos_", "remainder", "fmod", "frac", "__mod__"})
#: Calls that show optimisation inside the forward pass.
OPTIMISES = frozenset({"backward", "grad"})


class Print(NamedTuple):
    """Fingerprint of a tensor's data: a checksum of its bytes and the shape."""

    checksum: float
    shape: tuple[int, ...]


@dataclass
class Seen:
    """One op while it is being recorded; the mutable form of `records.Op`."""

    index: int
    name: str
    module: str
    file: str | None
    line: int | None
    kind: Kind
    grad_mode: bool
    live_in: bool = False
    live_out: bool = False
    parents: tuple[int, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    prints: tuple[Print | None, ...] = ()
    phase: Tensor | None = None
    no_grad: Location | None = None
    across_batch: bool = False

    @property
    def location(self) -> Location:
        """Where it ran."""
        return Location(self.module, self.name, self.file, self.line)


@dataclass
class FunctionCall:
    """First call of a custom autograd Function with tensor arguments."""

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]
    module: str
    location: Location


class Observer(TorchFunctionMode):
    """Record of one forward pass.

    Args:
        model: the audited module or callable.
        leaf: the input (N, …) with `requires_grad`.
        keep_tensors: keep inputs and outputs of every op (needed to walk gradients); fingerprints are always kept.
        revive: indices of ops behind a cut; where what they made is not on the graph, it becomes a leaf of its own,
            so that the rest of the way to the output can be walked too.
    """

    def __init__(
        self, model: object, leaf: Tensor, *, keep_tensors: bool = True, revive: frozenset[int] = frozenset()
    ) -> None:
        super().__init__()
        self.leaf = leaf
        self.revive = revive
        self.leaves = [leaf]
        self.keep_tensors = keep_tensors
        self.ops: list[Seen] = []
        self.functions: dict[type[torch.autograd.Function], FunctionCall] = {}
        self.owner: dict[Node, int] = {}
        self.reaches: dict[Node, bool] = {}
        self.no_grad_site: Location | None = None
        self.optimises: list[Location] = []
        self.hooked: list[int] = []
        self.script_cut: Location | None = None
        self.raw: Tensor | None = None
        self.modules: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.scope = ModuleScope(model, before=self._before_module, after=self._after_module)
        self._known: dict[int, tuple[Tensor, int]] = {id(leaf): (leaf, -1)}
        self._state: list[Tensor] = []
        self._constants: set[int] = set()
        if isinstance(model, nn.Module):
            self._state = [t for t in (*model.parameters(), *model.buffers()) if not t.is_inference()]
            self._constants = {id(t) for t in self._state}
        self._versions = [t._version for t in self._state]
        self._entered: list[tuple[int, ...]] = []
        self._scripted: dict[int, ScriptedGraph] = {}
        self._busy = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[Observer]:
        """Record while the context is open."""
        with self.scope.watching(), self:
            yield self

    # --- calls ------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and record it."""
        kwargs = kwargs or {}
        if self._busy:
            return func(*args, **kwargs)
        self._busy = True
        try:
            return self._record(func, args, kwargs)
        finally:
            self._busy = False

    def _record(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = op_name(func)
        if name == "_set_grad_enabled":
            if args and args[0] is False:
                self.no_grad_site = self._locate("no_grad", user_site())
            return func(*args, **kwargs)
        inputs = data_inputs(name, tensors_of((args, kwargs)))
        optimising = getattr(func, "__name__", "") in OPTIMISES
        if name in PROPERTIES and not optimising:
            return func(*args, **kwargs)
        site = user_site()
        if site.function is not None and not _is_torch(site.function):
            return self._inside_function(func, args, kwargs, site)
        if site.outside and not self.scope.inside:
            output = func(*args, **kwargs)
            self._own(tensors_of(output), None)
            return output
        self.adopt(inputs, site)
        op = self._open(name, site, "torch", inputs)
        if name in PERIODIC and inputs:
            op.phase = inputs[0].detach().clone()
        op.across_batch = name in NORMALISERS and batch_statistics(args, kwargs)
        if optimising:
            self.optimises.append(op.location)
        if name == "register_hook":
            self.hooked.append(len(self.ops))
        output = func(*args, **kwargs)
        outputs = tensors_of(output)
        if name in ESCAPES:
            op.kind = "escape"
        elif not outputs and name not in ("register_hook", "__setitem__"):
            return output
        if name == "__setitem__":
            outputs = inputs[:1]
        self._close(op, outputs)
        return output

    def _inside_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], site: Site
    ) -> Any:
        """An op in the forward of a custom Function: below autograd, so only the Function as a whole is noted."""
        function = site.function
        assert function is not None
        if function not in self.functions:
            self.adopt(tensors_of(site.arguments), site)
            self.functions[function] = FunctionCall(
                function, site.arguments, self.scope.path, function_location(function, self.scope.path)
            )
        return func(*args, **kwargs)

    def adopt(self, tensors: tuple[Tensor, ...], site: Site) -> None:
        """Meet tensors: nodes and data that no recorded op made become ops of their own."""
        for tensor in tensors:
            if tensor.grad_fn is not None and tensor.grad_fn not in self.reaches:
                self._adopt_nodes(tensor, site)
            elif id(tensor) not in self._known and id(tensor) not in self._constants and not tensor.requires_grad:
                op = self._open("from outside torch", site, "entry", ())
                self._close(op, (tensor,))

    def _adopt_nodes(self, tensor: Tensor, site: Site, script: ScriptedGraph | None = None) -> None:
        assert tensor.grad_fn is not None
        fresh = self._new_nodes(tensor.grad_fn)
        places = {} if script is None else script.locate(fresh)
        for node in fresh:
            function = getattr(node, "_forward_cls", None)
            op = self._open(node_op_name(node), site, "node", ())
            if function is not None:
                op.kind = "function"
                op.name = function.__name__
                where = function_location(function, self.scope.path)
                op.file, op.line = where.file, where.line
            elif node in places:
                place = places[node]
                op.module, op.file, op.line = place.module, place.file, place.line
            parents = {self.owner[n] for n, _ in node.next_functions if n is not None and n in self.owner}
            op.parents = tuple(sorted(p for p in parents if p != op.index))
            op.live_in = op.live_out = self.reaches[node]
            op.nodes.append(node)
            self.owner[node] = op.index
            if node is tensor.grad_fn:
                op.outputs = (tensor,) if self.keep_tensors else ()
                op.prints = (fingerprint(tensor),)
                self._known[id(tensor)] = (tensor, op.index)
            self.ops.append(op)

    # --- modules ----------------------------------------------------------------------------------

    def _before_module(self, module: nn.Module, inputs: Any) -> None:
        if not self._busy:
            self._busy = True
            try:
                self.adopt(tensors_of(inputs), user_site())
                self._entered.append(tuple(inputs[0].shape) if inputs and isinstance(inputs[0], Tensor) else ())
            finally:
                self._busy = False

    def _after_module(self, module: nn.Module, output: Any) -> None:
        if not self._busy:
            self._busy = True
            try:
                outputs = tensors_of(output)
                if isinstance(module, torch.jit.ScriptModule):
                    self._adopt_scripted(module, outputs)
                self.adopt(outputs, Site(None, None))
                before = self._entered.pop() if self._entered else ()
                if isinstance(output, Tensor):
                    self.modules[self.scope.path] = (before, tuple(output.shape))
            finally:
                self._busy = False

    def _adopt_scripted(self, module: torch.jit.ScriptModule, outputs: tuple[Tensor, ...]) -> None:
        """Give what a scripted module did its places; note where it cuts the gradient, if its output is not live."""
        script = self._scripted.setdefault(id(module), ScriptedGraph(module, self.scope.path))
        for tensor in outputs:
            if tensor.grad_fn is not None and tensor.grad_fn not in self.reaches:
                self._adopt_nodes(tensor, Site(None, None), script)
        if self.script_cut is None and not any(self.live(tensor) for tensor in outputs):
            self.script_cut = script.cut()

    # --- bookkeeping ------------------------------------------------------------------------------

    def live(self, tensor: Tensor) -> bool:
        """Whether the tensor is connected to the leaf in the autograd graph."""
        if any(tensor is leaf for leaf in self.leaves):
            return True
        return tensor.grad_fn is not None and self.reaches.get(tensor.grad_fn, False)

    @property
    def state_written(self) -> bool:
        """Whether a parameter or buffer of the model was written to since the record began."""
        return [t._version for t in self._state] != self._versions

    def maker(self, tensor: Tensor) -> int | None:
        """Index of the op that made the tensor; −1 for the leaf, None if unknown."""
        known = self._known.get(id(tensor))
        return None if known is None else known[1]

    def _locate(self, name: str, site: Site) -> Location:
        return Location(self._module(site), name, site.file, site.line)

    def _module(self, site: Site) -> str:
        return self.scope.path if site.module is None else site.module

    def _open(self, name: str, site: Site, kind: Kind, inputs: tuple[Tensor, ...]) -> Seen:
        op = Seen(len(self.ops), name, self._module(site), site.file, site.line, kind, torch.is_grad_enabled())
        op.live_in = any(self.live(t) for t in inputs)
        op.no_grad = None if op.grad_mode else self.no_grad_site
        if torch.is_inference_mode_enabled():  # entered below what a function mode sees: its first op is the place
            op.no_grad = op.location
        makers = {self.maker(t) for t in inputs}
        op.parents = tuple(sorted(m for m in makers if m is not None and m >= 0))
        if self.keep_tensors:
            op.inputs = inputs
        return op

    def _close(self, op: Seen, outputs: tuple[Tensor, ...]) -> None:
        op.index = len(self.ops)
        if op.index in self.revive and torch.is_grad_enabled():
            for tensor in outputs:
                if tensor.is_floating_point() and not tensor.requires_grad and not tensor.is_inference():
                    self.leaves.append(tensor.requires_grad_(True))
        self._own(outputs, op)
        op.live_out = any(self.live(t) for t in outputs)
        op.prints = tuple(fingerprint(t) for t in outputs)
        if self.keep_tensors:
            op.outputs = outputs
        for tensor in outputs:
            self._known[id(tensor)] = (tensor, op.index)
        self.ops.append(op)

    def _own(self, outputs: tuple[Tensor, ...], op: Seen | None) -> None:
        for tensor in outputs:
            if tensor.grad_fn is not None:
                for node in self._new_nodes(tensor.grad_fn):
                    if op is not None:
                        op.nodes.append(node)
                        self.owner[node] = op.index

    def _new_nodes(self, start: Node) -> list[Node]:
        """Nodes from `start` back to those already known, inputs first; notes for each whether it reaches the leaf."""
        order: list[Node] = []
        stack = [(start, False)]
        while stack:
            node, expanded = stack.pop()
            if node in self.reaches and not expanded:
                continue
            below = [n for n, _ in node.next_functions if n is not None]
            if expanded:
                variable = getattr(node, "variable", None)
                own = variable is not None and any(variable is leaf for leaf in self.leaves)
                self.reaches[node] = own or any(self.reaches.get(n, False) for n in below)
                order.append(node)
                continue
            self.reaches[node] = False
            stack.append((node, True))
            stack.extend((n, False) for n in below if n not in self.reaches)
        return [node for node in order if getattr(node, "variable", None) is None]


#: Ops that may take their statistics from the batch at hand.
NORMALISERS = frozenset({"batch_norm", "native_batch_norm", "_native_batch_norm_legit"})


def batch_statistics(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of batch normalisation uses the statistics of its own batch."""
    place = 5  # of `training`, in torch.nn.functional and in aten alike
    return bool(kwargs.get("training", args[place] if len(args) > place else False))


#: Ops that read one tensor, and type or shape of another.
TYPED_AFTER = frozenset({"to", "type_as", "view_as", "expand_as", "reshape_as"})
#: Types that numpy does not know.
_NOT_IN_NUMPY = frozenset({torch.bfloat16})
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
    """`RoundBackward0` → `round`."""
    return node_kind(node) or node.name()


def tensors_of(value: Any) -> tuple[Tensor, ...]:
    """All tensors in nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (tuple, list)):
        return tuple(t for item in value for t in tensors_of(item))
    if isinstance(value, dict):
        return tuple(t for item in value.values() for t in tensors_of(item))
    if hasattr(value, "logits") and isinstance(value.logits, Tensor):
        return (value.logits,)
    return ()


def data_inputs(name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors whose data an op reads; `t.to(other)` and `zeros_like(t)` take type and shape from others only."""
    if name in TYPED_AFTER:
        return inputs[:1]
    return () if name.endswith("_like") or name.startswith("new_") else inputs


def fingerprint(tensor: Tensor) -> Print | None:
    """Checksum over the data, 0 and −0 alike; None for tensors that have no plain data."""
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta:
        return None
    shape = tuple(tensor.shape)
    with torch.no_grad():
        values = tensor.detach()
        if values.device.type != "cpu":
            flat = values.reshape(-1).double()
            return Print(float(flat @ torch.linspace(1.0, 2.0, len(flat), dtype=flat.dtype, device=flat.device)), shape)
        values = values + 0 if values.is_floating_point() else values
        values = values.float() if values.dtype in _NOT_IN_NUMPY else values
        return Print(zlib.crc32(values.contiguous().numpy().data), shape)


def function_location(function: type[torch.autograd.Function], module: str) -> Location:
    """Where a custom Function is defined: the line of its backward, else of the class."""
    try:
        found = inspect.getsourcefile(function)
        file = shown_path(found) if found else None
        source, line = inspect.getsourcelines(function.backward)
        line += next((i for i, text in enumerate(source) if text.lstrip().startswith("def ")), 0)
    except (OSError, TypeError):
        file, line = None, None
    return Location(module, function.__name__, file, line)


def _is_torch(function: type) -> bool:
    return function.__module__.split(".")[0] == "torch"


def random_states() -> dict[str, bytes]:
    """Fingerprints of the global generators."""
    kind, keys, position, *_ = np.random.get_state(legacy=True)
    return {
        "torch": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest(),
        "numpy": bytes(np.asarray(keys).tobytes()) + str((kind, position)).encode(),
        "random": repr(hash(random.getstate())).encode(),
    }
