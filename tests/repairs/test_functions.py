"""Custom Functions get the derivative of their own forward, and everything back afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskaudit.repairs.functions import FunctionPatches
from tests.repairs.hard_models import FlatStairs, PairStairs, Twofold
from tests.trace.masked_models import RoundSTE, Scrambled


def gradient(function: type[torch.autograd.Function], x: Tensor, cotangent: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(function.apply(leaf), leaf, cotangent)
    return grad


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_derivative_of_the_forward_is_exact(x: Tensor) -> None:
    v = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    patches = FunctionPatches(["Twofold", "Scrambled"])
    patches.install()
    try:
        found, mirrored = gradient(Twofold, x, v), gradient(Scrambled, x, x)
    finally:
        patches.undo()
    expected = (v[:, :64] + 2 * x.flatten(1) * v[:, 64:]).view(x.shape)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mirrored, x)


def test_stairs_pass_the_gradient_as_the_identity_in_another_shape(x: Tensor) -> None:
    v = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    patches = FunctionPatches(["FlatStairs"])
    patches.install()
    try:
        found = gradient(FlatStairs, x, v)
    finally:
        patches.undo()
    assert torch.equal(found, v.view(x.shape))


def test_stairs_with_fewer_outputs_get_differences_that_point_the_right_way(x: Tensor) -> None:
    v = torch.randn(4, 1, 8, 4, generator=torch.Generator().manual_seed(1))
    patches = FunctionPatches(["PairStairs"])
    patches.install()
    try:
        found = gradient(PairStairs, x, v)
    finally:
        patches.undo()
    smooth = v.repeat_interleave(2, -1)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), smooth.flatten(1))
    assert bool((cosine > 0.3).all()), cosine


def test_only_named_functions_change_and_all_are_put_back(x: Tensor) -> None:
    methods = {
        (function, name): function.__dict__.get(name)
        for function in (Twofold, FlatStairs, PairStairs, Scrambled, RoundSTE)
        for name in ("forward", "backward", "setup_context", "apply")
    }
    patches = FunctionPatches(["Twofold", "PairStairs"])
    patches.install()
    assert Twofold.__dict__["backward"] is not methods[Twofold, "backward"]
    assert Scrambled.__dict__["backward"] is methods[Scrambled, "backward"]
    patches.undo()
    assert all(function.__dict__.get(name) is value for (function, name), value in methods.items())
    assert torch.equal(gradient(RoundSTE, x, x), x)
