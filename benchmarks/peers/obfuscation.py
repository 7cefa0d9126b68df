"""The five behaviours of obfuscated gradients, as a detector: any of them fires.

A. Athalye, N. Carlini, D. Wagner, "Obfuscated gradients give a false sense of security", ICML 2018, section 3.1. The
paper gives no thresholds. Two attacks are compared by an exact McNemar test, so that a point or two of luck is no
sign; the strict reading (any difference) would accuse more models, honest ones included. Black box is Square attack
(Andriushchenko et al. 2020), as later work does; random sampling is done where gradients failed.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from benchmarks.peers.descent import Trace, descend, uniform_noise
from benchmarks.peers.interface import Peer, PeerAnswer, PeerTask
from maskaudit.attacks.square import square
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.rescore import rescore
from maskaudit.verdict.statistics import mcnemar

#: Level of the tests between two attacks.
ALPHA = 0.01

#: Queries of the black-box attack, random draws per point.
QUERIES = 500
DRAWS = 1000

#: An unbounded attack may leave this share of the points: the last of them may need more steps.
UNBOUNDED_LEFT = 0.02

#: Multiples of ε at which success must grow.
GROWTH = (1.0, 2.0, 4.0)


def run(task: PeerTask) -> PeerAnswer:
    """Attack in one step, in many, without gradients, without a bound, at random and at growing bounds."""
    with torch.no_grad():
        correct = task.model(task.x).argmax(dim=1) == task.y
    x, y, threat = task.x[correct], task.y[correct], task.threat
    if not len(x):
        return PeerAnswer()
    one = descend(task.model, x, y, threat, seed=task.seed, steps=1, step_share=1.0, random_start=False)
    traces = {m: _attack(task, x, y, m) for m in GROWTH}
    many = _final(traces[GROWTH[0]])
    width = threat.bounds[1] - threat.bounds[0]
    reach = width if threat.norm == "Linf" else width * x[0].numel() ** 0.5
    free = _final(descend(task.model, x, y, threat.with_eps(reach), seed=task.seed))
    box = _black_box(task, x, y)
    lucky = _sampled(task, x[~many], y[~many])
    success = [float(_final(trace).double().mean()) for trace in traces.values()]
    return PeerAnswer(
        indicators={
            "one step beats many": beats(_final(one), many),
            "black box beats white box": beats(box, many),
            "unbounded below 100 %": float((~free).double().mean()) > UNBOUNDED_LEFT,
            "random sampling finds more": beats(lucky, torch.zeros_like(lucky)),
            "larger bound, no more success": any(b <= a < 1 for a, b in itertools.pairwise(success)),
        },
        figures={
            "one step": float(_final(one).double().mean()), "many steps": success[0],
            "black box": float(box.double().mean()), "unbounded": float(free.double().mean()),
            "sampled": float(lucky.sum()) / len(x), "at 2 ε": success[1], "at 4 ε": success[2],
        },
    )  # fmt: skip


def beats(first: Tensor, second: Tensor) -> bool:
    """Whether the first attack (bool (N,)) breaks more points than the second, beyond chance."""
    return mcnemar(int((first & ~second).sum()), int((second & ~first).sum())) < ALPHA


def _attack(task: PeerTask, x: Tensor, y: Tensor, multiple: float) -> Trace:
    return descend(task.model, x, y, task.threat.with_eps(multiple * task.threat.eps), seed=task.seed)


def _final(trace: Trace) -> Tensor:
    """Misclassified at the last iterate: no use of lucky draws on the way."""
    return trace.wrong[-1]


def _black_box(task: PeerTask, x: Tensor, y: Tensor) -> Tensor:
    rng = PointRNG.create(task.seed, "peer.square", torch.arange(len(x)))
    with Target(task.model, bounds=task.threat.bounds, seed=task.seed) as target:
        found = square(target, x, y, threat=task.threat, rng=rng, queries=QUERIES)
        return rescore(target.raw, found.examples, x, y, threat=task.threat, random=task.random).broken


def _sampled(task: PeerTask, x: Tensor, y: Tensor) -> Tensor:
    """Points (N,) that some uniform draw breaks, confirmed by a second look (a random model may flip by itself)."""
    generator = torch.Generator().manual_seed(task.seed + 1)
    found = torch.zeros(len(x), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(DRAWS):
            rows = (~found).nonzero().squeeze(1)
            if not len(rows):
                break
            drawn = uniform_noise(x[rows], task.threat, generator)
            hit = task.model(drawn).argmax(dim=1) != y[rows]
            if bool(hit.any()):
                sure = rescore(task.model, drawn[hit], x[rows][hit], y[rows][hit], threat=task.threat,
                               random=task.random).broken  # fmt: skip
                found[rows[hit]] = sure
    return found


PEER = Peer(
    "five-behaviours", "Five behaviours of obfuscated gradients", "Athalye, Carlini & Wagner 2018, section 3.1", run
)  # fmt: skip
