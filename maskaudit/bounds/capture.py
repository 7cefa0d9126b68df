"""Read a model as a network that can be bounded: its operations are recorded on fake data, so that nothing can branch
on values unseen, and the result is held against the model's own answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from maskaudit import foreign
from maskaudit.bounds.network import Network, UnboundableError
from maskaudit.bounds.operations import FOLDABLE, HANDLERS, Builder, Folded, Ref
from maskaudit.errors import describe_error
from maskaudit.loading.graph import Program
from maskaudit.target import Target
from maskaudit.target.model_contents import Belongings
from maskaudit.target.preserve import preserved_random_state

#: Points of the recorded pass; a prime that no layer is likely to have, so that the axis of the points is known by it.
BATCH = 11
#: Last operations that keep the order of the class scores.
ORDERLY = ("_softmax", "_log_softmax", "sigmoid")
#: How far the network may be from the model's answers, relative to the largest score.
ALIKE = 1e-3
#: Most operations of a recorded pass.
MOST_OPERATIONS = 3000


def captured(target: Target, x: Tensor) -> Network:
    """The model of a target as a network, float64.

    Args:
        x: inputs (N, …) on which its answers are compared with the model's.

    Raises:
        UnboundableError: when it does something that bounds do not know, or answers differently.
    """
    form = target.form
    if target.random or target.reject_class is not None or form.features is not None:
        raise UnboundableError("bounds are for models that are deterministic, reject nothing and read plain numbers")
    if form.alone or form.fresh or form.least > BATCH:
        raise UnboundableError("its answers depend on how it is asked")
    network = _built(_recorded(target, x))
    _compare(network, target, torch.cat([x, 0.9 * x, 0.8 * x]))
    return network


def _recorded(target: Target, x: Tensor) -> fx.GraphModule:
    model = target.model
    points = target.form.most or BATCH
    example, before = x[:1].expand(points, *x.shape[1:]).contiguous(), Belongings(model)
    call: Callable[[Tensor], Tensor] = target.bare
    try:
        with torch.no_grad(), preserved_random_state(), warnings.catch_warnings(), foreign.Call():
            warnings.simplefilter("ignore")
            if isinstance(model, Program):
                # a rehearsal refuses what reads values of the input; sizes and bounds that it holds must be read
                call = make_fx(lambda x: target.bare(x), tracing_mode="real")(example)
            functional = functionalize(lambda x: call(x), remove="mutations_and_views")
            return make_fx(functional, tracing_mode="fake", _allow_non_fake_inputs=True)(example)
    except BaseException as error:  # the model's code, met by data that have no values
        if not foreign.raised_by_model(error):
            raise
        raise UnboundableError(f"its operations cannot be recorded ({describe_error(error)})") from error
    finally:
        before.restore()


def _built(graph: fx.GraphModule) -> Network:
    nodes = list(graph.graph.nodes)
    if len(nodes) > MOST_OPERATIONS:
        raise UnboundableError(f"it has more than {MOST_OPERATIONS} operations")
    found: dict[fx.Node, Any] = {}
    if not nodes[-1].all_input_nodes:
        raise UnboundableError("its answers do not depend on its input, as far as torch sees it")
    last, finishes = _last(nodes[-1].all_input_nodes[0])
    builder: Builder | None = None
    for node in nodes:
        if node.op == "placeholder":
            builder = Builder(node.meta["val"].shape)
            found[node] = Ref(0)
        elif node.op == "get_attr":
            found[node] = _constant(getattr(graph, node.target))
        elif node.op == "call_function" and builder is not None:
            found[node] = _step(builder, node, found)
        if node is last:
            break
    result = found[last]
    if builder is None or not isinstance(result, Ref):
        raise UnboundableError("its answers do not depend on its input, as far as torch sees it")
    return builder.finished(result, _finishing(finishes))


def _last(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The node that makes the scores, and the orderly ones after it."""
    after: list[fx.Node] = []
    while node.op == "call_function" and (_name(node) in ORDERLY or _name(node) in ("clone", "_to_copy")):
        if _name(node) in ("_softmax", "_log_softmax") and node.args[1] not in (1, -1):
            break
        after.insert(0, node)
        node = node.all_input_nodes[0]
    return node, after


def _finishing(nodes: list[fx.Node]) -> Callable[[Tensor], Tensor]:
    def finish(scores: Tensor) -> Tensor:
        for node in nodes:
            if _name(node) in ORDERLY:
                scores = _called(node)(scores, *node.args[1:])
        return scores

    return finish


def _called(node: fx.Node) -> Callable[..., Any]:
    assert callable(node.target)
    return node.target


def _name(node: fx.Node) -> str:
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else str(target)


def _constant(value: Tensor) -> Tensor:
    return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()


def _step(builder: Builder, node: fx.Node, found: dict[fx.Node, Any]) -> Any:
    if node.target is not None and getattr(node.target, "__name__", "") == "getitem":
        part, place = found[node.all_input_nodes[0]], node.args[1]
        return part[place] if isinstance(part, tuple) and isinstance(place, int) and place < len(part) else None
    args = fx.map_arg(node.args, lambda n: found[n])
    kwargs = fx.map_arg(node.kwargs, lambda n: found[n])
    name = _name(node).removesuffix("_copy")
    used: list[Any] = []
    fx.map_arg((node.args, node.kwargs), lambda n: used.append(found[n]))
    if not any(isinstance(value, Ref) for value in used):
        return _evaluated(node, args, kwargs)
    handler = HANDLERS.get(name)
    if handler is None:
        raise UnboundableError(f"no bounds are known for the operation {name}")
    if name not in FOLDABLE and any(isinstance(value, Folded) for value in used):
        raise UnboundableError("it moves the axis of the points")
    try:
        return handler(builder, node.target, *args, **kwargs)
    except UnboundableError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UnboundableError(f"the operation {name} is used in a way that has no bounds") from error


def _evaluated(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What does not depend on the input."""
    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    if kwargs.get("dtype") in (torch.float32, torch.float16, torch.bfloat16):
        kwargs["dtype"] = torch.float64
    return _called(node)(*args, **kwargs)


def _compare(network: Network, target: Target, x: Tensor) -> None:
    """Whether the network answers as the model does, on three points or fewer at a time.

    Raises:
        UnboundableError: when it does not.
    """
    with torch.no_grad():
        own = target.answers(x).double()
        try:
            other = torch.cat([network.finish(network(part.double())) for part in x.split(3)])
        except RuntimeError as error:
            raise UnboundableError("it moves the axis of the points") from error
    if other.shape[1] == 2 and own.shape[1] == 1:
        own = target.form.two_classes(own)
    scale = own.abs().amax().clamp_min(1e-30)
    if own.shape != other.shape or not bool(((own - other).abs() <= ALIKE * scale).all()):
        raise UnboundableError("its recorded operations answer otherwise than the model")
