"""Leave no trace: whatever a forward pass, an observer or an exception does, everything is put back."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaudit.target import Target
from maskaudit.target.preserve import preserved

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    """Mixed modes, a frozen parameter, a gradient, a hook and batch statistics."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2))
    net.eval()
    net[2].train()
    net[3].bias.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[1].register_forward_hook(_count)
    return net


def _count(module: nn.Module, inputs: object, output: Tensor) -> None:
    module.calls = getattr(module, "calls", 0) + 1


def trace(net: nn.Module) -> dict[str, object]:
    """Everything that must be the same afterwards, tensors by identity and by content."""
    seen: dict[str, object] = {}
    for name, module in net.named_modules():
        seen[f"{name} mode"] = module.training
        for table in [key for key in vars(module) if key.endswith("hooks") or "_hooks_" in key]:
            seen[f"{name} {table}"] = tuple(getattr(module, table).items())
        seen[f"{name} full"] = module._is_full_backward_hook
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
        seen[name] = (id(tensor), tensor.tolist(), tensor.requires_grad, grad)
    return seen


def rng_states() -> list[object]:
    numpy_state = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        [part.tolist() for part in numpy_state[1:2]],
        numpy_state[2:],
    ]


def batch_norm_left_in_train_mode(net: nn.Sequential) -> None:
    net[1].train()
    net(X)


def replace_buffers(net: nn.Sequential) -> None:
    net[1].running_mean = torch.ones(5)
    net[1].register_buffer("added", torch.zeros(1))
    net[1].num_batches_tracked = None


def replace_parameters(net: nn.Sequential) -> None:
    net[0].weight = nn.Parameter(torch.zeros(5, 3))
    net[3].weight.data = torch.zeros(1, 1)
    net[3].register_parameter("added", nn.Parameter(torch.zeros(1)))


def write_into_parameters(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[0].weight.mul_(2)
        net[0].weight.grad.add_(1)
        net[3].weight.fill_(torch.nan)


def accumulate_gradients(net: nn.Sequential) -> None:
    net[3].bias.requires_grad_(True)
    net(X).sum().backward()
    net[0].weight.grad = None


def add_and_remove_hooks(net: nn.Sequential) -> None:
    net[0].register_forward_hook(lambda *_: None)
    net[0].register_forward_hook(lambda *_, **__: None, with_kwargs=True, always_call=True)
    net[0].register_forward_pre_hook(lambda *_: None)
    net[3].register_full_backward_hook(lambda *_: None)
    net[3].register_full_backward_pre_hook(lambda *_: None)
    net[1]._forward_hooks.clear()


def draw_numbers(net: nn.Sequential) -> None:
    torch.rand(3)
    np.random.rand(3)
    random.random()
    torch.manual_seed(9)


def swap_modules(net: nn.Sequential) -> None:
    net.train()
    net[0] = nn.Linear(3, 5)
    net.add_module("extra", nn.Linear(2, 2))


DEEDS = [
    batch_norm_left_in_train_mode, replace_buffers, replace_parameters, write_into_parameters, accumulate_gradients,
    add_and_remove_hooks, draw_numbers, swap_modules,
]  # fmt: skip


@pytest.mark.parametrize("fails", [False, True], ids=["normal exit", "exception"])
@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_everything_is_put_back(deed: Callable[[nn.Sequential], None], fails: bool) -> None:
    net = network()
    before, states = trace(net), rng_states()
    with contextlib.suppress(KeyboardInterrupt), preserved(net, seed=1):
        deed(net)
        assert (trace(net), rng_states()) != (before, states), "the deed must leave a trace to be removed"
        if fails:
            raise KeyboardInterrupt
    assert trace(net) == before
    assert rng_states() == states
    answer = net.eval()(X)
    assert answer.shape == (4, 2)
    assert bool(torch.isfinite(answer).all())


def test_the_seed_makes_the_inside_reproducible() -> None:
    def inside() -> tuple[float, float, float]:
        with preserved(lambda x: x, seed=2**40 + 3):
            return float(torch.rand(())), float(np.random.rand()), random.random()

    first = inside()
    assert torch.rand(()) != first[0]
    assert inside() == first


def test_nothing_is_written_when_nothing_changed() -> None:
    net = network()
    versions = [p._version for p in net.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Target(net) as target:
            target.value_and_grad(X, lambda scores, rows: scores[:, 0])
    assert [p._version for p in net.parameters()] == versions


def test_shared_parameters_are_restored_once_and_stay_shared() -> None:
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    weight = shared.weight.clone()
    with preserved(net), torch.no_grad():
        net[2].weight.zero_()
    assert net[0].weight is net[2].weight
    assert torch.equal(shared.weight, weight)


def scriptable() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [True, False])
def test_torchscript(training: bool) -> None:
    script = torch.jit.script(scriptable().train(training))
    before = {name: tensor.clone() for name, tensor in script.state_dict().items()}
    with Target(script) as target:
        assert script.training is False
        target.value_and_grad(X, lambda scores, rows: scores[:, 0])
        with torch.no_grad():
            dict(script.named_buffers())["1.running_mean"].add_(1)
    assert script.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in script.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frozen_torchscript_has_no_mode() -> None:
    frozen = torch.jit.freeze(torch.jit.script(scriptable().eval()))
    assert not hasattr(frozen, "training")
    with Target(frozen) as target:
        gradient = target.value_and_grad(X, lambda scores, rows: scores[:, 0])
    assert gradient.connected
    assert not hasattr(frozen, "training")
