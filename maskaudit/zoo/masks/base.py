"""What all masks share: a network inside, settings that show in `repr`, and the way back out."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from maskaudit.repairs.graft import graft
from maskaudit.zoo.interface import Unmaskable

#: Attributes of every module that are no settings.
_NOT_SETTINGS = ("training",)


class Described(nn.Module):
    """A module whose `repr` names its settings, so that two masks of different strength read differently."""

    def extra_repr(self) -> str:
        """Numbers, texts and switches among the attributes, in alphabetical order."""
        settings = {
            name: value
            for name, value in sorted(vars(self).items())
            if not name.startswith("_") and name not in _NOT_SETTINGS and isinstance(value, (bool, int, float, str))
        }
        return ", ".join(f"{name}={value}" for name, value in settings.items())


class Mask(Described):
    """Something around a network that hides its gradient; without it, the network inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def unmasked(self) -> nn.Module:
        """The network inside, itself without masks."""
        return unmask(self.network)


class FrontMask(Mask):
    """Something that changes the input before the network sees it."""

    def front(self, x: Tensor) -> Tensor:
        """The input (N, …) as the network gets it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, K) of the changed input."""
        return self.network(self.front(x))

    def unmasked(self) -> nn.Module:
        """The same function, with the backward pass of the identity in place of the front's own."""
        return StraightThrough(self.front, unmask(self.network))


class StraightThrough(nn.Module):
    """A front whose backward pass is that of the identity (Athalye et al. 2018, section 4.1: BPDA)."""

    def __init__(self, front: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.front, self.network = front, network

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, K)."""
        changed = self.front(x.detach()).detach()
        return self.network(graft(changed, x) if x.requires_grad else changed)


def unmask(module: nn.Module) -> nn.Module:
    """A copy of `module` in which everything that masks, at any depth, is replaced by what it masks."""
    if isinstance(module, Unmaskable):
        return module.unmasked()
    twin = copy.deepcopy(module)
    for name, child in list(twin.named_children()):
        setattr(twin, name, unmask(child))
    return twin.eval()
