"""The network behind a target, recorded once however many ask for it."""

from __future__ import annotations

from torch import Tensor

from maskaudit.bounds.capture import captured
from maskaudit.bounds.network import Network, UnboundableError
from maskaudit.target import Target

#: Points on which a recorded network is held against the model.
COMPARED = 16


def network_of(target: Target, x: Tensor) -> Network:
    """The network of `captured`, held against the model on the first of the inputs (N, …) that are given first.

    Raises:
        UnboundableError: as `captured`, every time.
    """
    found = target.worked_out.get("network")
    if found is None:
        try:
            found = captured(target, x[:COMPARED])
        except UnboundableError as reason:
            found = reason
        target.worked_out["network"] = found
    if isinstance(found, UnboundableError):
        raise UnboundableError(str(found)) from found
    assert isinstance(found, Network)
    return found
