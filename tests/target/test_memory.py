"""Where memory runs out, batches are halved, and results are those of enough memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from maskaudit.errors import ModelError, UsageError
from maskaudit.files import largest_file
from maskaudit.target import PassLedger, Target
from maskaudit.target.memory import limited, peak

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits what a process may take")


def cramped(most: int, raised: Exception) -> Callable[[Tensor], Tensor]:
    """A linear model with dropout for which at most so many points fit into memory."""
    torch.manual_seed(0)
    net = nn.Linear(6, 3)

    def model(x: Tensor) -> Tensor:
        noise = torch.rand(3)
        if len(x) > most:
            raise raised
        scores: Tensor = net(x) + 1e-3 * noise.sum()
        return scores

    return model


FULL = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried …"),
]


@pytest.mark.parametrize("raised", FULL, ids=["python", "accelerator", "torch"])
def test_a_batch_that_does_not_fit_is_halved_and_results_stay(raised: Exception) -> None:
    x, y = torch.rand(40, 6), torch.arange(40) % 3
    seen = []
    for most in (40, 5):
        with Target(cramped(most, raised), batch_size=40, seed=1) as target:
            gradient = target.value_and_grad(x, lambda scores, rows: scores.gather(1, y[rows, None]).squeeze(1))
            torch.manual_seed(3)
            first = target.scores(x[:5])
            seen.append((gradient.grad, gradient.scores.shape, first, target.ledger, target.raw(x).shape))
            assert target.batches.size == most
            assert target.batch_size == 40
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_one_point_that_does_not_fit_is_an_error() -> None:
    with Target(cramped(0, MemoryError())) as target, pytest.raises(ModelError, match="MemoryError on input of shape"):
        target.scores(torch.rand(4, 6))
    assert target.batches.size == 1


def picky(x: Tensor, most: list[int]) -> Tensor:
    """Three of six inputs, for at most so many points."""
    if len(x) > most[0]:
        raise ValueError("fewer points, please")
    return x[:, :3]


def test_a_model_that_takes_few_points_is_asked_few_and_the_note_says_so() -> None:
    x = torch.rand(100, 6)
    with Target(lambda points: picky(points, [20]), batch_size=64) as target:
        assert torch.equal(target.scores(x[:3]), x[:3, :3])
        assert torch.equal(target.scores(x), x[:, :3])
        assert target.batches.size == 16
        assert target.ledger == PassLedger(103, 0)
    assert "at most 16 points at once (--batch-size)" in target.batches.refusal
    assert "ValueError on input of shape (64, 6): fewer points, please" in target.batches.refusal


@pytest.mark.parametrize("known", [0, 3, 64])
def test_a_failure_that_size_does_not_explain_is_told_as_it_first_was(known: int) -> None:
    x, most = torch.rand(100, 6), [64]
    with Target(lambda points: picky(points, most), batch_size=64) as target:
        if known:
            target.scores(x[:known])
        most[0] = 0
        with pytest.raises(ModelError, match=r"ValueError on input of shape \(64, 6\): fewer points"):
            target.scores(x)
    assert target.batches.refusal == ""


PROGRAM = """
import sys, torch
from maskaudit.target import PassLedger, Target
from maskaudit.target.memory import held, limited, peak
torch.set_num_threads(1)
weight = torch.linspace(-1, 1, 3000000)
def model(x):
    wide = x[:, :1] * weight
    return torch.stack([wide.sin().mean(1), wide.cos().mean(1)], 1)
x = torch.linspace(0, 1, 32).reshape(32, 1).repeat(1, 4)
most = held() + int(sys.argv[1]) * 2**20 if len(sys.argv) > 1 else None
with limited(most), Target(model, batch_size=32) as target:
    found = target.value_and_grad(x, lambda scores, rows: scores[:, 0])
    print(found.grad.sum().item(), target.ledger, target.batches.size, peak() >> 20)
"""


@pytest.mark.heavy
@linux
def test_a_limit_is_kept_and_changes_no_result() -> None:
    def outcome(*room: str) -> tuple[str, str, str]:
        done = subprocess.run([sys.executable, "-c", PROGRAM, *room], capture_output=True, text=True, check=True)
        found, passes, most = done.stdout.rsplit(maxsplit=2)
        return found, passes, most

    found, passes, most = outcome()
    limited_found, limited_passes, limited_most = outcome("500")
    assert limited_found == found
    assert (int(passes), int(limited_passes)) == (32, 8)
    assert int(limited_most) < 0.6 * int(most)  # what the program itself takes is part of both


@linux
def test_a_limit_ends_with_its_block_and_bounds_what_files_may_take() -> None:
    before = largest_file()
    most = (peak() or 0) * 2 + 2**30
    with limited(most):
        assert largest_file() <= most // 4
    assert largest_file() == before
    with (
        pytest.raises(UsageError, match=r"leaves no room to work in: the program itself takes \d+ MiB"),
        limited(2**20),
    ):
        pass
