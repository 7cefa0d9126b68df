"""Counterexamples that gradients do not lead to, found by branch and bound over the activations of a small network.

H. Zhang, S. Wang, K. Xu, Y. Wang, S. Jana, C.-J. Hsieh, Z. Kolter, "A branch and bound framework for stronger
adversarial attacks of ReLU networks", ICML 2022. Parts of the ball in which activations are fixed are bounded; the
inputs at which the bounds are lowest are where a counterexample can be, whatever the gradient at the clean point says,
and gradient steps carry the best of them on. Parts that hold none are dropped, so that a robust point ends early.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from maskaudit.attacks.interface import AttackUnavailable, Attempt, BestCandidates
from maskaudit.bounds.branching import FITTING, PARTS, Margins, Parts
from maskaudit.bounds.certificate import differences, margins, slack
from maskaudit.bounds.linear import Region, intervals
from maskaudit.bounds.network import Network, UnboundableError
from maskaudit.bounds.shared import network_of
from maskaudit.rng import PointRNG
from maskaudit.sums import column
from maskaudit.target import Target
from maskaudit.target.scores import breaking_margin
from maskaudit.threat import ThreatModel

#: Parts that a round splits, and rounds on interval bounds before tighter ones are worth their price.
POPPED, FIRST_ROUNDS = 16, 8
#: Multiplications of a pass that take as long as what a round does besides (measured on one core).
OVERHEAD = 200_000
#: Candidates of a round that gradient steps carry on, how many steps, and the size of the first, in units of ε.
CARRIED, CARRY_STEPS, CARRY_SIZE = 32, 20, 0.5
#: Most parts that wait; those with the highest bounds are forgotten, which an attack may.
MOST_WAITING = 4096
#: Units of activations up to which a network is searched.
MOST_RECTIFIERS = 10_000


def branch_and_bound(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, rounds: int
) -> Attempt:
    """Search every point for a counterexample; nothing is random.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        rounds: most rounds on a point, over all classes; `PARTS` parts are bounded in each.

    Returns:
        The candidate with the largest breaking margin; `first_success` and `queries` count parts.

    Raises:
        AttackUnavailable: when the network cannot be bounded, has no activations, or too many.
    """
    network = searchable(target, x)
    held, parts = BestCandidates(x), torch.zeros(len(x), dtype=torch.int64)
    for row in range(len(x)):
        if target.before_pass is not None:
            target.before_pass()
        search = _Search(target, network, threat, x[row : row + 1], y[row : row + 1])
        parts[row] = search.run(rounds)
        held.offer(torch.tensor([row]), search.best.examples, search.best.margin)
    return Attempt(held.examples, torch.where(held.margin > 0, parts, -1), parts)


def searchable(target: Target, x: Tensor) -> Network:
    """The network behind a target, if it can be searched.

    Raises:
        AttackUnavailable: when it cannot.
    """
    try:
        network = network_of(target, x)
    except UnboundableError as reason:
        raise AttackUnavailable(f"the network cannot be bounded: {reason}") from reason
    if not network.activations:
        raise AttackUnavailable("the network is affine, gradients tell all about it")
    if network.rectifiers > MOST_RECTIFIERS:
        raise AttackUnavailable(f"the network has {network.rectifiers} activations, more than {MOST_RECTIFIERS}")
    return network


class _Search:
    """The search at one point (1, …)."""

    def __init__(self, target: Target, network: Network, threat: ThreatModel, x: Tensor, y: Tensor) -> None:
        self.target, self.network, self.threat, self.x, self.y = target, network, threat, x, y
        self.best = BestCandidates(x)
        self.region = Region.around(x, threat)
        self.spent = 0

    def run(self, rounds: int) -> int:
        """Search on interval bounds first, which cost nothing, then on tighter ones; returns the parts bounded."""
        costly = rounds_of_bounds(self.network)
        first = rounds if rounds < 2 * costly else min(FIRST_ROUNDS, rounds)
        if not self._split(first, tighten=False) and rounds - first > costly:
            self._split(rounds - first - costly, tighten=True)
        return self.spent

    def _split(self, rounds: int, *, tighten: bool) -> bool:
        """Split the ball until a class wins, none can, or the rounds are spent; whether one of the former is so."""
        margins = self._margins(tighten)
        if margins is None:
            return True
        waiting = margins.whole()
        self.spent += len(waiting.bound)
        self._try(waiting.inputs)
        for _ in range(rounds):
            if bool(self.best.margin > 0) or not len(waiting.bound):
                return True
            order = _fairly(waiting)
            popped, rest = waiting.rows(order[:POPPED]), waiting.rows(order[POPPED:MOST_WAITING])
            made = margins.children(popped, max(1, (PARTS // len(popped.bound)).bit_length() - 1))
            self.spent += len(made.bound)
            if len(made.bound):
                self._try(made.inputs)
            waiting = Parts.joined([rest, made.rows((made.bound <= 0).nonzero().squeeze(1))])
        return bool(self.best.margin > 0)

    def _margins(self, tighten: bool) -> Margins | None:
        """The margins over the classes that could win by the first bounds; None where none could."""
        with torch.no_grad():
            found = intervals(self.network, self.region, tighten=tighten)
            left = (margins(self.network, self.region, found, self.y)[0] <= 0).nonzero().squeeze(1)
            extra = slack(found, self.y)[0]
        rows = differences(len(extra) + 1, self.y)[0]
        return Margins(self.network, self.region, found, rows[left], extra[left]) if len(left) else None

    def _try(self, inputs: Tensor) -> None:
        """Hold candidates (n, …), the best of them carried on by gradient steps, against the model itself."""
        x0, y = self.x.double(), self.y.expand(len(inputs))
        inputs = self.threat.project(inputs, x0)
        with torch.no_grad():
            order = breaking_margin(self.network(inputs), y).argsort(descending=True, stable=True)[:CARRIED]
        at, y = inputs[order], y[: len(order)]
        best, reached = at, torch.full((len(at),), -torch.inf, dtype=at.dtype)
        for step in range(CARRY_STEPS + 1):
            at = at.detach().requires_grad_(True)
            margin = breaking_margin(self.network(at), y)
            (gradient,) = torch.autograd.grad(margin.sum(), at)
            with torch.no_grad():
                better = margin > reached
                reached = torch.where(better, margin, reached)
                best = torch.where(column(better, at), at, best)
                size = self.threat.eps * CARRY_SIZE * (1 - step / (CARRY_STEPS + 1))
                at = self.threat.project(at + size * self.threat.step_direction(gradient), x0)
        self._offer(best.detach(), reached.detach())

    def _offer(self, best: Tensor, reached: Tensor) -> None:
        """The best candidate as the model itself takes and scores it."""
        example = self.threat.project(best[reached.argmax()].unsqueeze(0).to(self.x.dtype), self.x)
        margin = self.target.margin(self.target.scores(example), self.y)
        self.best.offer(torch.tensor([0]), example, margin)


def _fairly(parts: Parts) -> Tensor:
    """The order in which parts are split (D,): the lowest bound of every class, then the second lowest of every one."""
    order = parts.bound.argsort(stable=True)
    goal = parts.goal[order]
    rank = functional.one_hot(goal).cumsum(0).gather(1, goal.unsqueeze(1)).squeeze(1)
    return order[rank.argsort(stable=True)]


def size(network: Network) -> int:
    """Multiplications of one pass of one point."""
    return sum(step.shape.numel() * step.terms for step in network.steps)


def rounds_of_bounds(network: Network) -> int:
    """Rounds that cost as much as CROWN bounds of all rectifiers."""
    return 1 + 2 * network.rectifiers // (PARTS * FITTING * 3)


def effort(network: Network, passes: float) -> int:
    """Rounds that a number of multiplications suffices for, over all points.

    A small network's rounds cost as much as those of one of `OVERHEAD` multiplications, by what is done around them.
    """
    return int(passes / (PARTS * FITTING * 3 * (size(network) + OVERHEAD)))
