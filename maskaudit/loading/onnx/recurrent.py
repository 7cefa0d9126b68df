"""ONNX recurrent layers (RNN, GRU, LSTM), one step at a time as the operator specification writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.loading.onnx.attributes import Attributes, ints, some

Activation = Callable[[Tensor], Tensor]
_Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
#: Longest sequence.
MAX_STEPS = 4_096


def rnn(
    a: Attributes, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Any:  # fmt: skip
    """RNN: h ← f(x W + h R + b)."""

    def cell(f: Sequence[Activation], w: Tensor, r: Tensor, wb: Tensor, rb: Tensor) -> _Step:
        return lambda x, state: (f[0](x @ w.mT + state[0] @ r.mT + wb + rb),)

    return _run(a, x, w, r, b, lengths, (hidden,), ("Tanh",), 1, cell)


def gru(
    a: Attributes, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Any:  # fmt: skip
    """GRU: gates in the order update, reset, hidden."""

    def cell(f: Sequence[Activation], w: Tensor, r: Tensor, wb: Tensor, rb: Tensor) -> _Step:
        (wz, wr, wh), (rz, rr, rh) = w.chunk(3), r.chunk(3)
        (bz, br, bh), (cz, cr, ch) = wb.chunk(3), rb.chunk(3)

        def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (h,) = state
            update = f[0](x @ wz.mT + h @ rz.mT + bz + cz)
            reset = f[0](x @ wr.mT + h @ rr.mT + br + cr)
            if a.get("linear_before_reset", 0):
                new = f[1](x @ wh.mT + reset * (h @ rh.mT + ch) + bh)
            else:
                new = f[1](x @ wh.mT + (reset * h) @ rh.mT + ch + bh)
            return ((1 - update) * new + update * h,)

        return step

    return _run(a, x, w, r, b, lengths, (hidden,), ("Sigmoid", "Tanh"), 3, cell)


def lstm(
    a: Attributes, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None, memory: Tensor | None = None, peepholes: Tensor | None = None,
) -> Any:  # fmt: skip
    """LSTM: gates in the order input, output, forget, cell; peepholes in the order input, output, forget."""
    direction = iter(range(len(w)))

    def cell(f: Sequence[Activation], w: Tensor, r: Tensor, wb: Tensor, rb: Tensor) -> _Step:
        number = next(direction)
        pi, po, pf = (0.0, 0.0, 0.0) if peepholes is None else peepholes[number].chunk(3)

        def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h, c = state
            i, o, g, n = (x @ w.mT + h @ r.mT + wb + rb).chunk(4, dim=-1)
            enter = f[0](i + pi * c)
            forget = 1 - enter if a.get("input_forget", 0) else f[0](g + pf * c)
            c = forget * c + enter * f[1](n)
            return f[0](o + po * c) * f[2](c), c

        return step

    return _run(a, x, w, r, b, lengths, (hidden, memory), ("Sigmoid", "Tanh", "Tanh"), 4, cell)


def _run(
    a: Attributes, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None,
    start: tuple[Tensor | None, ...], usual: tuple[str, ...], gates: int, cell: Callable[..., _Step],
) -> Any:  # fmt: skip
    """All directions over x (steps, batch, inputs), or (batch, steps, inputs) with layout 1."""
    batch_first = bool(a.get("layout", 0))
    x = x.transpose(0, 1) if batch_first else x
    if len(x) > MAX_STEPS:
        raise ValueError(f"a sequence of {len(x)} steps is longer than the {MAX_STEPS} that are read")
    size, directions, batch = r.shape[-1], len(w), x.shape[1]
    functions = _activations(a, usual, directions)
    bias = torch.zeros(directions, 2 * gates * size, dtype=x.dtype, device=x.device) if b is None else b
    ends = ints(lengths)
    outputs, last = [], []
    for number in range(directions):
        wb, rb = bias[number].chunk(2)
        step = cell(functions[number], w[number], r[number], wb, rb)
        state = tuple(_start(one, number, (batch, size), x, batch_first) for one in start)
        backwards = a.get("direction", "forward") == "reverse" or number == 1
        seen, state = _steps(x, step, state, ends, backwards, a.get("clip"))
        outputs.append(seen)
        last.append(state)
    y = torch.stack(outputs, dim=1)  # (steps, directions, batch, size)
    finals = [torch.stack(one) for one in zip(*last, strict=True)]  # (directions, batch, size)
    if batch_first:
        y, finals = y.permute(2, 0, 1, 3), [one.transpose(0, 1) for one in finals]
    return some(a, y, *finals)


def _start(given: Tensor | None, number: int, shape: tuple[int, int], x: Tensor, batch_first: bool) -> Tensor:
    if given is None:
        return torch.zeros(shape, dtype=x.dtype, device=x.device)
    return given[:, number] if batch_first else given[number]


def _steps(
    x: Tensor, step: _Step, state: tuple[Tensor, ...], ends: list[int] | None, backwards: bool, clip: float | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden states (steps, batch, size) and the last state; beyond its length a sequence gives zeros."""
    if clip is not None:
        raise ValueError("recurrent layers with clip are not supported")
    alive = None if ends is None else torch.tensor([[t < end for end in ends] for t in range(len(x))], device=x.device)
    seen: list[Tensor] = []
    for t in reversed(range(len(x))) if backwards else range(len(x)):
        new = step(x[t], state)
        if alive is not None:
            here = alive[t].unsqueeze(-1)
            state = tuple(torch.where(here, n, old) for n, old in zip(new, state, strict=True))
            seen.append(torch.where(here, new[0], torch.zeros_like(new[0])))
        else:
            state = new
            seen.append(new[0])
    return torch.stack(seen[::-1] if backwards else seen), state


def _activations(a: Attributes, usual: tuple[str, ...], directions: int) -> list[list[Activation]]:
    names = a.get("activations") or list(usual) * directions
    alphas, betas = iter(a.get("activation_alpha", [])), iter(a.get("activation_beta", []))
    found = [_activation(name, alphas, betas) for name in names]
    each = len(usual)
    if len(found) != each * directions:
        raise ValueError(f"a recurrent layer names {len(found)} activations, expected {each * directions}")
    return [found[i * each : (i + 1) * each] for i in range(directions)]


def _activation(name: str, alphas: Any, betas: Any) -> Activation:
    plain: dict[str, Activation] = {
        "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "softsign": F.softsign,
        "softplus": F.softplus,
    }  # fmt: skip
    key = name.lower()
    if key in plain:
        return plain[key]
    if key in ("leakyrelu", "elu", "thresholdedrelu"):
        alpha = next(alphas, {"leakyrelu": 0.01}.get(key, 1.0))
        return {
            "leakyrelu": lambda x: F.leaky_relu(x, alpha), "elu": lambda x: F.elu(x, alpha),
            "thresholdedrelu": lambda x: F.threshold(x, alpha, 0.0),
        }[key]  # fmt: skip
    if key in ("hardsigmoid", "affine", "scaledtanh"):
        alpha, beta = next(alphas, {"hardsigmoid": 0.2}.get(key, 1.0)), next(betas, {"hardsigmoid": 0.5}.get(key, 0.0))
        return {
            "hardsigmoid": lambda x: torch.clamp(alpha * x + beta, 0, 1), "affine": lambda x: alpha * x + beta,
            "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
        }[key]  # fmt: skip
    raise ValueError(f"a recurrent layer has the activation {name[:40]}, which is not known")
