"""Entries with something put around, or into, a network: most are masked by it, the controls are not.

Labels follow measurement (`maskaudit.zoo.truth`), not intention: a mask that white-box attacks get through
is a healthy model that is harder to attack, and is entered as such.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from maskaudit.zoo.interface import Level, ZooEntry
from maskaudit.zoo.masks import backward, controls, inputs, layers, loops, outputs, random
from maskaudit.zoo.unmasked import FASHION

Wrap = Callable[[nn.Module], nn.Module]


def _masked(
    name: str, title: str, level: Level, network: str, wrap: Wrap, mechanisms: str, module: str | None = "",
    ops: str = "", **more: Any,
) -> ZooEntry:  # fmt: skip
    """A masked model; mechanisms and ops as words."""
    return ZooEntry(name, title, True, level, network, wrap, family="masked", mechanisms=tuple(mechanisms.split()),
                    module=module, ops=tuple(ops.split()), **more)  # fmt: skip


def _clear(name: str, title: str, network: str, wrap: Wrap, **more: Any) -> ZooEntry:
    """A model that looks masked, or was meant to be, and is not."""
    return ZooEntry(name, title, False, "", network, wrap, family=more.pop("family", "healthy"), **more)


def _quantised(levels: int) -> Wrap:
    return lambda n: inputs.QuantisedInput(n, levels)


def _scaled(scale: float) -> Wrap:
    return lambda n: outputs.ScaledLogits(n, scale)


def _two_masks(network: nn.Module) -> nn.Module:
    return outputs.SharpSoftmax(inputs.QuantisedInput(network, 4), 100.0)


TUNE = partial(_masked, part="tune")

#: Noise of the smoothed networks, that of their training (`maskaudit.zoo.recipes_robust.Noisy`).
SMOOTHING_SIGMA = 0.25
#: Draws in each of their answers; few, so that an audit stays affordable.
SMOOTHING_DRAWS = 8
SMOOTHING: dict[str, Any] = {"norm": "L2", "eps": 0.4}

#: Constants were fitted on these.
TUNED_ON = (
    TUNE("quantised", "Standard, input rounded to 4 levels", "gradient", "standard", _quantised(4), "shattered",
         ops="round"),
    TUNE("logits-x1e4", "Standard, logits × 10 000", "loss", "standard", _scaled(1e4), "logit-scale"),
    TUNE("softmax-x50", "Standard, softmax(50 z) as output", "gradient", "standard",
         lambda n: outputs.SharpSoftmax(n, 50.0), "logit-scale"),
    TUNE("zero-backward", "Standard, backward pass replaced by zero", "gradient", "standard", backward.ZeroBackward,
         "lying-backward"),
    TUNE("saturated-tanh", "Standard, tanh activations 100 times too steep", "gradient", "standard-tanh",
         lambda n: layers.saturate(n, 100.0), "saturation", module=None),
    TUNE("sine-input", "Standard, input + 0.02 sin(2000 x)", "gradient", "standard", inputs.SineInput,
         "jagged-surface", ops="sin"),
    TUNE("hard-labels", "Standard, one-hot answers", "gradient", "standard", outputs.HardLabels,
         "cut output-hides-loss"),
    TUNE("pgd-at-x100", "PGD-trained, logits × 100", "loss", "pgd-at", _scaled(100.0), "logit-scale"),
    TUNE("pgd-at-quantised", "PGD-trained, input rounded to 4 levels", "gradient", "pgd-at", _quantised(4),
         "shattered", ops="round"),
)  # fmt: skip

OUTPUTS = (
    _masked("logits-x30", "Standard, logits × 30", "loss", "standard", _scaled(30.0), "logit-scale"),
    _masked("logits-x300", "Standard, logits × 300", "loss", "standard", _scaled(300.0), "logit-scale"),
    _masked("rounded-softmax", "Standard, probabilities rounded to 1 decimal", "gradient", "standard",
            lambda n: outputs.RoundedOutput(n, "probabilities"), "shattered output-hides-loss", ops="round"),
    _masked("rounded-logits", "Standard, logits rounded to 1 decimal", "gradient", "standard",
            lambda n: outputs.RoundedOutput(n, "logits"), "shattered output-hides-loss", ops="round"),
    _masked("reverse-sigmoid", "Standard, logits × 8, reverse-sigmoid probabilities", "gradient", "standard",
            lambda n: outputs.ReverseSigmoid(outputs.ScaledLogits(n, 8.0)),
            "output-hides-loss saturation logit-scale"),
    _clear("sine-logits", "Standard, logits + 0.3 sin(2000 z)", "standard", outputs.SineLogits),
    _masked("shifted-vote", "Standard, majority of hard votes over 5 shifted copies", "gradient", "standard",
            outputs.ShiftedVote, "cut output-hides-loss", ops="one_hot argmax"),
    _masked("nearest-neighbours", "Standard features, votes of the 5 nearest training points", "gradient", "standard",
            lambda n: layers.nearest_neighbours(n, "digits"), "cut output-hides-loss", ops="one_hot topk"),
)  # fmt: skip

INPUTS = (
    _masked("quantised-2", "Standard, input rounded to black and white", "gradient", "standard", _quantised(2),
            "shattered", ops="round"),
    _masked("quantised-16", "Standard, input rounded to 16 levels", "gradient", "standard", _quantised(16),
            "shattered", ops="round"),
    _masked("steep-front", "Standard behind a tanh that is 200 times too steep", "gradient", "standard",
            inputs.SteepFront, "saturation", ops="tanh"),
    _masked("narrow-clip", "Standard, input clipped to a band of width 1/40", "gradient", "standard",
            inputs.NarrowClip, "saturation", ops="clamp"),
    _masked("jpeg-like", "Standard, rounded block DCT", "gradient", "standard", inputs.JpegLike, "shattered",
            ops="round"),
    _masked("jpeg-file", "Standard, through a JPEG file", "gradient", "standard", inputs.JpegFile, "cut",
            ops="detach numpy cpu from_numpy entry to"),
    _masked("thermometer", "Standard, thermometer code of 8 levels", "gradient", "standard", inputs.Thermometer, "cut",
            ops="ge __ge__ to"),
    _masked("numpy-round-trip", "Standard, normalised in numpy", "gradient", "standard", inputs.NumpyRoundTrip, "cut",
            ops="detach numpy cpu from_numpy entry to"),
)  # fmt: skip

LAYERS = (
    _clear("k-wta", "Standard, k-winners-take-all activations", "standard", lambda n: layers.k_winners(n, "digits")),
    _masked("sign-features", "Standard, penultimate features replaced by signs", "gradient", "standard",
            lambda n: layers.binary_features(n, "digits"), "shattered", module="7", ops="sign"),
    _masked("detach-middle", "Standard, detached before its second convolution", "gradient", "standard",
            lambda n: layers.inserted(n, 2, layers.Detach()), "cut", module="2", ops="detach"),
    _masked("cut-beside", "Standard, detached parallel to a weak linear term", "gradient", "standard", layers.CutBeside,
            "cut", ops="detach"),
    _masked("per-point-quantised", "Standard, 4 levels, one point at a time under vmap", "gradient", "standard",
            lambda n: controls.PerPoint(inputs.QuantisedInput(n, 4)), "shattered", module="network", ops="round"),
)  # fmt: skip

BACKWARD = (
    _masked("random-backward", "Standard, backward pass replaced by noise", "gradient", "standard",
            backward.RandomBackward, "lying-backward"),
    # Going downhill on a targeted loss leads to the other classes: losses other than cross-entropy get through.
    _masked("flipped-backward", "Standard, backward pass of the wrong sign", "loss", "standard",
            backward.FlippedBackward, "lying-backward"),
    _masked("noisy-backward", "Standard, backward pass with ten times as much noise", "gradient", "standard",
            backward.NoisyBackward, "lying-backward"),
)  # fmt: skip

RANDOM = (
    _clear("resize-pad", "Standard, random resize and pad", "standard", lambda n: random.ResizePad(n, 0.9)),
    _clear("input-noise", "Standard, normal noise of 0.2 on the input", "standard",
           lambda n: random.InputNoise(n, 0.2)),
    _clear("stochastic-pruning", "Standard, random pruning of the features", "standard",
           lambda n: random.before_readout(n, random.StochasticPruning(1.0))),
    _clear("sampled-smoothing", "Randomised smoothing, mean of 8 draws, in L2", "gaussian-noise",
           lambda n: random.SampledSmoothing(n, SMOOTHING_SIGMA, SMOOTHING_DRAWS), family="robust", **SMOOTHING),
    # In the ball of the smoothed networks votes hide a tenth of the points, no more: too close to call.
    _masked("sampled-vote", "Randomised smoothing, hard votes of 8 draws, in twice the ball", "gradient",
            "gaussian-noise", lambda n: random.SampledVote(n, SMOOTHING_SIGMA, SMOOTHING_DRAWS),
            "cut output-hides-loss", ops="one_hot argmax", norm="L2", eps=0.8),
    _clear("dropout-on", "Standard, dropout of 0.2 left on", "standard",
           lambda n: random.before_readout(n, random.DropoutOn(0.2))),
)  # fmt: skip

LOOPS = (
    _masked("purification", "Standard behind 10 purifying gradient steps", "gradient", "standard",
            lambda n: loops.purified(n, "digits"), "cut test-time-optimisation", ops="detach grad"),
    _masked("chaotic-front", "Standard, input disturbed by a logistic map", "gradient", "standard",
            loops.ChaoticFront, "jagged-surface"),
    _masked("quantised+softmax-x100", "Standard, 4 levels and softmax(100 z): two masks in series", "gradient",
            "standard", _two_masks, "shattered", module="network", ops="round"),
)  # fmt: skip

ROBUST = (
    _masked("pgd-at-quantised-8", "PGD-trained, input rounded to 8 levels", "gradient", "pgd-at", _quantised(8),
            "shattered", ops="round"),
    _masked("pgd-at-quantised-16", "PGD-trained, input rounded to 16 levels", "gradient", "pgd-at", _quantised(16),
            "shattered", ops="round"),
    _masked("pgd-at-jpeg-like", "PGD-trained, rounded block DCT", "gradient", "pgd-at", inputs.JpegLike, "shattered",
            ops="round"),
    _masked("pgd-at-x1e4", "PGD-trained, logits × 10 000", "loss", "pgd-at", _scaled(1e4), "logit-scale"),
    _clear("pgd-at-noise", "PGD-trained, normal noise of 0.1 on the input", "pgd-at",
           lambda n: random.InputNoise(n, 0.1), family="robust"),
)  # fmt: skip

CONTROLS = (
    _clear("honest-quantiser", "Standard, 4 levels with a straight-through gradient", "standard",
           lambda n: inputs.HonestQuantiser(n, 4)),
    _clear("checkpointed", "Standard, gradient checkpointing", "standard", controls.Checkpointed),
    _clear("channels-last", "Standard, channels last", "standard", controls.ChannelsLast),
    _clear("bfloat16", "Standard in bfloat16", "standard", controls.HalfPrecision),
    _clear("per-point", "Standard, one point at a time under vmap", "standard", controls.PerPoint),
    _clear("steady-brightness", "Standard, brightness evened out off the graph", "standard", controls.SteadyBrightness),
)  # fmt: skip

FASHION_MNIST = (
    _masked("fashion-quantised", "Fashion, input rounded to 4 levels", "gradient", "fashion-standard", _quantised(4),
            "shattered", ops="round", **FASHION),
    _masked("fashion-logits-x1e4", "Fashion, logits × 10 000", "loss", "fashion-standard", _scaled(1e4),
            "logit-scale", **FASHION),
    _masked("fashion-jpeg-like", "Fashion, rounded block DCT", "gradient", "fashion-standard", inputs.JpegLike,
            "shattered", ops="round", **FASHION),
    _clear("fashion-k-wta", "Fashion, k-winners-take-all activations", "fashion-standard",
           lambda n: layers.k_winners(n, "fashion-mnist", 0.3), **FASHION),
    _masked("fashion-sine-input", "Fashion, input + 0.02 sin(2000 x)", "gradient", "fashion-standard",
            inputs.SineInput, "jagged-surface", ops="sin", **FASHION),
    _masked("fashion-detach", "Fashion, detached before its second convolution", "gradient", "fashion-standard",
            lambda n: layers.inserted(n, 2, layers.Detach()), "cut", module="2", ops="detach", **FASHION),
    _masked("fashion-numpy", "Fashion, normalised in numpy", "gradient", "fashion-standard", inputs.NumpyRoundTrip,
            "cut", ops="detach numpy cpu from_numpy entry to", **FASHION),
    _masked("fashion-zero-backward", "Fashion, backward pass replaced by zero", "gradient", "fashion-standard",
            backward.ZeroBackward, "lying-backward", **FASHION),
    _clear("fashion-resize-pad", "Fashion, random resize and pad", "fashion-standard",
           lambda n: random.ResizePad(n, 0.9), **FASHION),
    _masked("fashion-pgd-at-quantised", "Fashion, PGD-trained, input rounded to 16 levels", "gradient",
            "fashion-pgd-at", _quantised(16), "shattered", ops="round", **FASHION),
    _clear("fashion-pgd-at-x100", "Fashion, PGD-trained, logits × 100", "fashion-pgd-at", _scaled(100.0),
           family="robust", **FASHION),
    # In the ball of its training this network loses 7 points in all: too few to hide ten.
    _masked("fashion-pgd-at-x1e4", "Fashion, PGD-trained, logits × 10 000, in twice the ball", "loss",
            "fashion-pgd-at", _scaled(1e4), "logit-scale", data="fashion-mnist", eps=2 * FASHION["eps"]),
    _masked("fashion-two-masks", "Fashion, 4 levels and softmax(100 z): two masks in series", "gradient",
            "fashion-standard", _two_masks, "shattered", module="network", ops="round", **FASHION),
)  # fmt: skip

ENTRIES = (
    *TUNED_ON, *OUTPUTS, *INPUTS, *LAYERS, *BACKWARD, *RANDOM, *LOOPS, *ROBUST, *CONTROLS, *FASHION_MNIST,
)  # fmt: skip
