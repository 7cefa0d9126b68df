"""Are the operator tests that the package `onnx` ships answered rightly, or refused at load?

    python benchmarks/onnx_operators.py                   # writes benchmarks/onnx-operators.md
    python benchmarks/onnx_operators.py --show wrong late # prints the cases of these kinds, writes nothing
    python benchmarks/onnx_operators.py --converter onnx2pytorch # counts what that package does, writes nothing

Every test whose first input is a float32 tensor becomes a model of that one input, its further inputs constants; it is
opened as `maskaudit check` would open it, and every output is compared with what the test expects. *Late* is a model
that opens and then fails. The last column counts what an audit of gradients is about: tests with one answer (no
random numbers) whose outputs are all real numbers, of operators that have a derivative almost anywhere.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import commit, figures_of, machine
from maskaudit.errors import InputError
from maskaudit.loading.interface import ModelFile, Options
from maskaudit.loading.onnx import reader

ANSWER = Path(__file__).resolve().parent / "onnx-operators.md"
KINDS = ("right", "wrong", "late", "refused")
#: A converted model: inputs → outputs.
Converted = Callable[[torch.Tensor], Any]
#: Operators without one answer, and steps whose derivative is zero or that are made to be trained.
RANDOM = ("Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike")
STEPS = ("Ceil", "Floor", "Round", "Sign", "Hardmax", "DynamicQuantizeLinear", "QuantizeLinear", "Binarizer")


def main() -> int:
    """Read the command line, try every case; status 1 when one is wrong or late."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", nargs="*", choices=KINDS, default=())
    parser.add_argument("--operators", nargs="*", help="only these")
    parser.add_argument("--converter", choices=CONVERTERS, default="maskaudit")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, operator, smooth, model, x, expected in cases(arguments.operators):
        kind, why = tried(CONVERTERS[arguments.converter], model, x, expected)
        counts[operator][kind] += 1
        counts[operator]["smooth"] += smooth
        counts[operator]["smooth right"] += smooth and kind == "right"
        if kind in arguments.show:
            print(f"{kind}: {name}: {why}"[:300], flush=True)
    total = sum(counts.values(), Counter())
    print(dict(total))
    if arguments.converter == "maskaudit" and not arguments.show and not arguments.operators:
        ANSWER.write_text(page(counts, total), encoding="utf-8")
    return int(bool(total["wrong"] or total["late"]))


def cases(operators: list[str] | None) -> Iterator[tuple[str, str, bool, onnx.ModelProto, np.ndarray, list[Any]]]:
    """Name, operator, whether it counts in the last column, model of one input, that input, expected outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    for case in found:
        if case.model is None or not case.data_sets:
            continue
        inputs, outputs = case.data_sets[0]
        first = inputs[0] if inputs else None
        operator = case.model.graph.node[0].op_type if len(case.model.graph.node) == 1 else owner(case.name)
        if not isinstance(first, np.ndarray) or first.dtype != np.float32 or (operators and operator not in operators):
            continue
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        smooth = operator not in (*RANDOM, *STEPS) and all(
            isinstance(out, np.ndarray) and out.dtype == np.float32 for out in outputs
        )
        if fixed(model, inputs):
            yield case.name, operator, smooth, model, first, list(outputs)


def owner(name: str) -> str:
    """The operator of a test whose model spells it out in others."""
    return name.removeprefix("test_").split("_")[0] + " (spelt out)"


def fixed(model: onnx.ModelProto, inputs: list[Any]) -> bool:
    """Make every input but the first a constant; False where one is no tensor."""
    graph = model.graph
    stated = [item.name for item in graph.input]
    for name, value in zip(stated[1:], inputs[1:], strict=False):
        if not isinstance(value, np.ndarray):
            return False
        graph.initializer.append(numpy_helper.from_array(value, name))
    kept = graph.input[0]
    del graph.input[:]
    graph.input.append(kept)
    return True


def _ours(model: onnx.ModelProto) -> Converted:
    return reader.read(ModelFile("case.onnx", model.SerializeToString()), Options()).module


def _onnx2pytorch(model: onnx.ModelProto) -> Converted:
    from onnx2pytorch import ConvertModel

    try:
        converted: Converted = ConvertModel(model, experimental=True).eval()
    except Exception as error:  # it has no error of its own for what it does not know
        raise InputError(f"{type(error).__name__}: {error}") from error
    return converted


CONVERTERS: dict[str, Callable[[onnx.ModelProto], Converted]] = {"maskaudit": _ours, "onnx2pytorch": _onnx2pytorch}


def tried(
    convert: Callable[[onnx.ModelProto], Converted], model: onnx.ModelProto, x: np.ndarray, expected: list[Any]
) -> tuple[str, str]:
    """What becomes of a model, and why."""
    try:
        module = convert(model)
    except InputError as error:
        return "refused", str(error)
    try:
        with torch.no_grad():
            found = module(torch.from_numpy(x.copy()))
    except Exception as error:
        return "late", f"{type(error).__name__}: {error}"
    found = found if isinstance(found, (tuple, list)) else (found,)
    if len(found) != len(expected):
        return "wrong", f"{len(found)} outputs, {len(expected)} expected"
    for ours, theirs in zip(found, expected, strict=True):
        if not isinstance(ours, torch.Tensor) or tuple(ours.shape) != tuple(np.shape(theirs)):
            return "wrong", f"shape {np.shape(ours)}, expected {np.shape(theirs)}"
        if not np.allclose(
            ours.numpy().astype(np.float64), np.asarray(theirs).astype(np.float64), rtol=1e-3, atol=1e-5, equal_nan=True
        ):
            return "wrong", "values"
    return "right", ""


def page(counts: dict[str, Counter[str]], total: Counter[str]) -> str:
    """The answer."""
    smooth, right = total["smooth"], total["smooth right"]
    lines = [
        "# Operator tests of ONNX",
        "",
        "Made by `python benchmarks/onnx_operators.py` (its docstring says how), "
        f"onnx {onnx.__version__}; {machine()}. {figures_of([commit()])}",
        "",
        f"Of {sum(total[kind] for kind in KINDS)} tests {total['right']} are right, {total['wrong']} wrong, "
        f"{total['late']} fail late, {total['refused']} are refused at load. "
        f"Of the {smooth} with one answer and a derivative almost anywhere {right} are right "
        f"({100 * right / max(1, smooth):.1f} %).",
        "",
        "| operator | right | wrong | late | refused | with a derivative: right of |",
        "|---|---:|---:|---:|---:|---:|",
        *(row(name, counts[name]) for name in sorted(counts)),
        row("all", total),
    ]
    return "\n".join(lines) + "\n"


def row(name: str, count: Counter[str]) -> str:
    """One line of the table."""
    smooth = f"{count['smooth right']} of {count['smooth']}" if count["smooth"] else "–"
    return f"| {name} | {' | '.join(str(count[kind]) for kind in KINDS)} | {smooth} |"


if __name__ == "__main__":
    sys.exit(main())
