"""What a training is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from maskaudit.declared import Choice, Number, Text, Whole
from maskaudit.declared.options import check_options, option, options_of
from maskaudit.settings.kinds import COUNT, LENGTH, SHARE, WEIGHT, WORD

Schedule = Literal["poly", "cosine", "constant"]
Augment = Literal["none", "crop", "crop-flip"]
Precision = Literal["float32", "bfloat16"]
Greace = Literal["paper", "zero-sum", "bounded"]
Weighting = Literal["great", "equal", "gradnorm", "uncertainty"]


@dataclass(frozen=True)
class TrainSettings:
    """Options of `maskaudit train`; None takes the default of the method or of the data.

    Attributes:
        method: a key of `maskaudit.train.METHODS`.

    Raises:
        UsageError: for a value that is not what its option takes.
    """

    method: str = "standard"
    data: str = option("digits", WORD, "What to train on.", metavar="SOURCE", group="data", path="source")
    model: str | None = option(None, WORD, "Built-in architecture, e.g. small_cnn(width=32).", metavar="SPEC")
    epochs: int | None = option(None, COUNT, "Passes over the data, in each phase of the method.", metavar="N")
    seed: int = option(0, Whole(0, 2**63 - 1), "Seed of everything random.", metavar="N")
    batch_size: int = option(64, COUNT, "Points per optimiser step; a smaller last batch is kept.", metavar="N")
    accumulate: int = option(
        1, COUNT, "Parts of a batch that go through the model one after the other, to save memory.", metavar="N"
    )
    lr: float | None = option(
        None, Number(0, 1e38, above=True, quotient=True), "Adam's first step size.", metavar="NUMBER"
    )
    schedule: Schedule | None = option(
        None, Choice(*get_args(Schedule)), "How it falls: (1 − e/e_max)^0.9 by epoch, a cosine by step, not at all."
    )
    augment: Augment | None = option(
        None, Choice(*get_args(Augment)), "Pad by an eighth of the side and crop; flip sideways as well."
    )
    fraction: float = option(
        1.0, Number(0, 1, above=True, quotient=True), "Share of the examples of each class to train on, e.g. 0.05.",
        metavar="FRACTION",
    )  # fmt: skip
    device: str = option(
        "cpu", WORD, "Where to train: cpu, cuda, cuda:1, …; auto takes a GPU if there is one.", metavar="DEVICE"
    )
    precision: Precision = option(
        "float32", Choice(*get_args(Precision)), "Of the passes through the networks; weights stay float32."
    )
    attack_steps: int = option(7, COUNT, "Gradient steps per training attack (pgd-at, trades).", metavar="N")
    clean_weight: float = option(
        0.0, SHARE, "Weight of the clean points next to the attacked (fgsm-at, pgd-at); 0.5 is the GREAT paper's.",
        metavar="FRACTION",
    )  # fmt: skip
    trades_beta: float = option(6.0, WEIGHT, "Weight of the robustness term of TRADES.", metavar="NUMBER")
    alpha: float | None = option(
        None, WEIGHT, "Final weight of the reversed auxiliary loss (GREAT); share of the teacher (distillation).",
        metavar="NUMBER",
    )  # fmt: skip
    beta: float | None = option(None, WEIGHT, "Final weight of the GREACE term.", metavar="NUMBER")
    greace: Greace = option(
        "paper", Choice(*get_args(Greace)), "GREACE term: equation 6 (unbounded below), its zero-sum or bounded form."
    )
    temperature: float | None = option(
        None, LENGTH, "Softmax temperature (distill 100, soft-distill 20).", metavar="NUMBER"
    )
    teacher: str = option(
        "", Text(), "Trained model to learn from (great-distill, soft-distill).", metavar="FILE", path="file"
    )
    weighting: Weighting = option("great", Choice(*get_args(Weighting)), "How the tasks of great-mtl are balanced.")

    def __post_init__(self) -> None:
        check_options(self)


#: Every option of a training by its key.
TRAIN_OPTIONS = options_of(TrainSettings)
