"""Perturbations that broke other points: tried on all, in order, and their mean first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.attacks.universal import keys, universal
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from tests.attacks.subjects import L2, LINF, point_rng

SIDE = 6


class Locked(nn.Module):
    """Class 0 everywhere, and class 1 where all coordinates have risen by half of ε above one half: one key for all."""

    def __init__(self, pattern: Tensor, level: float) -> None:
        super().__init__()
        self.pattern, self.level = pattern, level

    def forward(self, x: Tensor) -> Tensor:
        opened = (((x - 0.5) * self.pattern).flatten(1) > self.level).all(dim=1)
        return torch.stack([torch.zeros(len(x)), 2 * opened.float() - 1], dim=1)


def locked(threat: ThreatModel) -> tuple[Target, Tensor, Tensor]:
    pattern = torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).sign()
    full = threat.eps * threat.step_direction(pattern[None])
    level = float(full.abs().min()) / 2
    return Target(Locked(pattern, level)), torch.full((40, 1, SIDE, SIDE), 0.5), full


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
@pytest.mark.parametrize("batch_size", [7, 256])
def test_one_key_opens_every_point_and_the_rest_is_spared(threat: ThreatModel, batch_size: int) -> None:
    target, x, key = locked(threat)
    target.batch_size = batch_size
    y = torch.zeros(40, dtype=torch.int64)
    useless = torch.zeros_like(key)
    attempt = universal(
        target, x, y, threat=threat, rng=point_rng(40), perturbations=torch.cat([useless, key, useless])
    )
    assert (target.raw(attempt.examples).argmax(1) == 1).all()
    assert threat.admissible(attempt.examples, x).all()
    assert (attempt.first_success == 2).all()
    assert (attempt.queries == 2).all()


def test_without_a_key_every_perturbation_is_tried() -> None:
    target, x, key = locked(LINF)
    y = torch.zeros(40, dtype=torch.int64)
    attempt = universal(target, x, y, threat=LINF, rng=point_rng(40), perturbations=-key.repeat(5, 1, 1, 1))
    assert (attempt.first_success == -1).all()
    assert (attempt.queries == 5).all()


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
@pytest.mark.parametrize("n", [1, 3, 200])
def test_keys_are_full_size_few_and_begin_with_what_the_examples_share(threat: ThreatModel, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.full((n, 1, SIDE, SIDE), 0.5)
    common = torch.randn(1, 1, SIDE, SIDE, generator=generator)
    examples = threat.project(x + 0.05 * (common + 0.3 * torch.randn(x.shape, generator=generator)), x)
    found = keys(x, examples, threat, 16)
    assert 2 <= len(found) <= 16
    sizes = threat.distance(x[:1] + found, x[:1].expand_as(found))
    assert torch.allclose(sizes.float(), torch.full((len(found),), threat.eps), rtol=1e-4)
    assert torch.nn.functional.cosine_similarity(found[0].flatten(), common.flatten(), dim=0) > 0.7


@pytest.mark.heavy
def test_an_audit_carries_what_it_found_over_to_the_points_still_unbroken() -> None:
    class Backdoor(nn.Module):
        """Linear, but where twelve coordinates all lie low its classes change places: no slope tells before."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(x)
            asleep = (x[:, :12] < 0.35).all(dim=1, keepdim=True)
            return torch.where(asleep, scores.roll(1, dims=1), scores)

    model = Backdoor()
    x = torch.rand(128, 16, generator=torch.Generator().manual_seed(3))
    x[:, :12] = 0.40 + 0.08 * x[:, :12]
    y = model.head(x).argmax(1)
    left_out = ("torchattacks-pgd", "torchattacks-square", "transfer", "finite-differences")
    with_it, without = (
        api.audit(model, (x, y), eps=0.16, settings=AuditSettings(budget="quick", ignore=ignored)).report
        for ignored in (left_out, (*left_out, "universal"))
    )
    row = next(row for row in with_it.attacks if row.name == "universal")
    assert row.role == "challenger"
    assert row.broken == row.attempted > 5
    assert with_it.accuracy["best_known"].value == 0  # type: ignore[union-attr]
    assert without.accuracy["best_known"].value > 0.1  # type: ignore[union-attr]
    assert with_it.power == without.power
