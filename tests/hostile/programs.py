"""Hostile exported programs (.pt2) and ONNX models: operations, numbers and names that no classifier needs."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from benchmarks.fuzzing import samples
from tests.hostile.case import MARKER, Case, Link, Outcome, Sparse

Graph = dict[str, Any]


class Small(nn.Module):
    """Scores (N, 10) of images (N, 1, 8, 8), with next to no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        scores: Tensor = self.head(torch.relu(x).mean(dim=(2, 3)))
        return scores


@functools.cache
def _members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(samples.exported(Small()))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def program(change: Callable[[dict[str, Any]], None], more: dict[str, bytes] | None = None) -> bytes:
    """A valid program, changed; without the traces, which name files of the author."""
    members = {name: content for name, content in _members().items() if "sample_inputs" not in name}
    name = next(name for name in members if name.endswith("models/model.json"))
    stated = json.loads(members[name])
    for node in stated["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    change(stated)
    members[name] = json.dumps(stated).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in {**members, **(more or {})}.items():
            archive.writestr(zipfile.ZipInfo(member), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _same(stated: dict[str, Any]) -> None:
    """No change."""


def argument(value: Any) -> dict[str, Any]:
    """A value as the schema writes it; text is the name of a tensor."""
    if isinstance(value, str):
        return {"as_tensor": {"name": value}}
    if isinstance(value, bool):
        return {"as_bool": value}
    if isinstance(value, list):
        return {"as_ints": value}
    return {"as_none": True} if value is None else {"as_int": value}


def through(target: str, *values: Any, times: int = 1) -> Callable[[dict[str, Any]], None]:
    """Puts calls of an operation between the input and what uses it; `"x"` among the values is the one before."""

    def change(stated: dict[str, Any]) -> None:
        nodes = stated["graph_module"]["graph"]["nodes"]
        before, added = "x", []
        for number in range(times):
            given = [argument(before if value == "x" else value) for value in values]
            inputs = [{"name": f"a{i}", "arg": item, "kind": 1} for i, item in enumerate(given)]
            name = f"hostile_{number}"
            added.append(
                {"target": target, "inputs": inputs, "outputs": [argument(name)], "metadata": {}, "name": name}
            )
            before = name
        nodes[0]["inputs"][0]["arg"] = argument(before)
        nodes[:0] = added

    return change


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets one entry of the program's JSON."""

    def change(stated: dict[str, Any]) -> None:
        owner = functools.reduce(lambda node, key: node[key], path[:-1], stated)
        owner[path[-1]] = value

    return change


GRAPH = ("graph_module", "graph")
INPUT = (*GRAPH, "tensor_values", "x", "sizes")
BIG = 10**9
ATEN = "torch.ops.aten."

PROGRAMS: tuple[tuple[str, Callable[[dict[str, Any]], None], Outcome], ...] = (
    ("reads-outside", through(ATEN + "_reshape_alias.default", "x", [BIG], [1]), "refused"),
    ("strides-outside", through(ATEN + "as_strided.default", "x", [BIG], [1], 0), "refused"),
    ("offset-outside", through(ATEN + "as_strided.default", "x", [8], [1], 2**40), "refused"),
    (
        "pool-backward",
        through(
            ATEN + "max_pool2d_with_indices_backward.default", "x", "x", [2, 2], [2, 2], [0, 0], [1, 1], False, "x"
        ),
        "refused",
    ),
    ("sparse-unchecked", through(ATEN + "_sparse_coo_tensor_unsafe.default", "x", "x", [BIG]), "refused"),
    ("prints", through(ATEN + "_print.default", "x"), "refused"),
    ("seeds", through(ATEN + "manual_seed.default", 7), "refused"),
    ("switches-gradients", through("torch._C._set_grad_enabled", False), "refused"),
    ("reads-file", through(ATEN + "from_file.default", "x"), "refused"),
    ("draws", through(ATEN + "rand_like.default", "x"), "either"),
    ("sets-storage", through(ATEN + "set_.source_Tensor", "x", "x"), "refused"),
    ("resizes", through(ATEN + "resize_.default", "x", [BIG]), "refused"),
    ("runs-command", through("os.system", "x"), "refused"),
    ("evaluates", through("builtins.eval", "x"), "refused"),
    ("unknown-operation", through(ATEN + "no_such_thing.default", "x"), "refused"),
    ("dunder-operation", through(ATEN + "__class__.default", "x"), "refused"),
    ("other-namespace", through("torch.ops.inductor.resize_storage_bytes_.default", "x", BIG), "refused"),
    ("allocates", through(ATEN + "new_zeros.default", "x", [BIG, BIG]), "refused"),
    ("repeats", through(ATEN + "repeat.default", "x", [10**6, 10**4, 1, 1]), "refused"),
    ("pads", through(ATEN + "constant_pad_nd.default", "x", [BIG, BIG]), "refused"),
    ("expands-itself", through(ATEN + "repeat.default", "x", [2, 1, 1, 1], times=40), "refused"),
    ("wrong-arguments", through(ATEN + "relu.default", None, None, None), "refused"),
    ("missing-value", through(ATEN + "add.Tensor", "nowhere", "x"), "refused"),
    ("batch-huge", put(*INPUT, 0, value={"as_int": 5 * 10**7}), "refused"),
    ("batch-beyond-memory", put(*INPUT, 0, value={"as_int": 10**12}), "refused"),
    ("batch-negative", put(*INPUT, 0, value={"as_int": -2}), "either"),
    ("batch-text", put(*INPUT, 0, value={"as_int": "abc"}), "refused"),
    ("batch-fraction", put(*INPUT, 0, value={"as_int": 2.5}), "refused"),
    ("shape-empty", put(*INPUT, value=[]), "refused"),
    ("shape-number", put(*INPUT, value=7), "refused"),
    ("side-huge", put(*INPUT, 2, value={"as_int": BIG}), "refused"),
    ("name-dots", put(*GRAPH, "nodes", 0, "name", value="a" + ".b" * 50_000), "either"),
    (
        "names-module",
        put(*GRAPH, "nodes", 0, "metadata", value={"nn_module_stack": "x,__class__.__init__,y"}),
        "either",
    ),
    (
        "stack-not-text",
        put(*GRAPH, "nodes", 0, "metadata", value={"stack_trace": [1], "nn_module_stack": {"a": 1}}),
        "either",
    ),
    ("version-other", put("schema_version", value={"major": 99, "minor": 0}), "refused"),
    ("version-text", put("schema_version", value="8"), "refused"),
    ("guards-code", put("guards_code", value=[f"__import__('os').mkdir('{MARKER}')"]), "either"),
    ("no-nodes", put(*GRAPH, "nodes", value=[]), "refused"),
    ("nodes-number", put(*GRAPH, "nodes", value=5), "refused"),
    ("outputs-unknown", put("graph_module", "signature", "output_specs", value=[{"loss_output": 1}]), "refused"),
    (
        "two-inputs",
        lambda s: s["graph_module"]["signature"]["input_specs"].append({"user_input": {"arg": argument("z")}}),
        "refused",
    ),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for what, change, outcome in PROGRAMS:
        yield Case("exported program", what, outcome, functools.partial(program, change), portable=False)
    long = functools.partial(program, through(ATEN + "relu.default", "x", times=50_000))
    yield Case("exported program", "many-nodes", "refused", long, committed=False)
    pickled = f"cposix\nmkdir\n(V{MARKER}\ntR.".encode()
    for what, name in (
        ("custom-object", "data/constants/custom_obj_0"),
        ("pickled-samples", "data/sample_inputs/model.pt"),
        ("compiled", "data/aotinductor/model/x.so"),
        ("pickled-weights", "data/weights/model.pt"),
    ):
        held = functools.partial(program, _same, {f"archive/{name}": pickled})
        yield Case("exported program", f"holds-{what}", "refused", held, portable=False)
    yield Case("exported program", "cut", "refused", lambda: program(_same)[:-50], portable=False)
    yield Case("exported program", "no-program", "refused", samples.zipped({"a/archive_format": b"pt2"}))
    yield Case(
        "exported program",
        "not-json",
        "refused",
        samples.zipped({"a/archive_format": b"pt2", "a/models/model.json": b"[" * 5000}),
    )
    yield from _onnx()


def _model(*nodes: Any, more: dict[str, np.ndarray] | None = None, batch: Any = "N") -> Any:
    """The usual model with nodes between its input x and the rest, which get `x` and give `z`."""
    usual = list(samples.onnx_model().graph.node)
    if nodes:
        usual[0].input[0] = "z"
    return samples.onnx_model([*nodes, *usual], more, batch=batch)


def _whole(name: str, *values: int) -> dict[str, np.ndarray]:
    return {name: np.array(values, np.int64)}


def _onnx() -> Iterator[Case]:
    """ONNX models."""
    node = helper.make_node
    divide = [
        node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        node("Div", ["least", "minus"], ["q"]),
        node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
        node("Add", ["x", "f"], ["z"]),
    ]
    pair = {**_whole("least", -(2**63)), **_whole("minus", -1)}
    remainder = [copy.deepcopy(item) for item in divide]
    remainder[1].op_type = "Mod"
    zero = {**_whole("least", 5), **_whole("minus", 0)}
    table: tuple[tuple[str, Any, Outcome], ...] = (
        ("divides-least-by-minus-one", _model(*divide, more=pair), "either"),
        ("remainder-of-least", _model(*remainder, more=pair), "either"),
        ("divides-by-zero", _model(*divide, more=zero), "refused"),
        ("remainder-by-zero", _model(*remainder, more=zero), "refused"),
        ("expands", _model(node("Expand", ["x", "s"], ["z"]), more=_whole("s", BIG, BIG, 8, 8)), "refused"),
        ("tiles", _model(node("Tile", ["x", "s"], ["z"]), more=_whole("s", BIG, BIG, 1, 1)), "refused"),
        ("pads", _model(node("Pad", ["x", "s"], ["z"]), more=_whole("s", *[BIG] * 8)), "refused"),
        ("pads-negative", _model(node("Pad", ["x", "s"], ["z"]), more=_whole("s", *[-BIG] * 8)), "refused"),
        ("resizes", _model(node("Resize", ["x", "", "", "s"], ["z"]), more=_whole("s", 1, 1, 10**6, 10**6)), "refused"),
        (
            "constant-of-shape",
            _model(node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["z"]), more=_whole("s", BIG, BIG)),
            "refused",
        ),
        (
            "range-endless",
            _model(
                node("Range", ["a", "b", "c"], ["r"]),
                node("Add", ["x", "r"], ["z"]),
                more={"a": np.array(0), "b": np.array(10**12), "c": np.array(1)},
            ),
            "refused",
        ),
        ("gathers-outside", _model(node("Gather", ["x", "s"], ["z"], axis=0), more=_whole("s", 10**12)), "refused"),
        ("reshape-negative", _model(node("Reshape", ["x", "s"], ["z"]), more=_whole("s", -5, -1, -1, 8)), "refused"),
        ("transposes-outside", _model(node("Transpose", ["x"], ["z"], perm=[0, 9, 2, 3])), "refused"),
        ("splits-into-many", _model(node("Split", ["x"], ["z"], axis=0, num_outputs=10**6)), "refused"),
        (
            "one-hot-deep",
            _model(node("OneHot", ["x", "d", "v"], ["z"]), more={**_whole("d", 10**10), "v": np.float32([0, 1])}),
            "refused",
        ),
        ("name-dots", _model(node("Relu", ["x"], ["z"], name="a" + ".b" * 3000)), "either"),
        ("name-module", _model(node("Relu", ["x"], ["z"], name="__class__")), "either"),
        ("name-nul", _model(node("Relu", ["x"], ["z"], name="a\0/../b\x1b[2J")), "either"),
        (
            "names-repeated",
            _model(node("Relu", ["x"], ["z"], name="conv"), node("Relu", ["x"], ["z"], name="conv")),
            "either",
        ),
        ("reads-ahead", _model(node("Relu", ["y"], ["z"])), "refused"),
        ("unknown-operator", _model(node("System", ["x"], ["z"])), "refused"),
        ("other-domain", _model(node("Relu", ["x"], ["z"], domain="com.microsoft")), "refused"),
        ("loop", _model(node("Loop", ["x"], ["z"])), "refused"),
        ("pool-kernel-huge", _model(node("MaxPool", ["x"], ["z"], kernel_shape=[2**40, 2**40])), "refused"),
        ("pool-stride-zero", _model(node("MaxPool", ["x"], ["z"], kernel_shape=[2, 2], strides=[0, 0])), "refused"),
        ("attribute-of-other-kind", _model(node("MaxPool", ["x"], ["z"], kernel_shape="wide")), "refused"),
        ("attribute-nan", _model(node("LeakyRelu", ["x"], ["z"], alpha=float("nan"))), "either"),
        ("batch-huge", _model(batch=5 * 10**7), "refused"),
        ("batch-beyond-memory", _model(batch=10**12), "refused"),
        ("batch-negative", _model(batch=-3), "either"),
    )
    for what, model, outcome in table:
        yield Case("ONNX", what, outcome, model.SerializeToString(), portable=False)
    yield Case("ONNX", "many-nodes", "refused", _chain, committed=False)
    plain = samples.onnx_model().SerializeToString()
    yield Case("ONNX", "cut", "refused", plain[:-300], portable=False)
    yield Case("ONNX", "external-absolute", "refused", _external("/etc/passwd"), portable=False)
    yield Case("ONNX", "external-parent", "refused", _external("../../etc/passwd"), portable=False)
    yield Case("ONNX", "external-nul", "refused", _external("a\0b"), portable=False)
    yield Case(
        "ONNX",
        "external-length-huge",
        "refused",
        {"": _external("w.bin", length=str(2**62)), "w.bin": bytes(72)},
        portable=False,
    )
    yield Case(
        "ONNX",
        "external-offset-text",
        "refused",
        {"": _external("w.bin", offset="9" * 5000), "w.bin": bytes(72)},
        portable=False,
    )
    yield Case(
        "ONNX", "external-linked", "refused", {"": _external("w.bin"), "w.bin": Link("/etc/passwd")}, portable=False
    )
    yield Case(
        "ONNX", "external-sparse", "either", {"": _external("w.bin"), "w.bin": Sparse(5 * 2**30)}, committed=False
    )
    yield Case("ONNX", "function-recursive", "refused", _functions(1, 0), portable=False)
    yield Case("ONNX", "functions-expand", "refused", _functions(60, 1), portable=False)
    yield Case("ONNX", "initialiser-claims-much", "refused", _claims(), portable=False)


def _chain() -> bytes:
    """20,000 operators in a row."""
    names = ["x", *(f"r{number}" for number in range(19_999)), "z"]
    nodes = [helper.make_node("Relu", [before], [after]) for before, after in itertools.pairwise(names)]
    content: bytes = _model(*nodes).SerializeToString()
    return content


def _external(location: str, **more: str) -> bytes:
    """The usual model with a kernel in another file."""
    model = samples.onnx_model()
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    kernel.ClearField("raw_data")
    kernel.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        entry = kernel.external_data.add()
        entry.key, entry.value = key, value
    content: bytes = model.SerializeToString()
    return content


def _functions(levels: int, below: int) -> bytes:
    """A chain of functions, each of which calls the one `below` it twice; the lowest calls Relu."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    relu, own = helper.make_node("Relu", ["a"], ["b"]), "own"
    model = _model(helper.make_node(f"f{levels}", ["x"], ["z"], domain=own))
    for number in range(levels + 1):
        name = f"f{number - below}"
        calls = [helper.make_node(name, pair[:1], pair[1:], domain=own) for pair in (["a", "c"], ["c", "b"])]
        nodes = calls if number else [relu]
        model.functions.append(helper.make_function(own, f"f{number}", ["a"], ["b"], nodes, opsets))
    model.opset_import.extend(opsets[1:])
    content: bytes = model.SerializeToString()
    return content


def _claims() -> bytes:
    """An initialiser of ten numbers that claims a shape of 10¹⁸."""
    model = samples.onnx_model()
    tensor = numpy_helper.from_array(np.zeros(10, np.float32), "offset")
    del tensor.dims[:]
    tensor.dims.extend([BIG, BIG])
    kept = [item for item in model.graph.initializer if item.name != "offset"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, tensor])
    content: bytes = model.SerializeToString()
    return content
