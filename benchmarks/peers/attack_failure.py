"""Indicators of attack failure: six signs that a gradient attack did not work, read from its trace.

M. Pintor, L. Demetrio, A. Sotgiu, A. Demontis, N. Carlini, B. Biggio, F. Roli, "Indicators of attack failure:
debugging and improving optimization of adversarial examples", NeurIPS 2022, section 3. Written from the paper's
definitions; the figures are the defaults of its authors' code (github.com/pralab/IndicatorsOfAttackFailure,
`src/indicators/indicators.py`), of which nothing else was taken. The attack under inspection is PGD-40 on
cross-entropy.

Per point: I1 the gradient at the start is missing or zero; I2 the loss varies by more than a tenth of itself in a
small cube; I3 an iterate was adversarial and the last is not; I4 a failed attack whose loss still rose in its last
steps; I5 adversarial while attacked, but not when the model is asked afresh (the attacked model is the audited one, so
this is what is left of a failing transfer); I6 an attack without a bound fails. The paper's figures are means over
points; an indicator counts as fired when it is on for a tenth of them, and I2 is on where the mean variation is above
a tenth: our reading, kind to honest models, as is the smaller cube.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.peers.descent import Trace, descend, input_gradient
from benchmarks.peers.interface import Peer, PeerAnswer, PeerTask

#: I2: draws, half the edge of the cube (of a range of width 1), and the mean relative variation that is too much.
#: The edge of the authors' code, 8/255, is on for 36 % to 75 % of the points of ordinary networks, whose small loss
#: rises quickly; this smaller one is on for none of them, and for the same 59 % behind a quantiser.
DRAWS = 100
RADIUS = 1e-3
VARIATION = 0.1

#: I4: last iterates looked at, and the rise among them, relative to the range of the loss, that is too much.
LAST_STEPS = 10
RISE = 0.05

#: Share of points on which an indicator must be on.
SHARE = 0.1

NAMES = (
    "I1 unavailable gradients", "I2 unstable predictions", "I3 silent success", "I4 incomplete optimisation",
    "I5 transfer failure", "I6 unconstrained attack failure",
)  # fmt: skip


def run(task: PeerTask) -> PeerAnswer:
    """Attack, read the six indicators per point, and fire those that are on for too many points."""
    with torch.no_grad():
        correct = task.model(task.x).argmax(dim=1) == task.y
    x, y = task.x[correct], task.y[correct]
    if not len(x):
        return PeerAnswer()
    _, _, gradient = input_gradient(task.model, x, y)
    trace = descend(task.model, x, y, task.threat, seed=task.seed)
    with torch.no_grad():
        afresh = task.model(trace.best).argmax(dim=1) != y
    width = task.threat.bounds[1] - task.threat.bounds[0]
    reach = width if task.threat.norm == "Linf" else width * x[0].numel() ** 0.5
    free = descend(task.model, x, y, task.threat.with_eps(reach), seed=task.seed)
    on = (
        gradient.flatten(1).abs().amax(dim=1) == 0,
        unstable(task, x, y),
        trace.broken & ~trace.wrong[-1],
        incomplete(trace),
        trace.broken & ~afresh,
        ~free.broken,
    )
    shares = {name: float(indicator.double().mean()) for name, indicator in zip(NAMES, on, strict=True)}
    return PeerAnswer({name: share >= SHARE for name, share in shares.items()}, shares)


def unstable(task: PeerTask, x: Tensor, y: Tensor) -> Tensor:
    """I2 per point (N,): mean relative change of the loss near the clean point above `VARIATION`."""
    generator = torch.Generator().manual_seed(task.seed)
    radius = RADIUS * (task.threat.bounds[1] - task.threat.bounds[0])
    with torch.no_grad():
        start = cross_entropy(task.model(x), y, reduction="none").double()
        change = torch.zeros_like(start)
        for _ in range(DRAWS):
            near = task.threat.clamp(x + radius * (2 * torch.rand(x.shape, generator=generator) - 1))
            change += (cross_entropy(task.model(near), y, reduction="none").double() - start).abs() / DRAWS
    return change > VARIATION * torch.where(start == 0, 1.0, start)


def incomplete(trace: Trace) -> Tensor:
    """I4 per point (N,): no success, and the best loss so far still rose by more than `RISE` of the loss's range."""
    loss = trace.loss.double()
    best = loss.cummax(dim=0).values
    spread = loss.amax(dim=0) - loss.amin(dim=0)
    return ~trace.broken & (best[-1] - best[-LAST_STEPS] > RISE * spread)


PEER = Peer(
    "attack-failure", "Indicators of attack failure, any of six", "Pintor et al. 2022, section 3", run,
    lenient=("I4 incomplete optimisation",),
)  # fmt: skip
