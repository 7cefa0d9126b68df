"""A network seen through one of its branches, a module of it: the same answers, and part of the gradient.

The gradient of a network is a sum over the ways from the output to the input. Alone, a branch gets only the ways
through it; masked, all others; silenced, it answers zero, so that neither data nor gradient pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskaudit.errors import UsageError, meant
from maskaudit.target import Target
from maskaudit.trace.behaviour import copy_of

View = Literal["alone", "masked", "silenced"]


@dataclass(frozen=True)
class BranchModel:
    """The network, called in its place.

    Args:
        model: the network; branch: path of the module that ends the branch, as in `named_modules`.
        view: what of the branch is left.
    """

    model: nn.Module
    branch: str
    view: View

    def __call__(self, x: Tensor) -> Any:
        """What the network answers to inputs (N, …).

        Raises:
            UsageError: when the branch did not run, or made something other than a tensor.
        """
        if self.view == "alone":
            return self._alone(x)
        with self._outputs(torch.zeros_like if self.view == "silenced" else Tensor.detach):
            return self.model(x)

    def _alone(self, x: Tensor) -> Any:
        """Two passes: what the branch makes of `x`, then the rest of the network off the graph but for that."""
        made: list[Tensor] = []

        def keep(output: Tensor) -> Tensor:
            made.append(output)
            return output

        with self._outputs(keep):
            answer = self.model(x)
        if not x.requires_grad:
            return answer
        again = iter(made)
        with self._outputs(lambda output: next(again, output)):
            return self.model(x.detach())

    @contextlib.contextmanager
    def _outputs(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Change whatever the branch makes while the context is open."""
        runs = 0

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
            nonlocal runs
            runs += 1
            if not isinstance(output, Tensor):
                raise UsageError(f"The branch {self.branch} returns {type(output).__name__}; name a module whose "
                                 "result is one tensor.")  # fmt: skip
            return change(output)

        handle = self.model.get_submodule(self.branch).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        if not runs:
            raise UsageError(f"The branch {self.branch} does not run in a forward pass of this model.")


def through_branch(target: Target, branch: str, view: View) -> Target:
    """A target that decides like `target`, unless the branch is silenced; passes count in the same ledger."""
    assert isinstance(target.model, nn.Module)
    return copy_of(target, BranchModel(target.model, branch, view), draws=target.draws)


def check_branches(model: object, branches: tuple[str, ...]) -> None:
    """Raise UsageError for a branch that is no module of the model, or that cannot be watched."""
    if not branches:
        return
    if not isinstance(model, nn.Module):
        raise UsageError("--branch names a module, and a black box or plain callable shows none.")
    modules = dict(model.named_modules())
    for branch in branches:
        if branch not in modules or not branch:
            hint = meant(branch, modules)
            raise UsageError(f"The model has no module {branch!r}{hint}; `maskaudit inspect` lists its branches.")
        if isinstance(modules[branch], torch.jit.ScriptModule):
            raise UsageError(
                f"The branch {branch} is TorchScript, whose modules cannot be watched from outside; give the module's "
                "weights with --arch, or export it as .pt2 or ONNX, where `maskaudit inspect` lists the branches."
            )
