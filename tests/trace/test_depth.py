"""The gradient against depth, by closed forms: sigmoid, residual, orthogonal and scaled layers, clipping on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from maskaudit.trace.depth import DepthFlow, depth_flow, faded

from ..probes.toys import context, points

WIDTH = 6


def orthogonal(seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)))[0]


class Deep(nn.Module):
    """`depth` layers h ← act(Q h) with orthogonal Q, or h ← h + block(Q h); `between` acts on h halfway."""

    def __init__(
        self, depth: int, act: Callable[[Tensor], Tensor] = lambda h: h, *, residual: bool = False,
        between: Callable[[Tensor], Tensor] = lambda h: h,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weights = nn.ParameterList(orthogonal(k) for k in range(depth))
        self.head = nn.Parameter(orthogonal(99)[:3])
        self.act, self.residual, self.between = act, residual, between

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for k, weight in enumerate(self.weights):
            new = self.act(h @ weight.T)
            h = h + new if self.residual else new
            if k == len(self.weights) // 2:
                h = self.between(h)
        return h @ self.head.T


def followed(model: nn.Module) -> DepthFlow:
    with context(model, points(5, WIDTH)) as ctx:
        flow = depth_flow(ctx.target, ctx.x, ctx.y)
    assert flow is not None
    return flow


def norms(flow: DepthFlow, op: str) -> list[Tensor]:
    return [layer.norms for layer in flow.layers if layer.location.op == op]


def test_orthogonal_linear_layers_keep_the_norm() -> None:
    flow = followed(Deep(12))
    assert len(flow.layers) == 14  # twelve layers, the head, the input
    for layer in flow.layers:
        assert torch.allclose(layer.norms, torch.full((5,), math.sqrt(2), dtype=torch.float64), rtol=1e-5)
    assert flow.bend is None
    assert not flow.faded.any()


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_scaled_orthogonal_layers_vanish_and_explode_as_powers(factor: float) -> None:
    flow = followed(Deep(10, lambda h: factor * h))
    assert torch.allclose(flow.change, torch.full((5,), 10 * math.log10(factor), dtype=torch.float64), atol=1e-5)
    assert not flow.faded.any()


def test_a_sigmoid_layer_lets_a_quarter_through_at_most() -> None:
    reached = norms(followed(Deep(8, torch.sigmoid)), "sigmoid")
    assert len(reached) == 8
    for after, before in pairwise(reached):
        assert bool((before <= 0.25 * after * (1 + 1e-5)).all())
        assert bool((before > 0.1 * after).all())


def test_a_sigmoid_at_zero_lets_exactly_a_quarter_through() -> None:
    flow = followed(Deep(6, lambda h: torch.sigmoid(h - h.detach())))
    assert torch.allclose(flow.change, torch.full((5,), 6 * math.log10(0.25), dtype=torch.float64), atol=1e-4)


def test_residual_paths_keep_the_norm_whatever_the_blocks_do() -> None:
    flow = followed(Deep(40, lambda h: 1e-9 * torch.sigmoid(h), residual=True))
    assert len(norms(flow, "add") + norms(flow, "__add__")) == 40  # where the paths meet, nothing inside a block
    assert float(flow.change.abs().max()) < 1e-5


def test_what_fades_with_depth_is_told_from_what_one_op_kills() -> None:
    assert bool(followed(Deep(100, torch.sigmoid)).faded.all())
    assert not followed(Deep(20, torch.sigmoid)).faded.any()
    assert not followed(Deep(4, between=torch.round)).faded.any()
    small, large = torch.finfo(torch.float32), torch.finfo(torch.float64)
    rows = torch.tensor([[1.0, 1, 1, 1, 0], [1e-35, 1e-5, 1e35, 1e-39, 0], [0, 0, torch.inf, 1e-40, 0]]).double()
    assert faded(rows, small, small).tolist() == [True, False, True, True, False]
    assert faded(rows, large, large).tolist() == [False] * 5


class Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad / grad.norm(dim=1, keepdim=True)


def hooked(hook: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def between(h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(hook)
        return h

    return between


def test_normalising_is_found_where_it_happens() -> None:
    flow = followed(Deep(10, torch.sigmoid, between=Normalised.apply))
    assert flow.bend is not None
    assert (flow.bend.how, flow.bend.location.op) == ("normalises", "Normalised")
    assert torch.allclose(flow.layers[flow.bend.layer].norms, torch.ones(5, dtype=torch.float64))
    assert float(flow.layers[flow.bend.layer - 1].norms.max()) < 0.1


@pytest.mark.parametrize(
    "hook",
    [
        lambda g: g.clamp(-1e-3, 1e-3),
        lambda g: g * (5.0 / g.norm(dim=1, keepdim=True)).clamp(max=1.0),
        lambda g: g + 0.01,
    ],
    ids=["by value", "by norm", "shifted"],
)
def test_clipping_is_found_whether_or_not_it_acts_at_this_scale(hook: Callable[[Tensor], Tensor]) -> None:
    flow = followed(Deep(6, between=hooked(hook)))
    assert flow.bend is not None
    assert flow.bend.how == "clips"
    assert flow.layers[flow.bend.layer].location == flow.bend.location


def test_an_honest_hook_or_backward_bends_nothing() -> None:
    assert followed(Deep(6, between=hooked(lambda g: 3 * g))).bend is None
    assert followed(Deep(6, torch.relu)).bend is None
    assert followed(Deep(100, torch.sigmoid)).bend is None  # underflow at the smaller scale is no clipping


def test_a_hook_on_the_input_itself_is_found() -> None:
    def model(x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(torch.sign)
        return x @ orthogonal(0)[:, :3]

    with context(model, points(4, WIDTH)) as ctx:
        flow = depth_flow(ctx.target, ctx.x, ctx.y)
    assert flow is not None
    assert flow.bend is not None
    assert (flow.bend.how, flow.bend.layer) == ("normalises", len(flow.layers) - 1)


def test_no_way_to_the_input_is_none() -> None:
    with context(Deep(3, between=Tensor.detach), points(4, WIDTH)) as ctx:
        assert depth_flow(ctx.target, ctx.x, ctx.y) is None
