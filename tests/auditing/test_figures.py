"""Captions of the images of a report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskaudit.auditing.figures import taken_for
from maskaudit.target import Target
from maskaudit.target.form import Form


@pytest.mark.parametrize("label", [0, 1])
def test_examples_of_a_single_output_are_taken_for_the_other_class(label: int) -> None:
    def one_logit(x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True) - 2

    with Target(one_logit) as target:
        target.form = Form("one-logit")
        assert taken_for(target, torch.full((1, 2, 2), 0.2 if label else 0.9), label) == 1 - label


@pytest.mark.parametrize(("refused", "expected"), [(None, 2), (2, 0)])
def test_an_example_is_never_taken_for_its_class_nor_for_a_refusal(refused: int | None, expected: int) -> None:
    """As the scores of a random model may have it in one evaluation."""

    def scores(x: Tensor) -> Tensor:
        return torch.tensor([[0.1, 0.5, 0.4]]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1]

    with Target(scores, reject_class=refused) as target:
        assert taken_for(target, torch.zeros(1, 2, 2), 1) == expected
