"""Entries that are masked by something put around, or into, a network that is not."""

from __future__ import annotations

from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.masks import (
    HardLabels,
    QuantisedInput,
    ScaledLogits,
    SharpSoftmax,
    SineInput,
    ZeroBackward,
    saturate,
)

ENTRIES = (
    ZooEntry("quantised", "Standard, input rounded to 4 levels", True, "gradient", "standard",
             lambda n: QuantisedInput(n, 4), part="tune", mechanisms=("shattered",), module="", ops=("round",)),
    ZooEntry("logits-x1e4", "Standard, logits × 10 000", True, "loss", "standard", lambda n: ScaledLogits(n, 1e4),
             part="tune", mechanisms=("logit-scale",), module=""),
    ZooEntry("softmax-x50", "Standard, softmax(50 z) as output", True, "gradient", "standard",
             lambda n: SharpSoftmax(n, 50.0), part="tune", mechanisms=("logit-scale",), module=""),
    ZooEntry("zero-backward", "Standard, backward pass replaced by zero", True, "gradient", "standard", ZeroBackward,
             part="tune", mechanisms=("lying-backward",), module=""),
    ZooEntry("saturated-tanh", "Standard, tanh activations 100 times too steep", True, "gradient", "standard-tanh",
             lambda n: saturate(n, 100.0), part="tune", mechanisms=("saturation",)),
    ZooEntry("sine-input", "Standard, input + 0.02 sin(2000 x)", True, "gradient", "standard", SineInput, part="tune",
             mechanisms=("jagged-surface",), module="", ops=("sin",)),
    ZooEntry("hard-labels", "Standard, one-hot answers", True, "gradient", "standard", HardLabels, part="tune",
             mechanisms=("cut",), module=""),
    ZooEntry("pgd-at-x100", "PGD-trained, logits × 100", True, "loss", "pgd-at", lambda n: ScaledLogits(n, 100.0),
             part="tune", mechanisms=("logit-scale",), module=""),
    ZooEntry("pgd-at-quantised", "PGD-trained, input rounded to 4 levels", True, "gradient", "pgd-at",
             lambda n: QuantisedInput(n, 4), part="tune", mechanisms=("shattered",), module="", ops=("round",)),
)  # fmt: skip
