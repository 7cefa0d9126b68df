"""Multi-task training: its tasks on images whose answers are known, and each balance against central differences."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.errors import UsageError
from maskaudit.networks.registry import build
from maskaudit.rng import PointRNG
from maskaudit.settings import Weighting
from maskaudit.threat import ThreatModel
from maskaudit.train import Batch, TrainConfig, TrainPlan
from maskaudit.train.multitask import GRADNORM_ALPHA, AlignmentLayers, GradNorm, MultiTask, Uncertainty, shared_layers
from maskaudit.train.tasks import canny, noisy_grey, targets

from .differences import central_difference

SPEC = "resnet(in_channels=1, size=8, width=4, blocks=(1, 1))"
SHAPE = (2, 3, 3)


def _batch(n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    return Batch(x, torch.arange(n), 0, 5, PointRNG.create(0, "test", torch.arange(n)))


class _Toy:
    """Two tasks on features that are a linear map of one parameter vector."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.theta = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64).requires_grad_(True)
        self.heads = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2)]

    def losses(self, received: list[Tensor]) -> list[Tensor]:
        pairs = zip(received, self.heads, strict=True)
        return [(features * head).sum((1, 2, 3)).square().mean() for features, head in pairs]

    def run(self, balance: Any) -> tuple[Tensor, list[Tensor], Tensor]:
        received = balance.shared(self.theta)
        losses = balance.normalised(self.losses(received))
        return balance.loss(losses, received, _batch()), received, losses


def test_alignment_layers_scale_the_encoders_gradient_and_learn_from_the_reversed_one() -> None:
    torch.manual_seed(0)
    toy, balance = _Toy(), AlignmentLayers(2, SHAPE).double()
    balance.first.fill_(1.0)
    balance.eval()
    with torch.no_grad():
        balance.gammas.uniform_(0.5, 2.0)
    loss, received, losses = toy.run(balance)
    slopes = [torch.autograd.grad(value, at, retain_graph=True)[0] for value, at in zip(losses, received, strict=True)]
    loss.backward()  # type: ignore[no-untyped-call]
    expected = sum(slope * gamma for slope, gamma in zip(slopes, balance.gammas.detach(), strict=True))
    torch.testing.assert_close(toy.theta.grad, expected)

    def distinction() -> Tensor:
        scaled = torch.cat([4 * slope * gamma for slope, gamma in zip(slopes, balance.gammas, strict=True)])
        return F.cross_entropy(balance.classifier(scaled), torch.tensor([0] * 4 + [1] * 4))

    assert balance.gammas.grad is not None
    gradient = -central_difference(distinction, balance.gammas.data)
    torch.testing.assert_close(balance.gammas.grad, gradient, rtol=1e-4, atol=1e-7)
    last = balance.classifier[-1].weight
    assert isinstance(last, nn.Parameter)
    torch.testing.assert_close(last.grad, central_difference(distinction, last.data), rtol=1e-4, atol=1e-7)


def test_alignment_layers_start_as_ones_stay_positive_and_leave_the_forward_pass() -> None:
    balance = AlignmentLayers(2, SHAPE)
    assert bool((balance.gammas == 1).all())
    with torch.no_grad():
        balance.gammas.fill_(-5.0)
    features = torch.randn(4, *SHAPE, requires_grad=True)
    assert all(torch.equal(one, features) for one in balance.shared(features))
    assert bool((balance.gammas > 0).all())


def test_the_weights_of_gradnorm_agree_with_differences() -> None:
    toy, balance = _Toy(), GradNorm(2).double()
    balance.first.copy_(torch.tensor([2.0, 0.5]))
    loss, received, losses = toy.run(balance)
    norms = torch.stack([torch.autograd.grad(value, at, retain_graph=True)[0].norm()
                         for value, at in zip(losses, received, strict=True)])  # fmt: skip
    pace = losses.detach() / losses.detach().mean()
    aim = (balance.weights.detach() * norms).mean() * pace**GRADNORM_ALPHA
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = central_difference(lambda: (balance.weights * norms - aim).abs().sum(), balance.weights.data)
    torch.testing.assert_close(balance.weights.grad, gradient, rtol=1e-5, atol=1e-8)
    assert balance.weights.sum().item() == pytest.approx(2.0)


def test_the_weights_of_uncertainty_agree_with_differences() -> None:
    toy, balance = _Toy(), Uncertainty(2).double()
    balance.first.copy_(torch.tensor([2.0, 0.5]))
    with torch.no_grad():
        balance.log_variances.copy_(torch.tensor([0.3, -0.4]))
    loss, _, losses = toy.run(balance)
    loss.backward()  # type: ignore[no-untyped-call]
    constant = losses.detach()
    value = lambda: (torch.exp(-balance.log_variances) * constant + balance.log_variances).sum()  # noqa: E731
    gradient = central_difference(value, balance.log_variances.data)
    torch.testing.assert_close(balance.log_variances.grad, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_losses_are_divided_by_their_first_values(weighting: Weighting) -> None:
    torch.manual_seed(0)
    model = build(SPEC)
    plan = TrainPlan(
        TrainConfig("great-mtl", weighting=weighting), SPEC, 5, 1e-3, ThreatModel("Linf", 0.2), 10, (1, 8, 8)
    )
    made = MultiTask(plan, model)
    model.double()
    made.auxiliary.double()
    balance: Any = made.auxiliary["balance"]
    losses, _ = made.task_losses(model, _batch())
    assert len(losses) == 3, "grey images have no colours to find"
    torch.testing.assert_close(balance.normalised(losses), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(balance.normalised([2 * loss for loss in losses]), torch.full((3,), 2.0).double())


def test_an_edge_lies_where_the_image_steps_and_nowhere_else() -> None:
    image = torch.zeros(2, 1, 16, 16)
    image[0, :, :, 8:] = 1
    image[1, :, 5:, :] = 1
    edges = canny(image)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert set(edges[0, 0].nonzero()[:, 1].tolist()) <= {7, 8}
    assert set(edges[1, 0].nonzero()[:, 0].tolist()) <= {4, 5}
    assert bool((edges[0, 0].sum(1) == 1).all())
    assert bool((edges[1, 0].sum(0) == 1).all())
    assert float(canny(torch.full((1, 1, 16, 16), 0.5)).sum()) == 0


def test_noise_hits_the_stated_share_and_is_grey() -> None:
    x = torch.full((50, 3, 32, 32), 0.5)
    rng = PointRNG.create(0, "noise", torch.arange(50))
    noisy = noisy_grey(x, rng, step=0)
    assert torch.equal(noisy[:, 0], noisy[:, 1])
    extreme = ((noisy[:, 0] < 0.05) | (noisy[:, 0] > 0.7)).double().mean()
    assert 0.035 < float(extreme) < 0.045
    assert torch.equal(noisy, noisy_grey(x, rng, step=0))
    assert not torch.equal(noisy, noisy_grey(x, rng, step=1))
    assert set(targets(x)) == {"colour", "edges", "denoised"}


@pytest.mark.parametrize("spec", ["mlp", "smoothed_units"])
def test_a_network_without_shared_features_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="great-mtl needs"):
        shared_layers(build(spec), (1, 8, 8))
