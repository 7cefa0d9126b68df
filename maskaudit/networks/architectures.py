"""The built-in architectures: small classifiers that return logits (N, classes).

The input of their last `nn.Linear` is the penultimate feature vector. Every argument may come
from an untrusted model file, so each is checked and none can ask for an absurd number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import nn

from maskaudit.declared.kinds import shown
from maskaudit.errors import UsageError
from maskaudit.networks.layers import (
    BasicBlock,
    BoundedOutput,
    Ensemble,
    Grey,
    QuantisedLayer,
    Residual,
    Skipped,
    SmoothedUnits,
    TokenMixer,
)

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
#: Most bits of a quantised layer: 8-bit integers are the finest in use.
MAX_BITS = 8
#: Most layers, blocks or networks of one kind.
MAX_DEPTH = 64
#: Most stages of a residual network: each doubles the channels.
MAX_STAGES = 6
#: Residual blocks per stage of ResNet-18 (He et al. 2016, arXiv 1512.03385, table 1).
RESNET18_BLOCKS = (2, 2, 2, 2)
#: Largest whole number that an argument may be: more coordinates than any input here has.
MAX_NUMBER = 10**8


def small_cnn(
    in_channels: int = 1,
    size: int | tuple[int, int] = 8,
    num_classes: int = 10,
    width: int = 16,
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
    bits: int = 0,
    bound: float = 0.0,
    members: int = 1,
) -> nn.Module:
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
        dropout: share of the hidden linear layer's units that is dropped in training, in [0, 1).
        bits: weights and activations rounded to that many bits, 2 … 8, with a straight-through gradient; 0 for none.
        bound: logits are squashed into (−bound, bound) by a tanh; 0 for none.
        members: networks in an ensemble whose mean probabilities are the output; 1 for a plain network.

    Raises:
        UsageError: for a value out of range or an unknown activation.
    """
    height, shape_width = (size, size) if isinstance(size, int) else _pair(size)
    _at_least("small_cnn", in_channels=(in_channels, 1), size=(min(height, shape_width), 2), width=(width, 1))
    _at_least("small_cnn", num_classes=(num_classes, 2))
    _at_least("small_cnn", members=(members, 1), bits=(bits, 0))
    _share("small_cnn", dropout=dropout)
    _at_most("small_cnn", members=members)
    if not isinstance(bound, int | float) or not 0 <= bound < math.inf or bits == 1 or bits > MAX_BITS:
        raise UsageError(
            f"small_cnn expects bound ≥ 0 and bits 0 or 2 … {MAX_BITS}, got {shown(bound)} and {shown(bits)}."
        )
    make = _activation("small_cnn", activation)
    if members > 1:
        size_again, rest = (height, shape_width), (activation, batch_norm, dropout, bits, bound)
        return Ensemble([small_cnn(in_channels, size_again, num_classes, width, *rest) for _ in range(members)])
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
    layers += [nn.Dropout(dropout)] if dropout else []
    layers.append(nn.Linear(hidden, num_classes))
    if bits:
        layers = [
            QuantisedLayer(layer, bits) if isinstance(layer, nn.Conv2d | nn.Linear) else layer for layer in layers
        ]
    layers += [BoundedOutput(float(bound))] if bound else []
    return nn.Sequential(*layers)


def small_resnet(
    in_channels: int = 1, size: int | tuple[int, int] = 8, num_classes: int = 10, width: int = 12, blocks: int = 2
) -> nn.Sequential:
    """A small pre-activation residual network (He et al. 2016, arXiv 1603.05027): images (N, C, H, W) → logits.

    Args:
        in_channels: colour channels, ≥ 1.
        size: height and width in pixels, ≥ 4.
        num_classes: ≥ 2.
        width: channels before the resolution is halved, ≥ 1; twice as many after.
        blocks: residual blocks at each of the two resolutions, ≥ 1.

    Raises:
        UsageError: for a value out of range.
    """
    height, shape_width = (size, size) if isinstance(size, int) else _pair(size)
    _at_least("small_resnet", in_channels=(in_channels, 1), size=(min(height, shape_width), 4), width=(width, 1))
    _at_least("small_resnet", num_classes=(num_classes, 2), blocks=(blocks, 1))
    _at_most("small_resnet", blocks=blocks)
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1)]
    layers += [Residual(width, width) for _ in range(blocks)]
    layers += [Residual(width, 2 * width, stride=2)]
    layers += [Residual(2 * width, 2 * width) for _ in range(blocks - 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, num_classes))


def resnet(
    in_channels: int = 3,
    size: int | tuple[int, int] = 32,
    num_classes: int = 10,
    width: int = 64,
    blocks: tuple[int, ...] = RESNET18_BLOCKS,
    grey: bool = False,
) -> nn.Sequential:
    """A residual network with batch normalisation (He et al. 2016, arXiv 1512.03385): images (N, C, H, W) → logits.

    By default ResNet-18 in its form for 32×32 pixels: a 3×3 convolution without stride or pooling in front.
    `resnet(width=8, blocks=(1, 1, 1))` is small enough for a CPU. Shared features are what enters the pooling.

    Args:
        in_channels: colour channels, ≥ 1.
        size: height and width in pixels, ≥ 4.
        num_classes: ≥ 2.
        width: channels of the first stage, ≥ 1; each further stage doubles them and halves the resolution.
        blocks: residual blocks of each stage, ≥ 1; at most 6 stages.
        grey: the input's luma is all that the network sees.

    Raises:
        UsageError: for a value out of range.
    """
    height, shape_width = (size, size) if isinstance(size, int) else _pair(size)
    counts = _integers("resnet", "blocks", blocks)
    _at_least("resnet", in_channels=(in_channels, 1), size=(min(height, shape_width), 4), width=(width, 1))
    _at_least("resnet", num_classes=(num_classes, 2), stages=(len(counts), 1), blocks=(min(counts, default=1), 1))
    _at_most("resnet", blocks=sum(counts))
    if len(counts) > MAX_STAGES or grey not in (True, False) or (grey and in_channels not in (1, 3)):
        raise UsageError(f"resnet expects at most {MAX_STAGES} stages, and grey=True with 1 or 3 channels only.")
    channels = 1 if grey else in_channels
    layers: list[nn.Module] = [Grey()] if grey else []
    layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage, count in enumerate(counts):
        after = width * 2**stage
        for block in range(count):
            layers.append(BasicBlock(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))


def small_vit(
    in_channels: int = 1,
    size: int | tuple[int, int] = 8,
    num_classes: int = 10,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    patch: int = 2,
) -> nn.Sequential:
    """A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): images (N, C, H, W) → logits.

    Mean over the tokens in place of a class token.

    Args:
        in_channels: colour channels, ≥ 1.
        size: height and width in pixels, multiples of `patch`.
        num_classes: ≥ 2.
        width: length of a token, a multiple of `heads`.
        depth: transformer blocks, ≥ 1.
        heads: attention heads, ≥ 1.
        patch: side of a square patch in pixels, ≥ 1.

    Raises:
        UsageError: for a value out of range.
    """
    height, shape_width = (size, size) if isinstance(size, int) else _pair(size)
    _at_least("small_vit", in_channels=(in_channels, 1), patch=(patch, 1), depth=(depth, 1), heads=(heads, 1))
    _at_least("small_vit", size=(min(height, shape_width), patch), num_classes=(num_classes, 2), width=(width, heads))
    _at_most("small_vit", depth=depth)
    if height % patch or shape_width % patch or width % heads:
        raise UsageError("small_vit expects size to be a multiple of patch, and width a multiple of heads.")
    tokens = (height // patch) * (shape_width // patch)
    return nn.Sequential(
        nn.Conv2d(in_channels, width, patch, stride=patch),
        TokenMixer(width, tokens, depth, heads),
        nn.Linear(width, num_classes),
    )


def conv_mixer(
    in_channels: int = 3,
    size: int | tuple[int, int] = 32,
    num_classes: int = 10,
    width: int = 64,
    depth: int = 4,
    kernel: int = 5,
    patch: int = 2,
) -> nn.Sequential:
    """A ConvMixer (Trockman & Kolter 2022, arXiv 2201.09792, figure 2): images (N, C, H, W) → logits.

    Args:
        in_channels: colour channels, ≥ 1.
        size: height and width in pixels, ≥ `patch`.
        num_classes: ≥ 2.
        width: channels of the patches, ≥ 1.
        depth: pairs of a depthwise convolution over the image and one over the channels, ≥ 1.
        kernel: side of the depthwise convolutions, odd.
        patch: side of a square patch in pixels, ≥ 1.

    Raises:
        UsageError: for a value out of range.
    """
    height, shape_width = (size, size) if isinstance(size, int) else _pair(size)
    _at_least("conv_mixer", in_channels=(in_channels, 1), patch=(patch, 1), depth=(depth, 1), kernel=(kernel, 1))
    _at_least("conv_mixer", size=(min(height, shape_width), patch), num_classes=(num_classes, 2), width=(width, 1))
    _at_most("conv_mixer", depth=depth, kernel=kernel)
    if kernel % 2 == 0:
        raise UsageError("conv_mixer expects kernel to be odd.")

    def normalised(convolution: nn.Conv2d) -> nn.Sequential:
        return nn.Sequential(convolution, nn.GELU(), nn.BatchNorm2d(width))

    layers: list[nn.Module] = [normalised(nn.Conv2d(in_channels, width, patch, stride=patch))]
    for _ in range(depth):
        layers += [
            Skipped(normalised(nn.Conv2d(width, width, kernel, groups=width, padding="same"))),
            normalised(nn.Conv2d(width, width, 1)),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def smoothed_units(
    in_features: int = 64, num_classes: int = 10, hidden: int = 256, sigma: float = 0.5
) -> SmoothedUnits:
    """A shallow classifier averaged exactly over Gaussian noise, see `SmoothedUnits`: (N, …) → scores (N, num_classes).

    Args:
        in_features: coordinates of one input, ≥ 1.
        num_classes: ≥ 2.
        hidden: units of its one hidden layer, ≥ 1.
        sigma: standard deviation of the noise in input units, > 0.

    Raises:
        UsageError: for a value out of range.
    """
    _at_least("smoothed_units", in_features=(in_features, 1), num_classes=(num_classes, 2), hidden=(hidden, 1))
    if not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
        raise UsageError(f"smoothed_units expects sigma to be a positive number, got {shown(sigma)}.")
    return SmoothedUnits(in_features, num_classes, hidden, float(sigma))


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
    _at_most("mlp", hidden_layers=len(widths))
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


def _activation(owner: str, name: str) -> Callable[[], nn.Module]:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UsageError(f"{owner} has no activation {shown(name)}; available are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _at_least(owner: str, **limits: tuple[object, int]) -> None:
    for name, (value, low) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UsageError(f"{owner} expects {name} to be a whole number ≥ {low}, got {shown(value)}.")
        if value > MAX_NUMBER:
            raise UsageError(f"{owner} expects {name} to be at most {MAX_NUMBER}, got {shown(value)}.")


def _at_most(owner: str, **values: int) -> None:
    for name, value in values.items():
        if value > MAX_DEPTH:
            raise UsageError(f"{owner} expects {name.replace('_', ' ')} to be at most {MAX_DEPTH}, got {shown(value)}.")


def _share(owner: str, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UsageError(f"{owner} expects {name} to be a number in [0, 1), got {shown(value)}.")


def _pair(size: object) -> tuple[int, int]:
    pair = _integers("small_cnn", "size", size)
    if len(pair) != 2:
        raise UsageError(f"small_cnn expects size to be one number or (height, width), got {shown(size)}.")
    return pair[0], pair[1]


def _integers(owner: str, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(type(item) is int for item in value):
        raise UsageError(f"{owner} expects {name} to be a whole number or a tuple of them, got {shown(value)}.")
    return tuple(value)
