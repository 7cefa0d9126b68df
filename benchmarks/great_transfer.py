"""The other scenarios of the GREAT paper at a small scale: distillation (table 3) and multi-task training (table 4)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskaudit.data import load_data
from maskaudit.rng import PointRNG
from maskaudit.train import METHODS, Batch, TrainConfig, TrainPlan, save_trained, train
from maskaudit.train.adversaries import evaluating
from maskaudit.train.loop import accuracy
from maskaudit.train.multitask import MultiTask

#: A run by its name: what makes its record.
Runs = dict[str, Callable[[], dict[str, Any]]]

TEACHER = {"model": "small_cnn", "epochs": 60}
STUDENT = {
    "model": "small_cnn(width=4)",
    "epochs": 50,
    "batch_size": 16,
    "lr": 1e-3,
    "schedule": "poly",
    "augment": "crop",
}
#: Names and settings of table 3; α of the softened answers differs between dense and sparse data, as in the supplement.
DISTILLATIONS: Mapping[str, Mapping[str, Any]] = {
    "Baseline": {"method": "standard"},
    "Distillation": {"method": "soft-distill"},
    "GREAT": {"method": "great-distill"},
}
SPARSE = 0.05
SPARSE_ALPHA = 0.99
#: With a twentieth of the examples an epoch has a twentieth of the steps; 50 leave a student untrained.
SPARSE_EPOCHS = 400
SEEDS = (0, 1)
#: Names and settings of table 4.
WEIGHTINGS = {"Equal": "equal", "Uncertainty": "uncertainty", "GradNorm": "gradnorm", "GREAT": "great"}
MULTITASK = {"method": "great-mtl", "model": "resnet(width=8, blocks=(1, 1, 1), grey=True)", "epochs": 8}


def runs() -> Runs:
    """Every run on the digits."""
    found: Runs = {}
    for seed in SEEDS:
        for fraction in (1.0, SPARSE):
            for label in DISTILLATIONS:
                key = f"distillation · {label} · {fraction:g} · seed {seed}"
                found[key] = _late(distilled, key, label, fraction, seed)
    for seed in SEEDS:
        for label in WEIGHTINGS:
            key = f"multi-task · {label} · seed {seed}"
            found[key] = _late(multitask, key, label, seed)
    return found


def _late(run: Callable[..., dict[str, Any]], key: str, *arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"key": key, **run(*arguments)}


def distilled(label: str, fraction: float, seed: int) -> dict[str, Any]:
    """Test accuracy of a student and its teacher."""
    test = load_data("digits", split="test")
    config = TrainConfig(**TEACHER, seed=seed)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        teacher = _teacher(seed)
        save_trained(path, teacher, config)
        settings = {**STUDENT, **DISTILLATIONS[label], "fraction": fraction, "seed": seed}
        if label != "Baseline":
            settings["teacher"] = str(path)
        if fraction == SPARSE:
            settings["epochs"] = SPARSE_EPOCHS
        if label == "Distillation" and fraction == SPARSE:
            settings["alpha"] = SPARSE_ALPHA
        student = train(TrainConfig(**settings))
    return {
        "part": "distillation", "method": label, "fraction": fraction, "seed": seed,
        "teacher": round(accuracy(teacher, test.x, test.y), 4), "student": round(accuracy(student, test.x, test.y), 4),
    }  # fmt: skip


@cache
def _teacher(seed: int) -> nn.Module:
    return train(TrainConfig(**TEACHER, seed=seed))  # type: ignore[arg-type]


def multitask(label: str, seed: int) -> dict[str, Any]:
    """Test error of the classifier and root mean squared error of every image task."""
    made: list[MultiTask] = []

    def create(plan: TrainPlan, model: nn.Module) -> MultiTask:
        made.append(MultiTask(plan, model))
        return made[0]

    config = TrainConfig(**MULTITASK, weighting=WEIGHTINGS[label], seed=seed)  # type: ignore[arg-type]
    model = train(config, method=replace(METHODS["great-mtl"], create=create))
    test = load_data("digits", split="test")
    rng = PointRNG.create(seed, "test noise", torch.arange(len(test)))
    batch = Batch(test.x, test.y, 0, 1, rng)
    made[0].auxiliary.eval()
    with evaluating(model), torch.no_grad():
        losses, _ = made[0].task_losses(model, batch)
        seen = made[0].seen(batch)
        error = 1 - accuracy(model, seen, test.y)
    names = [name for name in made[0].auxiliary if name != "balance"]
    rooted = {name: round(float(loss) ** 0.5, 4) for name, loss in zip(names, losses[1:], strict=True)}
    return {"part": "multi-task", "method": label, "seed": seed, "error": round(error, 4), "rmse": rooted}
