"""The records of what is known: their form, their agreement with the entries, and how they come about."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit import zoo
from maskaudit.attacks.apgd import apgd
from maskaudit.data import load_data
from maskaudit.errors import InputError, ModelError
from maskaudit.threat import ThreatModel
from maskaudit.verdict.mechanisms import TITLES
from maskaudit.zoo import establish as establishing
from maskaudit.zoo import truth as truths
from maskaudit.zoo.establish import TruthAttack, establish, subject, threat_of
from maskaudit.zoo.grade import grade
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.truth import Truth, disagreements, pack, read_truths, unpack, write_truths

COMMITTED = read_truths()


def record(name: str = "quantised", **changes: Any) -> Truth:
    """Ten points: nine correct, seven broken by anything, two by white-box attacks, one of them by cross-entropy."""
    made = Truth(
        name=name, recipe="r", weights="w", data="digits", norm="Linf", eps=0.2, points=tuple(range(100, 110)),
        correct=pack([True] * 9 + [False]), broken=pack([True] * 7 + [False] * 3),
        strong=pack([True, True] + [False] * 8), cross_entropy=pack([True] + [False] * 9), certified="",
        random=False, attacks=("model:pgd",),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


# --- form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 4, 5, 300])
def test_bits_come_back(n: int) -> None:
    bits = tuple((7 * i) % 3 == 0 for i in range(n))
    assert unpack(pack(bits), n) == bits


def test_the_first_point_is_the_highest_bit() -> None:
    assert pack([True, False, False, False, False, True]) == "84"


@pytest.mark.parametrize(("text", "n"), [("8", 5), ("zz", 8), ("8400", 6), ("0x8", 12)])
def test_bits_of_another_form_are_refused(text: str, n: int) -> None:
    with pytest.raises(InputError, match="hexadecimal"):
        unpack(text, n)


def test_figures_follow_from_the_bits() -> None:
    made = record()
    assert made.clean == pytest.approx(0.9)
    assert made.best_known == pytest.approx(0.2)
    assert made.strong_accuracy == pytest.approx(0.7)
    assert made.cross_entropy_accuracy == pytest.approx(0.8)
    assert made.gradient_gap == pytest.approx(5 / 9)
    assert made.loss_gap == pytest.approx(1 / 9)
    assert made.certified_accuracy is None
    assert record(certified=pack([False] * 7 + [True, False, False])).certified_accuracy == pytest.approx(0.1)


def level_of(truth: Truth) -> str:
    """Where it is masked; the wider gap if both are wide enough."""
    if not truth.masked:
        return ""
    return "gradient" if truth.gradient_gap >= truth.loss_gap else "loss"


@pytest.mark.parametrize(
    ("broken", "strong", "ce", "level"),
    [(10, 10, 10, ""), (19, 10, 10, ""), (20, 10, 10, "gradient"), (30, 30, 20, "loss"), (60, 40, 5, "loss"),
     (60, 30, 10, "gradient"), (19, 10, 1, "")],
)  # fmt: skip
def test_masked_from_ten_points_of_a_hundred(broken: int, strong: int, ce: int, level: str) -> None:
    def first(count: int) -> str:
        return pack([i < count for i in range(100)])

    made = record(points=tuple(range(100)), correct=first(100), broken=first(broken), strong=first(strong),
                  cross_entropy=first(ce))  # fmt: skip
    assert level_of(made) == level
    assert made.masked == bool(level)


def test_accuracy_on_other_points() -> None:
    made = record()
    assert made.on([107, 108, 100, 3]) == (pytest.approx(2 / 3), 3)
    assert made.on([109]) == (0.0, 1)
    assert made.on([3, 4]) == (made.best_known, 10)


def test_records_are_written_and_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    kept = {"b": record("b", random=True), "a": record("a", certified=pack([False] * 10))}
    write_truths(kept, path)
    assert read_truths(path) == kept
    first = path.read_bytes()
    write_truths(dict(reversed(kept.items())), path)
    assert path.read_bytes() == first
    assert json.loads(first)["models"]["a"]["best_known"] == 0.2
    assert read_truths(tmp_path / "none.json") == {}


def test_records_of_different_points_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="different points"):
        write_truths({"a": record("a"), "b": record("b", points=tuple(range(10)))}, tmp_path / "truth.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99, "points": {}, "models": {}}',
                                  '{"schema": 1, "points": {}, "models": {"a": {"data": "digits"}}}'])  # fmt: skip
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        read_truths(path)


# --- agreement with the zoo -----------------------------------------------------------------------


def test_every_model_has_a_record_and_every_record_a_model() -> None:
    assert sorted(COMMITTED) == sorted(zoo.ZOO)


@pytest.mark.parametrize("name", sorted(set(COMMITTED) & set(zoo.ZOO)))
def test_an_entry_says_what_was_measured(name: str) -> None:
    entry, made = zoo.ZOO[name], COMMITTED[name]
    assert disagreements(entry, made) == []
    assert (made.data, made.norm) == (entry.data, entry.norm)
    assert made.clean >= 0.5, "a model that cannot classify teaches nothing"
    implied = {
        "broken": made.bits("correct"), "strong": made.bits("broken"), "cross_entropy": made.bits("strong"),
        "certified": made.bits("correct"),
    }  # fmt: skip
    for field, of in implied.items():
        assert all(whole or not part for part, whole in zip(made.bits(field), of, strict=True)), field


@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=list(zoo.ZOO))
def test_an_entry_names_causes_that_an_audit_can_name(entry: ZooEntry) -> None:
    assert set(entry.mechanisms) <= set(TITLES)
    if not entry.masked:
        assert (entry.level, entry.mechanisms, entry.module, entry.ops) == ("", (), None, ())


@pytest.mark.parametrize("data", ["digits"])
def test_points_are_the_first_that_an_audit_with_seed_0_draws(data: str) -> None:
    drawn, _, _ = load_data(data, split="test").sample(truths.POINTS[data], truths.POINTS_SEED)
    of_data = [made for made in COMMITTED.values() if made.data == data]
    assert of_data
    assert all(made.points == tuple(drawn.tolist()) for made in of_data)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"masked": False, "level": ""}, "not masked"),
        ({"level": "loss"}, ""),
        ({"level": "gradient"}, ""),
    ],
)
def test_disagreements_are_named(changes: dict[str, Any], sentence: str) -> None:
    entry = dataclasses.replace(zoo.ZOO["quantised"], **changes)
    found = disagreements(entry, record())
    assert bool(found) == bool(sentence)
    assert sentence in " ".join(found)
    narrow = record(cross_entropy=record().strong)
    assert bool(disagreements(dataclasses.replace(entry, masked=True, level="loss"), narrow))
    beaten = record(certified=pack([True] * 5 + [False] * 5))
    assert "certificate" in " ".join(disagreements(zoo.ZOO["quantised"], beaten))


# --- how a record comes about ---------------------------------------------------------------------

SHORT_PLAN = (
    TruthAttack("model", "ce", "apgd-ce", apgd, {"loss": "ce", "steps": 10}),
    TruthAttack("model", "other", "apgd-margin", apgd, {"loss": "margin", "steps": 10}),
    TruthAttack("unmasked", "", "apgd-margin", apgd, {"loss": "margin", "steps": 30}),
)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, zoo_cache: Path) -> None:
    """Few points, few steps."""
    monkeypatch.setattr(establishing, "PLAN", SHORT_PLAN)
    monkeypatch.setattr(establishing, "POINTS", {"digits": 48})


@pytest.mark.parametrize(
    ("name", "level", "random"),
    [("standard", "", False), ("quantised", "gradient", False), ("logits-x1e4", "loss", False),
     ("input-noise", "", True)],
)  # fmt: skip
@pytest.mark.usefixtures("short")
def test_a_short_search_finds_the_level(name: str, level: str, random: bool) -> None:
    made = establish(subject(name))
    assert level_of(made) == level
    assert made.random == random
    assert made.best_known < 0.4
    assert ("unmasked:apgd-margin" in made.attacks) == (name != "standard")


@pytest.mark.usefixtures("short")
def test_candidates_count_only_where_the_model_itself_falls() -> None:
    class Unlike(nn.Module):
        """Knows the answers by heart; its twin is easily fooled."""

        def __init__(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
            super().__init__()
            self.network, self.x, self.y = network, x, y

        def forward(self, x: Tensor) -> Tensor:
            nearest = torch.cdist(x.flatten(1), self.x.flatten(1)).argmin(dim=1)
            return nn.functional.one_hot(self.y[nearest], 10).float()

        def unmasked(self) -> nn.Module:
            return self.network

    one = subject("standard")
    stubborn = dataclasses.replace(one, module=Unlike(one.module, one.x, one.y))
    made = establish(stubborn)
    assert made.best_known == 1.0


@pytest.mark.usefixtures("short")
def test_planted_examples_count() -> None:
    def rival(x: Tensor, threat: ThreatModel) -> Tensor:
        noise = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0))
        return threat.clamp(x + threat.eps * (2 * noise - 1))

    class Fragile(nn.Module):
        """Right on clean points and on all that gradients find; wrong on anything else."""

        def __init__(self, x: Tensor, y: Tensor, known: Tensor) -> None:
            super().__init__()
            self.x, self.y, self.known = x, y, known

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            near = torch.cdist(flat, self.x.flatten(1)).argmin(dim=1)
            planted = (flat[:, None] - self.known.flatten(1)).abs().amax(dim=2).amin(dim=1) < 1e-4
            return nn.functional.one_hot((self.y[near] + planted.long()) % 10, 10).float()

    one = subject("standard")
    fragile = dataclasses.replace(one, module=Fragile(one.x, one.y, rival(one.x, one.threat)))
    assert establish(fragile).best_known == 1.0
    entry = dataclasses.replace(one.entry, known=rival)
    made = establish(dataclasses.replace(fragile, entry=entry))
    assert made.best_known == 0.0
    assert made.gradient_gap == 1.0
    assert made.attacks[-1] == "construction:known"


@pytest.mark.usefixtures("short")
def test_a_broken_certificate_is_an_error() -> None:
    def everything(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return torch.ones(len(x), dtype=torch.bool)

    def nothing(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return torch.zeros(len(x), dtype=torch.bool)

    one = subject("standard")
    with pytest.raises(ModelError, match="certified points were broken"):
        establish(dataclasses.replace(one, entry=dataclasses.replace(one.entry, certificate=everything)))
    made = establish(dataclasses.replace(one, entry=dataclasses.replace(one.entry, certificate=nothing)))
    assert made.certified_accuracy == 0.0


@pytest.mark.usefixtures("short")
def test_the_recipe_follows_model_ball_and_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    one = subject("quantised")
    before = one.recipe
    assert subject("quantised").recipe == before
    others = [subject("standard"), subject("quantised-2")]
    others.append(dataclasses.replace(one, threat=one.threat.with_eps(0.1)))
    assert len({before, *(other.recipe for other in others)}) == 4
    monkeypatch.setattr(establishing, "PLAN", SHORT_PLAN[:1])
    assert one.recipe != before


def test_the_ball_is_the_entrys_own_then_that_of_training() -> None:
    entry = ZooEntry("a", "a", False, "", "standard")
    trained = {"threat": {"norm": "Linf", "eps": 0.07, "bounds": [0, 1]}}
    assert threat_of(dataclasses.replace(entry, eps=0.1), trained, (1, 8, 8)).eps == 0.1
    assert threat_of(entry, trained, (1, 8, 8)).eps == 0.07
    assert threat_of(dataclasses.replace(entry, norm="L2"), trained, (1, 8, 8)).eps == 0.8


# --- grading an audit -----------------------------------------------------------------------------


def report(label: str = "masked", mechanism: str = "shattered", place: tuple[str, str] = ("", "round"),
           unbroken: int = 2, sha256: str = "w") -> dict[str, Any]:  # fmt: skip
    """An audit of the record's points in reverse, of which the first nine are correct and `unbroken` are left."""
    index = list(range(109, 99, -1))
    return {
        "verdict": {"label": label, "mechanisms": [
            {"id": mechanism, "locations": [{"module": place[0], "op": place[1]}]}]},
        "points": {
            "index": index,
            "correct": [point < 109 for point in index],
            "broken_by": [["pgd"] if point < 109 - unbroken else [] for point in index],
        },
        "target": {"sha256": sha256},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        (report(), ()),
        (report(label="clear"), ("label",)),
        (report(mechanism="cut"), ("mechanism", "location")),
        (report(place=("", "mul")), ("location",)),
        (report(place=("network", "round")), ("location",)),
        (report(unbroken=3), ()),  # one of ten more than the record: 1 % of all points explains that
        (report(unbroken=4), ("best known",)),
        (report(unbroken=1), ()),
        (report(unbroken=5, sha256="other"), ()),
        (report(unbroken=6, sha256="other"), ("best known",)),
    ],
)
def test_an_audit_is_graded(document: dict[str, Any], wrong: tuple[str, ...]) -> None:
    assert grade(zoo.ZOO["quantised"], record(), document).wrong == wrong


@pytest.mark.parametrize(("drawn", "allowed"), [(32, 2), (128, 4), (800, 15), (10_000, 124)])
def test_the_tolerance_follows_the_number_of_points(drawn: int, allowed: int) -> None:
    points = tuple(range(drawn))
    known = record(points=points, correct=pack([True] * drawn), broken=pack([True] * drawn))

    def wrong(left: int) -> tuple[str, ...]:
        broken_by = [["pgd"] if point >= left else [] for point in points]
        seen = {"index": list(points), "correct": [True] * drawn, "broken_by": broken_by}
        return grade(zoo.ZOO["quantised"], known, {**report(), "points": seen}).wrong

    assert wrong(allowed) == ()
    assert wrong(allowed + 1) == ("best known",)


def test_an_audit_that_breaks_certified_points_is_wrong() -> None:
    proven = record(certified=pack([False] * 7 + [True, True, False]))
    assert grade(zoo.ZOO["quantised"], proven, report(unbroken=1)).wrong == ("certificate",)
    assert grade(zoo.ZOO["quantised"], proven, report(unbroken=2)).wrong == ()


def test_what_does_not_apply_is_not_asked() -> None:
    clear = grade(zoo.ZOO["standard"], None, report(label="clear"))
    assert (clear.mechanism, clear.location, clear.distance, clear.wrong) == (None, None, None, ())
