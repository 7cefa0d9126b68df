"""A differentiable stand-in for the target, trained on nothing but the target's own answers.

N. Papernot, P. McDaniel, I. Goodfellow, S. Jha, Z. B. Celik, A. Swami, "Practical black-box
attacks against machine learning", 2017: answered inputs are the training set, and each round
adds inputs where the stand-in is about to change its mind. Here these are its own adversarial
examples inside the ball that will be searched. Only predicted classes are learnt from, so
saturated, rounded and one-hot outputs teach as much as logits do.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adam import adam

from maskaudit.rng import PointRNG
from maskaudit.sums import column
from maskaudit.target import Target
from maskaudit.target.chunks import chunks
from maskaudit.target.preserve import preserved_random_state
from maskaudit.threat import ThreatModel, per_point_norm

#: Slope of the leaky ReLUs for negative inputs: no unit of the surrogate is ever dead.
LEAK = 0.1
#: Inputs per training step, and steps per round at least.
BATCH, LEAST_STEPS = 128, 60
#: Learning rate of Adam at its peak and at both ends, and the share of the steps in which it rises.
HIGHEST_RATE, LOWEST_RATE, WARM_UP = 4e-3, 1e-4, 0.3
#: Pool members learnt from.
POOL_LIMIT = 1000
#: Larger images are first averaged down to this side, which bounds the cost of a pass.
LARGEST_SIDE = 32
#: A mixture moves at most this share of the way to the other point.
LARGEST_MIX = 0.6


class Surrogate(nn.Module):
    """Leaky-ReLU network from inputs of one fixed shape to logits (N, K).

    Images with both sides ≥ 4 get two convolutions, everything else two hidden layers.
    Large images are averaged down first (`shrink`), then inputs are mapped from `bounds` to [−1, 1].
    """

    def __init__(self, point_shape: tuple[int, ...], num_classes: int, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.low, self.high = bounds
        act = nn.LeakyReLU(LEAK)
        self.shrink: nn.Module = nn.Identity()
        if len(point_shape) == 3 and min(point_shape[1:]) >= 4:
            channels, height, width = point_shape
            if max(height, width) > LARGEST_SIDE:
                height, width = min(height, LARGEST_SIDE), min(width, LARGEST_SIDE)
                self.shrink = nn.AdaptiveAvgPool2d((height, width))
            stride = 1 if max(height, width) <= 8 else 2
            side = (min(4, height), min(4, width))
            reached = tuple(ceil(ceil(n / stride) / 2) for n in (height, width))
            pool = [] if reached == side else [nn.AdaptiveAvgPool2d(side)]
            body: list[nn.Module] = [
                nn.Conv2d(channels, 24, 3, stride=stride, padding=1),
                act,
                nn.Conv2d(24, 48, 3, stride=2, padding=1),
                act,
                *pool,
                nn.Flatten(),
                nn.Linear(48 * side[0] * side[1], 96),
            ]
        else:
            dims = torch.Size(point_shape).numel()
            body = [nn.Flatten(), nn.Linear(dims, 192), act, nn.Linear(192, 96)]
        self.body = nn.Sequential(*body, act, nn.Linear(96, num_classes))
        if any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in body):
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth cheaper to train

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) for inputs (N, …) of the target."""
        return self.answer(self.shrink(x))

    def answer(self, shrunk: Tensor) -> Tensor:
        """Logits (N, K) for inputs that `shrink` has been applied to."""
        return self.body((2 * shrunk - (self.low + self.high)) / (self.high - self.low))


def train_surrogate(
    target: Target, x_pool: Tensor, *, threat: ThreatModel, num_classes: int, seed: int = 0, rounds: int = 3,
    epochs: int = 2, pool_limit: int = POOL_LIMIT,
) -> nn.Module:  # fmt: skip
    """Fit a `Surrogate` to the target's predicted classes around the pool.

    The first round asks about the pool, noisy copies and mixtures of two members; every further
    round adds the surrogate's adversarial examples for the pool and trains on all that was answered.

    Args:
        target: answers through `target.scores`; each input asked about is counted there.
        x_pool: inputs (M, …) in the threat's bounds, M ≥ 1; labels are not needed.
        threat: ball inside which the noise and the adversarial examples lie.
        num_classes: K of the target; an output for refusals counts as a class.
        seed: fixes everything; the caller's random state is left as it was.
        rounds: rounds of asking and training, ≥ 1.
        epochs: passes over the answered inputs per round.
        pool_limit: pool members used, the first ones; bounds the work.

    Returns:
        The surrogate in evaluation mode, parameters without gradient, on the pool's device.
    """
    pool = x_pool[:pool_limit]
    with preserved_random_state(), torch.enable_grad():
        torch.manual_seed(seed)
        model = Surrogate(tuple(pool.shape[1:]), num_classes, threat.bounds).to(pool.device)
        rng = PointRNG.create(seed, "surrogate", torch.arange(len(pool), device=pool.device))
        kinds: tuple[list[_Answered], ...] = ([], [], [])
        for rows in chunks(len(pool), 3 * pool[0].numel()):
            here, part = rng.select(rows), pool[rows]
            asked = torch.cat([part, _noisy(part, threat, here), _mixed(part, pool, threat, here)])
            answers = target.predict(target.scores(asked))
            shrunk = model.shrink(asked).split(len(part))
            for kind, inputs, classes in zip(kinds, shrunk, answers.split(len(part)), strict=True):
                kind.append((inputs, classes))
        known = [_joined(kind) for kind in kinds]
        own = known[0][1]
        _fit(model, *_joined(known), epochs=2 * epochs, seed=seed)
        for turn in range(1, rounds):
            fooling = rng.fork(f"round {turn}")
            fooled: list[_Answered] = []
            for rows in chunks(len(pool), pool[0].numel()):
                here = fooling.select(rows)
                asked = _adversarial(model, pool[rows], own[rows], threat, here)
                fooled.append((model.shrink(asked), target.predict(target.scores(asked))))
            known.append(_joined(fooled))
            _fit(model, *_joined(known), epochs=epochs, seed=seed + turn)
    return model.eval().requires_grad_(False)


#: Shrunk inputs (n, …) and the classes (n,) that the target gave the inputs.
_Answered = tuple[Tensor, Tensor]


def _joined(parts: list[_Answered]) -> _Answered:
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _fit(model: Surrogate, x: Tensor, y: Tensor, *, epochs: int, seed: int) -> None:
    """Cross-entropy on the answered inputs, shrunk; Adam with a rate that rises and falls once.

    The functional form of Adam: to build an `Optimizer` torch imports its compiler, which takes longer than the fit.
    """
    per_epoch = -(-len(x) // BATCH)
    epochs = max(epochs, -(-LEAST_STEPS // per_epoch))
    weights: list[Tensor] = list(model.parameters())
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    taken = [torch.zeros(()) for _ in weights]
    generator = torch.Generator().manual_seed(seed)
    model.train()
    turns = [
        rows
        for _ in range(epochs)
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(BATCH)
    ]  # fmt: skip
    for turn, rows in enumerate(turns):
        progress = turn / len(turns)
        rate = HIGHEST_RATE * min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP)) + LOWEST_RATE
        slopes = torch.autograd.grad(F.cross_entropy(model.answer(x[rows]), y[rows]), weights)
        with torch.no_grad():
            adam(
                weights, list(slopes), first, second, [], taken, amsgrad=False, beta1=0.9, beta2=0.999, lr=rate,
                weight_decay=0.0, eps=1e-8, maximize=False,
            )  # fmt: skip


def _noisy(pool: Tensor, threat: ThreatModel, rng: PointRNG) -> Tensor:
    """Pool members with noise of full strength: signs of ±ε (Linf), directions of length ε (L2)."""
    if threat.norm == "Linf":
        noise = threat.eps * rng.signs(pool.shape[1:], step=1).to(pool)
    else:
        noise = rng.normal(pool.shape[1:], step=1).to(pool)
        noise = threat.scaled(noise * column(threat.eps / per_point_norm(noise), pool))
    return threat.clamp(pool + noise)


def _mixed(part: Tensor, pool: Tensor, threat: ThreatModel, rng: PointRNG) -> Tensor:
    """Members of a part of the pool moved some of the way to another one of the pool, where classes meet."""
    partner = pool[rng.integers(len(pool), step=2)]
    share = LARGEST_MIX * rng.uniform((), step=3).to(part)
    return threat.clamp(torch.lerp(part, partner, column(share, pool)))


def _adversarial(
    model: nn.Module, pool: Tensor, answers: Tensor, threat: ThreatModel, rng: PointRNG, steps: int = 8
) -> Tensor:
    """PGD on the surrogate from noisy starts, shape of the pool."""
    model.eval()
    x = threat.project(_noisy(pool, threat, rng), pool)
    for _ in range(steps):
        leaf = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), answers, reduction="sum"), leaf)
        x = threat.project(x + 2.5 * threat.eps / steps * threat.step_direction(gradient), pool)
    return x.detach()
