"""Published networks: recipes that can be followed, truths that follow from the counts, rows that say what ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import published, published_truth
from benchmarks.published_recipes import RECIPES, Recipe
from maskaudit.loading import arch

SHAPES = {"mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar-10": (3, 32, 32)}
SPECS = sorted({(recipe.arch, recipe.data) for recipe in RECIPES if recipe.arch is not None})


def test_every_recipe_names_one_file_for_good() -> None:
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES) >= 25
    assert len({recipe.sha256 for recipe in RECIPES}) == len(RECIPES)
    for recipe in RECIPES:
        assert len(recipe.sha256) == 64
        assert len(recipe.commit) == 40
        assert recipe.bytes > 0


@pytest.mark.parametrize(("spec", "data"), SPECS, ids=lambda value: str(value)[:40])
def test_every_architecture_answers_points_of_its_data(spec: str, data: str) -> None:
    module = arch.build(f"{published.NETWORKS}:{spec}").eval()
    with torch.no_grad():
        assert module(torch.rand(3, *SHAPES[data])).shape == (3, 10)


LADDERS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing hidden": ({"clean": 60, "apgd-ce": 20, "apgd-t": 18, "fab-t": 18, "square": 18, "transfer": 17}, "honest"),
    "only Square": ({"clean": 60, "apgd-ce": 60, "apgd-t": 59, "fab-t": 59, "square": 30}, "masked"),
    "only transfer": ({"clean": 60, "apgd-ce": 55, "apgd-t": 55, "fab-t": 55, "square": 54, "transfer": 10}, "masked"),
    "no gradient": ({"clean": 60, "apgd-ce": "failed", "apgd-t": "failed", "fab-t": "failed", "square": 40}, "masked"),
    "a few": ({"clean": 60, "apgd-ce": 20, "apgd-t": 20, "fab-t": 20, "square": 17}, "open"),
    "no point is right": ({"clean": 0, "apgd-ce": 0, "apgd-t": 0, "fab-t": 0, "square": 0}, "open"),
}


@pytest.mark.parametrize(("counts", "label"), LADDERS.values(), ids=LADDERS)
def test_the_truth_follows_from_what_each_attack_leaves(counts: dict[str, Any], label: str) -> None:
    stages = {name: n if isinstance(n, str) else [1] * n + [0] * (60 - n) for name, n in counts.items()}
    assert published_truth.label(stages) == label


@pytest.mark.parametrize(("zero_ce", "label"), [(1.0, "masked"), (0.0, "honest"), (None, "honest")])
def test_points_that_fall_to_another_loss_count_where_cross_entropy_is_flat(zero_ce: float | None, label: str) -> None:
    stages = {name: [1] * n for name, n in (("clean", 60), ("apgd-ce", 60), ("apgd-t", 0), ("square", 0))}
    assert published_truth.label(stages, zero_ce) == label


class Answering(nn.Module):
    """A linear network that answers in a way of its own."""

    def __init__(self, answer: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.answer = nn.Linear(4, 3), answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.linear, x)


GRADIENTS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], float | None, float | None]] = {
    "useful": (lambda linear, x: linear(x), 0.0, 0.0),
    "cut": (lambda linear, x: linear(x.detach()).detach(), None, None),
    "zero": (lambda linear, x: linear(x.round()), 1.0, 1.0),
    "zero for cross-entropy alone": (lambda linear, x: 1e6 * linear(x), 1.0, 0.0),
}


@pytest.mark.parametrize(("answer", "zero_ce", "zero_margin"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_that_are_zero_or_cut_are_told_apart(
    answer: Callable[[nn.Module, Tensor], Tensor], zero_ce: float | None, zero_margin: float | None
) -> None:
    model = Answering(answer).eval()
    x = torch.rand(6, 4)
    found = published_truth.find(model, None, x, model(x).argmax(1), eps=0.01, high=1.0)
    assert found["stages"]["clean"] == [1] * 6
    assert (found["zero_ce"], found["zero_margin"]) == (zero_ce, zero_margin)


def records(recipe: Recipe) -> list[dict[str, Any]]:
    same = {"model": recipe.name, "sha256": recipe.sha256, "status": "ran"}
    stages = {"clean": [1, 1, 0], "apgd-ce": [1, 1, 0], "square": [0, 1, 0]}
    return [
        same | {
            "kind": "truth", "label": "masked", "clean": 0.75, "index": [7, 8, 9], "stages": stages, "cpu_seconds": 3.0,
            "zero_ce": 0.0,
            "forwards": 300, "backwards": 0,
        },
        same | {
            "kind": "audit", "label": "masked", "index": [9, 8, 4], "unbroken": [0, 1, 1], "cpu_seconds": 5.0,
            "forwards": 900, "backwards": 60,
            "verdict": {"mechanisms": [{"id": "cut", "locations": [{"module": "sign", "op": "ge"}]}]},
        },
    ]  # fmt: skip


def test_a_row_compares_the_points_that_both_have() -> None:
    table = published.render(records(RECIPES[0]))
    assert "1 honest: 1 `masked`" in table
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {RECIPES[0].name} ")]
    for part in ("0.750", "0.67 / 0.67 / 0.33", "**masked**", "cut in `sign ge`", "0.500 / 0.500 (2)", "320 / 100 a"):
        assert part in row
