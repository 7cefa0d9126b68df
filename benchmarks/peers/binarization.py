"""The binarization test: plant an adversarial example behind a new readout and see whether PGD finds it.

R. S. Zimmermann, W. Brendel, F. Tramèr, N. Carlini, "Increasing confidence in adversarial robustness evaluations",
NeurIPS 2022, section 3. Per point, the last linear layer gives way to a binary readout that tells one corner of the
ball from many points inside it; an attack that is any good must then succeed. The attack tested is PGD-40 on
cross-entropy; the test fails below a success rate of 0.95, the paper's mark. The readout is a logistic regression,
both sides weighted alike; problems that it cannot separate are left out. One corner against 999 inner points within
0.95 ε is one of the settings of the authors' code (github.com/google-research/active-adversarial-tests).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers.descent import descend
from benchmarks.peers.interface import CountingModel, Peer, PeerAnswer, PeerTask
from maskaudit.threat import ThreatModel, per_point_norm

#: Inner points per problem, and the share of ε that they stay within.
INNER = 999
INNER_SHARE = 0.95

#: Problems built, one per point; success rate below which the test fails.
PROBLEMS = 50
MARK = 0.95

#: L2 penalty on the readout of standardised features, and steps of Newton's method.
PENALTY = 1e-4
NEWTON_STEPS = 25


class Features(nn.Module):
    """What the last linear layer of a model reads; the scores themselves where it has none."""

    def __init__(self, model: CountingModel) -> None:
        super().__init__()
        self.model = model
        self.read: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, D) of inputs (N, …)."""
        self.read = None
        handles = [m.register_forward_pre_hook(self._keep) for m in self.model.modules() if isinstance(m, nn.Linear)]
        try:
            scores = self.model(x)
        finally:
            for handle in handles:
                handle.remove()
        # a layer that reads something else than one row per input (a head inside attention) is no readout
        usable = self.read is not None and self.read.dim() == 2 and len(self.read) == len(x)
        return self.read if usable and self.read is not None else scores

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.read = inputs[0]


class Binarised(nn.Module):
    """Two classes: 0 on the inner side of each point's own readout, 1 on the side of its planted corner.

    Args:
        weights: (M, D) readouts; offset: (M,). Row m is for the m-th input of a batch of M.
    """

    def __init__(self, features: Features, weights: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.features, self.weights, self.offset = features, weights, offset

    def forward(self, x: Tensor) -> Tensor:
        """Scores (M, 2)."""
        value = (self.features(x).double() * self.weights).sum(dim=1) - self.offset
        return torch.stack([torch.zeros_like(value), value], dim=1)


def run(task: PeerTask) -> PeerAnswer:
    """Plant, attack, and fire when PGD finds too few of the planted examples."""
    generator = torch.Generator().manual_seed(task.seed)
    x = task.x[:PROBLEMS]
    features = Features(task.model)
    corner = _surface(x, task.threat, generator)
    with torch.no_grad():
        planted = features(corner).double()
        inner = torch.stack([features(_inside(x, task.threat, generator)).double() for _ in range(INNER)])
    weights, offset, usable = readouts(planted, inner)
    if not bool(usable.any()):
        return PeerAnswer({"planted examples missed": True}, {"problems": 0.0})
    model = CountingModel(Binarised(features, weights[usable], offset[usable]))
    labels = torch.zeros(int(usable.sum()), dtype=torch.int64)
    found = descend(model, x[usable], labels, task.threat, seed=task.seed).broken
    rate = float(found.double().mean())
    return PeerAnswer({"planted examples missed": rate < MARK}, {"success": rate, "problems": float(len(labels))})


def readouts(planted: Tensor, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logistic regressions that tell each planted feature (M, D) from its inner ones (S, M, D).

    Returns:
        Weights (M, D), offsets (M,), and whether each problem is separated without error.
    """
    every = torch.cat([inner, planted[None]])
    mean = every.mean(dim=0)
    spread = every.std(dim=0).mean(dim=1, keepdim=True).clamp_min(1e-12)
    z = torch.cat([(every - mean) / spread, torch.ones_like(every[..., :1])], dim=2)
    truth = torch.zeros(len(every), 1, dtype=z.dtype)
    truth[-1] = 1.0
    share = torch.where(truth > 0, 0.5, 0.5 / len(inner))
    penalty = torch.full((z.shape[2],), PENALTY, dtype=z.dtype)
    penalty[-1] *= 1e-3  # the constant is hardly held back
    weights = torch.zeros(z.shape[1:], dtype=z.dtype)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(torch.einsum("smd,md->sm", z, weights))
        slope = torch.einsum("smd,sm->md", z, share * (p - truth)) + penalty * weights
        curvature = torch.einsum("smd,sm,sme->mde", z, share * p * (1 - p), z) + torch.diag(penalty)
        weights = weights - torch.linalg.solve(curvature, slope.unsqueeze(2)).squeeze(2)
    value = torch.einsum("smd,md->sm", z, weights)
    usable = (value[-1] > 0) & (value[:-1].amax(dim=0) < 0)
    readout = weights[:, :-1] / spread
    return readout, (mean * readout).sum(dim=1) - weights[:, -1], usable


def _surface(x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """A random point on the surface of each ball: a corner (Linf) or a direction (L2); clipped to the bounds."""
    noise = torch.randn(x.shape, generator=generator)
    return threat.project(x + threat.eps * threat.step_direction(noise), x)


def _inside(x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """A random point well inside each ball: uniform in the cube (Linf), any length along a direction (L2)."""
    if threat.norm == "Linf":
        noise = 2 * torch.rand(x.shape, generator=generator) - 1
    else:
        noise = torch.randn(x.shape, generator=generator)
        length = torch.rand(len(x), generator=generator) / per_point_norm(noise)
        noise = noise * length.view(-1, *[1] * (x.dim() - 1))
    return threat.clamp(x + INNER_SHARE * threat.eps * noise)


PEER = Peer(
    "binarization", "Binarization test of PGD", "Zimmermann et al. 2022, section 3", run
)  # fmt: skip
