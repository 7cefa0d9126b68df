"""Auxiliary networks of gradient adversarial training: the main network's architecture with leaky ReLU.

Sinha et al. 2018 (arXiv 1806.08028), section 3.1 and supplement.
"""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import nn

from maskaudit.errors import UsageError
from maskaudit.loading import arch
from maskaudit.networks.architectures import RESNET18_BLOCKS
from maskaudit.networks.layers import Residual
from maskaudit.networks.registry import is_built_in, parse, unparse

#: Slope of the auxiliary networks' leaky ReLU for negative inputs.
SLOPE = 0.2


def leaky_copy(spec: str) -> nn.Module:
    """A freshly initialised network of the architecture `spec`, its `nn.ReLU` layers leaky.

    In a module of the user's own, ReLUs that are called as functions stay as they are.
    """
    return leaky(arch.build(spec))


def shallower_discriminator(spec: str) -> nn.Module:
    """A leaky network like `spec` with two outputs (N, 2), student or teacher; a `resnet` with one block per stage.

    Raises:
        UsageError: for an architecture that is not built in, whose number of outputs cannot be changed.
    """
    if not is_built_in(spec):
        raise UsageError(f"great-distill builds its discriminator from a built-in architecture; {spec!r} is none.")
    name, arguments = parse(spec)
    if name == "resnet":
        arguments["blocks"] = (1,) * len(arguments.get("blocks", RESNET18_BLOCKS))
    return leaky_copy(unparse(name, {**arguments, "num_classes": 2}))


def leaky(module: nn.Module) -> nn.Module:
    """Turn every `nn.ReLU` inside a module, and those of our residual blocks, leaky; the module itself."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.LeakyReLU(SLOPE))
        else:
            leaky(child)
    if isinstance(module, Residual):
        module.activation = functools.partial(F.leaky_relu, negative_slope=SLOPE)
    return module
