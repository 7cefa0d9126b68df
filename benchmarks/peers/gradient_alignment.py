"""Gradient alignment: does the loss gradient keep its direction inside the ball?

M. Andriushchenko, N. Flammarion, "Understanding and improving fast adversarial training", NeurIPS 2020, section 4,
eq. 3: the mean of cos(∇L(x), ∇L(x + u)) over points x and noise u, uniform in the ball. The paper uses it to see
(and to prevent) catastrophic overfitting; as a detector it needs a threshold, which the paper does not give.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from benchmarks.peers.descent import input_gradient, uniform_noise
from benchmarks.peers.interface import Peer, PeerAnswer, PeerTask

#: Draws of the noise per point.
DRAWS = 4

#: Fires below this mean cosine: the middle between the highest masked model (0.252, `sine-input`) and the lowest
#: healthy one (0.706, `trades`) of the tune part of the zoo, seed 0, 200 points each; the check part had no say.
THRESHOLD = 0.48


def alignment(task: PeerTask) -> float:
    """Mean cosine over points and draws; a zero gradient has the cosine 0."""
    generator = torch.Generator().manual_seed(task.seed)
    _, _, here = input_gradient(task.model, task.x, task.y)
    cosines = []
    for _ in range(DRAWS):
        _, _, there = input_gradient(task.model, uniform_noise(task.x, task.threat, generator), task.y)
        # in float64 and scaled: squares of gradients of a saturated loss underflow
        a, b = (g.flatten(1).double() / g.flatten(1).double().abs().amax(1, True).clamp_min(1e-300)
                for g in (here, there))  # fmt: skip
        cosines.append(cosine_similarity(a, b, dim=1))
    return float(torch.stack(cosines).mean())


def run(task: PeerTask) -> PeerAnswer:
    """Fires when the gradient turns within the ball."""
    value = alignment(task)
    return PeerAnswer({"low alignment": value < THRESHOLD}, {"alignment": value})


PEER = Peer(
    "gradient-alignment", "Gradient alignment", "Andriushchenko & Flammarion 2020, section 4", run
)  # fmt: skip
