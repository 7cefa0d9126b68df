"""Entries whose gradients hide nothing: healthy networks, and truly robust ones.

Labels follow measurement (`maskaudit.zoo.truth`): a defence that was published as one and is broken by its
white-box attacks is here, among the healthy ones.
"""

from __future__ import annotations

from typing import Any

from maskaudit.zoo import certificates
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.masks.outputs import ScaledLogits, SoftmaxOutput

#: The ball of the networks on Fashion-MNIST.
FASHION: dict[str, Any] = {"data": "fashion-mnist", "eps": 0.1}


def _healthy(name: str, title: str, network: str = "", **more: Any) -> ZooEntry:
    return ZooEntry(name, title, False, "", network or name, family=more.pop("family", "healthy"), **more)


def _robust(name: str, title: str, network: str = "", **more: Any) -> ZooEntry:
    return _healthy(name, title, network, family="robust", **more)


ENTRIES = (
    _healthy("standard", "Standard training", part="tune"),
    _robust("pgd-at", "PGD adversarial training", part="tune"),
    _robust("trades", "TRADES", part="tune"),
    _robust("fgsm-at", "FGSM adversarial training", part="tune"),
    _healthy("standard-softmax", "Standard, probabilities as output", "standard", wrap=SoftmaxOutput, part="tune"),
    _robust("pgd-at-x3", "PGD-trained, logits × 3", "pgd-at", wrap=lambda n: ScaledLogits(n, 3.0), part="tune"),
    _healthy("leaky-relu", "Standard, leaky ReLU"),
    _healthy("gelu", "Standard, GELU"),
    _healthy("sigmoid-deep", "Standard, three hidden layers of sigmoids"),
    _healthy("resnet", "Standard, small residual network"),
    _healthy("vit", "Standard, small vision transformer"),
    _healthy("batch-norm", "Standard, batch normalisation"),
    _healthy("quantisation-aware", "Standard, 4-bit weights and activations, straight-through gradient"),
    _healthy("label-smoothing", "Label smoothing 0.1"),
    _robust("fast-at", "Fast adversarial training, no catastrophic overfitting"),
    _robust("ibp", "Interval bound propagation, certified", certificate=certificates.interval_certificate),
    _robust("smoothed", "Randomised smoothing in closed form, certified in L2", norm="L2", eps=0.4,
            certificate=certificates.smoothing_certificate),
    _robust("pgd-at-dead", "PGD-trained, three quarters of the ReLUs dead"),
    _robust("pgd-at-bounded", "PGD-trained, logits bounded by a tanh"),
    _robust("pgd-at-dropout", "PGD-trained with dropout, off when used"),
    _robust("alp", "Adversarial logit pairing"),
    _robust("pgd-at-l2", "PGD adversarial training in L2", norm="L2"),
    _robust("resnet-pgd-at", "PGD-trained small residual network"),
    _healthy("great", "GREAT", family="great"),
    _healthy("great-strong", "GREAT, α = 0.1", family="great"),
    _healthy("greace-weak", "GREACE, β = 0.001", family="great"),
    _healthy("great+ce-weak", "GRE(AT+CE), α = 0.003, β = 0.001", family="great"),
    _healthy("fashion-great+ce", "Fashion-MNIST: GRE(AT+CE), no batch norm", family="great", **FASHION),
    _healthy("great+ce-batch-norm", "GRE(AT+CE) with batch norm", family="great"),
    _robust("feature-scattering", "Feature scattering"),
    _healthy("clp", "Clean logit pairing"),
    _healthy("lsq", "Logit squeezing"),
    _healthy("gradient-regularised", "Input gradient regularisation"),
    _healthy("adp", "Adaptive diversity promoting ensemble"),
    _healthy("planted", "PGD-trained around a counterexample that it fails to hide"),
    _healthy("fgsm-at-long", "FGSM adversarial training, 80 epochs at a high rate"),
    # One step leaves nine tenths of the points, twenty small steps none: only a weak attack is fooled.
    _healthy("fgsm-at-overfitted", "FGSM adversarial training after catastrophic overfitting, ε = 0.35"),
    _healthy("bent-surface", "Margin trained to be flat at the data, bent beyond"),
    _healthy("fashion-standard", "Fashion-MNIST: standard training", **FASHION),
    _robust("fashion-pgd-at", "Fashion-MNIST: PGD adversarial training", **FASHION),
    _healthy("fashion-batch-norm", "Fashion-MNIST: standard, batch normalisation", **FASHION),
    _robust("fashion-trades", "Fashion-MNIST: TRADES", **FASHION),
    _robust("fashion-fast-at", "Fashion-MNIST: fast adversarial training", **FASHION),
    _robust("fashion-fgsm-at", "Fashion-MNIST: FGSM adversarial training", **FASHION),
    _robust("fashion-ibp", "Fashion-MNIST: interval bound propagation, certified",
            certificate=certificates.interval_certificate, **FASHION),
)  # fmt: skip
