"""Imbalanced margin on models whose gradients are written down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes.run import run_probe

from .toys import context, get, points


class TwoSlopes(nn.Module):
    """Two classes with gradients of length `loud` and 1 at every point."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        self.loud = loud

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.loud * x[:, 0] + 100, x[:, 1]], dim=1)


@pytest.mark.parametrize(("loud", "ratio", "status"), [(1.0, 1.0, "pass"), (3.9, 3.9, "pass"), (8.0, 8.0, "finding"),
                                                      (0.1, 10.0, "finding")])  # fmt: skip
def test_ratio_of_the_two_gradients(loud: float, ratio: float, status: str) -> None:
    with context(TwoSlopes(loud), points(10, 2), torch.zeros(10, dtype=torch.int64)) as ctx:
        result = run_probe(get("imbalanced-margin"), ctx)
    assert result.value == pytest.approx(ratio, rel=1e-5)
    assert (result.status, result.n) == (status, 10)
    assert result.details["true_class_larger"] == (1.0 if loud > 1 else 0.0)


def test_a_softmax_at_the_end_makes_no_term_louder() -> None:
    def logits(x: Tensor) -> Tensor:
        return torch.stack([3 * x[:, 0] + 9, x[:, 1], x[:, 2]], dim=1)

    x, y = points(10, 3), torch.zeros(10, dtype=torch.int64)
    with context(logits, x, y) as ctx:  # type: ignore[arg-type]
        assert run_probe(get("imbalanced-margin"), ctx).value == pytest.approx(3.0, rel=1e-5)
    with context(lambda x: logits(x).softmax(dim=1), x, y) as ctx:  # type: ignore[arg-type]
        ctx.target.outputs = "probabilities"
        found = run_probe(get("imbalanced-margin"), ctx)
    # gradients less their mean (1, 1/3, 1/3): (2, -1/3, -1/3) and (-1, 2/3, -1/3) of length sqrt(38/9), sqrt(14/9)
    assert found.value == pytest.approx((38 / 14) ** 0.5, rel=1e-3)
    assert found.status == "pass"


def test_points_without_one_of_the_gradients_do_not_count() -> None:
    def quiet(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] + 100, x[:, 1] * (x[:, 0] > 0.5)], dim=1)

    x = points(20, 2)
    with context(quiet, x, torch.zeros(20, dtype=torch.int64)) as ctx:  # type: ignore[arg-type]
        result = run_probe(get("imbalanced-margin"), ctx)
    assert result.n == int((x[:, 0] > 0.5).sum())
    assert result.details["no_gradient"] == 20 - result.n
