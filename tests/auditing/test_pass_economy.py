"""Challengers are spared most points that white-box attacks broke, and every figure stays what it was."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.attacks import registry
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.registry import battery
from maskaudit.attacks.square import square
from maskaudit.auditing import challenge
from maskaudit.auditing.ledger import Ledger
from maskaudit.auditing.phases import near_misses
from maskaudit.probes.interface import AttackOutcome, ProbeContext
from maskaudit.probes.paired import strong_gap
from maskaudit.results import AttackRow, AuditReport
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS, AuditEvent, AuditSettings
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from maskaudit.verdict.limits import RECAPTURE_POINTS

from .linear_audits import Rounded, by_name, linear

NEAR = ("apgd-ce-near", "apgd-near", "square-near")
CHALLENGERS = ("noise", "square", "finite-differences", "decision")


def audited(known: int, monkeypatch: pytest.MonkeyPatch) -> AuditReport:
    """A linear model of which about half of the points break, its search shown so many of those."""
    monkeypatch.setattr(challenge, "FIRST_KNOWN", known)
    monkeypatch.setattr(challenge, "FLOOR", 1.0)
    return linear(eps=0.1)


@pytest.mark.heavy
def test_challengers_attack_what_is_unbroken_and_a_sample_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, spared = audited(10**9, monkeypatch), audited(16, monkeypatch)
    rows = [by_name(report) for report in (whole, spared)]
    assert whole.settings["samples"] == spared.settings["samples"]
    more = whole.power["n"] - 16
    assert more > 0
    assert spared.power["n"] == 16
    for name in CHALLENGERS:
        assert rows[0][name].attempted - rows[1][name].attempted == more
        assert rows[1][name].forwards < rows[0][name].forwards
        assert rows[1][name].robust_accuracy is None, "measured only where an attack met every correct point"
    assert spared.power["passed"] is whole.power["passed"] is True
    assert spared.verdict.label == whole.verdict.label == "clear"
    for figure in ("clean", "reference", "strong_reference", "best_known"):
        assert spared.accuracy[figure] == whole.accuracy[figure]
    assert spared.masking["gradient_level"] == whole.masking["gradient_level"]


def test_white_box_attacks_meet_only_points_whose_fate_they_can_change() -> None:
    report = linear(eps=0.1)
    rows, points = by_name(report), report.points
    n = sum(points["correct"])
    assert rows["pgd"].attempted == rows["fgsm"].attempted == n
    assert rows["pgd"].robust_accuracy is not None
    met = [rows[name] for name in ("pgd-coarse", "apgd-ce", "apgd-margin", "apgd-dlr", "apgd-rescaled")]
    assert all(later.attempted <= earlier.attempted for earlier, later in itertools.pairwise(met))
    assert 0 < met[0].attempted == n - sum("pgd" in names or "fgsm" in names for names in points["broken_by"])
    assert {row.robust_accuracy for row in met} == {None}


def outcome(broken: list[int], attempted: list[int] | None) -> AttackOutcome:
    row = AttackRow(
        name="square", title="", kind="score", role="challenger", family=None, robust_accuracy=None, interval=None,
        broken=0, attempted=0, new=0, queries=0, forwards=0, backwards=0, seconds=0.0, status="ran",
        reason="", settings={}, sources=(), curve=(),
    )  # fmt: skip
    return AttackOutcome(
        row, torch.tensor(broken).bool(), None if attempted is None else torch.tensor(attempted).bool()
    )


@pytest.mark.parametrize(
    ("broken", "attempted", "raw"),
    [
        ([1, 1, 0, 0, 1, 0, 0, 0], None, 3 - 2),
        (
            [1, 0, 0, 0, 1, 0, 0, 0],
            [1, 1, 0, 0, 1, 1, 1, 1],
            2 + 2 * 0.5 - 2,
        ),  # half of the two tried, so of the spared
    ],
)
def test_the_plain_difference_counts_spared_points_by_their_like(
    broken: list[int], attempted: list[int] | None, raw: float
) -> None:
    tried = outcome(broken, attempted)
    reference = AttackOutcome(
        AttackRow(**{**vars(tried.row), "name": "pgd", "kind": "gradient", "role": "reference"}),
        torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]).bool(),
    )
    strong = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).bool()

    def model(x: Tensor) -> Tensor:
        return x

    context = ProbeContext(
        Target(model), torch.zeros(8, 2), torch.zeros(8).long(), ThreatModel(), PointRNG.create(0, "", torch.arange(8)),
        {"square": tried, "pgd": reference}, strong,
    )  # fmt: skip
    gap = strong_gap(context, {"square": tried}, "Search")
    assert (gap.count, gap.n) == (1, 8)
    assert gap.details["raw_gap_to_reference"] == pytest.approx(raw / 8)


def test_the_sample_suffices_for_the_power_check() -> None:
    from maskaudit.verdict.limits import MIN_KNOWN
    from maskaudit.verdict.power import check_power

    assert RECAPTURE_POINTS > MIN_KNOWN
    assert check_power("recapture", 40, RECAPTURE_POINTS).passed
    assert not check_power("recapture", 32, RECAPTURE_POINTS).passed


SPECS = {spec.name: spec for spec in battery(BUDGETS["quick"])}


class Bench:
    """The challengers of an audit of 200 points, of which white-box attacks broke the first `known`.

    Args:
        breaks: which of the points `rows` a run named `stream` breaks, bool (n,).
        stop_early: whether a search may stop at its first success, so that known points can teach its budget.

    Attributes:
        ran: the runs so far by name: points, and the settings that differ from those of the attack.
    """

    def __init__(self, known: int, breaks: Callable[[str, Tensor], Tensor], *, stop_early: bool) -> None:
        self.ledger, self.breaks, every = Ledger(), breaks, torch.ones(200, dtype=torch.bool)
        self.ledger.add_points(torch.arange(200), torch.zeros(200, 2), torch.zeros(200).long(), every, every.long())
        self.ledger.record(
            SPECS["pgd"], torch.arange(200), torch.zeros(200, 2), torch.arange(200) < known, every.long()
        )
        self.ran: dict[str, tuple[Tensor, Mapping[str, int]]] = {}
        self.target, self.surrogates = SimpleNamespace(stop_early=stop_early), list[Target]()
        self.search = challenge.Challenge(self, lambda: False)  # type: ignore[arg-type]

    def carry_out(
        self, spec: AttackSpec, rows: Tensor, stream: str, *, changes: Mapping[str, int] | None = None
    ) -> challenge.Booked:
        """Books what breaks, each point by the first query."""
        self.ran[stream] = rows, changes or {}
        broken, first = self.breaks(stream, rows), torch.ones(len(rows)).long()
        self.ledger.record(spec, rows, torch.zeros(len(rows), 2), broken, first)
        return challenge.Booked(broken, 1, 1, 0, 0.0)

    def say_outcome(self, *_: object) -> None:
        """Nobody listens."""


@pytest.mark.parametrize(("found", "wanted"), [(32, challenge.FIRST_KNOWN), (16, RECAPTURE_POINTS)])
def test_a_search_whose_power_was_not_shown_meets_more_points_at_the_next_look(found: int, wanted: int) -> None:
    bench = Bench(known=200, breaks=lambda stream, rows: rows < found, stop_early=False)
    search, square = bench.search, [SPECS["square"]]
    search.recapture(square, torch.arange(200))
    assert torch.equal(search.tried().nonzero().squeeze(1), torch.arange(challenge.FIRST_KNOWN))
    search.recapture(square, torch.arange(32, 200))
    assert int(search.tried().sum()) == wanted


@pytest.mark.heavy
def test_a_search_gets_on_unbroken_points_what_it_was_worth_on_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = linear(eps=0.1)
    monkeypatch.setattr(challenge, "FLOOR", 1.0)
    whole = linear(eps=0.1)
    for name, limit in (("square", "queries"), ("finite-differences", "queries"), ("decision", "queries")):
        row, all_of_it = by_name(learnt)[name], by_name(whole)[name]
        shortened = row.settings[f"{limit}_on_unbroken_points"]
        assert 0.25 * row.settings[limit] <= shortened < row.settings[limit]
        assert row.attempted == all_of_it.attempted
        assert row.forwards < 0.6 * all_of_it.forwards
        assert all_of_it.settings[f"{limit}_on_unbroken_points"] == all_of_it.settings[limit]
    assert learnt.verdict.label == whole.verdict.label == "clear"
    assert learnt.accuracy["best_known"] == whole.accuracy["best_known"]


@pytest.mark.heavy
def test_nothing_is_shortened_on_a_model_under_suspicion() -> None:
    report = linear(eps=0.1, front=Rounded())
    assert report.masking["screen"]["fired"]
    assert not any("on_unbroken_points" in key for row in report.attacks for key in row.settings)


@pytest.mark.heavy
def test_where_something_is_hidden_unbroken_points_get_whole_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenge, "BY_THE_WAY", -2.0)  # whatever is broken counts as more than incidental
    report = linear(eps=0.1)
    for name in ("noise", "square"):
        row = by_name(report)[name]
        limit = "draws" if name == "noise" else "queries"
        assert row.settings[f"{limit}_on_unbroken_points"] == row.settings[limit]


def test_what_a_short_search_reveals_has_the_whole_budget_spent_on_the_rest() -> None:
    def breaks(stream: str, rows: Tensor) -> Tensor:
        return rows < (105 if stream == "square unbroken" else 100)

    bench, square, rows = Bench(known=100, breaks=breaks, stop_early=True), SPECS["square"], torch.arange(200)
    bench.search.learn([square], rows)
    bench.search.search(square, rows)
    unbroken, short = bench.ran["square unbroken"]
    assert torch.equal(unbroken, torch.arange(100, 200))
    assert short["queries"] < square.settings["queries"]
    assert torch.equal(bench.ran["square again"][0], torch.arange(105, 200))
    assert "queries" not in bench.ran["square again"][1]
    settings = bench.ledger.entry(square).settings
    assert settings["queries_on_unbroken_points"] == square.settings["queries"] > settings["queries_on_known_points"]


def test_a_short_search_that_reveals_nothing_is_enough() -> None:
    bench = Bench(known=100, breaks=lambda stream, rows: rows < 100, stop_early=True)
    bench.search.learn([SPECS["square"]], torch.arange(200))
    bench.search.search(SPECS["square"], torch.arange(200))
    assert "square again" not in bench.ran


@pytest.mark.parametrize(
    ("took", "budgets"),
    [
        ([(100, 40)] * 40, (250, 100)),  # half of a quarter suffices for all
        ([(math.inf, math.inf)] * 9 + [(1, 1)] * 20, (250, 100)),  # what nothing breaks teaches nothing
        ([(1, 1)] * 38 + [(900, math.inf)] * 2, (250, 100)),  # one in twenty may be missed
        ([(1, 1)] * 37 + [(300, math.inf)] * 3, (600, 100)),  # … but not more: twice what they took
        ([(1, 1)] * 30 + [(400, 100)] * 10, (250, 200)),  # the cheaper of two that would do
        ([(1, 1)] * 30 + [(300, math.inf)] * 5 + [(math.inf, 150)] * 5, (600, 300)),  # both are needed
        ([(1, 1)] * 10 + [(900, math.inf)] * 10, (1000, 100)),  # never more than the whole
    ],
)
def test_searches_learn_their_budgets_together(took: list[tuple[float, float]], budgets: tuple[int, int]) -> None:
    points = [dict(zip(("square", "noise"), point, strict=True)) for point in took]
    learnt = challenge.learnt_budgets(points, {"square": 1000, "noise": 400})
    assert (learnt["square"], learnt["noise"]) == budgets


def test_the_decision_based_search_has_its_pool_on_known_and_on_unbroken_points() -> None:
    steps, passes = ["before"], list[tuple[str, int]]()

    class Asked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            passes.append((steps[-1], len(x)))
            return x

    def hear(event: AuditEvent) -> None:
        steps.append(f"after {event.step}" if event.finished else event.step)

    report = linear(eps=0.1, front=Asked(), on_event=hear)
    assert "queries_on_unbroken_points" in by_name(report)["decision"].settings
    assert report.settings["samples"] < 128, "a pool is more than the points that are attacked"
    whole = [step for step, points in passes if points == 128 and step.startswith("decision")]
    assert whole == ["decision", "decision unbroken"], "each asks once for the classes of all data"


@pytest.mark.heavy
def test_what_is_beyond_reach_is_given_up_where_nothing_is_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    spared = linear(eps=0.1)
    suspected = by_name(linear(eps=0.1, front=Rounded()))
    monkeypatch.setattr(registry, "REACH", math.inf)
    whole = linear(eps=0.1)
    for name in ("apgd-ce", "apgd-margin", "apgd-dlr", "apgd-rescaled", "apgd-targeted"):
        assert by_name(spared)[name].settings["reach"] < 1
        assert by_name(spared)[name].backwards < by_name(whole)[name].backwards
        assert by_name(spared)[name].attempted == by_name(whole)[name].attempted
        assert "reach" not in suspected[name].settings
    assert spared.accuracy["best_known"] == whole.accuracy["best_known"]


class Jitter(nn.Module):
    """Noise that hides nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-4 * torch.randn_like(x)


@pytest.mark.heavy
def test_nothing_is_spared_on_a_random_model_even_where_it_cannot_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no trace")

    monkeypatch.setattr("maskaudit.auditing.phases.trace.traced", fails)
    rows = by_name(linear(eps=0.1, front=Jitter(), samples=16, ignore=tuple(CHALLENGERS)))
    assert "reach" in by_name(linear(eps=0.1, samples=16, ignore=tuple(CHALLENGERS)))["apgd-ce"].settings
    assert "reach" not in rows["apgd-ce"].settings


@pytest.mark.parametrize("eps", [0.1, 0.9])
def test_the_second_opinion_is_asked_about_what_is_unbroken(eps: float) -> None:
    pytest.importorskip("torchattacks")
    report = linear(eps=eps, ignore=("transfer", "universal"))
    ours = {row.name for row in report.attacks if row.role != "second_opinion"} - set(NEAR)
    unbroken = sum(not ours & set(names) for names in report.points["broken_by"])
    for name in ("torchattacks-pgd", "torchattacks-square"):
        row = by_name(report)[name]
        if unbroken:
            assert 0 < row.attempted <= unbroken
        else:
            assert (row.status, row.attempted) == ("skipped", 0)
            assert "broke" in row.reason
    assert (unbroken == 0) == (eps == 0.9)


def test_where_nothing_is_unbroken_no_search_is_made() -> None:
    report = linear(eps=0.9)
    assert report.accuracy["strong_reference"].value == 0  # type: ignore[union-attr]
    assert report.verdict.label == "clear"
    assert "hardly any is left" in report.verdict.reasons[1]
    assert report.power["method"] == "none"
    rows = [row for row in report.attacks if row.kind != "gradient"]
    assert rows
    assert {(row.status, row.attempted) for row in rows} == {("skipped", 0)}
    assert all("broke" in row.reason for row in rows)


def test_a_search_waits_for_points_that_were_asked_for_where_these_may_leave_it_nothing() -> None:
    report = linear(eps=0.2, points=400, samples="all")
    assert report.settings["samples"] == 400
    assert 0.03 < report.accuracy["strong_reference"].value < 0.06  # type: ignore[union-attr]
    assert by_name(report)["square"].attempted == 0
    assert report.verdict.label == "clear"


def test_what_is_proven_by_repair_needs_no_search() -> None:
    report = linear(eps=0.1, front=Rounded())
    rows = by_name(report)
    assert report.verdict.label == "masked"
    assert rows["repaired"].broken > 0
    assert {rows[name].reason for name in CHALLENGERS} == {"masking had been proven before it"}
    assert report.settings["samples"] == 32
    assert report.masking["gradient_level"].n == sum(report.points["correct"])


def test_cross_entropy_gets_its_restarts_where_only_another_loss_got_through() -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 3000 * self.head(x)

    torch.manual_seed(0)
    x, model = torch.rand(128, 6), Steep()
    settings = AuditSettings(budget="quick", ignore=("transfer", "torchattacks-pgd", "torchattacks-square"))
    report = api.audit(model, (x, model(x).argmax(1)), eps=0.2, settings=settings).report
    rows = by_name(report)
    again = rows["apgd-ce-restarts"]
    assert 0 < again.attempted < rows["apgd-ce"].attempted
    assert again.settings["restarts"] == 4  # with the one before: as many runs as margin, DLR, rescaled and two targets
    assert again.robust_accuracy is None
    assert report.verdict.label == "masked"


def test_near_misses_are_attacked_last_with_matched_budgets() -> None:
    report = linear(eps=0.1)
    rows = by_name(report)
    loss, margins = rows["apgd-ce-near"], rows["apgd-near"]
    unbroken = [names for names in report.points["broken_by"] if not {"apgd-ce", "apgd-margin"} & set(names)]
    assert 0 < loss.attempted <= max(near_misses.NEAR_LEAST, math.ceil(near_misses.NEAR_SHARE * len(unbroken)) + 1)
    assert margins.attempted <= loss.attempted
    assert loss.settings["steps"] == margins.settings["steps"]
    assert loss.settings["restarts"] == margins.settings["targets"]
    assert rows["square-near"].attempted <= margins.attempted
    assert [row.name for row in report.attacks if row.role not in ("second_opinion", "exact")][-3:] == list(NEAR)


def test_what_the_best_candidate_leads_to_is_found() -> None:
    """A ditch that is flat a little way off: corners of the ball come near it, and only from there a slope leads in."""

    class Ditch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            off = (x[:, 0] - x[:, 1] - 0.3).abs()
            depth = torch.where(off < 0.12, 0.02 - off, -0.12 + 0 * off)
            return torch.stack([torch.zeros_like(depth), depth], dim=1)

    x = 0.5 + 0.001 * torch.rand(64, 2)
    settings = AuditSettings(budget="quick", select=("noise", "apgd-ce-near", "apgd-near"))
    report = api.audit(Ditch(), (x, torch.zeros(64, dtype=torch.int64)), eps=0.2, settings=settings).report
    rows = by_name(report)
    assert rows["noise"].broken == 0
    assert rows["pgd"].broken < 40
    assert rows["apgd-ce-near"].broken == rows["apgd-ce-near"].attempted >= 3


def test_an_effort_that_is_no_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="queries"):
        AttackSpec("mine", "", "score", "challenger", square, effort="queries")
