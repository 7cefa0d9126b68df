"""Small models whose truth is known: what `masked` and `not masked` are tested against.

Each entry is a network trained on the embedded digits and, for most, one wrapper
that hides its gradient. Networks are trained once and cached (`$MASKAUDIT_CACHE`,
by default `~/.cache/maskaudit`); training is deterministic.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from maskaudit import __version__
from maskaudit.errors import UsageError
from maskaudit.loading import LoadedModel, load_model
from maskaudit.loading.interface import count_parameters, state_digest
from maskaudit.train import METHODS, TrainConfig, save_trained, train
from maskaudit.zoo.masks import (
    HardLabels,
    QuantisedInput,
    ScaledLogits,
    SharpSoftmax,
    SineInput,
    SoftmaxOutput,
    ZeroBackward,
    saturate,
)

__all__ = ["ZOO", "ZooEntry", "load"]


@dataclass(frozen=True)
class ZooEntry:
    """One model of known truth.

    Attributes:
        name: as in `zoo:NAME`.
        title: one line.
        masked: whether its gradients hide its weakness, established by attacks on the unmasked network.
        level: "gradient", "loss" or "" where it is not masked.
        network: key of the network inside, see `NETWORKS`.
        wrap: what is put around it.
    """

    name: str
    title: str
    masked: bool
    level: str
    network: str
    wrap: Callable[[nn.Module], nn.Module] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain form, without the wrapper."""
        return {key: value for key, value in asdict(self).items() if key != "wrap"}


#: How the networks inside are trained; everything else is the trainer's default.
NETWORKS: dict[str, TrainConfig] = {
    "standard": TrainConfig(method="standard"),
    "standard-tanh": TrainConfig(method="standard", model='small_cnn(activation="tanh")'),
    "pgd-at": TrainConfig(method="pgd-at"),
    "trades": TrainConfig(method="trades"),
    "fgsm-at": TrainConfig(method="fgsm-at"),
    "greace": TrainConfig(method="greace"),
    "great+ce": TrainConfig(method="great+ce"),
}

_ENTRIES = (
    ZooEntry("standard", "Standard training", False, "", "standard"),
    ZooEntry("pgd-at", "PGD adversarial training", False, "", "pgd-at"),
    ZooEntry("trades", "TRADES", False, "", "trades"),
    ZooEntry("fgsm-at", "FGSM adversarial training", False, "", "fgsm-at"),
    ZooEntry("standard-softmax", "Standard, probabilities as output", False, "", "standard", SoftmaxOutput),
    ZooEntry("pgd-at-x3", "PGD-trained, logits × 3", False, "", "pgd-at", lambda n: ScaledLogits(n, 3.0)),
    ZooEntry("quantised", "Standard, input rounded to 4 levels", True, "gradient", "standard",
             lambda n: QuantisedInput(n, 4)),
    ZooEntry("logits-x1e4", "Standard, logits × 10 000", True, "loss", "standard", lambda n: ScaledLogits(n, 1e4)),
    ZooEntry("softmax-x50", "Standard, softmax(50 z) as output", True, "gradient", "standard",
             lambda n: SharpSoftmax(n, 50.0)),
    ZooEntry("zero-backward", "Standard, backward pass replaced by zero", True, "gradient", "standard", ZeroBackward),
    ZooEntry("saturated-tanh", "Standard, tanh activations 100 times too steep", True, "gradient", "standard-tanh",
             lambda n: saturate(n, 100.0)),
    ZooEntry("sine-input", "Standard, input + 0.02 sin(2000 x)", True, "gradient", "standard", SineInput),
    ZooEntry("hard-labels", "Standard, one-hot answers", True, "gradient", "standard", HardLabels),
    ZooEntry("pgd-at-x100", "PGD-trained, logits × 100", True, "loss", "pgd-at", lambda n: ScaledLogits(n, 100.0)),
    ZooEntry("pgd-at-quantised", "PGD-trained, input rounded to 4 levels", True, "gradient", "pgd-at",
             lambda n: QuantisedInput(n, 4)),
    ZooEntry("great+ce", "GRE(AT+CE), no batch norm", True, "loss", "great+ce"),
    ZooEntry("greace", "GREACE, no batch norm", True, "loss", "greace"),
)  # fmt: skip

ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}


def cache_folder() -> Path:
    """Where trained networks are kept."""
    given = os.environ.get("MASKAUDIT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "maskaudit"


def load(name: str) -> LoadedModel:
    """The zoo model `name`, its network trained first if it is not in the cache.

    Raises:
        UsageError: for a name that the zoo does not have.
    """
    if name not in ZOO:
        raise UsageError(f"The zoo has no model {name!r}; `maskaudit zoo list` shows what it has.")
    entry = ZOO[name]
    inner = network(entry.network)
    module = inner.module
    assert isinstance(module, nn.Module)
    if entry.wrap is not None:
        module = entry.wrap(module).eval()
    return LoadedModel(
        module=module,
        source=f"zoo:{name}",
        format="zoo",
        sha256=state_digest(module),
        parameters=count_parameters(module),
        metadata={**inner.metadata, "outputs": "auto"},
        notes=(f"A model of the zoo: {entry.title}.",),
    )


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
