"""The judge on synthetic ledgers: every label, every boundary, and how often it errs."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, Literal

import numpy as np
import pytest
from scipy import stats

from maskaudit.results import Label, Location, Mechanism, ProbeResult, ProbeStatus
from maskaudit.settings import looks_up_to
from maskaudit.verdict.levels import Level, Observations
from maskaudit.verdict.limits import ALPHA, CLEAR_LIMIT, CLEAR_LIMIT_UNSCREENED, GROSS_SLACK, MIN_POINTS, SCREEN, SLACK
from maskaudit.verdict.mechanisms import TITLES
from maskaudit.verdict.power import NOT_CHECKED, check_power
from maskaudit.verdict.rules import Judgement, judge
from maskaudit.verdict.statistics import evidence_above, evidence_below, upper_bound_at_any_look

LOOKS = looks_up_to(800)
POWERFUL = check_power("recapture", 100, 100)


def probe(rule: str, status: ProbeStatus, **details: Any) -> ProbeResult:
    return ProbeResult(rule, rule, status, value=0.5, threshold=0.05, details=details)


FIRED = (probe("zero-gradient", "finding", zero_margin_share=0.0, connected=True),)
QUIET = (probe("zero-gradient", "pass", zero_margin_share=0.0, connected=True),)
USELESS = (probe("zero-gradient", "finding", zero_margin_share=0.9, connected=True),)


def seen(
    correct: int = 200, hidden_gradients: int = 0, hidden_loss: int = 0, *, drawn: int | None = None, **changes: Any
) -> Observations:
    """Observations in which cross-entropy breaks a tenth of the points."""
    base = correct // 10
    drawn = correct if drawn is None else drawn
    values: dict[str, Any] = {
        "drawn": drawn, "correct": correct, "reference": base, "cross_entropy": base, "strong": base + hidden_loss,
        "challengers": base + hidden_gradients, "best": base + hidden_loss + hidden_gradients,
        "hidden_by_gradients": hidden_gradients, "hidden_by_loss": hidden_loss, "probes": QUIET, "power": POWERFUL,
        "attacks_run": 9,
    }  # fmt: skip
    for level in ("searched", "matched"):  # every point is answered rightly, but for those of `drawn` beside them
        values[f"{level}_drawn"] = changes.get(level)
    return Observations(**{**values, **changes})


#: Evidence, as a logarithm, that a comparison needs: half the error level for each of two levels.
NEEDED = -np.log(ALPHA / 2)


def test_no_accuracy_under_attack_where_none_ran() -> None:
    """A model that failed before the first attack withstood nothing."""
    attacked = frozenset({"reference", "strong_reference", "best_known"})
    accuracy = judge(seen(attacks_run=0, unmeasured=attacked)).accuracy
    assert accuracy["clean"] is not None
    assert {accuracy[name] for name in attacked} == {None}


def least_proof(n: int, slack: float) -> int:
    """The smallest hidden count that proves a share above the slack."""
    return next(k for k in range(n + 1) if evidence_above(k, n, slack) >= NEEDED)


_FAMILIES = ("reference", "cross_entropy", "strong", "challengers")
LABELS: list[tuple[str, Observations, Label]] = [
    ("nothing found", seen(), "clear"),
    ("not robust, and not masked", seen(best=200, **dict.fromkeys(_FAMILIES, 200)), "clear"),
    ("no attack succeeds", seen(reference=0, cross_entropy=0, strong=0, challengers=0, best=0), "clear"),
    ("screen without proof", seen(probes=FIRED), "clear"),
    ("gradient level, screened", seen(200, 40, probes=FIRED), "masked"),
    ("loss level, screened", seen(200, 0, 40, probes=FIRED), "masked"),
    ("gradient level, gross", seen(200, 80), "masked"),
    ("loss level, gross", seen(200, 0, 80), "masked"),
    ("a gap for which there is slack", seen(200, 30), "inconclusive"),
    ("masked whatever else is missing", seen(200, 80, missing=("No score attack.",), power=NOT_CHECKED), "masked"),
    ("masked on few points", seen(15, 14), "masked"),
    ("uninformative gradients", seen(probes=USELESS), "suspect"),
    ("uninformative, yet broken", seen(probes=USELESS, best=120), "clear"),
    ("uninformative, and essential part missing", seen(probes=USELESS, missing=("No score attack.",)), "inconclusive"),
    ("too few points", seen(MIN_POINTS - 1), "inconclusive"),
    ("just enough points to speak, not to be clear", seen(MIN_POINTS), "inconclusive"),
    ("no correct point", seen(0, drawn=50), "inconclusive"),
    ("no point at all", seen(0, drawn=0), "inconclusive"),
    ("power failed", seen(power=check_power("recapture", 5, 20)), "inconclusive"),
    ("power not checked", seen(power=NOT_CHECKED), "inconclusive"),
    ("essential part missing", seen(missing=("The reference attack did not run.",)), "inconclusive"),
]  # fmt: skip
BY_NAME = {name: observed for name, observed, _ in LABELS}


@pytest.mark.parametrize(("found", "needs", "undecided"), [(18, "points", {"gradient"}), (5, "nothing", set())])
def test_a_search_of_doubtful_power_meets_more_points(found: int, needs: str, undecided: set[str]) -> None:
    """Eighteen of 28 known answers may still turn out to be more than half of them; five of them will not."""
    judgement = judge(seen(power=check_power("recapture", found, 28)))
    assert judgement.verdict.label == "inconclusive"
    assert (judgement.needs, judgement.undecided) == (needs, undecided)


@pytest.mark.parametrize(("observed", "label"), [case[1:] for case in LABELS], ids=[case[0] for case in LABELS])
def test_labels(observed: Observations, label: Label) -> None:
    judgement = judge(observed)
    assert judgement.verdict.label == label
    settled = label in ("masked", "clear") or (observed.power.settled and observed.power != POWERFUL)
    assert (judgement.needs == "nothing") is settled
    assert judgement.verdict.reasons
    assert bool(judgement.verdict.mechanisms) is (label in ("masked", "suspect"))


def test_the_power_check_is_asked_for_only_where_clear_depends_on_it() -> None:
    needs = {name: judge(dataclasses.replace(observed, power=NOT_CHECKED)).needs for name, observed, _ in LABELS}
    asked = {name for name, need in needs.items() if need == "power"}
    assert asked == {name for name, _, label in LABELS if label == "clear"} | {"power failed", "power not checked"}


@pytest.mark.parametrize(("challengers", "sentence"), [(0, "broke any"), (12, "gradient-free attacks broke 12")])
def test_a_suspect_is_given_the_counts(challengers: int, sentence: str) -> None:
    verdict = judge(seen(200, challengers, probes=USELESS)).verdict
    assert verdict.label == "suspect"
    assert sentence in verdict.reasons[0]


@pytest.mark.parametrize("confidence", ["low", "medium", "high"])
@pytest.mark.parametrize(("hidden", "label"), [(0, "clear"), (30, "inconclusive"), (80, "masked")])
def test_what_the_trace_suspects_is_told_where_nothing_is_proven(
    hidden: int, label: Label, confidence: Literal["low", "medium", "high"]
) -> None:
    cut = Mechanism("cut", TITLES["cut"], confidence, (Location("front", "detach", "net.py", 7),))
    verdict = judge(seen(200, hidden, traced=(cut,))).verdict
    assert verdict.label == label
    stated = "The trace suspects a fault that the attacks did not confirm" in " ".join(verdict.reasons)
    assert stated is (label != "masked" and confidence != "low")
    assert not stated or "in detach (net.py:7)" in verdict.reasons[-1]


def test_a_suspicion_that_repair_bore_out_on_few_points_is_not_called_unconfirmed() -> None:
    cut = Mechanism("cut", TITLES["cut"], "high", (Location("front", "detach", "net.py", 7),))
    verdict = judge(seen(200, 30, traced=(cut,), repaired=30)).verdict
    assert verdict.label == "inconclusive"
    assert "30 of the 180 points that withstand white-box attacks are broken, too few to prove" in verdict.reasons[-1]


@pytest.mark.parametrize(("probes", "slack"), [(FIRED, SLACK), (QUIET, GROSS_SLACK)])
@pytest.mark.parametrize("level", ["gradients", "loss"])
@pytest.mark.parametrize("n", [30, 60, 200, 800])
def test_the_boundary_of_masked(n: int, level: str, probes: tuple[ProbeResult, ...], slack: float) -> None:
    """One point less than the least proof is not masked; half the error level goes to each comparison."""
    least = least_proof(n, slack)
    for count, proven in ((least, True), (least - 1, False)):
        counts = (count, 0) if level == "gradients" else (0, count)
        assert (judge(seen(n, *counts, probes=probes)).verdict.label == "masked") is proven


@pytest.mark.parametrize("level", ["gradients", "loss"])
@pytest.mark.parametrize("n", [100, 200, 800])
def test_the_boundary_of_clear(n: int, level: str) -> None:
    for probes, limit in ((FIRED, CLEAR_LIMIT), ((), CLEAR_LIMIT_UNSCREENED)):
        most = max(k for k in range(n) if evidence_below(k, n, limit) >= NEEDED)
        for count, label in ((most, "clear"), (most + 1, "inconclusive")):
            counts = (count, 0) if level == "gradients" else (0, count)
            assert judge(seen(n, *counts, probes=probes)).verdict.label == label


def test_a_tenth_is_never_clear() -> None:
    """An observed hidden share of `masked` models is bounded by no limit at any size that a budget draws."""
    for n in (100, 600, 1600):
        for probes in ((), FIRED):
            assert judge(seen(n, n // 10, 0, probes=probes)).verdict.label != "clear"


JAGGED = (probe("finite-difference-agreement", "finding"),)


@pytest.mark.parametrize(
    ("hidden", "label"), [({"hidden_gradients": 44}, "masked"), ({"hidden_loss": 44}, "inconclusive")]
)
def test_a_gradient_that_disagrees_makes_small_gaps_suspicious_at_its_own_level(
    hidden: dict[str, int], label: Label
) -> None:
    judgement = judge(seen(400, **hidden, probes=JAGGED))
    assert judgement.verdict.label == label
    limits = judgement.masking["rule"]["limits"]
    assert limits["gradient_level"] == {"slack": SLACK, "clear_limit": CLEAR_LIMIT, "unproven": "", "drawn": 400}
    loose = {"slack": GROSS_SLACK, "clear_limit": CLEAR_LIMIT_UNSCREENED, "unproven": "", "drawn": 400}
    assert limits["loss_level"] == loose
    assert judge(seen(400, **hidden, probes=FIRED)).verdict.label == "masked"


@pytest.mark.parametrize(
    ("drawn", "label", "hidden"),
    [(200, "inconclusive", 24), (512, "clear", 24), (200, "masked", 60), (512, "inconclusive", 60)],
)
def test_hidden_shares_are_judged_as_robust_accuracy_is_told(drawn: int, label: Label, hidden: int) -> None:
    """Of all points: by how much the accuracy is overstated, however many answers are wrong anyway."""
    for level in ("loss", "gradients"):
        judgement = judge(seen(200, drawn=drawn, **{f"hidden_{level}": hidden}))
        assert judgement.verdict.label == label
        shown = judgement.masking["loss_level" if level == "loss" else "gradient_level"]
        assert (shown.value, shown.n) == (hidden / 200, 200)  # the contract: of the correctly classified


@pytest.mark.parametrize(("hidden", "label"), [(0, "clear"), (9, "inconclusive"), (22, "inconclusive")])
@pytest.mark.parametrize("level", ["gradients", "loss"])
def test_where_nearly_all_answers_are_wrong_few_points_may_hide_all(level: str, hidden: int, label: Label) -> None:
    judgement = judge(seen(25, drawn=800, **{f"hidden_{level}": hidden}))
    assert judgement.verdict.label == label
    if hidden:  # the share of all points is bounded: only the limit that is not met is named
        assert "of the correct points (below 30% is needed)" in judgement.verdict.reasons[0]
        assert "of the points" not in judgement.verdict.reasons[0]


def test_the_reasons_say_how_many_points_would_bound_the_hidden_share() -> None:
    few = judge(seen(30, drawn=30, power=NOT_CHECKED))
    (advised,) = re.findall(r"--samples (\d+)", few.verdict.reasons[0])
    assert judge(seen(int(advised), drawn=int(advised))).verdict.label == "clear"
    assert "(below 12% is needed)" in judge(seen(int(advised) - 1, drawn=int(advised) - 1)).verdict.reasons[0]
    hopeless = judge(seen(100, 0, 13, drawn=100)).verdict.reasons[0]
    assert hopeless.endswith("Audit more points (--samples).")


def test_what_withstands_among_few_correct_points_must_be_searched() -> None:
    assert judge(seen(25, drawn=800, unbroken=20, power=NOT_CHECKED)).needs == "power"
    assert judge(seen(60, drawn=800, unbroken=1, power=NOT_CHECKED)).verdict.label == "clear"


def test_an_op_that_brings_logits_close_together_fires_the_screen_of_the_loss() -> None:
    close = Mechanism("small-logits", "", "low", (Location("", "div", "net.py", 8),))
    for traced, label in (((), "inconclusive"), ((close,), "masked")):
        judgement = judge(seen(125, 0, 20, drawn=128, traced=traced))
        assert judgement.verdict.label == label
    assert judgement.verdict.mechanisms[0].id == "small-logits"
    assert judgement.masking["screen"]["reasons"] == list(judgement.masking["screen"]["indicators"])[-1:] == [close.id]
    limits = judgement.masking["rule"]["limits"]
    assert (limits["gradient_level"]["slack"], limits["loss_level"]["slack"]) == (GROSS_SLACK, SLACK)


def test_screen_indicators() -> None:
    for rule in SCREEN:
        screen = judge(seen(probes=(probe(rule, "finding"),))).masking["screen"]
        assert (screen["fired"], screen["reasons"]) == (True, [rule])
    for other in (
        probe("saturation", "finding"),
        probe("zero-gradient", "error"),
        probe("zero-gradient", "not_applicable"),
    ):
        screen = judge(seen(probes=(other,))).masking["screen"]
        assert (screen["fired"], screen["indicators"]) == (False, {})


# --- how often the rule errs ----------------------------------------------------------------------


@functools.cache
def outcome(n: int, by_gradients: int, by_loss: int, fired: bool) -> Label:
    """The verdict at a look; cached, since simulated audits repeat the same few counts."""
    judgement = judge(seen(n, by_gradients, by_loss, probes=FIRED if fired else QUIET))
    return judgement.verdict.label


def audit_label(by_gradients: np.ndarray, by_loss: np.ndarray, fired: bool) -> Label:
    """One audit: judged at each look, stopped when decided."""
    label: Label = "inconclusive"
    for n in LOOKS:
        label = outcome(n, int(by_gradients[:n].sum()), int(by_loss[:n].sum()), fired)
        if label in ("masked", "clear"):
            break
    return label


def share_of(label: Label, rates: tuple[float, float], fired: bool, audits: int) -> float:
    """Share of simulated audits with this label, for true hidden rates at the two levels."""
    generator = np.random.default_rng(0)
    count = 0
    for _ in range(audits):
        draws = generator.random((2, LOOKS[-1]))
        count += audit_label(draws[0] < rates[0], draws[1] < rates[1], fired) == label
    return count / audits


@pytest.mark.parametrize(("fired", "slack"), [(True, SLACK), (False, GROSS_SLACK)], ids=["screened", "unscreened"])
def test_false_alarms_stay_below_the_declared_level(fired: bool, slack: float) -> None:
    """The worst honest model: both levels hide exactly what slack allows. Upper limit: 99.9 % Monte-Carlo error."""
    audits = 3000
    limit = stats.binom.ppf(0.999, audits, ALPHA) / audits
    assert share_of("masked", (slack, slack), fired, audits) <= limit
    assert limit < 0.02


def test_honest_models_are_almost_never_accused_and_mostly_clear() -> None:
    """Gaps that healthy models showed: at most .035 and .02."""
    assert share_of("masked", (0.035, 0.02), True, 1000) == 0
    assert share_of("clear", (0.035, 0.02), True, 1000) > 0.95


def test_what_is_masked_by_half_is_decided_on_the_first_points() -> None:
    for rates in ((0.5, 0.0), (0.0, 0.5)):
        generator, decided = np.random.default_rng(0), 0
        for _ in range(500):
            hidden = generator.binomial(LOOKS[0], rates)
            decided += outcome(LOOKS[0], int(hidden[0]), int(hidden[1]), True) == "masked"
        assert decided / 500 > 0.97


def test_where_nothing_is_hidden_the_second_look_is_clear() -> None:
    assert outcome(LOOKS[0], 0, 0, False) == "inconclusive"
    assert outcome(LOOKS[1] - 3, 0, 0, False) == "clear"  # a few points are always misclassified


@pytest.mark.parametrize("rates", [(0.2, 0.0), (0.0, 0.2)], ids=["gradient level", "loss level"])
def test_power_against_a_true_rate_of_a_fifth(rates: tuple[float, float]) -> None:
    assert share_of("masked", rates, True, 500) > 0.99


def test_clear_is_seldom_found_where_the_limit_is_hidden() -> None:
    assert share_of("clear", (CLEAR_LIMIT_UNSCREENED, 0.0), False, 2000) <= 0.02


# --- levels that are compared on different points ------------------------------------------------


def test_a_level_that_is_decided_stays_so_while_the_other_goes_on() -> None:
    judgement = judge(seen(200, 0, 18, searched=60, matched=200, unbroken=30))
    assert judgement.verdict.label == "inconclusive"
    assert judgement.undecided == {"loss"}
    assert [judgement.masking[f"{name}_level"].n for name in ("gradient", "loss")] == [60, 200]
    assert judge(seen(200, searched=60, matched=20)).undecided == {"loss"}
    assert judge(seen(30)).undecided == {"gradient", "loss"}


def test_nothing_is_claimed_of_a_level_that_was_not_compared() -> None:
    judgement = judge(seen(30, 0, 25, searched=0, probes=FIRED))
    assert judgement.verdict.label == "masked"
    rate = judgement.masking["gradient_level"]
    assert (rate.value, rate.low, rate.high, rate.n) == (0.0, 0.0, 1.0, 0)


@pytest.mark.parametrize(("unbroken", "label"), [(0, "clear"), (1, "clear"), (2, "inconclusive"), (60, "inconclusive")])
def test_where_hardly_a_point_withstands_no_search_need_show_its_power(unbroken: int, label: Label) -> None:
    judgement = judge(seen(80, power=NOT_CHECKED, unbroken=unbroken))
    assert judgement.verdict.label == label
    assert judgement.needs == ("nothing" if label == "clear" else "power")
    if label == "clear":
        assert f"White-box attacks break {80 - unbroken} of 80 points" in judgement.verdict.reasons[1]
        low = judge(seen(80, power=NOT_CHECKED)).masking["gradient_level"].high
        assert (judgement.masking["gradient_level"].high > low) is (unbroken > 0)


# --- figures, claim, wording ----------------------------------------------------------------------


def test_accuracy_is_over_all_drawn_points() -> None:
    accuracy = judge(seen(80, 4, 2, drawn=100, certified=0.1)).accuracy
    values = {name: share and (round(share.value, 6), share.n) for name, share in accuracy.items()}
    assert values == {
        "clean": (0.8, 100), "reference": (0.72, 100), "strong_reference": (0.7, 100), "best_known": (0.66, 100),
        "certified": (0.1, 100),
    }  # fmt: skip
    assert judge(seen(80)).accuracy["certified"] is None
    assert set(judge(seen(0, drawn=0)).accuracy.values()) == {None}


def test_masking_rates_are_over_correct_points() -> None:
    masking = judge(seen(80, 4, 2, drawn=100)).masking
    assert (masking["gradient_level"].value, masking["gradient_level"].n) == (0.05, 80)
    assert (masking["loss_level"].value, masking["loss_level"].n) == (0.025, 80)
    assert judge(seen(0, drawn=10)).masking["gradient_level"].n == 0


def test_the_claim_is_judged_by_the_upper_bound_of_what_is_unbroken() -> None:
    observed = seen(200)  # 180 of 200 are unbroken
    bound = upper_bound_at_any_look(180, 200, ALPHA)
    for claimed, status in (
        (None, "no_claim"),
        (bound - 1e-9, "not_refuted"),
        (bound + 1e-9, "refuted"),
        (0.9, "not_refuted"),
    ):
        claim = judge(dataclasses.replace(observed, claimed=claimed)).claim
        assert (claim.claimed, claim.status) == (claimed, status)


def test_the_claim_does_not_touch_the_verdict() -> None:
    for observed in BY_NAME.values():
        assert judge(dataclasses.replace(observed, claimed=1.0)).verdict == judge(observed).verdict
    assert judge(seen(0, drawn=0, claimed=0.5)).claim.status == "not_refuted"
    assert judge(seen(0, drawn=50, claimed=0.5)).claim.status == "refuted"


def test_a_false_claim_is_refuted_and_a_true_one_seldom() -> None:
    """True accuracy .5 at every look: claiming .5 is refuted with probability at most ALPHA in all."""
    generator = np.random.default_rng(1)
    audits, refuted = 2000, 0
    unbroken = [{n: generator.binomial(n, 0.5) for n in LOOKS} for _ in range(audits)]
    for audit in unbroken:
        refuted += any(claim_status(n, k, 0.5) == "refuted" for n, k in audit.items())
    assert refuted / audits <= 0.015
    assert claim_status(800, 400, 0.6) == "refuted"


@functools.cache
def claim_status(n: int, unbroken: int, claimed: float) -> str:
    return judge(seen(n, best=n - unbroken, claimed=claimed)).claim.status


def sentences(judgement: Judgement) -> list[str]:
    return [judgement.verdict.sentence, *judgement.verdict.reasons]


@pytest.mark.parametrize("observed", BY_NAME.values(), ids=BY_NAME)
def test_a_verdict_speaks_of_the_search_never_of_the_models_nature(observed: Observations) -> None:
    for sentence in sentences(judge(observed)):
        assert not re.search(r"\b(robust|safe|secure|certified|guarantee\w*)\b", sentence, re.IGNORECASE)
        assert re.match(r"[A-Z].*\.$", sentence)
        assert ".." not in sentence


def test_the_sentence_of_a_clear_verdict_names_the_search() -> None:
    observed = seen(attacks_run=9, attacks_left_out=1, probes=(*QUIET, probe("saturation", "not_applicable")))
    sentence = judge(observed).verdict.sentence
    assert sentence.startswith("No masking found by 1 probe and 9 attacks; 2 did not run; 90.0% of the points")


def test_the_sentence_of_a_masked_verdict_gives_both_figures_and_the_cause() -> None:
    sentence = judge(seen(200, 0, 60, probes=FIRED)).verdict.sentence
    assert "90.0% of the points withstand the usual attack" in sentence
    assert "at most 60.0%" in sentence
    assert "The likely cause: attacks on cross-entropy miss" in sentence
    unknown = judge(seen(200, 60, probes=FIRED)).verdict.sentence
    assert unknown.endswith("tried. The cause could not be determined by the probes.")


@pytest.mark.parametrize(
    ("share", "most", "worth"),
    [(0.0, 128, True), (0.01, 128, True), (0.12, 128, False), (0.6, 128, True), (0.07, 512, True), (0.12, 512, False)],
)
def test_further_points_are_worth_drawing_only_where_they_may_decide(share: float, most: int, worth: bool) -> None:
    level = Level(round(100 * share), 100, 100, fired=False)
    assert any(level.decided_at(n) for n in range(101, most + 1)) == worth


def test_further_points_may_bound_a_share_unless_too_many_are_hidden_already() -> None:
    few, many = (Level(hidden, 100, 100, fired=False) for hidden in (5, 30))
    assert not few.bounded
    assert few.bounded_at(300)
    assert not few.bounded_at(110)
    assert not many.bounded_at(1000)
    assert many.decided_at(1000)  # by masking
