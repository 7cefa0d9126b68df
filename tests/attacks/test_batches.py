"""Batch size, order and company of the points change nothing, to the bit, if the model's answers do not.

Whatever the processor: `.ci/run` repeats this with PyTorch's other kernels and with another number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.decision import decision_based
from maskaudit.attacks.finite_differences import finite_differences
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.noise import random_noise
from maskaudit.attacks.pgd import pgd
from maskaudit.attacks.square import square
from maskaudit.attacks.transfer import transfer
from maskaudit.attacks.universal import universal
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

SHAPE, CLASSES, N = (1, 9, 9), 5, 20
THREATS = [ThreatModel("Linf", 0.02), ThreatModel("L2", 0.2)]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A model whose answer for a point is the same to the bit in any batch; its input gradient is laid out oddly.

    The weights are whole numbers and the inputs are rounded to 2⁻²⁴: no sum of theirs rounds in float64.
    """
    weight = (draw(81, CLASSES, seed=seed) * 64).round() - 32

    def model(x: Tensor) -> Tensor:
        points = x.flatten(1).double()
        rounded = points + ((points * 2**24).round() * 2.0**-24 - points).detach()
        columns = rounded.t().contiguous()
        return (columns[:, :, None] * weight[:, None]).sum(0)

    return model


ATTACKS: dict[str, Callable[..., Attempt]] = {
    "pgd": functools.partial(pgd, steps=15),
    "apgd-ce": functools.partial(apgd, steps=12, restarts=2),
    "apgd-dlr": functools.partial(apgd, steps=12, loss="dlr"),
    "apgd-targeted": functools.partial(apgd, steps=12, restarts=2, targets=2, loss="targeted-dlr"),
    "square": functools.partial(square, queries=100),
    "noise": functools.partial(random_noise, draws=20),
    "finite-differences": functools.partial(finite_differences, queries=400, coordinate_limit=20),
    "decision": functools.partial(decision_based, queries=80, pool=draw(60, *SHAPE, seed=9).float()),
    "hopskipjump": functools.partial(
        decision_based, queries=80, pool=draw(60, *SHAPE, seed=9).float(), method="hopskipjump"
    ),
    "transfer": functools.partial(transfer, queries=20, steps=8, surrogates=(Target(exact(1)), Target(exact(2)))),
    "universal": functools.partial(universal, perturbations=0.2 * (draw(6, *SHAPE, seed=8).float() - 0.5)),
}


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("name", ATTACKS)
def test_results_do_not_depend_on_batch_size_order_or_company(name: str, threat: ThreatModel) -> None:
    model, x, everyone = exact(), draw(N, *SHAPE, seed=3).float(), torch.arange(N)
    y = model(x).argmax(1)

    def run(rows: Tensor, batch_size: int) -> Attempt:
        target = Target(model, batch_size=batch_size)
        rng = PointRNG.create(0, "test", rows)
        return ATTACKS[name](target, x[rows], y[rows], threat=threat, rng=rng)

    whole = run(everyone, 256)
    assert bool((whole.first_success < 0).any()), "some points must go all the way"
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for rows, batch_size in ((everyone, 7), (order, 256), (order[:11], 4), (order[:1], 1)):
        part = run(rows, batch_size)
        for item in ("examples", "first_success", "queries"):
            assert torch.equal(getattr(part, item), getattr(whole, item)[rows]), (item, batch_size)
