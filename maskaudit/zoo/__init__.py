"""Small models whose truth is known: what every verdict is tested against.

Each entry is a network, trained once and cached, and for most something put around it
that hides its gradient. An entry is one line in `unmasked`, `trained` or `wrapped`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from maskaudit.data import load_data
from maskaudit.errors import UsageError, meant
from maskaudit.loading import LoadedModel
from maskaudit.loading.interface import count_parameters, state_digest
from maskaudit.zoo import trained, unmasked, wrapped
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.networks import network

__all__ = ["ZOO", "ZooEntry", "load", "network"]

ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in (*unmasked.ENTRIES, *trained.ENTRIES, *wrapped.ENTRIES)}


def load(name: str) -> LoadedModel:
    """The zoo model `name`, its network trained first if it is not in the cache.

    Raises:
        UsageError: for a name that the zoo does not have.
    """
    if name not in ZOO:
        raise UsageError(f"The zoo has no model {name!r}{meant(name, ZOO)}; `maskaudit zoo list` shows what it has.")
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
        metadata=_metadata(entry, inner.metadata, module),
        notes=(f"A model of the zoo: {entry.title}.",),
    )


def certified_accuracy(entry: ZooEntry, module: nn.Module, eps: float) -> float | None:
    """Share of all test points of the entry's data that its certificate proves robust at radius `eps`; None without.

    A fraction in [0, 1] that no attack inside the ball can go below.
    """
    if entry.certificate is None:
        return None
    data = load_data(entry.data, split="test")
    return float(entry.certificate(module, data.x, data.y, eps).double().mean())


def _metadata(entry: ZooEntry, trained: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """What the network's file says, with the entry's own data and ball, and what is certified in it."""
    ball = trained["threat"]
    eps = entry.radius(ball)
    declared = {**trained, "data": entry.data, "outputs": "auto", "threat": {**ball, "norm": entry.norm, "eps": eps}}
    certified = certified_accuracy(entry, module, eps) if eps is not None else None
    return declared if certified is None else {**declared, "certified": certified}
