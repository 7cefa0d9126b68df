"""Families, bookkeeping and rows, on masks that fit on one hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskaudit.attacks.interface import AttackSpec, Attempt
from maskaudit.auditing.ledger import Ledger
from maskaudit.results import Family, Role


def _unused(*args: object, **settings: object) -> Attempt:
    raise AssertionError("the ledger runs no attack")


def spec(name: str, role: Role, kind: str = "gradient", family: Family | None = None) -> AttackSpec:
    settings = {"steps": 4, "pool": torch.zeros(1)}
    return AttackSpec(name, name.title(), kind, role, _unused, settings, family, ("source",))


REFERENCE = spec("pgd", "reference", family="cross_entropy")
CE = spec("apgd-ce", "strong", family="cross_entropy")
MARGIN = spec("apgd-margin", "strong")
SQUARE = spec("square", "challenger", "score")
REPAIRED = spec("bpda", "repaired")
OPINION = spec("torchattacks:PGD", "second_opinion", "external")
SANITY = spec("unbounded", "sanity", family="cross_entropy")


def ledger_of(n: int, correct: list[int]) -> Ledger:
    ledger = Ledger()
    mask = torch.zeros(n, dtype=torch.bool)
    mask[correct] = True
    ledger.add_points(
        torch.arange(100, 100 + n), torch.rand(n, 2), torch.zeros(n, dtype=torch.int64), mask, (~mask).long()
    )
    return ledger


def book(ledger: Ledger, attack: AttackSpec, broken: list[int], rows: list[int] | None = None, step: int = 1) -> None:
    """Attack `rows` (all correct points), `broken` of which it breaks."""
    chosen = torch.tensor(ledger.correct.nonzero().squeeze(1).tolist() if rows is None else rows)
    hit = torch.tensor([int(row) in broken for row in chosen])
    ledger.record(attack, chosen, torch.full((len(chosen), 2), float(step)), hit, torch.where(hit, step, -1))


def rows_of(mask: Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()  # type: ignore[no-any-return]


def test_families() -> None:
    ledger = ledger_of(8, correct=[0, 1, 2, 3, 4, 5, 6])
    for attack, broken in (
        (REFERENCE, [0]), (CE, [0, 1]), (MARGIN, [2]), (SQUARE, [1, 3]), (REPAIRED, [4]), (OPINION, [5]),
        (SANITY, [0, 1, 2, 3, 4, 5, 6]),
    ):  # fmt: skip
        book(ledger, attack, broken)
    assert rows_of(ledger.reference()) == [0]
    assert rows_of(ledger.cross_entropy()) == [0, 1]
    assert rows_of(ledger.strong()) == [0, 1, 2]
    assert rows_of(ledger.challengers()) == [1, 3, 4]
    assert rows_of(ledger.best_known()) == [0, 1, 2, 3, 4, 5]
    assert {row.name: row.new for row in ledger.rows()} == {
        "pgd": 1, "apgd-ce": 1, "apgd-margin": 1, "square": 1, "bpda": 1, "torchattacks:PGD": 1, "unbounded": 0,
    }  # fmt: skip


def test_examples_and_first_success_are_kept_for_broken_points_only() -> None:
    ledger = ledger_of(4, correct=[1, 3])
    book(ledger, SQUARE, [3], step=7)
    entry = ledger.entries["square"]
    assert rows_of(entry.attempted) == [1, 3]
    assert {row: example.tolist() for row, example in entry.examples.items()} == {3: [7.0, 7.0]}
    assert entry.first_success == {3: 7}


def test_examples_do_not_share_memory_with_the_attack() -> None:
    ledger = ledger_of(2, correct=[0, 1])
    examples = torch.zeros(2, 2)
    ledger.record(SQUARE, torch.tensor([0, 1]), examples, torch.tensor([True, True]), torch.tensor([1, 1]))
    examples.fill_(9)
    assert ledger.entries["square"].examples[0].tolist() == [0.0, 0.0]


def test_points_drawn_later_join_every_entry() -> None:
    ledger = ledger_of(3, correct=[0, 2])
    book(ledger, REFERENCE, [2])
    ledger.add_points(
        torch.tensor([7, 8]), torch.rand(2, 2), torch.tensor([1, 1]), torch.tensor([True, False]), torch.tensor([1, 0])
    )
    assert (len(ledger), ledger.index) == (5, [100, 101, 102, 7, 8])
    (row,) = ledger.rows()
    assert row.robust_accuracy is None, "the new point was not attacked yet"
    book(ledger, REFERENCE, [3], rows=[3])
    (row,) = ledger.rows()
    assert row.robust_accuracy is not None
    assert row.interval is not None
    assert (row.robust_accuracy, row.interval.value, row.interval.n) == (1 / 5, 1 / 5, 5)
    assert (row.broken, row.attempted, row.new) == (2, 3, 2)


def test_a_second_record_only_adds() -> None:
    ledger = ledger_of(3, correct=[0, 1, 2])
    book(ledger, SQUARE, [0])
    book(ledger, SQUARE, [1])
    assert rows_of(ledger.challengers()) == [0, 1]
    assert ledger.entries["square"].new == 2


@pytest.mark.parametrize("status", ["error", "skipped"])
def test_what_did_not_run_has_no_robust_accuracy(status: str) -> None:
    ledger = ledger_of(2, correct=[])
    ledger.entry(SQUARE).status = status
    assert ledger.rows()[0].robust_accuracy is None


def test_the_curve_counts_points_broken_by_each_step_and_stays_short() -> None:
    ledger = ledger_of(200, correct=list(range(200)))
    for row in range(200):
        book(ledger, SQUARE, [row] if row < 150 else [], rows=[row], step=2 * row + 1)
    curve = ledger.rows()[0].curve
    assert len(curve) <= 40
    assert curve[0] == (1, 1)
    assert curve[-1] == (299, 150)
    assert all(count == (step + 1) // 2 for step, count in curve)
    assert list(curve) == sorted(curve)


def test_rows_hold_plain_settings_only() -> None:
    ledger = ledger_of(1, correct=[0])
    book(ledger, SQUARE, [])
    assert ledger.rows()[0].settings == {"steps": 4}


def test_an_empty_ledger() -> None:
    ledger = Ledger()
    assert len(ledger.best_known()) == len(ledger) == 0
    assert ledger.rows() == ()
