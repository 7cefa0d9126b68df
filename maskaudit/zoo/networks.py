"""The networks inside the zoo's models: trained once, deterministically, and cached."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maskaudit import __version__
from maskaudit.data import Dataset, load_data
from maskaudit.errors import UsageError
from maskaudit.loading import LoadedModel, load_file
from maskaudit.threat import ThreatModel
from maskaudit.train import METHODS, MethodInfo, TrainConfig, partial_path, save_trained, train
from maskaudit.zoo.recipes import RECIPES

#: The ball of the networks on Fashion-MNIST; 0.3, customary for 28×28 grey images, leaves nothing to defend there.
FASHION_THREAT = ThreatModel("Linf", 0.1)
#: Training points of Fashion-MNIST that are used, so that a network trains in minutes on one core.
FASHION_POINTS = 10_000


#: The customary L2 ball of the digits, and half of it for the smoothed network, which certifies little beyond.
DIGITS_L2 = ThreatModel("L2", 0.8)
SMOOTHED_L2 = ThreatModel("L2", 0.4)
#: The ball in which one-step training overfits on the digits within seconds; at ε = 0.2 no setting tried did.
OVERFITTING_THREAT = ThreatModel("Linf", 0.35)


@dataclass(frozen=True)
class ZooNetwork:
    """How a network is trained; what is not given is the trainer's default.

    Attributes:
        config: settings of the trainer; `method` is one of the trainer's, or of `maskaudit.zoo.recipes`.
        options: settings of a method of `maskaudit.zoo.recipes`.
        points: how many of the first training points are used; all if None.
    """

    config: TrainConfig
    options: Mapping[str, float] = field(default_factory=dict)
    points: int | None = None

    @property
    def info(self) -> MethodInfo:
        """The method, with its options applied."""
        method = {**METHODS, **RECIPES}[self.config.method]
        return replace(method, create=functools.partial(method.create, **self.options)) if self.options else method

    def recipe(self) -> list[Any]:
        """Everything that determines the trained weights, as plain JSON types."""
        parts = [self.config.chosen(), self.info.epochs, self.info.lr, __version__]
        return [*parts, dict(self.options), self.points] if self.options or self.points else parts

    def data(self) -> Dataset:
        """The points that it is trained on."""
        bounds = self.config.threat.bounds if self.config.threat else None
        every = load_data(self.config.data, split="train", bounds=bounds)
        if self.points is None:
            return every
        return replace(every, x=every.x[: self.points].clone(), y=every.y[: self.points].clone())


def _digits(method: str, model: str | None = None, **settings: Any) -> ZooNetwork:
    return ZooNetwork(*_settings(method, model, settings))


def _fashion(method: str, model: str = "small_cnn(width=8)", **settings: Any) -> ZooNetwork:
    settings = {"data": "fashion-mnist", "threat": FASHION_THREAT, **settings}
    return ZooNetwork(*_settings(method, model, settings), points=FASHION_POINTS)


def _settings(method: str, model: str | None, given: dict[str, Any]) -> tuple[TrainConfig, dict[str, float]]:
    """The trainer's settings, and what remains as options of the recipe."""
    known = {key: given.pop(key) for key in list(given) if key in TrainConfig.__dataclass_fields__}
    return TrainConfig(method=method, model=model, **known), given


#: How each network is trained.
NETWORKS: dict[str, ZooNetwork] = {
    "standard": _digits("standard"),
    "standard-tanh": _digits("standard", 'small_cnn(activation="tanh")'),
    "pgd-at": _digits("pgd-at"),
    "trades": _digits("trades"),
    "fgsm-at": _digits("fgsm-at"),
    "greace": _digits("greace-reduced"),
    "great+ce": _digits("great+ce-reduced"),
    "leaky-relu": _digits("standard", 'small_cnn(activation="leaky_relu")'),
    "gelu": _digits("standard", 'small_cnn(activation="gelu")'),
    "sigmoid-deep": _digits("standard", 'mlp(hidden=(64, 64, 64), activation="sigmoid")', epochs=80),
    "resnet": _digits("standard", "small_resnet", epochs=30, lr=3e-3),
    "vit": _digits("standard", "small_vit", epochs=60, lr=3e-3),
    "batch-norm": _digits("standard", "small_cnn(batch_norm=True)"),
    "quantisation-aware": _digits("standard", "small_cnn(bits=4)", lr=3e-3),
    "label-smoothing": _digits("label-smoothing"),
    "fast-at": _digits("fast-at"),
    "ibp": _digits("ibp"),
    "smoothed": _digits("standard", "smoothed_units", epochs=60, lr=1e-2, threat=SMOOTHED_L2),
    "pgd-at-dead": _digits("dead-units", "small_cnn(width=32)"),
    "pgd-at-bounded": _digits("pgd-at", "small_cnn(bound=5.0)"),
    "pgd-at-dropout": _digits("pgd-at", "small_cnn(dropout=0.3)"),
    "alp": _digits("alp"),
    "pgd-at-l2": _digits("pgd-at", threat=DIGITS_L2),
    "resnet-pgd-at": _digits("pgd-at", "small_resnet", epochs=40, lr=3e-3),
    "distilled": _digits("distill"),
    "clp": _digits("clp"),
    "lsq": _digits("lsq"),
    "feature-scattering": _digits("feature-scattering"),
    "gradient-regularised": _digits("gradient-regularised"),
    "pcl": _digits("pcl"),
    "adp": _digits("adp", "small_cnn(members=3, width=8)"),
    "planted": _digits("planted", weight=1.0),
    "fgsm-at-long": _digits("fgsm-at", epochs=80, lr=6e-3),
    "fgsm-at-overfitted": _digits(
        "fgsm-at", "small_cnn(batch_norm=True)", epochs=80, lr=3e-3, threat=OVERFITTING_THREAT
    ),
    "bent-surface": _digits("bent-surface", 'small_cnn(activation="tanh")'),
    "trapped-corner": _digits("trapped-corner", "mlp(hidden=(512,))"),
    "gaussian-noise": _digits("gaussian-noise", "small_cnn(width=8)", threat=SMOOTHED_L2),
    "great": _digits("great-reduced"),
    "great-strong": _digits("great-reduced", alpha=0.1),
    "greace-weak": _digits("greace-reduced", beta=0.001),
    "greace-strong": _digits("greace-reduced", beta=0.01),
    "great+ce-weak": _digits("great+ce-reduced", alpha=0.003, beta=0.001),
    "great+ce-strong": _digits("great+ce-reduced", alpha=0.03, beta=0.01),
    "great+ce-batch-norm": _digits("great+ce-reduced", "small_cnn(batch_norm=True)"),
    "fashion-standard": _fashion("standard", epochs=8, lr=3e-3),
    "fashion-pgd-at": _fashion("pgd-at", epochs=10, lr=3e-3, attack_steps=5),
    "fashion-batch-norm": _fashion("standard", "small_cnn(width=8, batch_norm=True)", epochs=8, lr=3e-3),
    "fashion-trades": _fashion("trades", epochs=8, lr=3e-3, attack_steps=5),
    "fashion-fast-at": _fashion("fast-at", epochs=12, lr=1e-3),
    "fashion-ibp": _fashion("ibp", epochs=14, lr=2e-3),
    "fashion-fgsm-at": _fashion("fgsm-at", epochs=15, lr=5e-4),
    "fashion-distilled": _fashion("distill", epochs=10, lr=3e-3),
    "fashion-great+ce": _fashion("great+ce-reduced", epochs=12, lr=5e-3),
    "fashion-great+ce-strong": _fashion("great+ce-reduced", epochs=12, lr=5e-3, beta=0.02),
}


def cache_folder() -> Path:
    """Where trained networks are kept: `$MASKAUDIT_CACHE`, by default `~/.cache/maskaudit`."""
    given = os.environ.get("MASKAUDIT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "maskaudit"


def cache_path(name: str) -> Path:
    """The file of a network, whether or not it is there; its name changes with the recipe."""
    spec = NETWORKS[name]
    recipe = json.dumps(spec.recipe(), sort_keys=True)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return cache_folder() / f"{spec.config.data}-{name}-{digest}.safetensors"


def network(name: str) -> LoadedModel:
    """A network of `NETWORKS`, from the cache if it is there, else trained now, from where an earlier run was stopped.

    Raises:
        UsageError: for a name that is not in `NETWORKS`.
    """
    if name not in NETWORKS:
        raise UsageError(f"The zoo has no network {name!r}; it has {', '.join(NETWORKS)}.")
    path = cache_path(name)
    if not path.is_file():
        spec = NETWORKS[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        data = spec.data()
        resume = partial_path(path).exists()
        module = train(spec.config, data=data, out=path, resume=resume, method=spec.info)
        save_trained(path, module, spec.config, data=data, method=spec.info)
    return load_file(str(path))
