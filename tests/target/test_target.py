"""The audited model behind one interface: scores, gradients, counting, and what it says about bad models."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.errors import GradientError, InputError, ModelError, UsageError
from maskaudit.target import Target, accelerator, usual_batch
from maskaudit.target.scores import breaking_margin, checked_scores, detect_outputs

N, D, K = 23, 6, 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(N, D, generator=GENERATOR)
Y = torch.randint(K, (N,), generator=GENERATOR)
W = torch.randn(D, K, generator=GENERATOR)


def linear(x: Tensor) -> Tensor:
    return x @ W


def picked(scores: Tensor, rows: Tensor) -> Tensor:
    """An objective whose value tells which point it was asked about."""
    return scores.gather(1, Y[rows, None]).squeeze(1)


# --- scores and gradients -------------------------------------------------------------------------


def test_scores_and_gradient_of_a_linear_model() -> None:
    result = Target(linear).value_and_grad(X, picked)
    assert torch.allclose(result.scores, X @ W)
    assert torch.allclose(result.value, (X @ W)[torch.arange(N), Y])
    assert torch.allclose(result.grad, W.T[Y])
    assert result.connected
    assert not any(t.requires_grad for t in (result.scores, result.value, result.grad))
    assert not X.requires_grad


@pytest.mark.parametrize(
    ("shape", "points"),
    [((64,), 256), ((3, 32, 32), 256), ((3, 64, 64), 256), ((3, 224, 224), 27), ((3, 4096, 4096), 1), ((), 256)],
)
def test_large_inputs_go_in_smaller_batches(shape: tuple[int, ...], points: int) -> None:
    assert usual_batch(shape) == points


@pytest.mark.parametrize("batch_size", [1, 7, 23, 256])
def test_batches_change_nothing(batch_size: int) -> None:
    def nonlinear(x: Tensor) -> Tensor:
        return (torch.tanh(3 * x[:, :, None] * W.double())).sum(1)

    whole, parts = Target(nonlinear), Target(nonlinear, batch_size=batch_size)
    assert torch.equal(whole.scores(X), parts.scores(X))
    assert torch.equal(whole.raw(X), parts.raw(X))
    a, b = whole.value_and_grad(X, picked), parts.value_and_grad(X, picked)
    assert torch.equal(a.grad, b.grad)
    assert torch.equal(a.value, b.value)


def test_batches_are_as_large_as_allowed() -> None:
    seen: list[int] = []

    def model(x: Tensor) -> Tensor:
        seen.append(len(x))
        return linear(x)

    Target(model, batch_size=10).raw(X)
    assert seen == [10, 10, 3]


def test_every_pass_is_counted_in_points() -> None:
    target = Target(linear, batch_size=5)
    target.raw(X)
    before = target.ledger.copy()
    assert (before.forwards, before.backwards) == (N, 0)
    target.scores(X)
    target.value_and_grad(X[:8], picked)
    target.differentiable_scores(X[:3])
    target.count_backward(3)
    spent = target.ledger.since(before)
    assert (spent.forwards, spent.backwards) == (N + 8 + 3, 8 + 3)
    assert (before.forwards, before.backwards) == (N, 0)


def test_draws_are_counted_and_averaged() -> None:
    draws = 64

    def noisy(x: Tensor) -> Tensor:
        return linear(x) + torch.randn(len(x), K) + x[:, :1] * torch.randn(len(x), 1)

    target = Target(noisy, draws=draws, seed=1)
    assert target.random
    assert not target.stop_early
    with target:
        scores, result = target.scores(X), target.value_and_grad(X, picked)
    assert (target.ledger.forwards, target.ledger.backwards) == (2 * draws * N, draws * N)
    for mean in (scores, result.scores):
        error = mean - X @ W
        assert 0.5 / draws**0.5 < float(error.std()) < 2 / draws**0.5
    assert torch.allclose(result.grad[:, 1:], W.T[Y][:, 1:], atol=1e-5)
    assert 0.5 / draws**0.5 < float((result.grad - W.T[Y])[:, 0].std()) < 2 / draws**0.5


def test_the_seed_fixes_what_a_random_model_draws() -> None:
    def noisy(x: Tensor) -> Tensor:
        return linear(x) + torch.randn(len(x), K) + np.random.rand() + random.random()

    def asked(seed: int) -> Tensor:
        with Target(noisy, seed=seed) as target:
            return target.raw(X)

    assert torch.equal(asked(1), asked(1))
    assert not torch.equal(asked(1), asked(2))


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise ValueError("no way back")


@pytest.mark.parametrize(
    "model",
    [
        lambda x: F.one_hot(linear(x).argmax(1), K),
        lambda x: linear(x.detach()),
        lambda x: linear(x).detach(),
        lambda x: torch.from_numpy(linear(x).detach().numpy()),
        lambda x: x.detach() @ W.clone().requires_grad_(True),  # depends on a parameter only
        torch.no_grad()(linear),
        torch.inference_mode()(linear),
    ],
)
def test_no_way_back_to_the_input_means_a_zero_gradient(model: Callable[[Tensor], Tensor]) -> None:
    result = Target(model).value_and_grad(X, picked)
    assert not result.connected
    assert torch.equal(result.grad, torch.zeros_like(X))
    assert torch.equal(result.value, picked(model(X).float(), torch.arange(N)).detach())


def test_one_disconnected_batch_is_noticed() -> None:
    result = Target(lambda x: linear(x) if len(x) > 3 else linear(x.detach()), batch_size=10).value_and_grad(X, picked)
    assert not result.connected
    assert bool((result.grad[20:] == 0).all())
    assert bool((result.grad[:20] != 0).any())


def test_gradients_work_under_a_callers_no_grad() -> None:
    with torch.no_grad():
        assert torch.allclose(Target(linear).value_and_grad(X, picked).grad, W.T[Y])


def test_differentiable_scores_can_be_differentiated_twice() -> None:
    x = X[:4].clone().requires_grad_(True)
    value = Target(lambda x: x**3).differentiable_scores(x).sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second, 6 * X[:4])


def test_a_model_that_works_in_place_does_not_reach_the_points() -> None:
    def in_place(x: Tensor) -> Tensor:
        return x.sub_(0.5).mul_(2) @ W

    x = X.clone()
    target = Target(in_place)
    first = target.raw(x)
    assert torch.equal(x, X)
    assert torch.equal(target.scores(x), first)
    assert torch.allclose(target.value_and_grad(x, picked).grad, 2 * W.T[Y])
    assert torch.equal(x, X)


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (5, 3)], ids=["images", "vectors"])
def test_mean_and_std_are_applied_per_channel(shape: tuple[int, ...]) -> None:
    x, seen = torch.rand(shape), []
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)

    def model(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return inputs.flatten(1)

    Target(model, mean=mean, std=std).raw(x)
    for channel in range(3):
        assert torch.allclose(seen[0][:, channel], (x[:, channel] - mean[channel]) / std[channel])
    gradient = Target(model, std=(0.5,)).value_and_grad(x, lambda scores, rows: scores.sum(1)).grad
    assert torch.allclose(gradient, torch.full_like(x, 2.0))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_model_answers_in_evaluation_mode(batch_norm: bool) -> None:
    net = nn.Sequential(nn.Linear(D, K), nn.BatchNorm1d(K) if batch_norm else nn.Dropout(0.5)).train()
    with Target(net, batch_size=3) as target:
        assert torch.equal(target.raw(X), target.raw(X))
    assert net[1].training


# --- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: (z, "extra"),
        lambda z: [z],
        lambda z: SimpleNamespace(logits=z),
        lambda z: z.double(),
        lambda z: z.half().float(),
    ],
)
def test_usual_containers_and_types_are_understood(wrap: Callable[[Tensor], object]) -> None:
    scores = Target(lambda x: wrap(linear(x))).raw(X)  # type: ignore[arg-type, return-value]
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, X @ W, atol=5e-3)


def test_probabilities_become_logarithms() -> None:
    target = Target(lambda x: linear(x).softmax(1), outputs="probabilities")
    assert torch.allclose(target.raw(X), (X @ W).softmax(1))
    assert torch.allclose(target.scores(X), (X @ W).log_softmax(1), atol=1e-5)
    gradient = target.value_and_grad(X, lambda scores, rows: F.cross_entropy(scores, Y[rows], reduction="none")).grad
    expected = Target(linear).value_and_grad(X, lambda s, rows: F.cross_entropy(s, Y[rows], reduction="none")).grad
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_a_probability_of_zero_stays_finite() -> None:
    scores = Target(lambda x: F.one_hot(linear(x).argmax(1), K), outputs="probabilities").scores(X)
    assert bool(torch.isfinite(scores).all())
    assert torch.equal(scores.argmax(1), (X @ W).argmax(1))


def test_infinite_scores_are_made_finite() -> None:
    scores = checked_scores(torch.tensor([[torch.inf, 0.0], [-torch.inf, 0.0]]), 2)
    assert bool(torch.isfinite(scores).all())
    assert scores.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([[0.25, 0.75], [1.0, 0.0]], "probabilities"),
        ([[0.3, 0.3], [0.5, 0.5]], "logits"),
        ([[1.5, -0.5], [0.5, 0.5]], "logits"),
        ([[0.4999, 0.4998], [0.5, 0.5]], "probabilities"),
        ([[-0.3, -1.4], [-0.7, -0.7]], "logits"),
    ],
)
def test_detect_outputs(raw: list[list[float]], expected: str) -> None:
    assert detect_outputs(torch.tensor(raw)) == expected


@pytest.mark.parametrize(
    ("scores", "y", "reject", "expected"),
    [
        ([3.0, 1.0, 2.0], 0, None, -1.0),
        ([3.0, 1.0, 2.0], 2, None, 1.0),
        ([2.0, 2.0, 0.0], 1, None, 0.0),
        ([3.0, 1.0, 2.0], 0, 2, -2.0),  # the refusal cannot break the point …
        ([1.0, 2.0, 4.0], 0, 2, -2.0),  # … and holds it when it wins
        ([1.0, 4.0, 2.0], 0, 2, 2.0),
        ([5.0, 1.0], 1, None, 4.0),
        ([5.0, 9.0], 0, 1, -torch.inf),
    ],
)
def test_breaking_margin(scores: list[float], y: int, reject: int | None, expected: float) -> None:
    assert float(breaking_margin(torch.tensor([scores]), torch.tensor([y]), reject)) == expected
    target = Target(linear, reject_class=reject)
    assert float(target.margin(torch.tensor([scores]), torch.tensor([y]))) == expected
    assert target.stop_early is (reject is None)


# --- bad models and bad settings ------------------------------------------------------------------


def _raises(x: Tensor) -> Tensor:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nand a second line")


class Mute(Tensor):
    """A type of tensor that answers nothing."""

    @classmethod
    def __torch_function__(cls, *args: object, **kwargs: object) -> object:
        raise RuntimeError("no answer")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (_raises, r"raised RuntimeError on input of shape \(23, 6\): mat1 and mat2 shapes cannot be multiplied$"),
        (lambda x: linear(x) * torch.nan, "NaN for 23 of 23"),
        (lambda x: torch.where(x[:, :1] == X[3, 0], torch.nan, 1.0) * linear(x), "NaN for 1 of 23"),
        (lambda x: linear(x)[:, 0], "single score: give --outputs one-logit"),
        (lambda x: linear(x)[:5], r"shape \(5, 4\) for 23 inputs"),
        (lambda x: linear(x)[None], r"shape \(1, 23, 4\)"),
        (lambda x: linear(x)[:, :1], "single score: give --outputs one-logit"),
        (lambda x: linear(x)[:, :0], "at least 2 classes"),
        (lambda x: {"names": ["a"]}, "returned dict; expected a tensor"),
        (lambda x: {"a": linear(x), "b": x}, r"several outputs \(a \(23, 4\), b \(23, 6\)\); say with --output-key"),
        (lambda x: None, "returned NoneType"),
        (lambda x: (), "returned tuple"),
        (lambda x: linear(x).to_sparse(), "torch.sparse_coo"),
        (lambda x: linear(x).to("meta"), "on meta"),
        (lambda x: linear(x).to(torch.complex64), "complex64"),
        (lambda x: torch.quantize_per_tensor(linear(x).detach(), 1.0, 0, torch.qint8), "qint8"),
        (lambda x: linear(x).detach().as_subclass(Mute), "cannot be read as class scores"),
        (lambda x: linear(x).numpy(), "returned ndarray"),
    ],
)
def test_a_failing_model_is_described_in_one_sentence(model: Callable[[Tensor], Tensor], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        Target(model).raw(X)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


NAN_FOR_ONE = torch.where(torch.arange(N) == 3, torch.nan, 1.0)[:, None]


def test_another_number_of_classes_than_before_is_a_failure() -> None:
    with Target(lambda x: x.flatten(1)[:, : 3 + int(x.sum() > 0)]) as target:
        target.scores(torch.zeros(2, 5))
        with pytest.raises(ModelError, match="returned 4 scores, and 3 before"):
            target.scores(torch.ones(2, 5))


def test_nan_is_refused_at_the_end_where_looking_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "asking_is_free", lambda _device: False)
    target = Target(lambda x: linear(x) * NAN_FOR_ONE[: len(x)])
    passed = []
    with pytest.raises(ModelError, match=f"NaN for 2 of {2 * N} inputs inside the bounds"):  # noqa: PT012, SIM117
        with target.late_checks():
            target.scores(X)
            with target.late_checks():  # an attack inside an attack
                target.value_and_grad(X, picked)
            passed.append(True)
    assert passed
    with pytest.raises(ModelError, match=f"NaN for 1 of {N} inputs"):
        target.scores(X)
    with target.late_checks():
        assert bool(target.scores(X[:3]).isfinite().all())


def test_nan_explains_what_failed_because_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "asking_is_free", lambda _device: False)
    target = Target(lambda x: linear(x) * torch.nan)
    with pytest.raises(ModelError, match="NaN for 5 of 5"), target.late_checks():  # noqa: PT012
        target.scores(X[:5])
        raise KeyError("a consequence")


def test_on_the_cpu_nan_is_refused_at_once() -> None:
    target, passed = Target(lambda x: linear(x) * torch.nan), []
    with pytest.raises(ModelError, match="NaN for 23 of 23"), target.late_checks():  # noqa: PT012
        target.scores(X)
        passed.append(True)
    assert not passed


def test_scores_are_the_same_whether_they_are_looked_at_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(lambda x: linear(x) * torch.where(x[:, :1] > 0.5, torch.inf, 1.0))
    now = target.scores(X)
    monkeypatch.setattr(accelerator, "asking_is_free", lambda _device: False)
    with target.late_checks():
        assert torch.equal(target.scores(X), now)
    assert bool(now.isfinite().all())


def test_a_failing_backward_pass_is_a_missing_gradient() -> None:
    target = Target(lambda x: linear(x) + 0 * linear(_Frozen.apply(x)))
    found = target.value_and_grad(X, picked)
    assert torch.equal(found.scores, target.scores(X))
    assert torch.equal(found.value, picked(found.scores, torch.arange(len(X))))
    assert not found.connected
    assert not bool(found.grad.any())
    assert target.gradient_failure == "The model raised ValueError in its backward pass: no way back"
    assert target.ledger.backwards == len(X)


def raises(error: BaseException) -> None:
    raise error


BASES = [SystemExit(0), GeneratorExit(), StopIteration(), RecursionError("deep"), MemoryError(), BaseException("odd")]


@pytest.mark.parametrize("error", BASES, ids=lambda error: type(error).__name__)
def test_whatever_a_forward_pass_raises_is_the_models_failure(error: BaseException) -> None:
    with pytest.raises(ModelError, match=f"raised {type(error).__name__} on input of shape"):
        Target(lambda x: raises(error)).scores(X)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("error", BASES, ids=lambda error: type(error).__name__)
def test_whatever_a_backward_pass_raises_is_a_missing_gradient_unless_memory_ran_out(error: BaseException) -> None:
    def model(x: Tensor) -> Tensor:
        scores = linear(x)
        if scores.requires_grad and torch.is_grad_enabled():
            scores.register_hook(lambda _: raises(error))
        return scores

    target = Target(model)
    if isinstance(error, MemoryError):
        with pytest.raises(ModelError, match="MemoryError in its backward pass"):
            target.value_and_grad(X, picked)
    else:
        assert not target.value_and_grad(X, picked).connected
        assert f"raised {type(error).__name__} in its backward pass" in target.gradient_failure


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate", "DefaultCPUAllocator: can't allocate memory"]
)
def test_lack_of_memory_is_never_a_missing_gradient(words: str) -> None:
    target = Target(lambda x: raises(RuntimeError(words)) if x.requires_grad else linear(x))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=words[:18]):
        target.value_and_grad(X, picked)


@pytest.mark.parametrize(
    "refuse",
    [lambda x: x.numpy(), lambda x: torch.mul(x, 1.0, out=torch.empty_like(x)), lambda x: raises(ValueError("no"))],
    ids=["numpy", "out", "own check"],
)
def test_a_forward_pass_that_fails_only_with_gradients_is_a_missing_gradient(
    refuse: Callable[[Tensor], object],
) -> None:
    def model(x: Tensor) -> Tensor:
        if x.requires_grad:
            refuse(x)
        return linear(x)

    target = Target(model)
    found = target.value_and_grad(X, picked)
    assert torch.equal(found.scores, linear(X).detach())
    assert not bool(found.grad.any())
    assert "on input of shape" in target.gradient_failure
    with pytest.raises(GradientError):
        target.differentiable_scores(X.clone().requires_grad_())


def test_a_model_that_needs_the_callers_graph_is_asked_with_one() -> None:
    def model(x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(linear(x).square().sum(), x)
        return linear(x + slope)

    target = Target(model)
    scores = target.scores(X)
    assert target.needs_graph
    assert not scores.requires_grad
    assert torch.equal(scores, target.value_and_grad(X, picked).scores)


def test_an_interrupt_is_not_the_models_failure() -> None:
    def interrupted(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Target(interrupted).raw(X)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "at least 1, got 0 and 1"),
        ({"draws": 0}, "at least 1"),
        ({"std": (1.0, 0.0)}, "must be positive"),
        ({"std": (-1.0,)}, "must be positive"),
        ({"std": (float("nan"),)}, "must be positive"),
    ],
)
def test_bad_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Target(linear, **settings)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_normalisation_of_the_wrong_length(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name} has 3 entries, but the inputs have 6 channels"):
        Target(linear, **{name: (1.0, 1.0, 1.0)}).raw(X)  # type: ignore[arg-type]


@pytest.mark.parametrize("op", [lambda x: torch.heaviside(x - 0.5, torch.zeros(1)), lambda x: x // 0.1])
def test_an_op_without_derivative_is_a_missing_gradient_not_a_failure(op: Callable[[Tensor], Tensor]) -> None:
    with Target(lambda x: op(x).flatten(1)[:, :3]) as target:
        result = target.value_and_grad(torch.rand(4, 6), lambda scores, rows: scores.sum(dim=1))
    assert not result.connected
    assert not result.grad.any()


def test_logits_are_found_in_a_dictionary() -> None:
    x = torch.rand(5, 6)
    with Target(lambda x: {"loss": x.mean(), "logits": linear(x)}) as target:
        assert torch.equal(target.raw(x), linear(x))
