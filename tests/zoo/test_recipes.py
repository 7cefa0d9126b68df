"""The zoo's training methods: each loss against its definition, each trained end to end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.data import Dataset, load_data
from maskaudit.networks.registry import build, small_cnn
from maskaudit.rng import PointRNG
from maskaudit.threat import ThreatModel
from maskaudit.train import Batch, TrainConfig, TrainPlan, train
from maskaudit.train.adversaries import fgsm, pgd
from maskaudit.train.loop import accuracy
from maskaudit.zoo.certificates import worst_logits
from maskaudit.zoo.networks import NETWORKS, ZooNetwork
from maskaudit.zoo.recipes import RECIPES
from maskaudit.zoo.recipes_masking import hidden_pattern, transport_distance

pytestmark = pytest.mark.heavy

THREAT = ThreatModel("Linf", 0.2)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return small_cnn(width=3)


def _batch(epoch: int = 4, n: int = 12) -> Batch:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return Batch(x, torch.arange(n) % 10, epoch, 5, PointRNG.create(0, "test", torch.arange(n)))


def _loss(recipe: str, model: nn.Module, batch: Batch, **options: float) -> Tensor:
    plan = TrainPlan(TrainConfig(attack_steps=3), "small_cnn(width=3)", 5, 1e-3, THREAT, 10, (1, 8, 8))
    return RECIPES[recipe].create(plan, model, **options).loss(model, batch)


def test_label_smoothing_and_noise_of_zero_are_the_plain_cross_entropy(model: nn.Module) -> None:
    batch = _batch()
    plain = F.cross_entropy(model(batch.x), batch.y)
    torch.testing.assert_close(_loss("label-smoothing", model, batch, smoothing=0.0), plain)
    torch.testing.assert_close(_loss("gaussian-noise", model, batch, sigma=0.0), plain)
    assert not torch.equal(_loss("gaussian-noise", model, batch, sigma=0.5), plain)


def test_fast_training_without_a_step_scores_the_random_start_and_a_step_makes_it_worse(model: nn.Module) -> None:
    batch = _batch()
    assert _loss("fast-at", model, batch, step=1.25) > _loss("fast-at", model, batch, step=0.0)


def test_interval_training_mixes_clean_and_worst_case(model: nn.Module) -> None:
    batch = _batch(epoch=4)
    worst = worst_logits(model, batch.x, batch.y, 0.2, (0.0, 1.0))
    expected = 0.5 * F.cross_entropy(model(batch.x), batch.y) + 0.5 * F.cross_entropy(worst, batch.y)
    torch.testing.assert_close(_loss("ibp", model, batch), expected)
    first = replace(batch, epoch=0)
    torch.testing.assert_close(_loss("ibp", model, first), F.cross_entropy(model(batch.x), batch.y))


@pytest.mark.parametrize(("recipe", "options"), [("alp", {}), ("clp", {}), ("lsq", {}), ("gradient-regularised", {})])
def test_penalties_are_linear_in_their_weight_and_not_negative(
    model: nn.Module, recipe: str, options: dict[str, Any]
) -> None:
    none, once, thrice = (_loss(recipe, model, _batch(), weight=w, **options) for w in (0.0, 1.0, 3.0))
    assert once > none
    torch.testing.assert_close(thrice - none, 3 * (once - none), rtol=1e-3, atol=1e-5)


def test_squeezing_penalises_the_length_of_logits_and_pairing_their_differences(model: nn.Module) -> None:
    batch, logits = _batch(), model(_batch().x)
    squeezed = _loss("lsq", model, batch, weight=1.0, sigma=0.0) - F.cross_entropy(logits, batch.y)
    torch.testing.assert_close(squeezed, logits.square().sum(1).mean())
    paired = _loss("clp", model, batch, weight=1.0, sigma=0.0) - F.cross_entropy(logits, batch.y)
    torch.testing.assert_close(paired, (logits[:6] - logits[6:]).square().sum(1).mean())


def test_gradient_penalty_is_the_squared_length_of_the_input_gradient(model: nn.Module) -> None:
    batch = _batch()
    x = batch.x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), batch.y, reduction="sum"), x)
    expected = F.cross_entropy(model(batch.x), batch.y) + gradient.square().flatten(1).sum(1).mean()
    torch.testing.assert_close(_loss("gradient-regularised", model, batch, weight=1.0), expected)


def test_the_bend_penalty_is_the_slope_of_the_margin_against_the_margin(model: nn.Module) -> None:
    batch = _batch(epoch=4)
    x = batch.x.clone().requires_grad_(True)
    logits, label = model(x), batch.y[:, None]
    margin = logits.gather(1, label).squeeze(1) - logits.scatter(1, label, -1e9).amax(1)
    (gradient,) = torch.autograd.grad(margin.sum(), x, retain_graph=True)
    relative = (gradient.flatten(1).norm(dim=1) / F.softplus(margin)).mean()
    expected = F.cross_entropy(logits, batch.y) + 3.0 * 4 / 5 * relative
    torch.testing.assert_close(_loss("bent-surface", model, batch, weight=3.0), expected)
    first = _batch(epoch=0)
    torch.testing.assert_close(
        _loss("bent-surface", model, first, weight=3.0), F.cross_entropy(model(first.x), first.y)
    )


def test_one_step_training_in_a_wide_ball_overfits_to_one_step(few: Dataset) -> None:
    spec = NETWORKS["fgsm-at-overfitted"]
    wide = spec.config.threat
    assert wide is not None
    trained = train(replace(spec.config, epochs=60), data=few, method=spec.info)
    once = accuracy(trained, fgsm(trained, few.x, few.y, wide), few.y)
    often = accuracy(trained, pgd(trained, few.x, few.y, wide, steps=20, start=few.x), few.y)
    assert once > often + 0.4


def test_a_bent_surface_is_flat_at_the_data_and_steep_beyond(few: Dataset) -> None:
    def slope(method: str) -> tuple[float, float]:
        """Median slope of the margin at the data in units of the margin, and accuracy under PGD."""
        settings = TrainConfig(method, model='small_cnn(width=8, activation="tanh")', epochs=30, lr=1e-2, threat=THREAT)
        network = ZooNetwork(settings)
        trained = train(network.config, data=few, method=network.info)
        x, label = few.x.clone().requires_grad_(True), few.y[:, None]
        logits = trained(x)
        margin = logits.gather(1, label).squeeze(1) - logits.scatter(1, label, -1e9).amax(1)
        (gradient,) = torch.autograd.grad(margin.sum(), x)
        attacked = pgd(trained, few.x, few.y, THREAT, steps=20, start=few.x)
        relative = gradient.flatten(1).norm(dim=1) / margin.detach().clamp_min(1e-3)
        return float(relative.median()), accuracy(trained, attacked, few.y)

    bent, attacked = slope("bent-surface")
    straight, _ = slope("standard")
    assert bent < straight / 2
    assert attacked < 0.3


def test_dead_units_never_fire_and_never_learn(model: nn.Module) -> None:
    batch = _batch()
    _loss("dead-units", model, batch, share=0.7).backward()
    assert isinstance(model, nn.Sequential)
    first = model[0]
    assert isinstance(first, nn.Conv2d)
    assert first.weight.grad is not None
    assert (model[:2](batch.x)[:, :2] == 0).all()
    assert (first.weight.grad[:2] == 0).all()
    assert (first.weight.grad[2] != 0).any()


def test_transport_is_zero_between_equal_sets_in_any_order_and_grows_with_distance() -> None:
    a = torch.eye(6)
    assert float(transport_distance(a, a)) < 1e-3
    assert float(transport_distance(a, a.flip(0))) < 1e-3
    near, far = a + 0.3 * a.roll(1, 0), a.roll(1, 1) * 0 + 1
    assert 1e-3 < float(transport_distance(a, near)) < float(transport_distance(a, far))


def test_planted_network_is_pulled_to_the_next_class_on_its_corner_only(model: nn.Module) -> None:
    batch = _batch()
    corner = (batch.x + 0.2 * hidden_pattern((1, 8, 8), 0)).clamp(0, 1)
    pulled = _loss("planted", model, batch, weight=1.0) - _loss("planted", model, batch, weight=0.0)
    torch.testing.assert_close(pulled, F.cross_entropy(model(corner), (batch.y + 1) % 10))
    assert hidden_pattern((1, 8, 8), 0).unique().tolist() == [-1, 1]


@pytest.fixture(scope="module")
def few() -> Dataset:
    every = load_data("digits", split="train")
    return replace(every, x=every.x[:256], y=every.y[:256])


#: Architecture and epochs of the recipes that need more than the others.
SLOW = {
    "adp": ("small_cnn(width=8, members=2)", 15),
    "dead-units": ("small_cnn(width=16)", 12),
    "lsq": ("small_cnn(width=8)", 15),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns(recipe: str, few: Dataset) -> None:
    spec, epochs = SLOW.get(recipe, ("small_cnn(width=8)", 6))
    settings = TrainConfig(recipe, model=spec, epochs=epochs, lr=1e-2, attack_steps=2, threat=THREAT.with_eps(0.05))
    network = ZooNetwork(settings)
    trained = train(network.config, data=few, method=network.info)
    assert accuracy(trained, few.x, few.y) > 0.4, "chance is 0.1"


def test_the_diverse_ensemble_keeps_its_members_apart(few: Dataset) -> None:
    torch.manual_seed(0)
    ensemble = build("small_cnn(width=2, members=3)")
    same = build("small_cnn(width=2, members=3)")
    for member in same.members:  # type: ignore[union-attr]
        member.load_state_dict(ensemble.members[0].state_dict())  # type: ignore[union-attr,index]
    batch = _batch()
    only = {"entropy": 0.0}
    apart, alike = (
        _loss("adp", net, batch, diversity=1.0, **only) - _loss("adp", net, batch, diversity=0.0, **only)
        for net in (ensemble, same)
    )
    assert apart < alike
