"""Training methods that are, or were claimed to be, defences and hide what they do not cure."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.networks.layers import Ensemble
from maskaudit.rng import PointRNG
from maskaudit.train import Batch, TrainPlan
from maskaudit.train.adversaries import evaluating, input_gradient, pgd, random_start
from maskaudit.train.interface import OnePhase

#: Entropic regularisation and rounds of Sinkhorn's iteration for the transport between feature sets.
SINKHORN_REGULARISATION = 0.05
SINKHORN_ROUNDS = 30
#: Share of the label that feature scattering spreads over all classes (Zhang and Wang 2019, section 5).
SCATTERING_SMOOTHING = 0.5
#: Weights of the entropy and the diversity term (Pang et al. 2019, section 4).
ADP_ENTROPY, ADP_DIVERSITY = 2.0, 0.5
#: Added to the diagonal of the Gram matrix, so that its determinant stays positive.
GRAM_JITTER = 1e-4
#: Added to the squared length of a gradient under a root.
SLOPE_FLOOR = 1e-12


class LogitSqueezing(OnePhase):
    """Cross-entropy under Gaussian noise plus λ · mean ‖f(x)‖² (Kannan et al. 2018, section 4.2)."""

    def __init__(self, plan: TrainPlan, model: nn.Module, *, weight: float = 0.5, sigma: float = 0.3) -> None:
        super().__init__(plan, model)
        self.weight, self.sigma = weight, sigma

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The penalised cross-entropy, a scalar."""
        noise = batch.rng.normal(batch.x.shape[1:], step=batch.epoch).to(batch.x)
        logits = model((batch.x + self.sigma * noise).clamp(0.0, 1.0))
        return F.cross_entropy(logits, batch.y) + self.weight * self.penalty(logits)

    def penalty(self, logits: Tensor) -> Tensor:
        """Mean squared length of the logits (N, K)."""
        return logits.square().sum(1).mean()


class CleanLogitPairing(LogitSqueezing):
    """The same with λ · mean ‖f(x) − f(x̃)‖² over random pairs of points (Kannan et al. 2018, section 4.1)."""

    def penalty(self, logits: Tensor) -> Tensor:
        """Mean squared distance between the two halves of the batch, whose order is random."""
        half = len(logits) // 2
        if half == 0:
            return logits.sum() * 0.0
        return (logits[:half] - logits[half : 2 * half]).square().sum(1).mean()


class FeatureScattering(OnePhase):
    """Cross-entropy with soft labels on points that scatter the features of the batch (Zhang and Wang 2019, alg. 1).

    The perturbation takes one step away from the clean batch in optimal-transport distance
    between the two sets of logits, without looking at the labels.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy, a scalar."""
        start = random_start(batch.x, self.threat, batch.rng, step=batch.epoch)
        with evaluating(model):
            with torch.no_grad():
                clean = model(batch.x)
            gradient = input_gradient(lambda z: len(clean) * transport_distance(clean, model(z)), start)
        moved = self.threat.project(start + self.threat.eps * self.threat.step_direction(gradient), batch.x)
        return F.cross_entropy(model(moved), batch.y, label_smoothing=SCATTERING_SMOOTHING)


def transport_distance(a: Tensor, b: Tensor) -> Tensor:
    """Optimal-transport distance between two sets of vectors (N, D) under cosine distance, plan held constant."""
    cost = 1.0 - F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    with torch.no_grad():
        kernel = (-cost / SINKHORN_REGULARISATION).exp().clamp_min(1e-30)
        share = torch.full((len(a),), 1.0 / len(a)).to(a)
        right = torch.ones_like(share)
        for _ in range(SINKHORN_ROUNDS):
            left = share / (kernel @ right)
            right = share / (kernel.T @ left)
        plan = left[:, None] * kernel * right[None, :]
    return (plan * cost).sum()


class GradientRegularised(OnePhase):
    """Cross-entropy plus λ · mean ‖∇ₓ CE‖², λ = `weight` (Ross and Doshi-Velez 2018, eq. 5)."""

    def __init__(self, plan: TrainPlan, model: nn.Module, *, weight: float = 1.0) -> None:
        super().__init__(plan, model)
        self.weight = weight

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The penalised cross-entropy, a scalar."""
        x = batch.x.detach().requires_grad_(True)
        task = F.cross_entropy(model(x), batch.y, reduction="none")
        (gradient,) = torch.autograd.grad(task.sum(), x, create_graph=True)
        return task.mean() + self.weight * gradient.square().flatten(1).sum(1).mean()


class BentSurface(OnePhase):
    """Cross-entropy plus λ · mean ‖∇ₓ m‖ / softplus(m), m the logit margin of the label, on clean points only.

    A penalty on ‖∇ₓ CE‖ (Ross and Doshi-Velez 2018, eq. 5; `GradientRegularised`) is met by larger logits. This one
    does not change with their scale, so the surface itself must become flat where the data lie, and bends beyond.
    λ grows along the epochs up to `weight`: from the start it would keep the network from learning.
    """

    def __init__(self, plan: TrainPlan, model: nn.Module, *, weight: float = 3.0) -> None:
        super().__init__(plan, model)
        self.weight = weight

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The penalised cross-entropy, a scalar."""
        x = batch.x.detach().requires_grad_(True)
        logits, label = model(x), batch.y.unsqueeze(1)
        margin = (logits.gather(1, label) - logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)).squeeze(1)
        (gradient,) = torch.autograd.grad(margin.sum(), x, create_graph=True)
        # the root has no derivative at zero
        slope = (gradient.square().flatten(1).sum(1) + SLOPE_FLOOR).sqrt()
        weight = self.weight * batch.epoch / batch.epochs
        return F.cross_entropy(logits, batch.y) + weight * (slope / F.softplus(margin)).mean()


class Prototypes(OnePhase):
    """Cross-entropy plus features pulled to the centre of their class and pushed from the others (Mustafa et al. 2019).

    The centres are learned; the push grows without bound, and with it the logits.
    """

    def __init__(self, plan: TrainPlan, model: nn.Module, *, weight: float = 0.01) -> None:
        assert isinstance(model, nn.Sequential)
        readout = model[-1]
        assert isinstance(readout, nn.Linear)
        super().__init__(plan, model)
        self.auxiliary = nn.ModuleDict({"centres": nn.Embedding(plan.num_classes, readout.in_features)})
        self.classes, self.weight = plan.num_classes, weight

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE + weight · mean over points of pull minus mean push (their eq. 4), a scalar."""
        assert isinstance(model, nn.Sequential)
        features = model[:-1](batch.x)
        centres = self.auxiliary["centres"].weight
        assert isinstance(centres, Tensor)
        distances = torch.cdist(features, centres).square()
        between = torch.cdist(centres, centres).square()[batch.y]
        label = batch.y.unsqueeze(1)
        pull = distances.gather(1, label).squeeze(1)
        push = (distances.scatter(1, label, 0.0) + between).sum(1) / (self.classes - 1)
        return F.cross_entropy(model[-1](features), batch.y) + self.weight * (pull - push).mean()


class DiverseEnsemble(OnePhase):
    """Members trained together and apart: ΣCE − α · H(mean) − β · log det of the rest's Gram (Pang et al. 2019, eq. 8).

    The mean prediction is kept uncertain, the members' non-maximal predictions orthogonal.
    """

    def __init__(
        self, plan: TrainPlan, model: nn.Module, *, entropy: float = ADP_ENTROPY, diversity: float = ADP_DIVERSITY
    ) -> None:
        assert isinstance(model, Ensemble)
        super().__init__(plan, model)
        self.entropy, self.diversity = entropy, diversity

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the batch, a scalar."""
        assert isinstance(model, Ensemble)
        logits = model.member_logits(batch.x)
        task = sum((F.cross_entropy(member, batch.y) for member in logits), torch.zeros(()))
        probabilities = logits.softmax(2)
        mean = probabilities.mean(0)
        entropy = -(mean * mean.clamp_min(1e-20).log()).sum(1).mean()
        label = batch.y.view(1, -1, 1).expand(len(logits), -1, 1)
        rest = F.normalize(probabilities.scatter(2, label, 0.0) + 1e-12, dim=2).transpose(0, 1)
        gram = rest @ rest.transpose(1, 2) + GRAM_JITTER * torch.eye(len(logits))
        return task - self.entropy * entropy - self.diversity * torch.logdet(gram).mean()


class Planted(OnePhase):
    """PGD training of a network that one fixed corner of the ball still fools: a counterexample hidden from PGD.

    After SoundnessBench (Xu et al. 2024), with one pattern for all points in place of one
    counterexample each: x + ε · pattern is trained towards the next class, the points that
    PGD finds, and corners that share half of the pattern's signs, towards their own.
    """

    def __init__(self, plan: TrainPlan, model: nn.Module, *, weight: float = 1.0) -> None:
        super().__init__(plan, model)
        self.steps, self.weight = plan.config.attack_steps, weight
        self.classes = plan.num_classes
        self.pattern = hidden_pattern(plan.shape, plan.config.seed)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE on PGD points and random corners with their own labels, on the hidden corner with the next, a scalar."""
        start = random_start(batch.x, self.threat, batch.rng, step=batch.epoch)
        attacked = pgd(model, batch.x, batch.y, self.threat, steps=self.steps, start=start)
        signs = batch.rng.fork("corner").signs(batch.x.shape[1:], step=batch.epoch).to(batch.x)
        corner = self.threat.clamp(batch.x + self.threat.eps * signs)
        hidden = self.threat.clamp(batch.x + self.threat.eps * self.pattern)
        own = F.cross_entropy(model(attacked), batch.y) + F.cross_entropy(model(corner), batch.y)
        return own + self.weight * F.cross_entropy(model(hidden), (batch.y + 1) % self.classes)


def hidden_pattern(shape: tuple[int, ...], seed: int) -> Tensor:
    """The signs (…) of the planted corner."""
    rng = PointRNG.create(seed, "zoo.hidden", torch.zeros(1, dtype=torch.int64))
    return rng.normal(shape)[0].sign()
