"""What an op made is compared between two passes as it was made, whatever is written over it later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.target import Target
from maskaudit.trace.op_notes import same_data
from maskaudit.trace.passes import observe

Write = Callable[[Tensor], object]


def by_number(h: Tensor) -> None:
    h.detach().numpy()[...] = 0


def by_item(h: Tensor) -> None:
    h[...] = 0


WRITES: dict[str, Write] = {
    "method": lambda h: h.zero_(),
    "item": by_item,
    "operator": lambda h: h.__imul__(0),
    "out": lambda h: torch.mul(h.detach(), 0, out=h.detach()),
    "flag": lambda h: F.threshold(h, 1e9, 0.0, True),
    "data": lambda h: h.data.zero_(),
    "view": lambda h: h.view(-1).zero_(),
    "numpy": by_number,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_data_are_kept_before_they_are_written_over(write: Write) -> None:
    class Forgetful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = x * 2
            write(h)
            return x.flatten(1)[:, :2]

    with Target(Forgetful()) as target:
        x = torch.rand(4, 1, 2, 2)
        (first, _), (second, _) = observe(target, x), observe(target, x / 2)
    made = next(op for op in first.ops if op.name == "mul")
    other = next(op for op in second.ops if op.name == "mul")
    assert torch.equal(made.data[0], 2 * x)
    assert not made.made_the_same(other)
    assert made.made_the_same(made)


def test_data_that_nothing_writes_to_are_not_copied() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).flatten(1)[:, :2]

    with Target(Plain()) as target:
        observer, _ = observe(target, torch.rand(4, 1, 2, 2))
    first, second, *_ = observer.ops
    assert (first.name, second.name) == ("mul", "flatten")
    assert first.data[0].data_ptr() == second.data[0].data_ptr()


def test_memory_with_whatever_was_in_it_does_not_move() -> None:
    class Scattered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            whole = torch.empty_like(x)
            whole[:] = x
            return whole.flatten(1)[:, :2]

    with Target(Scattered()) as target:
        x = torch.rand(4, 1, 2, 2)
        (first, _), (second, _) = observe(target, x), observe(target, x / 2)
    assert first.ops[0].name == "empty_like"
    assert first.ops[0].made_the_same(second.ops[0])


NAN, HALF = torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]).bfloat16()


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (NAN, NAN.clone(), True),
        (NAN, torch.tensor([2.0, torch.nan]), False),
        (NAN, torch.tensor([1.0, 0.0]), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), True),
        (HALF, HALF.clone(), True),
        (HALF, HALF.float(), False),
        (HALF, HALF[:1], False),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 3j]), False),
        (torch.zeros(2).to_sparse(), torch.ones(2).to_sparse(), True),
    ],
)
def test_what_counts_as_the_same_data(a: Tensor, b: Tensor, same: bool) -> None:
    assert same_data(a, b) is same
