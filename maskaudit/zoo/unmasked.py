"""Entries whose gradients hide nothing: healthy networks, and truly robust ones."""

from __future__ import annotations

from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.masks import ScaledLogits, SoftmaxOutput

ENTRIES = (
    ZooEntry("standard", "Standard training", False, "", "standard", family="healthy", part="tune"),
    ZooEntry("pgd-at", "PGD adversarial training", False, "", "pgd-at", family="robust", part="tune"),
    ZooEntry("trades", "TRADES", False, "", "trades", family="robust", part="tune"),
    ZooEntry("fgsm-at", "FGSM adversarial training", False, "", "fgsm-at", family="robust", part="tune"),
    ZooEntry("standard-softmax", "Standard, probabilities as output", False, "", "standard", SoftmaxOutput,
             family="healthy", part="tune"),
    ZooEntry("pgd-at-x3", "PGD-trained, logits × 3", False, "", "pgd-at", lambda n: ScaledLogits(n, 3.0),
             family="robust", part="tune"),
)  # fmt: skip
