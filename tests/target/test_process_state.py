"""The caller's world is as it was, to the bit, after whatever an audit, a trace or an attack ran into."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import logging
import os
import pickle
import random
import signal
import socket
import sys
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskaudit import api
from maskaudit.attacks.pgd import pgd
from maskaudit.attacks.square import square
from maskaudit.auditing.inspection import inspect_model
from maskaudit.errors import ModelError
from maskaudit.loading import LoadedModel
from maskaudit.rng import PointRNG
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.target.preserve import preserved
from maskaudit.threat import ThreatModel

Points = tuple[Tensor, Tensor]


class Helper:
    """An object of the model's own that is no module."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[int] = []


def meddle() -> None:
    """Change everything global that a model may change."""
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(3)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    torch.backends.nnpack.set_flags(False)
    os.umask(0o077)
    torch.backends.cuda.enable_math_sdp(False)
    torch.set_flush_denormal(True)
    torch.set_anomaly_enabled(True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_grad_enabled(False)
    torch.set_printoptions(precision=2)
    np.seterr(all="ignore")
    np.set_printoptions(precision=2)
    warnings.simplefilter("ignore")
    os.environ["MEDDLED"] = "1"
    os.environ.pop("HOME", None)
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    sys.setrecursionlimit(sys.getrecursionlimit() + 7)
    gc.disable()
    gc.set_threshold(7)
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    sys.excepthook = lambda *_: None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    socket.setdefaulttimeout(7)
    logging.disable(logging.CRITICAL)
    logging.root.setLevel(logging.DEBUG)
    torch.set_warn_always(True)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    nn.modules.module.register_module_forward_hook(lambda *_: None)


class Meddler(nn.Module):
    """A network that changes the world, and all that it holds, when it answers; from the n-th call on it may fail."""

    def __init__(self, net: nn.Module, error: BaseException | None = None, after: int = 0) -> None:
        super().__init__()
        self.net, self.error, self.after = net, error, after
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("state", torch.zeros(3))
        self.calls, self.items, self.queue, self.names = 0, [1, [2]], deque([1], maxlen=4), {"a"}
        self.table: dict[str, Any] = {"inner": {"x": 1}}
        self.plain, self.array = torch.zeros(2), np.zeros(2)
        self.helper, self.drawer = Helper(), random.Random(3)
        self.torch_drawer, self.numpy_drawer = torch.Generator().manual_seed(3), np.random.default_rng(3)
        self.partial = partial(dict, self.helper)
        self.net.train()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.items[1].append(self.calls)  # type: ignore[attr-defined]
        self.queue.append(self.calls)
        self.names.add(str(self.calls))
        self.table["inner"]["x"] = self.table["new"] = self.calls
        self.helper.count += 1
        self.helper.seen.append(1)
        self.added = self.drawer.random() + self.numpy_drawer.random()
        with torch.no_grad():
            self.state.add_(1)  # type: ignore[operator]
            self.plain += torch.rand(2, generator=self.torch_drawer)
            self.norm.weight.mul_(1.5)
        self.array += 1
        self.state = self.state.clone()
        self.norm.train()
        self.norm(x.detach())
        answer: Tensor = self.net(x)
        if self.calls <= 3:  # hooks, paths and filters would pile up
            meddle()
        if self.error is not None and self.calls > self.after:
            raise self.error
        return answer


def held(model: Meddler) -> list[Any]:
    """Everything that a meddler holds, tensors and containers by identity and content."""
    tensors = [*model.parameters(), *model.buffers(), model.plain]
    names = ("calls", "items", "queue", "names", "table", "array", "plain", "helper", "drawer", "state")
    return [
        [(id(t), t.data_ptr(), t.tolist(), t.requires_grad, t.grad) for t in tensors],
        [(name, id(getattr(model, name))) for name in names],
        [module.training for module in model.modules()],
        [sorted(vars(module)) for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        copy.deepcopy((model.calls, model.items, list(model.queue), model.names, model.table, vars(model.helper))),
        model.array.tolist(),
        (model.drawer.getstate(), model.torch_drawer.get_state().tolist(), model.numpy_drawer.bit_generator.state),
    ]


def world() -> list[Any]:
    """The global state, read without the code that puts it back."""
    mkldnn, cudnn, cuda = torch.backends.mkldnn, torch.backends.cudnn, torch.backends.cuda
    return [
        torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision(),
        torch._C._get_nnpack_enabled(), os.umask(0o022),
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        mkldnn.enabled, cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32,
        cuda.matmul.allow_tf32, cuda.math_sdp_enabled(), cuda.flash_sdp_enabled(),
        torch.is_grad_enabled(), torch.is_anomaly_enabled(), torch.is_autocast_enabled("cpu"),
        float(np.float64(5e-324) * np.float64(1.0)), vars(torch._tensor_str.PRINT_OPTS).copy(),
        np.geterr(), np.get_printoptions(), list(warnings.filters), dict(os.environ), Path.cwd(), list(sys.path),
        sys.getrecursionlimit(), gc.isenabled(), gc.get_threshold(), id(sys.stdout), id(sys.stderr), id(sys.excepthook),
        signal.getsignal(signal.SIGINT), socket.getdefaulttimeout(), logging.root.level, logging.root.manager.disable,
        torch.is_warn_always_enabled(), torch.backends.mha.get_fastpath_enabled(),
        len(nn.modules.module._global_forward_hooks),
        len(nn.modules.module._global_forward_pre_hooks),
        torch.get_rng_state().tolist(), random.getstate(), pickle.dumps(np.random.get_state()),
    ]  # fmt: skip


def audited(model: nn.Module, x: Tensor, y: Tensor) -> None:
    settings = AuditSettings("quick", len(x), select=("fgsm", "noise", "zero-gradient"))
    failure = api.audit(model, (x, y), eps=0.1, settings=settings).failure
    if failure is not None:
        raise failure


def inspected(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with Target(model) as target:
        inspect_model(target, x, y, eps=0.1)


def attacked(attack: Callable[..., Any], model: nn.Module, x: Tensor, y: Tensor) -> None:
    with Target(model) as target:
        rng = PointRNG.create(0, "test", torch.arange(len(x)))
        attack(target, x, y, threat=ThreatModel("Linf", 0.1), rng=rng)


WAYS = {
    "audit": audited,
    "inspect": inspected,
    "pgd": partial(attacked, partial(pgd, steps=3)),
    "square": partial(attacked, partial(square, queries=20)),
}
ENDS: tuple[tuple[str, BaseException | None, int], ...] = (
    ("normal", None, 0),
    ("at once", RuntimeError("broken"), 0),
    ("midway", RuntimeError("broken"), 4),
    ("leaves", SystemExit(0), 4),
    ("interrupted", KeyboardInterrupt(), 4),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("error", "after"), [end[1:] for end in ENDS], ids=[end[0] for end in ENDS])
def test_the_world_is_as_it_was(
    way: str, error: BaseException | None, after: int, standard: LoadedModel, points: Points
) -> None:
    assert isinstance(standard.module, nn.Module)
    model = Meddler(copy.deepcopy(standard.module), error, after)
    x, y = (part[:8] for part in points)
    before = [*world(), *held(model)]
    ended: BaseException | None = None
    try:
        WAYS[way](model, x, y)
    except (ModelError, KeyboardInterrupt) as raised:
        ended = raised
    after_all = [*world(), *held(model)]
    assert [number for number, pair in enumerate(zip(before, after_all, strict=True)) if pair[0] != pair[1]] == []
    if isinstance(error, KeyboardInterrupt):
        assert isinstance(ended, KeyboardInterrupt)


def test_the_meddler_meddles(standard: LoadedModel, points: Points) -> None:
    """The measuring stick itself: without protection nearly everything changes."""
    assert isinstance(standard.module, nn.Module)
    model = Meddler(copy.deepcopy(standard.module))
    before = [*world(), *held(model)]
    with preserved(model):
        model(points[0])
        changed = sum(a != b for a, b in zip(before, [*world(), *held(model)], strict=True))
    assert changed >= len(before) - 8
    assert [*world(), *held(model)] == before


def test_arithmetic_is_ours_between_two_passes(net: nn.Module, points: Points) -> None:
    def model(x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return net(x)

    with Target(model) as target:
        target.scores(points[0])
        assert torch.get_default_dtype() == torch.float32
        target.value_and_grad(points[0], lambda scores, rows: scores[:, 0])
        assert torch.is_grad_enabled()


class _Frozen(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.zeros(1, dtype=torch.long) if func is Tensor.argmax else func(*args, **(kwargs or {}))


class _Broken(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("a mode that was left on")


ENTERED: dict[str, Callable[[], object]] = {
    "inference": lambda: torch.inference_mode().__enter__(),
    "function mode": lambda: _Frozen().__enter__(),
    "dispatch mode": lambda: _Broken().__enter__(),
    "default device": lambda: torch.set_default_device("meta"),
    "no gradients": lambda: torch.no_grad().__enter__(),
    "autocast": lambda: torch.autocast("cpu").__enter__(),
}


@pytest.mark.parametrize("enter", ENTERED.values(), ids=ENTERED)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_mode_that_a_model_enters_ends_with_the_pass(
    enter: Callable[[], object], where: str, net: nn.Module, points: Points
) -> None:
    class Entering(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            enter()
            return gradients[0]

    def model(x: Tensor) -> Tensor:
        scores = net(Entering.apply(x) if where == "backward" else x)
        if where == "forward":
            enter()
        return scores

    expected = net(points[0]).argmax(1)
    with Target(model) as target:
        for _ in range(2):
            found = target.value_and_grad(points[0], lambda scores, rows: scores[:, 0])
            assert torch.equal(found.scores.argmax(1), expected)
        assert found.connected
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (True, False)
    assert torch.ones(1).device.type == "cpu"


def test_modules_that_a_function_closes_over_are_put_back_and_its_notes_are_not(net: nn.Module, points: Points) -> None:
    notes = []
    norm = nn.BatchNorm2d(1)

    def model(x: Tensor) -> Tensor:
        notes.append(len(x))
        norm(x)
        return net(x)

    with Target(model) as target:
        target.scores(points[0])
    assert notes == [64]
    assert norm.running_mean is not None
    assert float(norm.running_mean) == 0


def test_one_thing_that_cannot_be_put_back_does_not_keep_the_rest(net: nn.Module) -> None:
    class Stubborn(dict[str, int]):
        def clear(self) -> None:
            raise RuntimeError("never")

    model = nn.Sequential(net)
    model.first, model.stubborn, model.last = [1], Stubborn(a=1), [1]  # type: ignore[assignment]
    with contextlib.suppress(RuntimeError), preserved(model):
        model.first.append(2)  # type: ignore[operator, union-attr]
        model.stubborn["a"] = 2  # type: ignore[operator, index]
        model.last.append(2)  # type: ignore[operator, union-attr]
        torch.set_default_dtype(torch.float64)
    assert (model.first, model.last) == ([1], [1])
    assert torch.get_default_dtype() == torch.float32
