"""The networks inside the zoo's models: trained once, deterministically, and cached."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from maskaudit import __version__
from maskaudit.loading import LoadedModel, load_model
from maskaudit.train import METHODS, TrainConfig, save_trained, train

#: How each network is trained; everything else is the trainer's default.
NETWORKS: dict[str, TrainConfig] = {
    "standard": TrainConfig(method="standard"),
    "standard-tanh": TrainConfig(method="standard", model='small_cnn(activation="tanh")'),
    "pgd-at": TrainConfig(method="pgd-at"),
    "trades": TrainConfig(method="trades"),
    "fgsm-at": TrainConfig(method="fgsm-at"),
    "greace": TrainConfig(method="greace"),
    "great+ce": TrainConfig(method="great+ce"),
}


def cache_folder() -> Path:
    """Where trained networks are kept: `$MASKAUDIT_CACHE`, by default `~/.cache/maskaudit`."""
    given = os.environ.get("MASKAUDIT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "maskaudit"


def network(name: str) -> LoadedModel:
    """A network of `NETWORKS`, from the cache if it is there, else trained now."""
    config = NETWORKS[name]
    info = METHODS[config.method]
    recipe = json.dumps([config.as_dict(), info.epochs, info.lr, __version__], sort_keys=True)
    path = cache_folder() / f"{config.data}-{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_trained(path, train(config), config)
    return load_model(str(path))
