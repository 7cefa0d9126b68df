"""Operators of `ai.onnx.ml`: in standard operators, held against the evaluator of the package `onnx`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskaudit import api
from maskaudit.data import Dataset
from maskaudit.data.interface import in_order_of
from maskaudit.errors import InputError
from maskaudit.loading.interface import ModelFile, Options
from maskaudit.settings import AuditSettings
from maskaudit.sources import load_model

onnx = pytest.importorskip("onnx")

from maskaudit.loading.onnx import reader  # noqa: E402

DOMAIN = "ai.onnx.ml"
CLASSIFIER = {"coefficients": [0.5, -1.0, 2.0, 1.0, 0.0, -0.5], "intercepts": [0.1, -0.2], "classlabels_ints": [3, 7]}


def model(nodes: list[tuple[str, list[str], list[str], dict[str, Any]]], outputs: dict[str, int]) -> bytes:
    """A file with nodes of the domain on `x` (N, 3); the outputs with their types, 0 for a table by class."""
    made = [onnx.helper.make_node(kind, a, b, domain=DOMAIN, **given) for kind, a, b, given in nodes]
    row = onnx.helper.make_tensor_value_info("x", 1, [None, 3])
    given = []
    for name, kind in outputs.items():
        given.append(onnx.helper.make_tensor_value_info(name, kind, None) if kind else onnx.ValueInfoProto(name=name))
    graph = onnx.helper.make_graph(made, "table", [row], given)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(DOMAIN, 3)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


SCALED = ("Scaler", ["x"], ["s"], {"offset": [1.0, 2.0, 3.0], "scale": [0.5, 2.0, 1.0]})
PIPELINES: dict[str, tuple[list[tuple[str, list[str], list[str], dict[str, Any]]], dict[str, int]]] = {
    "scaled, softmax, table": (
        [SCALED, ("LinearClassifier", ["s"], ["c", "p"], {**CLASSIFIER, "post_transform": "SOFTMAX"}),
         ("ZipMap", ["p"], ["z"], {"classlabels_int64s": [3, 7]})],
        {"c": 7, "z": 0},
    ),
    "logistic": (
        [("LinearClassifier", ["x"], ["c", "p"], {**CLASSIFIER, "post_transform": "LOGISTIC"})], {"c": 7, "p": 1}
    ),
    "normalised": (
        [("Normalizer", ["x"], ["n"], {"norm": "L2"}),
         ("LinearRegressor", ["n"], ["p"],
          {"coefficients": CLASSIFIER["coefficients"], "intercepts": [0.5, 1.0], "targets": 2})],
        {"p": 1},
    ),
    "gaps and columns": (
        [("Imputer", ["x"], ["i"], {"imputed_value_floats": [0.0] * 3, "replaced_value_float": float("nan")}),
         ("FeatureVectorizer", ["i"], ["f"], {"inputdimensions": [3]}),
         ("LinearClassifier", ["f"], ["c", "p"], CLASSIFIER)],
        {"c": 7, "p": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "outputs"), PIPELINES.values(), ids=PIPELINES.keys())
def test_pipelines_give_the_scores_of_the_file(nodes: Any, outputs: dict[str, int]) -> None:
    module = reader.read(ModelFile("table.onnx", model(nodes, outputs)), Options()).module
    x = torch.rand(5, 3, requires_grad=True)
    found = module(x)
    asked = onnx.load_model_from_string(model([node for node in nodes if node[0] != "ZipMap"], {"p": 1}))
    expected = onnx.reference.ReferenceEvaluator(asked).run(None, {"x": x.detach().numpy()})[0]
    assert np.allclose(found.detach().numpy(), expected, atol=1e-6)
    (grad,) = torch.autograd.grad(found[:, 0].sum(), x)
    assert bool((grad != 0).any())


def test_names_of_classes_are_taken_off() -> None:
    nodes = [("LinearClassifier", ["x"], ["c", "p"], CLASSIFIER), ("ArrayFeatureExtractor", ["names", "c"], ["n"], {})]
    given = onnx.load_model_from_string(model(nodes, {"n": 8, "p": 1}))
    given.graph.initializer.append(onnx.helper.make_tensor("names", 8, [2], [b"healthy", b"ill"]))
    found = reader.read(ModelFile("named.onnx", given.SerializeToString()), Options()).module(torch.rand(4, 3))
    assert found.shape == (4, 2)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (("TreeEnsembleClassifier", ["x"], ["c", "p"], {}), "ai.onnx.ml.TreeEnsembleClassifier"),
        (("Normalizer", ["x"], ["p"], {"norm": "MAX"}), "largest magnitude"),
        (("Imputer", ["x"], ["p"], {"imputed_value_floats": [0.0]}), "replaces numbers"),
        (("LinearClassifier", ["x"], ["c", "p"], {**CLASSIFIER, "post_transform": "PROBIT"}), "PROBIT"),
        (("LinearClassifier", ["x"], ["c", "p"], {**CLASSIFIER, "coefficients": [1.0] * 5}), "cannot be converted"),
    ],
)
def test_what_cannot_be_converted_is_refused(node: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reader.read(ModelFile("table.onnx", model([node], {"p": 1})), Options())


def test_a_real_pipeline_keeps_its_probabilities() -> None:
    path = Path(__file__).resolve().parents[1] / "setups" / "files" / "hospital.onnx"
    found = reader.read(ModelFile(str(path), path.read_bytes()), Options()).module(torch.rand(4, 5) * 100)
    assert found.shape == (4, 2)
    assert torch.allclose(found.sum(dim=1), torch.ones(4))


#: Written by skl2onnx 1.20 for a data frame: a scaler and a logistic regression on age, dose, sex and pressure.
COLUMNS = Path(__file__).parent / "files" / "columns.onnx"


def test_a_pipeline_with_one_input_for_each_column() -> None:
    found = reader.read(ModelFile("columns.onnx", COLUMNS.read_bytes()), Options())
    assert any("in this order: age, dose, sex, pressure." in note for note in found.notes)
    assert any("Whole numbers: age, sex; say so with --features" in note for note in found.notes)
    x = torch.tensor([[79, 191.99516, 1, 116.891014], [63, 92.949165, 1, 111.28451], [54, 320.75223, 1, 127.968765]])
    scores = found.module(x.requires_grad_())
    expected = [[0.054542047, 0.945457953], [0.59833541, 0.40166459], [0.035984555, 0.964015445]]  # scikit-learn's own
    assert torch.allclose(scores, torch.tensor(expected), atol=1e-5)
    (grad,) = torch.autograd.grad(scores[:, 0].sum(), x)
    assert bool((grad != 0).all()), "whole numbers have a gradient as well"


def test_columns_of_a_table_are_put_in_the_order_of_the_model() -> None:
    loaded = load_model(str(COLUMNS))
    assert loaded.columns == ("age", "dose", "sex", "pressure")
    x, pool = torch.rand(6, 5), torch.rand(3, 5)
    table = Dataset("t.csv", x, torch.arange(6) % 2, 2, (0, 1), columns=("sex", "id", "Pressure", "dose", "age"))
    found, further = in_order_of(loaded.columns, table, pool)
    assert torch.equal(found.x, x[:, [4, 3, 0, 2]])
    assert torch.equal(further, pool[:, [4, 3, 0, 2]])
    assert found.columns == ("age", "dose", "sex", "Pressure")
    assert "in which the model takes them; it takes none of id" in found.notes[-1]
    assert in_order_of(loaded.columns, found, further)[0] is found
    nameless = dataclasses.replace(table, columns=("a", "b", "c", "d", "e"))
    assert in_order_of(loaded.columns, nameless, pool)[0] is nameless
    with pytest.raises(InputError, match=r"t\.csv has no column 'dose', which the model takes"):
        in_order_of(loaded.columns, dataclasses.replace(table, columns=("sex", "id", "pressure", "d", "age")), pool)


def test_an_audit_takes_columns_by_their_names(tmp_path: Path) -> None:
    x = torch.rand(40, 4) * torch.tensor([60.0, 300.0, 1.0, 40.0]) + torch.tensor([20.0, 0.0, 0.0, 90.0])
    y = load_model(str(COLUMNS)).module(x).argmax(1)
    lines = [
        "pressure,sex,dose,age,target",
        *(f"{d},{c},{b},{a},{label}" for (a, b, c, d), label in zip(x.tolist(), y, strict=True)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    settings = AuditSettings(budget="quick", samples=32, select=("pgd",))
    report = api.audit(str(COLUMNS), str(tmp_path / "t.csv"), bounds=(0, 300), eps=1.0, settings=settings).report
    assert report.accuracy["clean"].value == 1.0


def columns(*kinds: int, width: int = 1, operator: str = "Concat") -> bytes:
    inputs = [onnx.helper.make_tensor_value_info(f"c{i}", kind, [None, width]) for i, kind in enumerate(kinds)]
    nodes = [onnx.helper.make_node(operator, [item.name for item in inputs], ["columns"], axis=1),
             onnx.helper.make_node("Cast", ["columns"], ["y"], to=1)]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "g", inputs, [onnx.helper.make_tensor_value_info("y", 1, None)])
    stated = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = stated.SerializeToString()
    return content


def test_whole_numbers_that_the_model_joins() -> None:
    module = reader.read(ModelFile("columns.onnx", columns(7, 7)), Options()).module
    assert module(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("content", [columns(8, 8), columns(1, 1, width=2), columns(*[1] * 1001)],
                         ids=["texts", "wide", "too many"])  # fmt: skip
def test_inputs_that_are_no_columns(content: bytes) -> None:
    with pytest.raises(InputError, match="inputs, a classifier takes one"):
        reader.read(ModelFile("columns.onnx", content), Options())
