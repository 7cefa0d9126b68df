"""The training methods by name. A new method is one class and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from maskaudit.errors import UsageError
from maskaudit.settings import Augment, Schedule
from maskaudit.train.adversarial import FGSMTraining, PGDTraining, Standard, Trades
from maskaudit.train.distill import DefensiveDistillation
from maskaudit.train.great import published
from maskaudit.train.great_reduced import reduced
from maskaudit.train.interface import Method, TrainPlan
from maskaudit.train.multitask import MultiTask
from maskaudit.train.teachers import GreatDistillation, SoftDistillation

_GREAT_PAPER = "Sinha, Chen, Badrinarayanan, Rabinovich 2018, arXiv 1806.08028"


@dataclass(frozen=True)
class MethodInfo:
    """A method as `maskaudit train --help` shows it.

    Attributes:
        title: its name in the literature.
        citation: authors, year and where.
        summary: one line on what it does.
        epochs: default number of passes per phase, chosen on the embedded digits.
        lr: default initial step size of Adam, chosen likewise.
        create: makes the method for a plan and an initialised model.
        schedule, augment, alpha, beta, temperature: defaults of these options.
        model: built-in architecture if none is given; that of the data if None.
    """

    title: str
    citation: str
    summary: str
    epochs: int
    lr: float
    create: Callable[[TrainPlan, nn.Module], Method]
    schedule: Schedule = "cosine"
    augment: Augment = "none"
    alpha: float = 0.0
    beta: float = 0.0
    temperature: float = 100.0
    model: str | None = None


def _great(title: str, summary: str, *, great: bool = True, greace: bool = True) -> MethodInfo:
    """A method with the paper's settings: 100 epochs, Adam 1e-3, α_max 1, β_max 2 (CIFAR-10; 10 for SVHN)."""
    create = partial(published, great=great, greace=greace)
    return MethodInfo(title, _GREAT_PAPER, summary, 100, 1e-3, create, "poly", "crop", 1.0, 2.0)


def _reduced(title: str, summary: str, *, great: bool = True, greace: bool = True) -> MethodInfo:
    """A method of the zoo, with weights under which training on the digits stays stable."""
    create = partial(reduced, great=great, greace=greace)
    return MethodInfo(title, _GREAT_PAPER, summary, 100, 5e-3, create, alpha=0.01, beta=0.003)


METHODS: Mapping[str, MethodInfo] = {
    "standard": MethodInfo("Standard training", "Vapnik 1992", "Cross-entropy on clean inputs; no defence.", 40, 6e-3,
        Standard),
    "fgsm-at": MethodInfo("FGSM adversarial training", "Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572",
        "Cross-entropy on one-step examples; prone to catastrophic overfitting.", 30, 2e-3, FGSMTraining),
    "pgd-at": MethodInfo("PGD adversarial training", "Madry, Makelov, Schmidt, Tsipras, Vladu 2018, arXiv 1706.06083",
        "Cross-entropy on multi-step examples with a random start.", 60, 6e-3, PGDTraining),
    "trades": MethodInfo("TRADES", "Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan 2019, arXiv 1901.08573",
        "Clean cross-entropy plus a weighted divergence between clean and attacked outputs.", 60, 4e-3, Trades),
    "great": _great("GREAT", "Input gradients made useless to a copy of the network by gradient reversal.",
        greace=False),
    "greace": _great("GREACE", "Cross-entropy that pushes down the classes its gradient is confused with.",
        great=False),
    "great+ce": _great("GRE(AT+CE)", "GREAT and GREACE together."),
    "great-reduced": _reduced("GREAT, reduced", "GREAT with a small auxiliary network.", greace=False),
    "greace-reduced": _reduced("GREACE, reduced", "GREACE with a small auxiliary network.", great=False),
    "great+ce-reduced": _reduced("GRE(AT+CE), reduced", "Both, reduced."),
    "distill": MethodInfo("Defensive distillation", "Papernot, McDaniel, Wu, Jha, Swami 2016, arXiv 1511.04508",
        "Trained on a teacher's soft labels at a high temperature, used at temperature 1.", 60, 4e-3,
        DefensiveDistillation),
    "soft-distill": MethodInfo("Distillation", "Hinton, Vinyals, Dean 2015, arXiv 1503.02531",
        "Cross-entropy and a teacher's answers, softened by a temperature.", 50, 1e-3, SoftDistillation, "poly",
        "crop-flip", alpha=0.1, temperature=20.0),
    "great-distill": MethodInfo("GREAT distillation", _GREAT_PAPER,
        "Cross-entropy, and input gradients that a discriminator takes for the teacher's.", 50, 1e-3, GreatDistillation,
        "poly", "crop-flip", alpha=0.1),
    "great-mtl": MethodInfo("GREAT multi-task training", _GREAT_PAPER,
        "Classes, colours, edges and denoising, their gradients aligned at the last shared layer.", 50, 1e-3, MultiTask,
        "poly", model="resnet(width=16, blocks=(2, 2, 2), grey=True)"),
}  # fmt: skip


def method_info(name: str) -> MethodInfo:
    """The registered method.

    Raises:
        UsageError: for an unknown name, listing the known ones.
    """
    if name not in METHODS:
        raise UsageError(f"There is no training method {name!r}; available are {', '.join(METHODS)}.")
    return METHODS[name]
