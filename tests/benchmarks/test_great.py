"""The study of gradient adversarial training: its attacks on a model whose answers are known, and its tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import great, great_page, great_transfer
from maskaudit.train import METHODS


class _Lines(nn.Module):
    """Scores 10 (x₀ − t), 0 and 10 (t − x₀) with t = 0.5: classes 0 and 2 lie on both sides of a narrow class 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = 10 * (x[:, :1] - 0.5)
        return torch.cat([side, torch.zeros_like(side), -side], 1)


@pytest.fixture
def points() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[0.55, 0.5], [0.65, 0.5], [0.35, 0.5]]), torch.tensor([0, 0, 2])


@pytest.mark.parametrize("steps", [1, 10])
def test_untargeted_steps_go_down_the_true_score(steps: int, points: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = points
    at = great.signed_steps(_Lines(), x, y, 0.1, steps, None)
    torch.testing.assert_close(at[:, 0], torch.tensor([0.45, 0.55, 0.45]))
    assert torch.equal(at[:, 1], x[:, 1])


def test_targeted_steps_go_up_the_targets_score(points: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = points
    at = great.signed_steps(_Lines(), x, y, 0.1, 1, 2 - y)
    torch.testing.assert_close(at[:, 0], torch.tensor([0.45, 0.55, 0.45]))


def test_the_tables_attacks_count_who_keeps_the_true_class(points: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = great.paper_attacks(_Lines(), *points, 0.1)
    assert set(found) == set(great_page.COLUMNS.values())
    assert found["FGSM untargeted"] == found["iFGSM untargeted"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["FGSM worst"] == pytest.approx(2 / 3, abs=1e-3), "the least likely class lies behind the boundary"


def test_every_network_of_the_study_has_a_name_of_its_own_and_a_known_method() -> None:
    subjects = [*great.small(), *great.full("cpu")]
    assert len({subject.key for subject in subjects}) == len(subjects)
    assert {subject.config.method for subject in subjects} <= set(METHODS)
    assert len(great_transfer.runs()) == 2 * 2 * 3 + 2 * 4


@pytest.mark.parametrize("name", great_page.REGIONS)
def test_every_table_is_made_from_the_committed_records(name: str) -> None:
    text = great_page.REGIONS[name]()
    rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert text.endswith("\n")
    assert name == "great-pictures" or len(rows) > 2
    methods = {record["method"] for record in great_page.defences()}
    if name in ("great-attacks", "great-audits"):
        assert all(f"| {method} |" in text for method in methods)


def test_every_picture_that_the_page_shows_is_there() -> None:
    text = great_page.pictures()
    named = [line.rpartition("(")[2].rstrip(")") for line in text.splitlines() if line]
    assert named
    assert all((great_page.PICTURES.parent / name).is_file() for name in named)
