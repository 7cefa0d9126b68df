"""Distillation: the losses against their definitions and central differences, and what a teacher must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.data import load_data
from maskaudit.errors import InputError, UsageError
from maskaudit.networks.registry import build
from maskaudit.rng import PointRNG
from maskaudit.threat import ThreatModel
from maskaudit.train import METHODS, Batch, TrainConfig, TrainPlan, save_trained, train
from maskaudit.train.auxiliary import shallower_discriminator
from maskaudit.train.masked_gradient import loss_gradient
from maskaudit.train.teachers import STUDENT, TEACHER, GreatDistillation

from .differences import central_difference


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    config = TrainConfig(model="small_cnn(width=2)", epochs=1)
    save_trained(path, train(config), config)
    return path


def _plan(teacher: object, model: str = 'mlp(hidden=(5,), activation="tanh")', **settings: Any) -> TrainPlan:
    config = TrainConfig("great-distill", teacher=str(teacher), **settings)
    return TrainPlan(config, model, 5, 1e-3, ThreatModel("Linf", 0.2), 10, (1, 8, 8), alpha=0.3, temperature=20.0)


def _batch() -> Batch:
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Batch(x, torch.arange(6), 0, 5, PointRNG.create(0, "test", torch.arange(6)))


def test_the_students_gradient_is_equation_8_and_agrees_with_differences(teacher: Path) -> None:
    torch.manual_seed(1)
    plan = _plan(teacher)
    student = build(plan.model).double()
    made = METHODS["great-distill"].create(plan, student)
    assert isinstance(made, GreatDistillation)
    made.auxiliary.double()
    made.teacher.double()
    f, batch = made.auxiliary["f"], _batch()

    def students() -> Tensor:
        with torch.enable_grad():
            logits, g = loss_gradient(student, batch.x, batch.y)
            confusion = F.cross_entropy(f(g), torch.full_like(batch.y, STUDENT))
            return 0.7 * F.cross_entropy(logits, batch.y) - 0.3 * confusion

    def discriminators() -> Tensor:
        with torch.enable_grad():
            ours, theirs = (loss_gradient(net, batch.x, batch.y)[1].detach() for net in (student, made.teacher))
            kinds = ((ours, STUDENT), (theirs, TEACHER))
            return torch.stack([F.cross_entropy(f(g), torch.full_like(batch.y, kind)) for g, kind in kinds]).sum()

    made.loss(student, batch).backward()  # type: ignore[no-untyped-call]
    for network, value in ((student, students), (f, discriminators)):
        weight = list(network.parameters())[-2]
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, central_difference(value, weight.data), rtol=1e-4, atol=1e-8)
    assert all(parameter.grad is None for parameter in made.teacher.parameters())


def test_soft_distillation_is_hintons_loss_and_agrees_with_differences(teacher: Path) -> None:
    torch.manual_seed(1)
    plan = _plan(teacher)
    student = build(plan.model).double()
    made: Any = METHODS["soft-distill"].create(plan, student)
    made.teacher.double()
    batch = _batch()
    soft = (made.teacher(batch.x) / 20).softmax(1)

    def expected() -> Tensor:
        logits = student(batch.x)
        divergence = (soft * (soft.log() - F.log_softmax(logits / 20, 1))).sum(1).mean()
        return 0.7 * F.cross_entropy(logits, batch.y) + 0.3 * 400 * divergence

    loss = made.loss(student, batch)
    torch.testing.assert_close(loss, expected())
    loss.backward()
    weight = list(student.parameters())[-2]
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, central_difference(expected, weight.data), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("spec", ["resnet(in_channels=1, size=8)", "resnet(in_channels=1, size=8, blocks=(3, 2))"])
def test_the_discriminator_of_a_residual_student_is_shallower(spec: str) -> None:
    f, student = shallower_discriminator(spec), build(spec)
    assert sum(p.numel() for p in f.parameters()) < sum(p.numel() for p in student.parameters())
    assert f(torch.zeros(2, 1, 8, 8)).shape == (2, 2)


def test_a_student_of_its_own_architecture_is_refused() -> None:
    with pytest.raises(UsageError, match="built-in architecture"):
        shallower_discriminator("net.py:make")


@pytest.mark.parametrize("method", ["great-distill", "soft-distill"])
def test_what_is_no_teacher_is_refused(method: str, teacher: Path, tmp_path: Path) -> None:
    data = load_data("digits", split="train")
    with pytest.raises(UsageError, match="--teacher FILE"):
        train(TrainConfig(method, epochs=1), data=data)
    other = tmp_path / "other.safetensors"
    config = TrainConfig(model="mlp(in_features=64, num_classes=10)", epochs=1)
    save_trained(other, train(config), config)
    other_plan = TrainPlan(
        TrainConfig(method, teacher=str(other)), "mlp", 5, 1e-3, ThreatModel("Linf", 0.2), 10, (1, 8, 8), alpha=2.0
    )
    with pytest.raises(UsageError, match="at most 1"):
        METHODS[method].create(other_plan, nn.Identity())
    for shape, classes, says in (((3, 8, 8), 10, "does not accept"), ((1, 8, 8), 7, "not 7 classes")):
        plan = TrainPlan(
            TrainConfig(method, teacher=str(teacher)), "mlp", 5, 1e-3, ThreatModel("Linf", 0.2), classes, shape
        )
        with pytest.raises(InputError, match=says):
            METHODS[method].create(plan, nn.Identity())
