"""Built-in architectures, named by a specification such as `small_cnn(width=16)`.

A specification is a name with literal keyword arguments. It is parsed with `ast`
and never evaluated, so it may come from a model file. The classifiers return
logits (N, classes), and the input of their last `nn.Linear` is the penultimate
feature vector.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from maskaudit.errors import UsageError

#: Activations by name; all act elementwise and take no argument.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "relu6": nn.ReLU6,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}

#: Images at least this wide get a third convolution, so that the linear layer stays small.
THIRD_CONVOLUTION_FROM = 16


def small_cnn(
    in_channels: int = 1,
    size: int | tuple[int, int] = 8,
    num_classes: int = 10,
    width: int = 16,
    activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Sequential:
    """A small convolutional classifier for images (N, in_channels, H, W) → logits (N, num_classes).

    Two 3×3 convolutions (the second halves the resolution), a third that halves it
    again from 16 pixels up, one hidden linear layer and the readout.

    Args:
        in_channels: colour channels, ≥ 1.
        size: height and width in pixels, ≥ 2; one number for square images.
        num_classes: ≥ 2.
        width: channels of the first convolution, ≥ 1; later layers have 2 and 4 times as many units.
        activation: one of `ACTIVATIONS`.
        batch_norm: batch normalisation after every convolution.

    Raises:
        UsageError: for a value out of range or an unknown activation.
    """
    height, shape_width = (size, size) if isinstance(size, int) else _pair(size)
    _at_least("small_cnn", in_channels=(in_channels, 1), size=(min(height, shape_width), 2), width=(width, 1))
    _at_least("small_cnn", num_classes=(num_classes, 2))
    make = _activation("small_cnn", activation)
    plan = [(in_channels, width, 1), (width, 2 * width, 2)]
    if max(height, shape_width) >= THIRD_CONVOLUTION_FROM:
        plan.append((2 * width, 2 * width, 2))
    layers: list[nn.Module] = []
    for channels_in, channels_out, stride in plan:
        layers.append(nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(channels_out))
        layers.append(make())
        height, shape_width = math.ceil(height / stride), math.ceil(shape_width / stride)
    hidden = 4 * width
    layers += [nn.Flatten(), nn.Linear(2 * width * height * shape_width, hidden), make()]
    return nn.Sequential(*layers, nn.Linear(hidden, num_classes))


def mlp(
    in_features: int = 64,
    num_classes: int = 10,
    hidden: int | tuple[int, ...] = (64, 64),
    activation: str = "relu",
) -> nn.Sequential:
    """A fully connected classifier for vectors (N, in_features), or images flattened to them → logits.

    Args:
        in_features: coordinates of one input, ≥ 1.
        num_classes: ≥ 2.
        hidden: width of each hidden layer, ≥ 1; `()` gives a linear classifier.
        activation: one of `ACTIVATIONS`.

    Raises:
        UsageError: for a value out of range or an unknown activation.
    """
    widths = (hidden,) if isinstance(hidden, int) else _integers("mlp", "hidden", hidden)
    _at_least("mlp", in_features=(in_features, 1), num_classes=(num_classes, 2))
    for layer_width in widths:
        _at_least("mlp", hidden=(layer_width, 1))
    make = _activation("mlp", activation)
    layers: list[nn.Module] = [nn.Flatten()]
    before = in_features
    for layer_width in widths:
        layers += [nn.Linear(before, layer_width), make()]
        before = layer_width
    return nn.Sequential(*layers, nn.Linear(before, num_classes))


#: Every built-in architecture by the name used in specifications.
ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {"small_cnn": small_cnn, "mlp": mlp}


def build(spec: str) -> nn.Module:
    """The freshly initialised network that `spec` names, for example `small_cnn(width=16)`.

    Raises:
        UsageError: for a malformed specification, an unknown name or argument, or a value out of range.
    """
    name, arguments = parse(spec)
    return ARCHITECTURES[name](**arguments)


def is_built_in(spec: str) -> bool:
    """Whether `spec` starts with the name of a built-in architecture (it may still be malformed)."""
    return spec.partition("(")[0].strip() in ARCHITECTURES


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and keyword arguments of a specification, checked against the architecture's signature."""
    name, arguments = _parse_call(spec)
    if name not in ARCHITECTURES:
        raise UsageError(f"There is no built-in architecture {name!r}; available are {', '.join(ARCHITECTURES)}.")
    allowed = list(inspect.signature(ARCHITECTURES[name]).parameters)
    for key in arguments:
        if key not in allowed:
            raise UsageError(f"{name} has no argument {key!r}; it takes {', '.join(allowed)}.")
    return name, arguments


def unparse(name: str, arguments: Mapping[str, Any]) -> str:
    """The specification that `parse` reads back as `name` and `arguments`."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def spec_for(shape: Sequence[int], num_classes: int, spec: str | None = None) -> str:
    """A specification that fits inputs of `shape` (C, H, W) or (D,), with every data-dependent argument written out.

    Args:
        shape: of one input, without the batch axis.
        num_classes: classes of the data.
        spec: a specification to complete; by default `small_cnn` for images and `mlp` for anything else.

    Raises:
        UsageError: when the specification is malformed or contradicts the data.
    """
    name, given = parse(spec if spec is not None else "small_cnn" if len(shape) == 3 else "mlp")
    needed: dict[str, Any]
    if name == "small_cnn":
        if len(shape) != 3:
            raise UsageError(f"small_cnn needs images (C, H, W), but one input has shape {tuple(shape)}; use mlp.")
        channels, height, width = shape
        needed = {"in_channels": channels, "size": height if height == width else (height, width)}
    else:
        needed = {"in_features": math.prod(shape)}
    needed["num_classes"] = num_classes
    for key, value in needed.items():
        if given.get(key, value) != value:
            raise UsageError(f"{name} was given {key}={given[key]!r}, but the data needs {key}={value!r}.")
    return unparse(name, {**needed, **given})


def _parse_call(spec: str) -> tuple[str, dict[str, Any]]:
    example = "expected a name with literal keyword arguments such as small_cnn(width=16)"
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"Cannot read the architecture {spec!r}: {example}.") from None
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)) or tree.args:
        raise UsageError(f"Cannot read the architecture {spec!r}: {example}.")
    arguments: dict[str, Any] = {}
    for keyword in tree.keywords:
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            value = keyword
        if keyword.arg is None or value is keyword:
            raise UsageError(f"Cannot read the architecture {spec!r}: {example}.")
        arguments[keyword.arg] = value
    return tree.func.id, arguments


def _activation(owner: str, name: str) -> Callable[[], nn.Module]:
    if name not in ACTIVATIONS:
        raise UsageError(f"{owner} has no activation {name!r}; available are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _at_least(owner: str, **limits: tuple[object, int]) -> None:
    for name, (value, low) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UsageError(f"{owner} expects {name} to be a whole number ≥ {low}, got {value!r}.")


def _pair(size: object) -> tuple[int, int]:
    pair = _integers("small_cnn", "size", size)
    if len(pair) != 2:
        raise UsageError(f"small_cnn expects size to be one number or (height, width), got {size!r}.")
    return pair[0], pair[1]


def _integers(owner: str, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(type(item) is int for item in value):
        raise UsageError(f"{owner} expects {name} to be a whole number or a tuple of them, got {value!r}.")
    return tuple(value)
