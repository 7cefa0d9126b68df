"""Each method's loss against its definition, and every registered method end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.data import load_data
from maskaudit.errors import UsageError
from maskaudit.networks.layers import Residual
from maskaudit.networks.registry import build, small_cnn
from maskaudit.rng import PointRNG
from maskaudit.threat import ThreatModel
from maskaudit.train import METHODS, Batch, TrainConfig, TrainPlan, save_trained, train
from maskaudit.train.adversaries import fgsm
from maskaudit.train.auxiliary import leaky_copy
from maskaudit.train.great import schedule
from maskaudit.train.great_reduced import GradientClassifier, linear_ramp
from maskaudit.train.loop import accuracy
from maskaudit.train.masked_gradient import GREACE_TERMS, masked_gradient


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return small_cnn(width=4)


FAMILY = ("great", "greace", "great+ce")
REDUCED = tuple(f"{name}-reduced" for name in FAMILY)


def _plan(**settings: Any) -> TrainPlan:
    config = TrainConfig(**settings)
    weights = {"alpha": config.alpha or 0.0, "beta": config.beta or 0.0, "temperature": config.temperature or 100.0}
    return TrainPlan(config, "small_cnn(width=4)", 5, 1e-3, ThreatModel("Linf", 0.2), 10, (1, 8, 8), **weights)


def _batch(epoch: int = 0) -> Batch:
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return Batch(x, torch.arange(12) % 10, epoch, 5, PointRNG.create(0, "test", torch.arange(12)))


def test_standard_and_fgsm_are_the_cross_entropy_on_their_points(model: nn.Module) -> None:
    batch, plan = _batch(), _plan()
    standard = METHODS["standard"].create(plan, model).loss(model, batch)
    torch.testing.assert_close(standard, F.cross_entropy(model(batch.x), batch.y))
    attacked = fgsm(model, batch.x, batch.y, plan.threat)
    one_step = METHODS["fgsm-at"].create(plan, model).loss(model, batch)
    torch.testing.assert_close(one_step, F.cross_entropy(model(attacked), batch.y))
    assert one_step > standard


def test_pgd_training_is_harder_than_fgsm_and_reproducible(model: nn.Module) -> None:
    batch = _batch()
    torch.nn.init.normal_(model[-1].weight, generator=torch.Generator().manual_seed(0))  # type: ignore[index, union-attr]
    strong = METHODS["pgd-at"].create(_plan(attack_steps=20), model).loss(model, batch)
    assert strong >= 0.99 * METHODS["fgsm-at"].create(_plan(), model).loss(model, batch)
    assert torch.equal(strong, METHODS["pgd-at"].create(_plan(attack_steps=20), model).loss(model, batch))


def test_trades_adds_a_divergence_that_its_attack_made_positive(model: nn.Module) -> None:
    batch = _batch()
    natural = F.cross_entropy(model(batch.x), batch.y)
    without = METHODS["trades"].create(_plan(trades_beta=0.0), model).loss(model, batch)
    torch.testing.assert_close(without, natural)
    once = METHODS["trades"].create(_plan(trades_beta=1.0), model).loss(model, batch) - natural
    thrice = METHODS["trades"].create(_plan(trades_beta=3.0), model).loss(model, batch) - natural
    assert once > 1e-5
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-3, atol=1e-6)


def test_half_of_the_papers_fgsm_training_is_clean(model: nn.Module) -> None:
    batch, plan = _batch(), _plan(clean_weight=0.5)
    attacked = F.cross_entropy(model(fgsm(model, batch.x, batch.y, plan.threat)), batch.y)
    both = METHODS["fgsm-at"].create(plan, model).loss(model, batch)
    torch.testing.assert_close(both, 0.5 * (F.cross_entropy(model(batch.x), batch.y) + attacked))


@pytest.mark.parametrize("method", [*FAMILY, *REDUCED])
def test_great_family_starts_as_plain_training_beside_the_auxiliary(method: str, model: nn.Module) -> None:
    made = METHODS[method].create(_plan(alpha=0.5, beta=0.5), model)
    batch = _batch(epoch=0)
    gradients = torch.autograd.grad(made.loss(model, batch), list(model.parameters()), allow_unused=True)
    plain = torch.autograd.grad(F.cross_entropy(model(batch.x), batch.y), list(model.parameters()))
    for gradient, expected in zip(gradients, plain, strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("greace", GREACE_TERMS)
@pytest.mark.parametrize("method", [*FAMILY, *REDUCED])
def test_great_family_gradients_are_those_of_the_paper_in_the_last_epoch(
    method: str, greace: str, model: nn.Module
) -> None:
    torch.manual_seed(4)
    share = 1.0 if method in REDUCED else 1 - 0.2**0.9
    alpha = share * 0.5 * ("greace" not in method)
    beta = share * 0.3 * (method not in ("great", "great-reduced"))
    made = METHODS[method].create(_plan(alpha=0.5, beta=0.3, greace=greace), model)
    h = made.auxiliary["h"]
    batch = _batch(epoch=4)
    main, auxiliary = list(model.parameters()), list(h.parameters())
    actual = torch.autograd.grad(made.loss(model, batch), main + auxiliary, materialize_grads=True)
    logits, g = masked_gradient(model, batch.x, batch.y)
    distinction = F.cross_entropy(h(g), batch.y)
    expected_loss = (
        F.cross_entropy(logits, batch.y) - alpha * distinction + beta * GREACE_TERMS[greace](logits, h(g), batch.y)
    )
    expected = torch.autograd.grad(expected_loss, main, retain_graph=True, materialize_grads=True)
    expected += torch.autograd.grad(distinction, auxiliary)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_papers_weights_rise_as_its_learning_rate_falls() -> None:
    assert schedule(0, 100) == 0.0
    assert schedule(50, 100) == pytest.approx(1 - 0.5**0.9)
    assert schedule(99, 100) == pytest.approx(1 - 0.01**0.9)


def test_the_reduced_ramp_is_zero_first_and_one_last() -> None:
    assert [linear_ramp(epoch, 5) for epoch in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert linear_ramp(0, 1) == 0.0


@pytest.mark.parametrize("spec", ["small_cnn(width=4)", "resnet(width=4, blocks=(1, 1))", "small_resnet(width=4)"])
def test_the_auxiliary_network_is_the_main_one_with_leaky_relu(spec: str) -> None:
    main, h = build(spec), leaky_copy(spec)
    assert [tuple(p.shape) for p in h.parameters()] == [tuple(p.shape) for p in main.parameters()]
    slopes = [module.negative_slope for module in h.modules() if isinstance(module, nn.LeakyReLU)]
    assert set(slopes) <= {0.2}
    assert not any(isinstance(module, nn.ReLU) for module in h.modules())
    for module in h.modules():
        if isinstance(module, Residual):
            torch.testing.assert_close(module.activation(torch.tensor([-1.0, 1.0])), torch.tensor([-0.2, 1.0]))


def test_the_defaults_are_the_papers() -> None:
    for method in FAMILY:
        info = METHODS[method]
        assert (info.epochs, info.lr, info.schedule, info.augment) == (100, 1e-3, "poly", "crop")
        assert (info.alpha, info.beta) == (1.0, 2.0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 5), (7,)])
def test_gradient_classifier_is_leaky_and_fits_any_input(shape: tuple[int, ...]) -> None:
    h = GradientClassifier(shape, 4)
    assert h(torch.randn(2, *shape)).shape == (2, 4)
    assert any(isinstance(module, nn.LeakyReLU) for module in h.modules())
    assert not any(isinstance(module, nn.ReLU) for module in h.modules())


def test_distillation_trains_teacher_then_student_on_soft_labels(model: nn.Module) -> None:
    temperature = 50.0
    made = METHODS["distill"].create(_plan(temperature=temperature), model)
    teacher = made.auxiliary["teacher"]
    assert made.phases == 2
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3)
    first, second = _batch(epoch=4), _batch(epoch=5)
    torch.testing.assert_close(made.loss(model, first), F.cross_entropy(teacher(first.x) / temperature, first.y))
    loss = made.loss(model, second)
    soft: Tensor = (teacher(second.x) / temperature).softmax(1)
    expected = -(soft * (model(second.x) / temperature).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.heavy
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_model_that_classifies(method: str, tmp_path: Path) -> None:
    info = METHODS[method]
    assert info.title
    assert info.citation
    assert info.summary.endswith(".")
    data = load_data("digits", split="train")
    small = replace(data, x=data.x[:300], y=data.y[:300])
    threat = ThreatModel("Linf", 0.05)
    teacher = ""
    if method in ("great-distill", "soft-distill"):
        taught = TrainConfig(model="small_cnn(width=4)", epochs=4, lr=5e-3)
        teacher = str(tmp_path / "teacher.safetensors")
        save_trained(teacher, train(taught), taught)
    config = TrainConfig(
        method,
        teacher=teacher,
        model="small_cnn(width=8)",
        epochs=8,
        batch_size=16,
        lr=5e-3,
        threat=threat,
        attack_steps=2,
        temperature=5.0,
        alpha=0.1,
        beta=0.1,
    )
    model = train(config, data=small)
    assert accuracy(model, small.x, small.y) > 0.5


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"great\+ce"):
        train(TrainConfig(method="magic"))
