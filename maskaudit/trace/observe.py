"""Record every op of one forward pass: where it ran, what it read, which autograd nodes it made.

`CallWatcher` sees the calls; walking `grad_fn.next_functions` from every new output
assigns each autograd node to the op that made it. Nodes that nobody saw being
made (custom Functions, TorchScript) and tensors that come from outside torch
(numpy, PIL) become ops of their own when they are first met.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from maskaudit.results import Location
from maskaudit.target import EndOfPass
from maskaudit.trace.calls import (
    ESCAPES,
    NORMALISERS,
    OPTIMISES,
    PERIODIC,
    PROPERTIES,
    UNSET,
    batch_statistics,
    called,
    data_inputs,
    may_write,
    node_op_name,
)
from maskaudit.trace.functorch import bare_tensors, below
from maskaudit.trace.graph import new_nodes
from maskaudit.trace.op_notes import FunctionCall, OpKind, RecordedOp, function_location, has_memory
from maskaudit.trace.scope import Frame, user_site
from maskaudit.trace.scripted import ScriptedGraph
from maskaudit.trace.watch import CallWatcher


class SeenEnough(EndOfPass):
    """Ends a forward pass of which the rest is of no interest."""


class Observer:
    """Record of one forward pass.

    Args:
        model: the audited module or callable.
        leaf: the input (N, …) with `requires_grad`.
        keep_tensors: keep inputs and outputs of every op with their graph (needed to walk gradients); what an op
            made is always kept as data.
        revive: indices of ops behind a cut; where what they made is not on the graph, it becomes a leaf of its own,
            so that the rest of the way to the output can be walked too.
        until: index of the op behind which the pass is ended with `SeenEnough`; by default it runs to its end.
    """

    def __init__(
        self, model: object, leaf: Tensor, *, keep_tensors: bool = True, revive: frozenset[int] = frozenset(),
        until: int | None = None,
    ) -> None:  # fmt: skip
        self.leaf = leaf
        self.revive = revive
        self.until = until
        self.leaves = [leaf]
        self.keep_tensors = keep_tensors
        self.ops: list[RecordedOp] = []
        self.functions: dict[type[torch.autograd.Function], FunctionCall] = {}
        self.owner: dict[Node, int] = {}
        self.reaches: dict[Node, bool] = {}
        self.no_grad_site: Location | None = None
        self.optimises: list[Location] = []
        self.hooked: list[int] = []
        self.failed: dict[int, str] = {}  # ops in which a backward pass raised, and what
        self.failure = ""  # what a backward pass raised outside of any op: a hook on a tensor
        self.script_cut: Location | None = None
        self.raw: Tensor | None = None
        self.modules: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._watcher = CallWatcher(model, self._record, before=self._before_module, after=self._after_module)
        self.scope = self._watcher.scope
        self._known: dict[int, tuple[Tensor, int]] = {id(leaf): (leaf, -1)}
        self._living: dict[int, list[RecordedOp]] = {}  # whose data live in which memory
        self._state: list[Tensor] = []
        self._constants: set[int] = set()
        if isinstance(model, nn.Module):
            self._state = [t for t in (*model.parameters(), *model.buffers()) if not t.is_inference()]
            self._constants = {id(t) for t in self._state}
        self._versions = [t._version for t in self._state]
        self._entered: list[tuple[int, ...]] = []
        self._scripted: dict[int, ScriptedGraph] = {}
        self._escaped = False

    @contextlib.contextmanager
    def watching(self, inputs: Tensor) -> Iterator[Observer]:
        """Record while the context is open; `inputs` are what the model is given, made from the leaf."""
        self._own((inputs,), None)
        with self._watcher.watching():
            yield self

    # --- calls ------------------------------------------------------------------------------------

    def _record(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `func` and record it."""
        if name == "_set_grad_enabled":
            if args and args[0] is False:
                self.no_grad_site = self._watcher.place("no_grad", user_site())
            return func(*args, **kwargs)
        optimising = getattr(func, "__name__", "") in OPTIMISES
        if name in PROPERTIES and not optimising:
            return func(*args, **kwargs)
        tensors = bare_tensors((args, kwargs))
        writes = may_write(name, args, kwargs)
        if writes:
            self._keep(tensors)
        inputs = data_inputs(name, tensors)
        site = user_site()
        if site.function is not None and not _is_torch(site.function):
            return self._inside_function(func, args, kwargs, site)
        self.adopt(inputs, site)
        op = self._open(name, site, "torch", inputs)
        if name in PERIODIC and inputs:
            with below():
                op.phase = inputs[0].detach().clone()
        op.across_batch = name in NORMALISERS and batch_statistics(args, kwargs)
        if optimising:
            self.optimises.append(op.location)
        if name == "register_hook":
            self.hooked.append(len(self.ops))
        if writes and inputs and self.keep_tensors:
            out = kwargs.get("out")
            op.writes = out if isinstance(out, Tensor) else inputs[0]
        output, op.refused = called(func, args, kwargs)
        outputs = inputs[:1] if name == "__setitem__" else bare_tensors(output)
        if name in ESCAPES:
            op.kind = "escape"
            self._escaped = self._escaped or op.carries
        elif not outputs and name not in ("register_hook", "__setitem__"):
            return output
        self._close(op, outputs)
        return output

    def _inside_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], site: Frame
    ) -> Any:
        """An op in the forward of a custom Function: below autograd, so only the Function as a whole is noted."""
        function = site.function
        assert function is not None
        if function not in self.functions:
            self.adopt(bare_tensors(site.arguments), site)
            location = function_location(function, self.scope.path)
            self.functions[function] = FunctionCall(function, site.arguments, location)
        return func(*args, **kwargs)

    def adopt(self, tensors: tuple[Tensor, ...], site: Frame) -> None:
        """Meet tensors: nodes and data that no recorded op made become ops of their own."""
        for tensor in tensors:
            if not self._strange(tensor):
                continue
            if tensor.grad_fn is not None and tensor.grad_fn not in self.reaches:
                self._adopt_nodes(tensor, site)
            else:
                self._close(self._open("from outside torch", site, "entry", ()), (tensor,))

    def _strange(self, tensor: Tensor) -> bool:
        """Whether no recorded op made the tensor, or the last node of its graph."""
        if tensor.grad_fn is not None and tensor.grad_fn not in self.reaches:
            return True
        return not (id(tensor) in self._known or id(tensor) in self._constants or tensor.requires_grad)

    def _adopt_nodes(self, tensor: Tensor, site: Frame, script: ScriptedGraph | None = None) -> None:
        assert tensor.grad_fn is not None
        fresh = new_nodes(tensor.grad_fn, self.reaches, self.leaves)
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
            op.live_in = op.live_out = op.carries = self.reaches[node]
            op.nodes.append(node)
            self.owner[node] = op.index
            if node is tensor.grad_fn:
                op.outputs = (tensor,) if self.keep_tensors else ()
                self._note(op, (tensor,))
                self._known[id(tensor)] = (tensor, op.index)
            self.ops.append(op)

    # --- modules ----------------------------------------------------------------------------------

    def _before_module(self, module: nn.Module, inputs: Any) -> None:
        with torch._C.DisableTorchFunction():
            strange = tuple(tensor for tensor in bare_tensors(inputs) if self._strange(tensor))
            if strange:
                self.adopt(strange, user_site())
            self._entered.append(tuple(inputs[0].shape) if inputs and isinstance(inputs[0], Tensor) else ())

    def _after_module(self, module: nn.Module, output: Any) -> None:
        with torch._C.DisableTorchFunction():
            outputs = bare_tensors(output)
            if isinstance(module, torch.jit.ScriptModule):
                self._adopt_scripted(module, outputs)
            self.adopt(outputs, Frame(None, None))
            before = self._entered.pop() if self._entered else ()
            if isinstance(output, Tensor):
                self.modules[self.scope.path] = (before, tuple(output.shape))

    def _adopt_scripted(self, module: torch.jit.ScriptModule, outputs: tuple[Tensor, ...]) -> None:
        """Give what a scripted module did its places; note where it cuts the gradient, if its output is not live."""
        if id(module) not in self._scripted:
            self._scripted[id(module)] = ScriptedGraph(module, self.scope.path)
        script = self._scripted[id(module)]
        for tensor in outputs:
            if tensor.grad_fn is not None and tensor.grad_fn not in self.reaches:
                self._adopt_nodes(tensor, Frame(None, None), script)
        if self.script_cut is None and not any(self.live(tensor) for tensor in outputs):
            self.script_cut = script.cut()

    # --- bookkeeping ------------------------------------------------------------------------------

    def live(self, tensor: Tensor) -> bool:
        """Whether the tensor is connected to the leaf in the autograd graph."""
        node = tensor.grad_fn
        if node is not None and self.reaches.get(node, False):
            return True
        return any(tensor is leaf for leaf in self.leaves)

    def _any_live(self, tensors: tuple[Tensor, ...]) -> bool:
        return any(self.live(tensor) for tensor in tensors)

    @property
    def state_written(self) -> bool:
        """Whether a parameter or buffer of the model was written to since the record began."""
        return [t._version for t in self._state] != self._versions

    def maker(self, tensor: Tensor) -> int | None:
        """Index of the op that made the tensor; −1 for the leaf, None if unknown.

        What `torch.func` hands out in the end is another tensor than the last op in it made, on the same graph.
        """
        known = self._known.get(id(tensor))
        if known is not None:
            return known[1]
        return None if tensor.grad_fn is None else self.owner.get(tensor.grad_fn)

    def reads_input(self, op: RecordedOp) -> bool:
        """Whether an op reads what the model was given."""
        return any(self.live(tensor) and self.maker(tensor) in (None, -1) for tensor in op.inputs)

    def _open(self, name: str, site: Frame, kind: OpKind, inputs: tuple[Tensor, ...]) -> RecordedOp:
        module = self._watcher.place(name, site).module
        op = RecordedOp(len(self.ops), name, module, site.file, site.line, kind, torch.is_grad_enabled())
        op.live_in = self._any_live(inputs)
        op.no_grad = None if op.grad_mode else self.no_grad_site
        if torch.is_inference_mode_enabled():  # entered below what a function mode sees: its first op is the place
            op.no_grad = op.location
        makers = {self.maker(t) for t in inputs}
        op.parents = tuple(sorted(m for m in makers if m is not None and m >= 0))
        back = kind == "entry" or (self._escaped and not inputs)
        op.carries = op.live_in or back or any(self.ops[p].carries for p in op.parents)
        if self.keep_tensors:
            op.inputs = inputs
        return op

    def _close(self, op: RecordedOp, outputs: tuple[Tensor, ...]) -> None:
        op.index = len(self.ops)
        if op.index in self.revive and torch.is_grad_enabled():
            for tensor in outputs:
                if tensor.is_floating_point() and not tensor.requires_grad and not tensor.is_inference():
                    with below():
                        self.leaves.append(tensor.requires_grad_(True))
        self._own(outputs, op)
        op.live_out = self._any_live(outputs)
        self._note(op, outputs)
        if self.keep_tensors:
            op.outputs = outputs
        for tensor in outputs:
            self._known[id(tensor)] = (tensor, op.index)
        self.ops.append(op)
        if op.index == self.until:
            raise SeenEnough

    def _note(self, op: RecordedOp, outputs: tuple[Tensor, ...]) -> None:
        """Note what the op made; the data stay where they are until a call may write to them."""
        if op.name in UNSET:
            return
        with below():
            op.data = tuple(tensor.detach() for tensor in outputs)
        for tensor in op.data:
            if has_memory(tensor):
                self._living.setdefault(tensor.untyped_storage().data_ptr(), []).append(op)

    def _keep(self, tensors: tuple[Tensor, ...]) -> None:
        """Copy the data that live in the memory of tensors which are about to be written to."""
        for tensor in tensors:
            if has_memory(tensor):
                for op in self._living.pop(tensor.untyped_storage().data_ptr(), ()):
                    with below():
                        op.data = tuple(data.clone() for data in op.data)

    def _own(self, outputs: tuple[Tensor, ...], op: RecordedOp | None) -> None:
        for tensor in outputs:
            if tensor.grad_fn is not None:
                for node in new_nodes(tensor.grad_fn, self.reaches, self.leaves):
                    if op is not None:
                        op.nodes.append(node)
                        self.owner[node] = op.index


def _is_torch(function: type) -> bool:
    return function.__module__.split(".")[0] == "torch"
