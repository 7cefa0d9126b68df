"""Masks hide a gradient and keep the decisions; their unmasked twins give the gradient back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from maskaudit.attacks.pgd import pgd
from maskaudit.data import load_data
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from maskaudit.zoo.masks import backward, base, controls, inputs, layers, loops, outputs, random
from maskaudit.zoo.masks.inputs import dct_basis
from maskaudit.zoo.masks.outputs import shifted
from maskaudit.zoo.masks.random import placed

THREAT = ThreatModel("Linf", 0.2)
Points = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Masked:
    """A mask around the standard network, and what becomes of its own margin gradient."""

    name: str
    build: Callable[[nn.Module], nn.Module]
    gradient: str  # "zero" or "none" for most points, "wrong" (disagrees with the network's), or "there"


MASKED = (
    Masked("logits x 1e4", lambda n: outputs.ScaledLogits(n, 1e4), "there"),
    Masked("softmax x 1e4", lambda n: outputs.SharpSoftmax(n, 1e4), "zero"),
    Masked("hard labels", outputs.HardLabels, "none"),
    Masked("rounded probabilities", lambda n: outputs.RoundedOutput(n, "probabilities"), "zero"),
    Masked("rounded logits", lambda n: outputs.RoundedOutput(n, "logits"), "zero"),
    Masked("reverse sigmoid", outputs.ReverseSigmoid, "there"),
    Masked("sine on logits", outputs.SineLogits, "wrong"),
    Masked("shifted vote", outputs.ShiftedVote, "none"),
    Masked("nearest neighbours", lambda n: layers.nearest_neighbours(n, "digits"), "none"),
    Masked("quantised", lambda n: inputs.QuantisedInput(n, 4), "zero"),
    Masked("sine on input", inputs.SineInput, "wrong"),
    Masked("narrow clip", lambda n: inputs.NarrowClip(n, 40.0), "zero"),
    Masked("jpeg-like", inputs.JpegLike, "zero"),
    Masked("jpeg file", inputs.JpegFile, "none"),
    Masked("thermometer", inputs.Thermometer, "none"),
    Masked("numpy", inputs.NumpyRoundTrip, "none"),
    Masked("k winners", lambda n: layers.k_winners(n, "digits"), "there"),
    Masked("sign features", lambda n: layers.binary_features(n, "digits"), "zero"),
    Masked("detach", lambda n: layers.inserted(n, 2, layers.Detach()), "none"),
    Masked("zero backward", backward.ZeroBackward, "zero"),
    Masked("random backward", backward.RandomBackward, "wrong"),
    Masked("flipped backward", backward.FlippedBackward, "wrong"),
    Masked("noisy backward", backward.NoisyBackward, "wrong"),
    Masked("input noise", lambda n: random.InputNoise(n, 0.1), "there"),
    Masked("sampled smoothing", lambda n: random.SampledSmoothing(n, 0.1, 8), "there"),
    Masked("sampled vote", lambda n: random.SampledVote(n, 0.1, 8), "none"),
    Masked("resize and pad", lambda n: random.ResizePad(n, 0.9), "there"),
    Masked("pruning", lambda n: random.before_readout(n, random.StochasticPruning(1.0)), "there"),
    Masked("dropout on", lambda n: random.before_readout(n, random.DropoutOn(0.2)), "there"),
    Masked("purification", lambda n: loops.purified(n, "digits"), "none"),
    Masked("chaotic front", loops.ChaoticFront, "wrong"),
    Masked("two in series", lambda n: outputs.SharpSoftmax(inputs.QuantisedInput(n, 4), 100.0), "zero"),
)
by_name = pytest.mark.parametrize("masked", MASKED, ids=[masked.name for masked in MASKED])


def margin_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
    """Gradient (N, …) of the summed logit margin, None where the input is not on the graph."""
    leaf = x.clone().requires_grad_(True)
    scores = model(leaf)
    wrong = scores.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    total = (wrong - scores.gather(1, y[:, None]).squeeze(1)).sum()
    if not total.requires_grad:
        return None
    return torch.autograd.grad(total, leaf, allow_unused=True)[0]


@by_name
def test_a_mask_keeps_the_decisions_and_does_to_the_gradient_what_it_says(
    masked: Masked, net: nn.Module, points: Points
) -> None:
    torch.manual_seed(0)
    x, y = points
    model = masked.build(net).eval()
    with torch.no_grad():
        assert float((model(x).argmax(1) == y).float().mean()) >= 0.7
    moved = (x + 0.05 * torch.randn(x.shape)).clamp(0, 1)
    own, honest = margin_gradient(model, moved, y), margin_gradient(net, moved, y)
    assert honest is not None
    if masked.gradient == "none":
        assert own is None
        return
    assert own is not None
    zero = float((own.flatten(1).abs().amax(dim=1) == 0).float().mean())
    cosine = float(torch.cosine_similarity(own.flatten(1), honest.flatten(1)).mean())
    assert (zero > 0.5) == (masked.gradient == "zero")
    if masked.gradient == "wrong":
        assert cosine < 0.4


@by_name
def test_through_the_unmasked_twin_the_masked_model_falls(masked: Masked, net: nn.Module, points: Points) -> None:
    x, y = points
    model = masked.build(net).eval()
    twin = base.unmask(model)
    with Target(twin, seed=0) as target:
        rng = PointRNG.create(0, "test", torch.arange(len(x)))
        attempt = pgd(target, x, y, threat=THREAT, rng=rng, loss="margin", steps=20)
    with torch.no_grad():
        broken = model(attempt.examples).argmax(1) != y
    assert float(broken.float().mean()) >= 0.5


def test_unmasking_leaves_the_model_alone_and_reaches_any_depth(net: nn.Module, points: Points) -> None:
    x, _ = points
    deep = nn.Sequential(inputs.QuantisedInput(backward.ZeroBackward(net), 4), nn.Identity()).eval()
    before = str(deep)
    twin = base.unmask(deep)
    names = {type(module).__name__ for module in twin.modules()}
    assert "ZeroBackward" not in names
    assert "QuantisedInput" not in names
    assert str(deep) == before
    assert torch.equal(twin(x), deep(x))
    assert torch.equal(base.unmask(net)(x), net(x))


def test_settings_show(net: nn.Module) -> None:
    assert "levels=4" in repr(inputs.QuantisedInput(net, 4))
    assert repr(inputs.QuantisedInput(net, 4)) != repr(inputs.QuantisedInput(net, 5))
    assert repr(outputs.ShiftedVote(net)) != repr(outputs.ShiftedVote(net, hard=False))


def test_quantisers_give_so_many_levels() -> None:
    x = torch.rand(4, 1, 8, 8)
    for levels in (2, 4, 16):
        rounded = inputs.QuantisedInput(nn.Identity(), levels)(x)
        assert len(rounded.unique()) <= levels
        assert float((rounded - x).abs().max()) <= 0.5 / (levels - 1) + 1e-6
    decoded = inputs.Thermometer(nn.Identity(), 8)(x)
    assert torch.allclose(decoded, torch.floor(x * 8 + 0.5) / 8)


def test_the_honest_quantiser_has_the_gradient_at_the_rounded_input(net: nn.Module, points: Points) -> None:
    x, y = points
    x = (x + 0.03).clamp(0, 1)
    rounded = torch.round(x * 3) / 3
    at_rounded = margin_gradient(net, rounded, y)
    own = margin_gradient(inputs.HonestQuantiser(net, 4), x, y)
    assert own is not None
    assert at_rounded is not None
    assert torch.allclose(own, at_rounded, atol=1e-4)


def test_the_block_dct_is_orthonormal_and_undone_by_a_fine_step() -> None:
    basis = dct_basis(8)
    assert torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-6)
    x = torch.rand(3, 1, 28, 28)
    assert torch.allclose(inputs.JpegLike(nn.Identity(), 0.01)(x), x, atol=1e-3)
    flat = torch.full((1, 1, 8, 8), 0.4)
    assert torch.allclose(inputs.JpegLike(nn.Identity(), 8.0)(flat), flat, atol=0.5 / 255 + 1e-6)


def test_jpeg_files_lose_little_and_something(points: Points) -> None:
    x, _ = points
    back = inputs.JpegFile(nn.Identity(), 90)(x[:8])
    assert 0 < float((back - x[:8]).abs().mean()) < 0.1


def test_k_winners_keeps_the_largest_share() -> None:
    h = torch.randn(5, 4, 5)
    kept = layers.KWinners(0.2)(h)
    assert ((kept != 0).flatten(1).sum(dim=1) == 4).all()
    assert torch.equal(kept.flatten(1).amax(dim=1), h.flatten(1).amax(dim=1))


def test_nearest_neighbours_count_votes() -> None:
    known, labels = torch.tensor([[0.0], [0.1], [1.0], [1.1], [1.2]]), torch.tensor([0, 0, 1, 1, 1])
    model = outputs.NearestNeighbours(nn.Identity(), known, labels, k=3)
    assert torch.allclose(model(torch.tensor([[0.0], [1.1]])), torch.tensor([[2 / 3, 1 / 3], [0.0, 1.0]]))


def test_a_reverse_sigmoid_bends_scores_and_keeps_decisions(net: nn.Module, points: Points) -> None:
    x, _ = points
    bent = outputs.ReverseSigmoid(net)(x)
    assert torch.allclose(bent.sum(dim=1), torch.ones(len(x)), atol=1e-5)
    assert torch.equal(bent.argmax(1), net(x).argmax(1))
    assert not torch.allclose(bent, torch.softmax(net(x), dim=1), atol=0.05)


@pytest.mark.parametrize(
    ("kind", "factor"), [(backward.ZeroBackward, 0.0), (backward.FlippedBackward, -1.0)], ids=["zero", "flipped"]
)
def test_lying_backwards_lie_exactly(
    kind: Callable[[nn.Module], nn.Module], factor: float, net: nn.Module, points: Points
) -> None:
    honest, own = margin_gradient(net, *points), margin_gradient(kind(net), *points)
    assert honest is not None
    assert own is not None
    assert torch.equal(kind(net)(points[0]), net(points[0]))
    assert torch.allclose(own, factor * honest)


def test_random_masks_differ_between_calls_and_mean_what_they_hide(net: nn.Module, points: Points) -> None:
    torch.manual_seed(0)
    x, _ = points
    for model in (
        random.InputNoise(net, 0.1),
        random.SampledSmoothing(net, 0.1, 4),
        random.SampledVote(net, 0.3, 4),
        random.ResizePad(net, 0.9),
        random.before_readout(net, random.DropoutOn(0.2)),
    ):
        answers = [model(x) for _ in range(8)]
        assert any(not torch.equal(answers[0], other) for other in answers[1:])
    h = torch.rand(1, 32).expand(4000, 32)
    mean = random.StochasticPruning(0.5)(h).mean(dim=0)
    assert torch.allclose(mean, h[0], atol=0.12)


class _Sign(nn.Module):
    """Scores (0, 100 x₀): class 1 on the right of zero."""

    def forward(self, x: Tensor) -> Tensor:
        right = 100.0 * x.flatten(1)[:, :1]
        return torch.cat([torch.zeros_like(right), right], dim=1)


def test_smoothing_estimates_the_normal_mean() -> None:
    torch.manual_seed(0)
    x = torch.full((2, 1, 1, 1), 0.2)
    exact = torch.special.ndtr(torch.tensor(0.2 / 0.25))
    vote = random.SampledVote(_Sign(), 0.25, 4000)(x)
    assert torch.allclose(vote[:, 1], exact.expand(2), atol=0.03)
    assert torch.allclose(vote.sum(dim=1), torch.ones(2))
    smooth = random.SampledSmoothing(_Sign(), 0.25, 4000)
    assert torch.allclose(smooth(x).exp()[:, 1], exact.expand(2), atol=0.03)
    twin = base.unmask(smooth)
    assert torch.allclose(twin(x).exp()[:, 1], exact.expand(2), atol=0.03)
    assert torch.equal(twin(x), twin(x))


def test_images_move_and_shrink() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 1.0
    assert torch.allclose(shifted(image, 1.0, 0.0)[0, 0, 4, 5], torch.ones(()), atol=1e-5)
    assert torch.allclose(shifted(image, 0.0, 0.5)[0, 0, 4:6, 4], torch.full((2,), 0.5), atol=1e-5)
    half, ends = torch.full((1,), 0.5), torch.ones(1)
    small = placed(torch.ones(1, 1, 8, 8), half, ends, -ends)
    assert torch.equal(small[0, 0] > 0.9, torch.nn.functional.pad(torch.ones(4, 4), (4, 0, 0, 4)) > 0)


def test_purification_goes_towards_the_training_points() -> None:
    model = loops.purified(nn.Identity(), "digits")
    x = load_data("digits", split="test").x[:32]
    noisy = (x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)

    def outside(images: Tensor) -> Tensor:
        centred = images.flatten(1) - model.mean
        return (centred - centred @ model.basis @ model.basis.T).norm(dim=1)

    assert bool((outside(model.front(noisy)) < outside(noisy)).all())


def test_a_chaotic_front_changes_little_and_steeply() -> None:
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    changed = loops.ChaoticFront(nn.Identity(), 0.1)(x)
    assert float((changed - x).detach().abs().max()) <= 0.05 + 1e-6
    (slope,) = torch.autograd.grad(changed.sum(), x)
    assert float(slope.abs().median()) > 10


@pytest.mark.parametrize(
    "kind", [controls.Checkpointed, controls.ChannelsLast, controls.HalfPrecision, controls.PerPoint]
)
def test_controls_hide_nothing(kind: Callable[[nn.Module], nn.Module], net: nn.Module, points: Points) -> None:
    model = kind(net).eval()
    assert torch.allclose(model(points[0]), net(points[0]), atol=0.3, rtol=0.05)
    own, honest = margin_gradient(model, *points), margin_gradient(net, *points)
    assert own is not None
    assert honest is not None
    assert float(torch.cosine_similarity(own.flatten(1), honest.flatten(1)).min()) > 0.9


def test_a_brightness_off_the_graph_leaves_the_gradient_of_the_network(net: nn.Module, points: Points) -> None:
    x, y = points
    model = controls.SteadyBrightness(net, 0.4)
    even = x - x.mean(dim=(1, 2, 3), keepdim=True) + 0.4
    assert torch.allclose(model(x), net(even), atol=1e-5)
    own, honest = margin_gradient(model, x, y), margin_gradient(net, even, y)
    assert own is not None
    assert honest is not None
    assert torch.allclose(own, honest, atol=1e-4)


def test_a_cut_beside_a_live_term_has_the_gradient_of_the_term(net: nn.Module, points: Points) -> None:
    x, y = points
    model = layers.CutBeside(net, 0.01)
    assert bool(((model(x) - net(x)).abs() < 0.5).all())
    own, twin = margin_gradient(model, x, y), base.unmask(model)
    assert own is not None
    assert torch.equal(twin(x), net(x))
    pairs = torch.stack([y, model(x).scatter(1, y[:, None], -torch.inf).argmax(dim=1)])
    assert len({tuple(pair.tolist()) for pair in pairs.T}) > 1
    for pair in pairs.unique(dim=1).T:  # the same for all points between the same two classes, whatever the network
        alike = own[(pairs == pair[:, None]).all(dim=0)]
        assert torch.allclose(alike, alike[:1].expand_as(alike), atol=1e-6)
