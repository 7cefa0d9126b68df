"""Training the models that audits are tried on: undefended, adversarially trained, and masked.

`train` returns a trained module, `save_trained` writes it so that `maskaudit check FILE`
needs no further option. The networks of the GREAT family are subjects of study, not a
defence; see `maskaudit.train.great` for the patent applications on them.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskaudit.data import NAMED as BUILT_IN
from maskaudit.data import Dataset, load_data
from maskaudit.loading import arch, save_checkpoint
from maskaudit.networks.registry import is_built_in, spec_for
from maskaudit.rng import PointRNG
from maskaudit.target.scores import detect_outputs
from maskaudit.train import checkpoint
from maskaudit.train.checkpoint import partial_path
from maskaudit.train.interface import (
    Batch,
    Method,
    TrainConfig,
    TrainEvent,
    TrainingInterrupted,
    TrainPlan,
    default_threat,
)
from maskaudit.train.loop import Listener, Trainer, accuracy, isolated
from maskaudit.train.picture import check_picture
from maskaudit.train.registry import METHODS, MethodInfo, method_info

__all__ = [
    "METHODS",
    "Batch",
    "Method",
    "MethodInfo",
    "TrainConfig",
    "TrainEvent",
    "TrainPlan",
    "TrainingInterrupted",
    "partial_path",
    "save_trained",
    "train",
]

#: Points whose answers tell what a trained module returns.
ANSWERS = 64
#: Options whose default is the method's.
DEFAULTED = ("epochs", "lr", "schedule", "augment", "alpha", "beta", "temperature")


def train(
    config: TrainConfig, *, data: Dataset | None = None, out: str | os.PathLike[str] | None = None,
    on_event: Listener | None = None, resume: bool = False, picture: str | os.PathLike[str] | None = None,
    method: MethodInfo | None = None,
) -> nn.Module:  # fmt: skip
    """Train a model from scratch, deterministically; the caller's random state and thread count are kept.

    Args:
        config: method, data, architecture, seed and so on.
        data: points to use instead of the train split of `config.data`.
        out: file the model is meant for. Progress is then kept in `OUT.partial` after every
            epoch, until `save_trained` has written the file.
        on_event: called after every epoch.
        resume: go on from `OUT.partial` if it exists; otherwise, or if not set, start anew.
        picture: file (.svg, .png, .pdf) that shows loss, accuracies and logit scale, rewritten after every epoch.
        method: how to train, in place of the method that `config.method` names in `METHODS`.

    Returns:
        The trained module, in evaluation mode.

    Raises:
        UsageError: for an unknown method, a bad setting, or a run to resume that had other settings.
        InputError: for data, architecture or progress file that cannot be used.
        ModelError: when the loss stops being finite.
        TrainingInterrupted: on Ctrl-C, a KeyboardInterrupt whose message says how to go on.
    """
    dataset = _dataset(config, data)
    info = method or method_info(config.method)
    plan = _plan(config, dataset, info)
    partial = partial_path(out) if out is not None else None
    drawn = Path(picture) if picture is not None else None
    if drawn is not None:
        check_picture(drawn)
    with isolated(config.seed, config.threads):
        model = arch.build(plan.model)
        trainer = Trainer(
            plan,
            model,
            info.create(plan, model),
            dataset.x,
            dataset.y,
            on_event=on_event,
            partial=partial,
            picture=drawn,
            settings=_settings(plan),
        )
        trainer.run(resume=resume)
    return model


def save_trained(
    path: str | os.PathLike[str],
    module: nn.Module,
    config: TrainConfig,
    *,
    data: Dataset | None = None,
    method: MethodInfo | None = None,
) -> dict[str, Any]:
    """Write a trained module with everything `maskaudit check` needs; then delete the run's progress file.

    Args:
        path: file to write (safetensors).
        module: what `train` returned.
        config: the settings it was trained with.
        data: the points it was trained on, if not the train split of `config.data`.
        method: as given to `train`.

    Returns:
        The metadata as written: arch, data (or trained_on), threat {norm, eps, bounds}, outputs, method, epochs, seed,
        train_accuracy and the remaining settings under `training`.

    Raises:
        InputError: when the file cannot be written.
    """
    dataset = _dataset(config, data)
    plan = _plan(config, dataset, method or method_info(config.method))
    metadata = {
        "arch": plan.model,
        **_data_fields(config.data),
        "threat": _threat_fields(plan),
        "outputs": _outputs(module, dataset),
        "method": config.method,
        "epochs": plan.epochs,
        "seed": config.seed,
        "train_accuracy": accuracy(module, dataset.x, dataset.y),
        "training": _settings(plan),
    }
    save_checkpoint(path, module, metadata)
    checkpoint.remove(partial_path(path))
    return metadata


def _data_fields(source: str) -> dict[str, str]:
    """A model file can only name built-in data; others are kept as words for the reader."""
    return {"data": source} if source in BUILT_IN else {"trained_on": source[:1000]}


def _outputs(module: nn.Module, dataset: Dataset) -> str:
    """What the module returns, recognised by its answers to a few points."""
    with torch.no_grad():
        return detect_outputs(module.eval()(dataset.x[:ANSWERS]))


def _dataset(config: TrainConfig, data: Dataset | None) -> Dataset:
    if data is None:
        data = load_data(config.data, split="train", bounds=config.threat.bounds if config.threat else None)
    return share_of(data, config.fraction, config.seed)


def share_of(data: Dataset, fraction: float, seed: int) -> Dataset:
    """The same share of each class, at least one point, drawn by the seed; the order is kept."""
    if fraction == 1:
        return data
    keys = PointRNG.create(seed, "train.fraction", torch.arange(len(data))).integers(2**53)
    kept = torch.zeros(len(data), dtype=torch.bool)
    for label in data.y.unique():
        rows = (data.y == label).nonzero().squeeze(1)
        kept[rows[torch.argsort(keys[rows], stable=True)[: math.ceil(fraction * len(rows))]]] = True
    return replace(data, x=data.x[kept], y=data.y[kept])


def _plan(config: TrainConfig, dataset: Dataset, info: MethodInfo) -> TrainPlan:
    """The configuration with the defaults of its method and data filled in."""
    shape = dataset.point_shape
    spec = config.model or info.model
    built_in = spec is None or is_built_in(spec)
    own = {name: getattr(config, name) for name in DEFAULTED}
    settled = {name: getattr(info, name) if value is None else value for name, value in own.items()}
    return TrainPlan(
        config=config,
        model=spec_for(shape, dataset.num_classes, spec) if built_in else str(spec),
        threat=config.threat if config.threat is not None else default_threat(shape, dataset.bounds),
        num_classes=dataset.num_classes,
        shape=shape,
        **settled,
    )


def _settings(plan: TrainPlan) -> dict[str, Any]:
    """What determines the run, as plain JSON types."""
    resolved = {name: getattr(plan, name) for name in ("model", *DEFAULTED)}
    return {**plan.config.as_dict(), **resolved, "threat": _threat_fields(plan)}


def _threat_fields(plan: TrainPlan) -> dict[str, Any]:
    return {"norm": plan.threat.norm, "eps": plan.threat.eps, "bounds": list(plan.threat.bounds)}
