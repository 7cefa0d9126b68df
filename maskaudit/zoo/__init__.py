"""Small models whose truth is known: what every verdict is tested against.

Each entry is a network, trained once and cached, and for most something put around it
that hides its gradient. An entry is one line in `unmasked`, `trained` or `wrapped`.
"""

from __future__ import annotations

from torch import nn

from maskaudit.errors import UsageError
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
