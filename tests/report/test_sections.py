"""The matrix, the test's distribution, repairs, the checklist, and what an author can paste."""

from __future__ import annotations

import base64
import copy
import math
import re
from typing import Any

import pytest
from scipy import stats

from maskaudit.attacks.registry import battery
from maskaudit.report import (
    advice,
    bibliography,
    blind_spots,
    checklist,
    layers,
    methods,
    null_distribution,
    points,
    render,
    view,
)
from maskaudit.settings import BUDGETS
from maskaudit.verdict.levels import bounded, exceeds
from maskaudit.verdict.rules import ANY_LOOK
from maskaudit.verdict.statistics import lower_bound, upper_bound

from . import sample


@pytest.fixture
def document() -> dict[str, Any]:
    return sample.masked().to_dict()


def _matrix(document: dict[str, Any]) -> points.Matrix | None:
    return points.read(document, view.read(document))


def _items(document: dict[str, Any]) -> dict[str, checklist.Item]:
    sources = advice.read(document, view.read(document))
    return {f"{source.key}: {item.advice}": item for source in sources for item in source.items}


# --- matrix -----------------------------------------------------------------------------------------


def test_matrix_groups_agree_with_the_hidden_shares(document: dict[str, Any]) -> None:
    matrix = _matrix(document)
    assert matrix is not None
    counts = {group.key: group.count for group in matrix.groups}
    assert counts == {"loss": 143, "plain": 53, "wrong": 4}
    assert [group.key for group in matrix.groups] == ["loss", "plain", "wrong"]
    assert matrix.hidden == 143
    assert len(matrix.listed) == points.MAX_LISTED
    assert counts["loss"] == round(document["masking"]["loss_level"]["value"] * 196)


def test_matrix_rows_draw_what_each_attack_broke(document: dict[str, Any]) -> None:
    matrix = _matrix(document)
    assert matrix is not None
    for row in matrix.rows:
        drawn = sum(int(run) for run in re.findall(r"h(\d+)v", str(row.path)))
        assert drawn == row.broken, row.name
    assert {row.name: row.broken for row in matrix.rows}["apgd-margin"] == 196


def test_points_hidden_from_gradients_come_first(document: dict[str, Any]) -> None:
    document["points"]["broken_by"][17] = ["square"]
    matrix = _matrix(document)
    assert matrix is not None
    assert (matrix.groups[0].key, matrix.groups[0].count) == ("gradient", 1)
    assert matrix.listed[0].broken_by == ("square",)


def test_an_attack_that_names_no_loss_follows_cross_entropy(document: dict[str, Any]) -> None:
    rows = {row.name: row for row in view.read(document).attacks}
    assert points.follows_cross_entropy(rows["pgd"])
    assert not points.follows_cross_entropy(rows["apgd-margin"])
    assert not points.follows_cross_entropy(rows["square"])


def test_a_scattered_matrix_of_many_points_stays_small(document: dict[str, Any]) -> None:
    names = [row["name"] for row in document["attacks"] if row["status"] == "ran"]
    scattered = [[name for k, name in enumerate(names) if (i * (2 * k + 3) >> (k % 5)) % 3] for i in range(5000)]
    document["points"] = {"index": list(range(5000)), "label": [0] * 5000, "broken_by": scattered}
    matrix = _matrix(document)
    assert matrix is not None
    assert sum(len(row.path) for row in matrix.rows) <= 150_000
    assert len(render(document, "html").encode()) < 1_000_000


# --- the tested distribution ------------------------------------------------------------------------


@pytest.mark.parametrize("fired", [True, False])
def test_critical_count_is_the_judges(document: dict[str, Any], fired: bool) -> None:
    document["masking"]["screen"]["fired"] = fired
    for test in null_distribution.read(document):
        assert lower_bound(test.critical, test.n, test.alpha) > test.slack
        assert lower_bound(test.critical - 1, test.n, test.alpha) <= test.slack
        assert upper_bound(test.clear_at, test.n, test.alpha) < 0.1
        assert upper_bound(test.clear_at + 1, test.n, test.alpha) >= 0.1
        assert test.slack == (0.05 if fired else 0.12)


def test_in_reports_of_a_test_for_any_look_the_counts_are_those_of_the_evidence(document: dict[str, Any]) -> None:
    rule = document["masking"]["rule"]
    del rule["looks"]
    assert null_distribution.read(document) == ()
    rule["test"] = ANY_LOOK
    tests = null_distribution.read(document)
    assert len(tests) == 2
    for test in tests:
        assert test.alpha == rule["alpha"] / 2
        assert exceeds(test.critical, test.n, test.slack)
        assert not exceeds(test.critical - 1, test.n, test.slack)
        assert bounded(test.clear_at, test.n, test.n, 0.1)
        assert not bounded(test.clear_at + 1, test.n, test.n, 0.1)
    assert "valid at every look" in render(document, "html")


def test_each_level_is_tested_against_its_own_limits(document: dict[str, Any]) -> None:
    document["masking"]["rule"]["limits"] = {
        "gradient_level": {"slack": 0.05, "clear_limit": 0.1}, "loss_level": {"slack": 0.12, "clear_limit": 0.12},
    }  # fmt: skip
    gradient, loss = null_distribution.read(document)
    assert (gradient.slack, gradient.clear_limits, loss.slack, loss.clear_limits) == (
        0.05, "10.0% of the points", 0.12, "12.0% of the points",
    )  # fmt: skip
    page = render(document, "html")
    assert "5.0% at gradient level" in page
    assert "12.0% at loss level" in page


def test_few_correct_points_are_not_called_few_enough(document: dict[str, Any]) -> None:
    masking = document["masking"]
    masking["rule"] |= {"test": ANY_LOOK, "clear_limit": 0.12, "clear_limit_of_correct": 0.3}
    masking["rule"]["limits"] = {"loss_level": {"slack": 0.12, "drawn": 160}}
    masking["loss_level"] = {"value": 1 / 22, "low": 0.0, "high": 0.4, "n": 22}
    document["verdict"]["label"] = "inconclusive"
    test = null_distribution.read(document)[1]
    assert bounded(1, 160, 160, 0.12)
    assert not bounded(1, 22, 160, 0.12)
    assert test.clear_at == max((k for k in range(22) if bounded(k, 22, 160, 0.12)), default=-1)
    page = render(document, "html")
    assert "show that less than 12.0% of the points and 30.0% of the correct ones are hidden" in page


@pytest.mark.parametrize(("hidden", "n"), [(0, 1), (3, 20), (143, 190), (300, 1000), (10, 100_000), (0, 100_000)])
def test_chance_and_limits_are_those_of_the_binomial_distribution(
    document: dict[str, Any], hidden: int, n: int
) -> None:
    document["masking"]["loss_level"] = {"value": hidden / n, "low": 0.0, "high": 1.0, "n": n}
    test = null_distribution.read(document)[1]
    null = stats.binom(n, test.slack)
    assert test.exponent == pytest.approx(max(float(null.logsf(hidden - 1)) / math.log(10), -9999.0), abs=1e-6)
    assert test.critical == int(null.isf(test.alpha)) + 1
    assert test.clear_at == int(stats.binom.ppf(test.alpha, n, 0.1)) - 1


def test_distribution_names_observed_and_critical_count(document: dict[str, Any]) -> None:
    gradient, loss = null_distribution.read(document)
    assert (gradient.hidden, loss.hidden) == (0, 143)
    assert loss.proven
    assert not gradient.proven
    assert "about 10⁻" in loss.summary
    drawn = null_distribution.draw(loss)
    assert "observed: 143" in drawn
    assert f"proof from {loss.critical}" in drawn


def test_distribution_of_points_too_few_to_prove_anything(document: dict[str, Any]) -> None:
    document["masking"]["loss_level"] = {"value": 0.0, "low": 0.0, "high": 1.0, "n": 1}
    loss = null_distribution.read(document)[1]
    assert not loss.proven
    assert "no count could prove" in loss.summary
    assert "proof from" not in null_distribution.draw(loss)


def test_no_rule_no_distribution(document: dict[str, Any]) -> None:
    del document["masking"]["rule"]
    assert null_distribution.read(document) == ()
    assert 'id="test"' not in render(document, "html")


# --- layers and repairs -----------------------------------------------------------------------------


def _flow(count: int = 6) -> list[dict[str, Any]]:
    return [
        {"name": f"layer{i}", "norm": 0.0 if i == 1 else 0.1 * i, "zero_share": 1.0 if i == 1 else 0.0,
         "culprit": i == 1}
        for i in range(count)
    ]  # fmt: skip


def test_flow_and_repairs_are_silent_without_data(document: dict[str, Any]) -> None:
    assert 'id="repair"' not in render(document, "html")


def test_flow_marks_the_culprit(document: dict[str, Any]) -> None:
    document["figures"]["gradient_flow"] = _flow()
    page = render(document, "html")
    assert "Marked as the culprit: layer1." in page
    assert "exactly zero" in page


def test_flow_keeps_culprits_when_thinned() -> None:
    shown = layers.read_flow(_flow(400))
    assert len(shown) < 60
    assert any(layer.culprit for layer in shown)


def _depth(count: int = 5, **more: Any) -> dict[str, Any]:
    rows = [{"place": f"l{i}", "norm": 10.0**-i, "low": 0.0, "high": 10.0 ** (1 - i)} for i in range(count)]
    return {"rule": "layer-gradient-flow", "title": "Flow", "status": "pass", "details": {"layers": rows, **more}}


def test_the_gradient_is_drawn_against_depth_and_what_bends_it_is_said(document: dict[str, Any]) -> None:
    assert "against depth" not in render(document, "html")
    document["probes"].append(_depth())
    assert "The gradient at the input is 10⁻⁴ times as large as at the output." in render(document, "html")
    bend = {"layer": 2, "location": {"module": "trunk", "op": "Clip"}, "how": "normalises"}
    document["probes"][-1] = _depth(bend=bend)
    document["probes"][-1]["details"]["layers"][-1]["norm"] = 0.0
    page = render(document, "html")
    assert "It does not reach the input." in page
    assert "it is normalised (in trunk.Clip)" in page
    assert layers.depth({"probes": [_depth(2)]}) is None
    for junk in (None, "junk", -1, 1e308, [[None]], [{"norm": 1}] * 4, [{"norm": "x"}] * 9):
        layers.depth({"probes": [_depth(bend=junk), junk]})
        layers.depth({"probes": [{"rule": "layer-gradient-flow", "details": {"layers": junk}}]})


def test_blind_spots_are_drawn_with_their_images(document: dict[str, Any]) -> None:
    assert 'id="blind"' not in render(document, "html")
    grey = base64.b64encode(bytes(range(4))).decode()
    walk = {
        "label": 8, "goal_label": 3, "left": 0.25, "confidence": 0.9, "lowest_on_line": 0.8,
        "path": [[0.0, 0.95], [0.75, 0.9]], "shape": [1, 2, 2], "source": grey, "end": grey, "goal": grey,
    }  # fmt: skip
    probe = {"rule": "blind-spots", "title": "Blind spots", "status": "pass", "details": {"walks": [walk]}}
    document["probes"].append(probe)
    section = render(document, "html").partition('id="blind"')[2].partition("</section>")[0]
    assert "90.0%, 25.0% of the distance to a 3 left" in " ".join(section.split())
    assert section.count("data:image/png") == 3
    for key in walk:
        for junk in (None, "junk", -1, [[None]], {}, [1e308, "x"]):
            probe["details"] = {"walks": [{**walk, key: junk}]}
            blind_spots.draw(blind_spots.read(document))


def test_repair_is_drawn_before_and_after(document: dict[str, Any]) -> None:
    row = next(row for row in document["attacks"] if row["role"] == "repaired")
    row |= {"status": "ran", "attempted": 100, "broken": 1}
    white_box = {row["name"] for row in document["attacks"] if row["role"] in ("reference", "strong")}
    points = document["points"]
    for right, names in zip(points["correct"], points["broken_by"], strict=True):
        if right:
            names[:] = [row["name"]]
    evading = [names for right, names in zip(points["correct"], points["broken_by"], strict=True) if right][:100]
    for names in evading[:10]:
        names[:] = []
    evading[10].append(next(iter(white_box)))
    document["accuracy"]["strong_reference"] = document["accuracy"]["reference"]
    assert "5.0% [" in render(document, "html").partition("Robust accuracy before and after repair")[2]
    document["accuracy"]["strong_reference"] = {"value": 0.05, "low": 0.02, "high": 0.1, "n": 200}
    assert "Before and after repair" not in render(document, "html")  # nothing was gained


# --- checklist --------------------------------------------------------------------------------------


def test_states_follow_what_ran(document: dict[str, Any]) -> None:
    items = _items(document)
    assert items["carlini: Gradient-free and hard-label attacks"].state == "done"
    assert items["carlini: Random noise of full size"].state == "partly"
    assert items["carlini: Provable bounds"].state == "not done"
    assert items["carlini: Averaged over the randomness of the model"].state == "not applicable"
    assert items["pintor: Unstable predictions"].state == "done"
    assert items["owasp: Conclusion against a stated criterion"].result.startswith("refuted")
    assert "3 further points" in items["carlini: Convergence of the attacks checked"].result
    randomness = next(probe for probe in document["probes"] if probe["rule"] == "randomness")
    randomness |= {"status": "not_applicable", "value": None, "reason": "The model is a black box."}
    assert _items(document)["pintor: Unstable predictions"].state == "not applicable"


@pytest.mark.parametrize(
    ("kinds", "advised"),
    [
        (("transfer",), "owasp: Transfer from a surrogate"),
        (("score", "decision"), "owasp: Zero-knowledge search"),
        (("random",), "carlini: Random noise of full size"),
        (("gradient",), "owasp: Perfect-knowledge search"),
    ],
)
def test_nothing_is_done_that_did_not_run(document: dict[str, Any], kinds: tuple[str, ...], advised: str) -> None:
    document["attacks"] = [row for row in document["attacks"] if row["kind"] not in kinds]
    assert _items(document)[advised].state == "not done"


def test_one_of_two_kinds_is_partly(document: dict[str, Any]) -> None:
    document["attacks"] = [row for row in document["attacks"] if row["kind"] != "decision"]
    item = _items(document)["carlini: Gradient-free and hard-label attacks"]
    assert item.state == "partly"
    assert "No hard-label attack ran." in item.how


def test_an_empty_audit_did_nothing() -> None:
    items = _items(sample.inconclusive().to_dict())
    assert not [name for name, item in items.items() if item.state in ("done", "partly")]


def test_a_success_lost_on_the_way_is_told(document: dict[str, Any]) -> None:
    name = "pintor: Silent success: an example found on the way and lost"
    assert _items(document)[name].result == "every success on the way was kept"
    row = next(row for row in document["attacks"] if row["name"] == "square")
    row["curve"] = row["curve"][:1]
    assert "square" in _items(document)[name].result


def test_checklist_is_in_page_and_summary(document: dict[str, Any]) -> None:
    for fmt in ("html", "md"):
        shown = render(document, fmt)
        assert "Five behaviours of obfuscated gradients" in shown
        assert "OWASP AI Exchange" in shown


# --- what an author pastes --------------------------------------------------------------------------


def _texts(document: dict[str, Any]) -> methods.Methods:
    return methods.read(document, view.read(document))


def test_paragraph_says_what_was_done(document: dict[str, Any]) -> None:
    shown = _texts(document).paragraph
    for part in ("200 points of digits", "ε = 0.2", "71.5% [64.9–77.3%]", "Verdict: masked.", "Seed 0", "99% exact"):
        assert part in shown
    assert "Square attack" in shown
    assert "not a guarantee" in shown


def test_every_attack_that_names_a_source_has_it_in_the_bibliography() -> None:
    for spec in battery(BUDGETS["quick"]):
        keys = bibliography.keys_of(spec.name)
        assert len(keys) >= bool(spec.sources), spec.name
        assert set(keys) <= set(bibliography.ENTRIES) & set(bibliography.SHORT)
    assert set(bibliography.SHORT) == set(bibliography.ENTRIES)


def test_latex_cites_only_what_bibtex_defines(document: dict[str, Any]) -> None:
    texts = _texts(document)
    cited = {key for keys in re.findall(r"\\cite\{([^}]*)\}", texts.latex) for key in keys.split(",")}
    defined = set(re.findall(r"@\w+\{([^,]*),", texts.bibtex))
    assert cited <= defined
    assert "andriushchenko2020square" in cited
    assert texts.bibtex.count("{") == texts.bibtex.count("}")


def test_nothing_of_a_hostile_document_runs_in_latex() -> None:
    hostile = sample.hostile()
    hostile["tool"]["version"] = "1.0}} \\input{/etc/passwd}"
    texts = _texts(hostile)
    assert "\\input" not in texts.latex
    assert "\\frac" not in texts.latex
    assert "\\input" not in texts.bibtex
    assert not re.search(r"(?<!\\)[%&#_$](?!\\)", re.sub(r"\\cite\{[^}]*\}|\$\\\w+\$|\$-\$", "", texts.latex))


def test_card_is_inert_markdown() -> None:
    card = _texts(sample.hostile()).card
    outside = re.sub(r"(`+).*?\1", "", card)
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert "@team" not in outside


def test_pasted_text_keeps_its_blank_lines(document: dict[str, Any]) -> None:
    page = render(document, "html")
    assert "## Adversarial robustness&#10;&#10;- **Model**" in page


@pytest.mark.parametrize("junk", [None, "junk", -1, 1e308, {}, [[None]], float("nan"), [{"name": 1}]], ids=repr)
def test_odd_values_leave_the_new_sections_whole(document: dict[str, Any], junk: Any) -> None:
    document["figures"] = {"gradient_flow": _flow()}
    for section, key in (
        *(("points", key) for key in ("index", "label", "correct", "broken_by")),
        *(("masking", key) for key in ("rule", "screen", "gradient_level", "loss_level")),
        *(("settings", key) for key in ("draws", "looks", "split", "seed")),
        *(("figures", key) for key in ("gradient_flow", "eps_curve")),
        *(("target", "random"), ("threat", "bounds"), ("tool", "version")),
    ):
        edited = copy.deepcopy(document)
        edited[section][key] = junk
        seen = view.read(edited)
        points.read(edited, seen)
        if section == "masking":
            [null_distribution.draw(test) for test in null_distribution.read(edited)]
        layers.flow(layers.read_flow(edited["figures"].get("gradient_flow")))
        advice.read(edited, seen)
        methods.read(edited, seen)
