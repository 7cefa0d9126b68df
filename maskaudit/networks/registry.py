"""Built-in architectures, named by a specification such as `small_cnn(width=16)`.

A specification is a name with literal keyword arguments. It is read and never
evaluated (`maskaudit.networks.call`), so it may come from a model file.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from maskaudit.declared.kinds import shown
from maskaudit.errors import UsageError
from maskaudit.networks.architectures import (
    ACTIVATIONS,
    conv_mixer,
    mlp,
    resnet,
    small_cnn,
    small_resnet,
    small_vit,
    smoothed_units,
)
from maskaudit.networks.call import read_call

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "build",
    "conv_mixer",
    "is_built_in",
    "mlp",
    "parse",
    "resnet",
    "small_cnn",
    "small_resnet",
    "small_vit",
    "smoothed_units",
    "spec_for",
    "unparse",
]

#: Every built-in architecture by the name used in specifications.
ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "small_resnet": small_resnet,
    "resnet": resnet,
    "small_vit": small_vit,
    "conv_mixer": conv_mixer,
    "mlp": mlp,
    "smoothed_units": smoothed_units,
}


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
    name, arguments = read_call(spec, spec, "a name with literal keyword arguments, such as small_cnn(width=16)")
    if name not in ARCHITECTURES:
        raise UsageError(f"There is no built-in architecture {shown(name)}; available are {', '.join(ARCHITECTURES)}.")
    allowed = list(inspect.signature(ARCHITECTURES[name]).parameters)
    for key in arguments:
        if key not in allowed:
            raise UsageError(f"{name} has no argument {shown(key)}; it takes {', '.join(allowed)}.")
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
    if "size" in inspect.signature(ARCHITECTURES[name]).parameters:
        if len(shape) != 3:
            raise UsageError(f"{name} needs images (C, H, W), but one input has shape {tuple(shape)}; use mlp.")
        channels, height, width = shape
        needed = {"in_channels": channels, "size": height if height == width else (height, width)}
    else:
        needed = {"in_features": math.prod(shape)}
    needed["num_classes"] = num_classes
    for key, value in needed.items():
        if given.get(key, value) != value:
            raise UsageError(f"{name} was given {key}={shown(given[key])}, but the data needs {key}={value!r}.")
    return unparse(name, {**needed, **given})
