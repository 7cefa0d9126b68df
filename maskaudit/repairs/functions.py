"""Custom autograd Functions with the derivative of their own forward instead of the backward they came with.

The backward is computed by running the forward again under autograd. Where that
gives nothing (a staircase, numpy inside), the gradient passes as through the
identity if the output is a rearranged likeness of the input, else central
differences along random directions stand in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from maskaudit.sums import column
from maskaudit.verdict.limits import LIKENESS

#: Random directions of the difference estimate, and their length in standard deviations of the input:
#: long enough to see the trend of a staircase over its steps.
DIRECTIONS = 32
DIFFERENCE_STEP = 0.3

_NOTE = "_maskaudit_arguments"


class FunctionPatches:
    """Functions of the given names whose backward is replaced until `undo`.

    Args:
        names: class names of the Functions.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self._originals: list[tuple[type, str, Any]] = []
        self._patched: set[type] = set()

    def install(self) -> None:
        """Patch every Function known so far."""
        if self.names:
            for function in _subclasses(torch.autograd.Function):
                self.meet(function)

    def meet(self, function: type) -> None:
        """Patch this Function if it is one of the named and not torch's own."""
        ours = function.__name__ in self.names and function.__module__.split(".")[0] != "torch"
        if not ours or function in self._patched or "forward" not in dir(function):
            return
        self._patched.add(function)
        original: Callable[..., Any] = function.forward  # type: ignore[attr-defined]
        separate = function.setup_context is not torch.autograd.Function.setup_context  # type: ignore[attr-defined]
        if separate:
            setup: Callable[..., Any] = function.setup_context  # type: ignore[attr-defined]

            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                _remember(ctx, inputs)
                setup(ctx, inputs, output)

            self._set(function, "setup_context", staticmethod(setup_context))
            run = original
        else:

            def forward(ctx: Any, *arguments: Any, **keywords: Any) -> Any:
                _remember(ctx, arguments)
                return original(ctx, *arguments, **keywords)

            self._set(function, "forward", staticmethod(forward))

            def run(*arguments: Any) -> Any:
                return original(_Context(), *arguments)

        def backward(ctx: Any, *gradients: Tensor | None) -> Any:
            return _derivative(run, getattr(ctx, _NOTE, None), gradients, ctx.needs_input_grad)

        has_vjp = function.vjp is not torch.autograd.Function.vjp  # type: ignore[attr-defined]
        self._set(function, "vjp" if has_vjp else "backward", staticmethod(backward))  # torch takes one of them only

    def undo(self) -> None:
        """Give every patched Function its methods back."""
        for function, name, value in reversed(self._originals):
            if value is None:
                delattr(function, name)
            else:
                setattr(function, name, value)
        self._originals.clear()
        self._patched.clear()

    def _set(self, function: type, name: str, value: Any) -> None:
        self._originals.append((function, name, function.__dict__.get(name)))
        setattr(function, name, value)


class _Context:
    """A substitute for `ctx` while a forward runs again: accepts everything, keeps what it is given."""

    needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _remember(ctx: Any, arguments: tuple[Any, ...]) -> None:
    setattr(ctx, _NOTE, tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in arguments))


def _derivative(
    run: Callable[..., Any], arguments: tuple[Any, ...] | None, gradients: tuple[Tensor | None, ...], needed: Any
) -> tuple[Tensor | None, ...]:
    """Gradient for each argument: exact where the forward has one, else a likeness or an estimate of it."""
    if arguments is None:  # made before the patch
        return (None,) * len(needed)
    places = [
        i for i, a in enumerate(arguments)
        if i < len(needed) and needed[i] and isinstance(a, Tensor) and a.is_floating_point()
    ]  # fmt: skip
    exact = _exact(run, arguments, places, gradients)
    results: list[Tensor | None] = [None] * len(needed)
    for place, gradient in zip(places, exact, strict=True):
        if gradient is not None and bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any()):
            results[place] = gradient
        else:
            results[place] = _estimate(run, arguments, place, gradients)
    return tuple(results)


def _exact(
    run: Callable[..., Any], arguments: tuple[Any, ...], places: list[int], gradients: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    swapped = list(arguments)
    for place in places:
        swapped[place] = arguments[place].clone().requires_grad_(True)
    leaves = [swapped[place] for place in places]
    try:
        with torch.enable_grad():
            outputs = _outputs(run(*(leaf * 1 if isinstance(leaf, Tensor) else leaf for leaf in swapped)))
            pairs = [
                (o, g) for o, g in zip(outputs, gradients, strict=False)
                if isinstance(o, Tensor) and o.requires_grad and g is not None
            ]  # fmt: skip
            if not pairs:
                return [None] * len(places)
            return list(torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True))
    except Exception:  # numpy inside, a ctx that must answer, or whatever foreign code raises
        return [None] * len(places)


def _estimate(
    run: Callable[..., Any], arguments: tuple[Any, ...], place: int, gradients: tuple[Tensor | None, ...]
) -> Tensor | None:
    base: Tensor = arguments[place]

    def values(moved: Tensor) -> list[Any]:
        swapped = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        swapped[place] = moved
        with torch.no_grad():
            return list(_outputs(run(*swapped)))

    try:
        here = values(base.clone())
        for output, gradient in zip(here, gradients, strict=False):
            if gradient is not None and isinstance(output, Tensor) and _alike(output, base):
                return gradient.reshape(base.shape).to(base.dtype)
        return _differences(values, base, gradients)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return None


def _differences(
    values: Callable[[Tensor], list[Any]], base: Tensor, gradients: tuple[Tensor | None, ...]
) -> Tensor | None:
    """Mean over random signs d of ⟨v, f(a+hd) − f(a−hd)⟩ d / 2h, row by row where rows can be separated."""
    spread = float(base.double().std()) if base.numel() > 1 else 1.0
    step = DIFFERENCE_STEP * (spread if spread > 0 else 1.0)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros_like(base)
    for _ in range(DIRECTIONS):
        signs = (2.0 * torch.randint(0, 2, base.shape, generator=generator) - 1.0).to(base)
        gain = torch.zeros(len(base), dtype=base.dtype, device=base.device)
        for plus, minus, gradient in zip(values(base + step * signs), values(base - step * signs), gradients,
                                         strict=False):  # fmt: skip
            if gradient is None or not isinstance(plus, Tensor):
                continue
            change = (plus - minus) * gradient
            rows = change.flatten(1).sum(dim=1) if change.dim() > 1 and len(change) == len(base) else change.sum()
            gain = gain + rows
        total += column(gain, base) * signs
    return total / (2 * step * DIRECTIONS)


def _alike(output: Tensor, base: Tensor) -> bool:
    """Whether `output` is `base`, perhaps in another shape, up to what a staircase does to it."""
    if output.numel() != base.numel() or not output.is_floating_point():
        return False
    pair = torch.stack([output.flatten().double(), base.flatten().double()])
    correlation = torch.corrcoef(pair)[0, 1] if base.numel() > 1 else torch.tensor(1.0)
    return bool(correlation > LIKENESS)


def _outputs(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)
