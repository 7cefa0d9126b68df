"""Operators of the domain `ai.onnx.ml`, as exporters of pipelines write them (skl2onnx, sklearn-onnx, ML.NET).

Those that compute with real numbers are put in the words of the standard operators, under the name of their node, so
that a trace can follow them. What only dresses the answer, a table of probabilities by class or names of classes, is
taken off. Trees and other steps have no gradient; they are refused, and can be audited as a black box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maskaudit.errors import printable
from maskaudit.loading.graph_limits import check_count

DOMAIN = "ai.onnx.ml"
#: Inputs that are one column each, at most, and how many a sentence names.
MAX_COLUMNS, SHOWN = 1_000, 12
#: Types that columns have, numbered as in onnx.proto: float, half, double; int8 … int64, bool.
REAL, WHOLE = frozenset({1, 10, 11}), frozenset({2, 3, 4, 5, 6, 7, 9})
#: Numbers that the attributes of a node may hold.
MAX_NUMBERS = 10_000_000


def plain_tables(onnx: Any, model: Any) -> tuple[Any, Any]:
    """The model without operators of the domain, and the file's own with the outputs that this one has.

    Both are the model itself where there are no such operators, or unknown ones.

    Raises:
        ValueError: for a node whose attributes do not fit each other.
    """
    graph = model.graph
    tables = [node for node in graph.node if node.domain == DOMAIN]
    if not tables or any(node.op_type not in (*WRITERS, *DRESS) for node in tables):
        return model, model
    copy, asked = onnx.ModelProto(), onnx.ModelProto()
    copy.CopyFrom(model)
    graph, scores = copy.graph, [node.input[0] for node in tables if node.op_type == "ZipMap"]
    rewrite(graph, DOMAIN, lambda node, place: Writer(onnx, node, place).nodes())
    _answer_with(onnx, graph, scores)
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(graph.output)
    _prune(asked.graph)
    return copy, asked


def rewrite(graph: Any, domain: str, write: Callable[[Any, int], list[Any]]) -> None:
    """Put what `write` makes of a node, given its place too, in place of every node of a domain."""
    nodes = list[Any]()
    for place, node in enumerate(graph.node):
        nodes += write(node, place) if node.domain == domain else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def one_input(onnx: Any, model: Any) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """The model with one input (N, D) in place of D inputs (N, 1), what to say of that, and the names of these inputs.

    The model itself where it has a single input, or others than columns of numbers. Columns of whole numbers that are
    cast before they are used stay real numbers: a cast to whole numbers and back would only take their gradient.
    """
    held = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in held]
    if not 2 <= len(inputs) <= MAX_COLUMNS or not all(map(_is_column, inputs)):
        return model, (), ()
    copy, make = onnx.ModelProto(), onnx.helper.make_node
    copy.CopyFrom(model)
    used = {name for node in model.graph.node if node.op_type != "Cast" for name in node.input}
    row, nodes = _unused(model.graph, "columns"), list[Any]()
    for place, item in enumerate(inputs):
        number, taken = f"{row}/{place}", f"{row}/{place}/taken"
        kind = item.type.tensor_type.elem_type if item.name in used else onnx.TensorProto.FLOAT
        value = onnx.helper.make_tensor(number, onnx.TensorProto.INT64, [1], [place])
        nodes.append(make("Constant", [], [number], number, value=value))
        nodes.append(make("Gather", [row, number], [taken], taken, axis=1))
        nodes.append(make("Cast", [taken], [item.name], f"{number}/cast", to=kind))
    nodes.extend(copy.graph.node)
    del copy.graph.node[:], copy.graph.input[:]
    copy.graph.node.extend(nodes)
    batch = inputs[0].type.tensor_type.shape.dim[0].dim_value or None
    copy.graph.input.append(onnx.helper.make_tensor_value_info(row, onnx.TensorProto.FLOAT, [batch, len(inputs)]))
    whole = [item for item in inputs if item.type.tensor_type.elem_type not in REAL]
    notes = [f"The model has one input for each column; inputs hold them in this order: {_names(inputs)}."]
    notes += [f"Whole numbers: {_names(whole)}; say so with --features."] if whole else []
    return copy, tuple(notes), tuple(printable(item.name, 200) for item in inputs)


def _names(items: Sequence[Any]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(printable(item.name, 40) for item in items[:SHOWN]) + more


def _unused(graph: Any, name: str) -> str:
    """A name that no value of a graph has, nor one that begins with it."""
    taken = [*(item.name for item in graph.input), *(made for node in graph.node for made in node.output)]
    while any(item.startswith(name) for item in taken):
        name += "_"
    return name


def _is_column(given: Any) -> bool:
    """Whether an input is (N, 1) of real or whole numbers."""
    kind = given.type.tensor_type
    return kind.elem_type in REAL | WHOLE and len(kind.shape.dim) == 2 and kind.shape.dim[1].dim_value == 1


class Writer:
    """Writes one node in standard operators."""

    def __init__(self, onnx: Any, node: Any, place: int) -> None:
        self.onnx, self.node = onnx, node
        self.name = node.name or f"{node.op_type}_{place}"
        self.made: list[Any] = []
        self.given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}

    def nodes(self) -> list[Any]:
        """What does the node's work: nothing for what only dresses the answer."""
        if self.node.op_type not in DRESS:
            WRITERS[self.node.op_type](self)
        return self.made

    def add(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """One standard operator; returns the name of its output."""
        output = output or f"{self.name}/{len(self.made)}"
        self.made.append(
            self.onnx.helper.make_node(operator, inputs, [output], f"{self.name}/{operator}", **attributes)
        )
        return output

    def numbers(self, name: str, shape: Sequence[int] = (-1,)) -> str:
        """An attribute of real numbers, as a constant of that shape."""
        values = list(self.given.get(name, ()))
        check_count(len(values), MAX_NUMBERS, "numbers")
        array = np.asarray(values, dtype=np.float32).reshape(shape)
        return self.constant(array)

    def constant(self, value: Any) -> str:
        """Real numbers that do not depend on the input."""
        array = np.asarray(value, dtype=np.float32)
        return self.add("Constant", [], value=self.onnx.numpy_helper.from_array(array))

    def floats(self) -> str:
        """The input as real numbers."""
        return self.add("Cast", [self.node.input[0]], to=1)


def _scaler(w: Writer) -> None:
    """(x − offset) · scale, by column."""
    shifted = w.add("Sub", [w.floats(), w.numbers("offset")])
    w.add("Mul", [shifted, w.numbers("scale")], w.node.output[0])


def _normalizer(w: Writer) -> None:
    """Rows divided by the sum of their magnitudes, or by their length."""
    kind = w.given.get("norm", b"MAX").decode()
    if kind not in ("L1", "L2"):
        raise ValueError("Normalizer divides by the largest magnitude, which is not converted")
    w.add("LpNormalization", [w.floats()], w.node.output[0], axis=1, p=int(kind[1]))


def _linear(w: Writer) -> str:
    """x · coefficientsᵀ + intercepts (N, K)."""
    held = w.given.get("intercepts", ())
    classes = len(held) or len(w.given.get("classlabels_ints", ())) or int(w.given.get("targets", 1))
    weights = w.add("Transpose", [w.numbers("coefficients", (classes, -1))], perm=[1, 0])
    product = w.add("MatMul", [w.floats(), weights])
    return w.add("Add", [product, w.numbers("intercepts")]) if held else product


def _transformed(w: Writer, x: str, output: str) -> None:
    """What `post_transform` makes of scores."""
    kind = w.given.get("post_transform", b"NONE").decode()
    if kind == "SOFTMAX":
        w.add("Softmax", [x], output, axis=-1)
    elif kind in ("NONE", "LOGISTIC"):
        w.add("Identity" if kind == "NONE" else "Sigmoid", [x], output)
    else:
        raise ValueError(f"{w.node.op_type} ends in {kind[:40]}, which is not converted")


def _linear_classifier(w: Writer) -> None:
    """Scores of all classes; the class that leads is left to the reader."""
    if len(w.node.output) != 2:
        raise ValueError("LinearClassifier gives no scores")
    _transformed(w, _linear(w), w.node.output[1])
    w.add("ArgMax", [w.node.output[1]], w.node.output[0], axis=1, keepdims=0)


def _linear_regressor(w: Writer) -> None:
    _transformed(w, _linear(w), w.node.output[0])


def _features(w: Writer) -> None:
    """Inputs side by side."""
    w.add("Concat", [w.add("Cast", [name], to=1) for name in w.node.input], w.node.output[0], axis=1)


def _imputer(w: Writer) -> None:
    """Gaps are filled; points have none."""
    if not math.isnan(w.given.get("replaced_value_float", 0.0)):
        raise ValueError("Imputer replaces numbers, not gaps, which is not converted")
    w.add("Identity", [w.node.input[0]], w.node.output[0])


WRITERS: Mapping[str, Callable[[Writer], None]] = {
    "Scaler": _scaler,
    "Normalizer": _normalizer,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "FeatureVectorizer": _features,
    "Imputer": _imputer,
}
#: What dresses an answer: a table by class, the name of the class that leads.
DRESS = ("ZipMap", "ArrayFeatureExtractor", "LabelEncoder")


def _answer_with(onnx: Any, graph: Any, scores: Sequence[str]) -> None:
    """Keep the outputs that still are computed, and the scores that a table was made of; drop what nothing needs."""
    kinds = {item.name: item for item in graph.output}
    names = _computed(graph)
    wanted = [*dict.fromkeys([*scores, *(name for name in kinds if name in names)])]
    tensors = [name for name in wanted if name in scores or kinds[name].type.tensor_type.elem_type in (0, 1, 11)]
    del graph.output[:]
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    _prune(graph)


def _prune(graph: Any) -> None:
    """Drop the nodes and constants that no output hangs on: names of classes among them."""
    needed, kept = {item.name for item in graph.output}, list[Any]()
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.insert(0, node)
    constants = [item for item in graph.initializer if item.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)


def _computed(graph: Any) -> set[str]:
    """Names of values that do not hang on anything taken off."""
    known = {"", *(item.name for item in (*graph.input, *graph.initializer))}
    for node in graph.node:
        if known.issuperset(node.input):
            known.update(node.output)
    return known
