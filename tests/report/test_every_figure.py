"""Every number of the HTML, Markdown and text reports, counted again from the recorded points by code of its own.

Nothing here imports the code under test but the three `render` functions. Exact intervals come from `scipy.stats`.
Figures in tables and captions are compared where they are; after that no number may be left in a report that is
neither among the recounted ones, nor a word of the JSON document itself, nor a fixed word of the templates.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest
from scipy import integrate, stats

from maskaudit.report import html, markdown, text

from ..auditing.example_audits import MAKERS, example, failed

pytestmark = pytest.mark.heavy

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")


@pytest.fixture(params=MAKERS)
def audited(request: pytest.FixtureRequest, zoo_cache: Path) -> Counted:
    return counted(request.param)


@functools.cache
def counted(name: str) -> Counted:
    """One audit, whose reports are rendered once."""
    return Counted(example(name).document)


# --- the audits themselves -------------------------------------------------------------------------


def test_the_audits_are_what_they_are_called(zoo_cache: Path) -> None:
    labels = {name: example(name).document["verdict"]["label"] for name in MAKERS}
    assert labels["masked at gradient level"] == labels["masked at loss level"] == "masked"
    assert labels["clear"] == "clear"
    assert labels["broken off"] == labels["few parts on request"] == "inconclusive"
    levels = {name: example(name).document["masking"] for name in MAKERS}
    assert levels["masked at gradient level"]["gradient_level"]["value"] > 0.5
    assert levels["masked at loss level"]["loss_level"]["value"] > 0.5
    assert example("random").document["target"]["random"]
    assert example("broken off").document["partial"]["reason"]


@pytest.mark.parametrize("name", MAKERS)
def test_every_audit_proves_itself(name: str, zoo_cache: Path) -> None:
    one = example(name)
    assert failed(one) == {}
    assert one.document["points"]["index"]


# --- the second count -----------------------------------------------------------------------------


def percent(k: float, n: int) -> str:
    share = k / n
    if 0 < share < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= share < 1 else f"{100 * share:.1f}%"


def plural(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def interval(k: int, n: int, dash: str = "–") -> str:
    """Clopper & Pearson 1934 by the quantiles of the beta distribution."""
    low = 0.0 if k == 0 else stats.beta.ppf(0.005, k, n - k + 1)
    high = 1.0 if k == n else stats.beta.ppf(0.995, k + 1, n - k)
    return f"{100 * low:.1f}{dash}{100 * high:.1f}%"


class Counted:
    """A document's points, counted."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        points = document["points"]
        self.right = [bool(right) for right in points["correct"]]
        self.by = [set(names) for names in points["broken_by"]]
        self.n, self.correct = len(self.right), sum(self.right)
        self.rows = {row["name"]: row for row in document["attacks"]}
        self.black_box = document["settings"]["black_box"]
        self.reference = self.named(("reference",))
        self.usual = {n for n in self.named(("reference", "strong")) if self.rows[n]["family"] == "cross_entropy"}
        self.strong = self.named(("reference", "strong"))
        self.challengers = self.named(("challenger", "repaired"))
        self.every = {name for name, row in self.rows.items() if row["role"] != "sanity"}

    @functools.cached_property
    def page(self) -> Element:
        return html5lib.parse(html.render(self.document), namespaceHTMLElements=False)  # type: ignore[no-any-return]

    def named(self, roles: tuple[str, ...]) -> set[str]:
        return {name for name, row in self.rows.items() if row["role"] in roles}

    def broken(self, names: set[str]) -> int:
        return sum(bool(by & names) for by in self.by)

    def left(self, names: set[str]) -> int:
        return self.correct - self.broken(names)

    def broken_by(self, name: str) -> int:
        row = self.rows[name]
        return row["broken"] if row["role"] == "sanity" else self.broken({name})

    def compared(self, level: str) -> int:
        """Correct points on which attacks were compared at a level; none of a black box."""
        if self.black_box:
            return 0
        return sum(self.right[: self.document["masking"]["searched" if level == "gradient" else "matched"]])

    @property
    def by_gradient(self) -> int:
        met = self.by[: self.document["masking"]["searched"]]
        return sum(bool(by & self.challengers) and not by & self.strong for by in met)

    @property
    def by_loss(self) -> int:
        met = self.by[: self.document["masking"]["matched"]]
        return sum(bool(by & self.strong) and not by & self.usual for by in met)

    def hidden(self, level: str, dash: str = "–") -> tuple[str, str]:
        """The hidden share at a level and its interval, up to what could be hidden where nothing was left to search."""
        k, n = (self.by_gradient if level == "gradient" else self.by_loss), self.compared(level)
        if not n:
            return "not measured", ""
        stated = self.document["masking"][f"{level}_level"]["high"]
        met = zip(self.right, self.by, strict=True)
        most = sum(right and not by & self.strong for right, by in list(met)[: self.document["masking"]["searched"]])
        beyond = 1.0 if most == n else stats.beta.ppf(0.995, most + 1, n - most)
        shown = interval(k, n, dash)
        if level == "gradient" and most > k and abs(stated - beyond) < 1e-9:
            shown = f"{shown.split(dash)[0]}{dash}{100 * beyond:.1f}%"
        return percent(k, n), shown

    @property
    def accuracies(self) -> dict[str, int]:
        by_gradients = {"reference": self.left(self.reference), "strong_reference": self.left(self.strong)}
        ends = {"clean": self.correct, "best_known": self.left(self.every)}
        return ends if self.black_box else {**ends, **by_gradients}

    def whole(self, name: str) -> bool:
        """Whether an attack met every correct point."""
        row = self.rows[name]
        return row["status"] == "ran" and row["attempted"] == self.correct

    @property
    def slacks(self) -> tuple[float, float]:
        """What the screen lets pass at gradient and at loss level."""
        fired = {probe["rule"] for probe in self.document["probes"] if probe["status"] == "finding"}
        gradient = fired & {"zero-gradient", "finite-difference-agreement", "unbounded-attack"}
        loss = fired & {"zero-gradient", "unbounded-attack"}
        return (0.05 if gradient else 0.12), (0.05 if loss else 0.12)

    def rate(self, k: int, n: int | None = None, dash: str = "–") -> str:
        n = self.n if n is None else n
        return f"{percent(k, n)} [{interval(k, n, dash)}]"


def bracketed(audited: Counted, level: str, dash: str = "–") -> str:
    share, shown = audited.hidden(level, dash)
    return f"{share} [{shown}]" if shown else share


def evidence(k: int, n: int, limit: float) -> float:
    """Likelihood averaged over rates above the limit by Jeffreys' density, over that at the limit, by quadrature."""

    def weighted(rate: float) -> float:
        ratio = k * math.log(rate / limit) + (n - k) * math.log((1 - rate) / (1 - limit))
        return math.exp(ratio) / math.sqrt(rate * (1 - rate))

    above = integrate.quad(weighted, limit, 1, limit=500)[0]
    return float(above / integrate.quad(lambda rate: 1 / math.sqrt(rate * (1 - rate)), limit, 1)[0])


def drawings(page: Element, tag: str) -> list[Element]:
    """Elements of SVG, which html5lib keeps in their namespace."""
    return [part for part in page.iter() if str(part.tag).endswith(f"}}{tag}")]


def plainly(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def page_of(counted: Counted) -> Element:
    return counted.page


def section(page: Element, name: str) -> Element:
    return next(part for part in page.iter("section") if part.get("id") == name)


def lines_of(counted: Counted) -> list[str]:
    return text.render(counted.document).splitlines()


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


# --- the verdict and its axes ----------------------------------------------------------------------


def test_the_axes_of_the_page(audited: Counted) -> None:
    verdict = section(page_of(audited), "verdict")
    shown = plainly(verdict)
    for name, level in (("Gradient level", "gradient"), ("Loss level", "loss")):
        found = next(plainly(row) for row in verdict.iter("div") if plainly(row).startswith(name) and row.find("dd"))
        assert found.endswith(" ".join(audited.hidden(level)).strip())
    marks = {
        row.get("class"): plainly(row) for row in verdict.iter("div") if (row.get("class") or "").startswith("of-")
    }
    for key, k in audited.accuracies.items():
        assert marks[f"of-{key}"].endswith(f"{percent(k, audited.n)} {interval(k, audited.n)}"), key
    best = audited.accuracies["best_known"]
    certified = audited.document["accuracy"]["certified"]
    lead = f"{100 * certified['value']:.1f}% to" if certified else "at most"
    assert f"{lead} {percent(best, audited.n)}" in shown
    assert f"{interval(best, audited.n)} of {audited.n} points" in shown
    assert plural(sum(map(bool, audited.by)), "point") + " broken, each with an adversarial example" in shown
    claimed = audited.document["claim"]["claimed"]
    assert ("of-claim" in marks) is (claimed is not None)
    assert claimed is None or f"{100 * claimed:.1f}%" in marks["of-claim"]


def test_the_marks_of_the_ruler_lie_where_the_figures_say(audited: Counted) -> None:
    verdict, n = section(page_of(audited), "verdict"), audited.n
    at = {
        mark.get("class", "").removeprefix("ruler-mark "): mark.get("style")
        for mark in verdict.iter("span") if "ruler-mark" in (mark.get("class") or "")
    }  # fmt: skip
    for key, glyph in (("clean", "clean"), ("reference", "reference"), ("best_known", "best")):
        assert (glyph in at) is (key in audited.accuracies)
        assert key not in audited.accuracies or at[glyph] == f"left:{100 * audited.accuracies[key] / n:.2f}%"


def test_the_axes_of_text_and_markdown(audited: Counted) -> None:
    facts = " ".join(" ".join(lines_of(audited)).split())
    k = audited.accuracies
    usual = "" if audited.black_box else f"; reference attack {audited.rate(k['reference'], dash='-')}"
    assert f"at most {audited.rate(k['best_known'], dash='-')}{usual}" in facts
    for level, meaning in (("gradient", "hidden from the model's gradients"), ("loss", "hidden from attacks on cross")):
        shown = f"{level} level {bracketed(audited, level, '-')}"
        assert (f"{shown} {meaning}" if audited.compared(level) else shown) in facts
    page = markdown.render(audited.document)
    plain = re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), page)
    for name, shown in (
        ("Gradient level", bracketed(audited, "gradient")),
        ("Loss level", bracketed(audited, "loss")),
        ("Robust accuracy", f"**at most {audited.rate(k['best_known'])}**"),
        *([] if audited.black_box else [("Reference attack", audited.rate(k["reference"]))]),
        ("Clean accuracy", audited.rate(k["clean"])),
        ("Proof", plural(sum(map(bool, audited.by)), "point") + " broken"),
    ):
        assert f"| {name} | {shown} |" in plain, name


def test_the_sentence_and_the_reasons_count_the_points(audited: Counted) -> None:
    verdict = audited.document["verdict"]
    k = audited.accuracies
    best, usual = (percent(k.get(key, audited.correct), audited.n) for key in ("best_known", "reference"))
    label, sentence = verdict["label"], verdict["sentence"]
    ran = [row for row in audited.rows.values() if row["role"] != "sanity"]
    probes = audited.document["probes"]
    measured = [probe for probe in probes if probe["status"] in ("pass", "finding")]
    idle = len(probes) - len(measured) + sum(row["status"] != "ran" for row in ran)
    searched = (
        len(measured),
        sum(row["status"] == "ran" for row in ran),
        idle,
        len(audited.document["settings"]["left_out"]),
    )
    if label == "masked":
        assert sentence.startswith(
            f"Robustness is overstated: {usual} of the points withstand the usual attack, at most {best} withstand"
        )
    elif audited.black_box:
        assert sentence.startswith("No verdict on gradients: the model is a black box.")
        assert f"At most {best} of the points withstand every attack" in sentence
        assert sentence.endswith(f" {searched[1]} attacks.")
    else:
        found = re.search(
            r"(\d+) probes? and (\d+) attacks?; (\d+) did not run(?:, (\d+) left out on request)?", sentence
        )
        assert found is not None
        assert tuple(int(figure or 0) for figure in found.groups()) == searched
        assert label != "clear" or best in sentence
    hidden = {"Gradient": (audited.by_gradient, audited.strong), "Loss": (audited.by_loss, audited.usual)}
    for level, k, n, attacks in re.findall(
        r"(Gradient|Loss) level: (\d+) of (\d+) points withstand all (\d+) ", " ".join(verdict["reasons"])
    ):
        names = {name for name in hidden[level][1] if audited.rows[name]["status"] == "ran"}
        assert (int(k), int(n), int(attacks)) == (hidden[level][0], audited.compared(level.lower()), len(names))


# --- the attacks ------------------------------------------------------------------------------------


def test_the_attacks_of_the_page(audited: Counted) -> None:
    seen = set()
    for row in section(page_of(audited), "attacks").iter("tr"):
        cells = [plainly(cell) for cell in row.iter("td")]
        code = row.find("th/code")
        if code is None or not cells:
            continue
        name = plainly(code)
        recorded = audited.rows[name]
        seen.add(name)
        k = audited.broken_by(name)
        accuracy = f"{percent(audited.correct - k, audited.n)} {interval(audited.correct - k, audited.n)}"
        if not audited.whole(name):
            accuracy = f"not measured alone: it met {recorded['attempted']} of the points"
        figures = [
            accuracy,
            f"{k} of {recorded['attempted']}",
            f"{recorded['new']}",
            f"{recorded['queries']:,}",
            duration(recorded["seconds"]),
        ]
        assert cells == figures, name
        style = next((span.get("style") for span in row.iter("span") if span.get("class") == "meter-dot"), None)
        assert style == (f"left:{100 * (audited.correct - k) / audited.n:.2f}%" if audited.whole(name) else None)
    idle = [row for row in audited.rows.values() if row["status"] != "ran"]
    shown = plainly(section(page_of(audited), "attacks"))
    assert seen == {row["name"] for row in audited.rows.values() if row["status"] == "ran"}
    assert all(row["name"] in shown and row["reason"] in shown for row in idle)


def test_the_attacks_of_text_and_markdown(audited: Counted) -> None:
    lines = [re.split(r" {2,}", line.strip()) for line in lines_of(audited)]
    cells = {line[0]: line[2:] for line in lines if len(line) == 6 and line[0] in audited.rows}
    page = re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), markdown.render(audited.document))
    for name, row in audited.rows.items():
        if row["status"] != "ran":
            assert name not in cells
            continue
        k, met = audited.broken_by(name), row["attempted"]
        left = audited.correct - k
        shown = {dash: audited.rate(left, dash=dash) if audited.whole(name) else "not measured" for dash in "-–"}
        assert cells[name] == [shown["-"], f"{k}/{met}", f"{row['queries']:,}", duration(row["seconds"])], name
        line = next(line for line in page.splitlines() if f"<code>{name}</code> |" in line)
        assert line.split(" | ")[2:] == [shown["–"], f"{k} of {met}", f"{row['queries']:,} |"], name


def test_every_point_is_new_to_one_attack_only(audited: Counted) -> None:
    assert sum(row["new"] for name, row in audited.rows.items() if name in audited.every) == audited.broken(
        audited.every
    )


# --- figures ----------------------------------------------------------------------------------------


def test_the_map_of_points(audited: Counted) -> None:
    page = section(page_of(audited), "points")
    kinds = [_kind(audited, right, by) for right, by in zip(audited.right, audited.by, strict=True)]
    groups = {(item.get("class") or ""): plainly(item) for item in page.iter("li")}
    assert {key: int(shown.split()[0].replace(",", "")) for key, shown in groups.items()} == {
        kind: kinds.count(kind) for kind in set(kinds)
    }
    for row in page.iter("tr"):
        code, cells = row.find("th/code"), [plainly(cell) for cell in row.iter("td")]
        if code is None:
            continue
        (drawn,) = drawings(row, "path")
        runs = [int(run) for run in re.findall(r"M\d+ 0h(\d+)v1", drawn.get("d") or "")]
        assert int(cells[-1].replace(",", "")) == sum(runs) == audited.broken_by(plainly(code))


def _kind(audited: Counted, right: bool, by: set[str]) -> str:
    if not right:
        return "wrong"
    if audited.black_box:
        return "found" if by else "unbroken"
    for kind, names in (("plain", audited.usual), ("loss", audited.strong), ("gradient", audited.challengers)):
        if by & names:
            return kind
    return "other" if by else "unbroken"


def test_the_curves_start_where_the_model_starts_and_end_where_the_table_does(audited: Counted) -> None:
    rows = audited.document["figures"].get("eps_curve", [])
    at = audited.document["threat"]["eps"]
    for row in rows:
        assert row["best_known"] <= row["strong"] <= row["reference"] or row["eps"] != at
        drawn, right = audited.right[: row["n"]], sum(audited.right[: row["n"]])
        by = audited.by[: row["n"]]
        if row["eps"] == 0:
            assert row["reference"] == row["strong"] == row["best_known"] == right / len(drawn)
        if row["eps"] == at:
            for key, names in (
                ("reference", audited.reference),
                ("strong", audited.strong),
                ("best_known", audited.every),
            ):
                assert row[key] == sum(r and not b & names for r, b in zip(drawn, by, strict=True)) / len(drawn)
    page = page_of(audited)
    curves = next((part for part in page.iter("section") if part.get("id") == "curves"), None)
    if curves is None:
        assert not rows
        return
    if rows:
        best = ", ".join(
            f"{audited.rate(round(row['best_known'] * row['n']), row['n'])} at ε"
            for row in sorted(rows, key=lambda r: r["eps"])
        )
        for shown in best.split(" at ε")[:-1]:
            assert shown.strip(", ") in plainly(curves)
    for name, row in audited.rows.items():
        for shown in re.findall(re.escape(row["title"]) + r" ends at (\S+ \[\S+\])", plainly(curves)):
            assert shown == audited.rate(audited.correct - audited.broken_by(name))


def test_lines_against_steps_begin_at_clean_accuracy(audited: Counted) -> None:
    """The first corner of every line, read from the drawing, against the height of the axis."""
    figure = next((svg for svg in drawings(page_of(audited), "svg") if "attack steps" in plainly(svg)), None)
    if figure is None:
        assert not any(
            row["curve"] and row["curve"][-1][0] > 1 and audited.whole(name)
            for name, row in audited.rows.items()
            if name in audited.every
        )
        return
    paths = [path.get("d") or "" for path in drawings(figure, "path")]
    grid = sorted(
        {float(y) for d in paths for y in re.findall(r"^M [\d.]+ ([\d.]+) L [\d.]+ \1 *$", " ".join(d.split()))}
    )
    steps = [" ".join(d.split()) for d in paths if d.count("L") >= 2]
    top, bottom = grid[0], grid[-1]
    lines = [d for d in steps if "z" not in d.lower()]
    assert lines
    for line in lines:
        height = float(re.findall(r"M [\d.]+ ([\d.]+)", line)[0])
        assert (bottom - height) / (bottom - top) == pytest.approx(audited.correct / audited.n, abs=0.01)


def test_what_the_verdict_was_tested_against(audited: Counted) -> None:
    page = next((part for part in page_of(audited).iter("section") if part.get("id") == "test"), None)
    figures = [] if page is None else [plainly(caption) for caption in page.iter("figcaption")]
    alpha = 0.01 / 2
    levels = (
        ("Gradient level", audited.by_gradient, audited.slacks[0]), ("Loss level", audited.by_loss, audited.slacks[1])
    )  # fmt: skip
    tested = [level for level in levels if audited.compared(level[0].split()[0].lower())]
    for (title, hidden, slack), shown in zip(tested, figures, strict=True):
        n = audited.document["masking"]["searched" if title.startswith("Gradient") else "matched"]
        least = next((k for k in range(1, n + 1) if evidence(k, n, slack) >= 1 / alpha), n + 1)
        words = f"{hidden} hidden point{'' if hidden == 1 else 's'} of {n:,} drawn; "
        assert f"{title}: " in shown
        assert words in shown
        unproven = audited.document["masking"]["rule"]["limits"][f"{title.split()[0].lower()}_level"]["unproven"]
        if unproven:
            assert "no count proves masking" in shown
        else:
            assert (f"{least} would prove masking" if least <= n else "no count could prove masking") in shown
        assert (": proven." in shown) is (hidden >= least and not unproven)
        assert f"hid {100 * slack:.1f}% of points" in shown
        chance = stats.binom.sf(hidden - 1, n, slack)
        if chance >= 1e-3:
            assert f"probability {chance:.2g}" in shown
    if page is not None:
        assert f"error level of {alpha:.2g} for each level, all looks together" in plainly(page)


def test_before_and_after_repair(audited: Counted) -> None:
    page = plainly(page_of(audited))
    for name, row in audited.rows.items():
        if row["role"] == "repaired" and row["status"] == "ran":
            after = audited.left(audited.strong | {name})
            gained = after < audited.left(audited.strong)
            shown = f"{audited.rate(audited.left(audited.strong))} before, {audited.rate(after)} after"
            assert (f"{row['title']}: {shown}" in page) is gained


def test_where_the_gradient_goes(audited: Counted) -> None:
    """The counts and the factor that the section states, from the recorded norms."""
    page = next((part for part in page_of(audited).iter("section") if part.get("id") == "repair"), None)
    shown = "" if page is None else plainly(page)
    flow = audited.document["figures"].get("gradient_flow", [])
    assert ("Gradient norm by layer" in shown) is (len(flow) >= 2)
    if len(flow) >= 2:
        named = {
            f"Marked as the culprit: {', '.join(row['name'] for row in flow if row['culprit'])}.",
            f"The gradient is exactly zero at {', '.join(row['name'] for row in flow if row['norm'] == 0)}.",
        }
        named = {sentence for sentence in named if not sentence.endswith((": .", "at ."))}
        assert all(sentence in shown for sentence in (f"{len(flow)} layers from input to output.", *named))
        assert shown.count("Marked as the culprit: ") + shown.count("exactly zero at") == len(named)
    probes = {probe["rule"]: probe for probe in audited.document["probes"]}
    layers = probes.get("layer-gradient-flow", {}).get("details", {}).get("layers") or []
    stated = re.search(r"The gradient at the input is (\S+) times as large as at the output", shown)
    if stated is None:
        assert len(layers) < 3 or not layers[-1]["norm"] or "does not reach the input" in shown
    elif "e" not in stated[1] and "×" not in stated[1]:
        assert float(stated[1].replace(",", "")) == pytest.approx(layers[-1]["norm"] / layers[0]["norm"], rel=6e-3)


def test_the_slice_through_the_loss_surface(audited: Counted) -> None:
    """Shares and ranges of both panels, from the recorded grid."""
    page = next((part for part in page_of(audited).iter("section") if part.get("id") == "slice"), None)
    surface = audited.document["figures"].get("surface")
    if page is None:
        assert not surface
        return
    shown = plainly(page)
    assert f"A slice through point {surface['point']}: across" in shown
    assert surface["point"] in audited.document["points"]["index"]
    margin, loss = ([v for row in surface[name] or [] for v in row if v is not None] for name in ("margin", "loss"))
    assert f"misclassified: {sum(value > 0 for value in margin) / len(margin):.0%} of this slice" in shown
    flat = sum(value - min(loss) <= 0.01 * (max(loss) - min(loss)) for value in loss) / len(loss)
    assert f"{flat:.0%} of this slice lies within 1% of the lowest value" in shown
    stated = re.findall(r"Values from (\S+) to (\S+)\. ", f"{shown} ")
    for low, high in stated:
        ends = [float(end.replace("\N{MINUS SIGN}", "-").replace(",", "")) for end in (low, high) if "10" not in end]
        known = [min(margin), max(margin), min(loss), max(loss)]
        assert all(any(end == pytest.approx(value, rel=6e-3, abs=1e-6) for value in known) for end in ends)
    assert len(stated) >= 2


def test_the_certified_share(audited: Counted) -> None:
    """Counted again where bounds proved points one at a time; a share that the user gave is shown as it is."""
    proven, certified = audited.document["points"].get("certified"), audited.document["accuracy"]["certified"]
    facts = " ".join(" ".join(lines_of(audited)).split())
    if certified is None:
        assert not proven
        return
    assert (certified["low"], certified["high"]) == (certified["value"], 1), "a bound: the truth lies above it"
    if proven:
        k = sum(map(bool, proven))
        assert all(right and not by for right, by, sure in zip(audited.right, audited.by, proven, strict=True) if sure)
        assert (certified["value"], certified["n"]) == (pytest.approx(k / audited.n), audited.n)
        assert f"certified {percent(k, audited.n)}" in facts
    verdict = section(page_of(audited), "verdict")
    mark = next(plainly(row) for row in verdict.iter("div") if row.get("class") == "of-certified")
    assert mark.endswith(f"{100 * certified['value']:.1f}%")


def test_the_counts_of_what_ran(audited: Counted) -> None:
    shown = plainly(section(page_of(audited), "coverage"))
    probes = audited.document["probes"]
    status = [probe["status"] for probe in probes]
    ran = [row for name, row in audited.rows.items() if name in audited.every and row["status"] == "ran"]
    measured = status.count("pass") + status.count("finding")
    idle = [row for row in audited.rows.values() if row["status"] != "ran"]
    assert f"{measured} probe{'' if measured == 1 else 's'} and {len(ran)} attacks ran" in shown
    assert (
        f"{status.count('not_applicable')} not applicable, {len(idle)} attack{'' if len(idle) == 1 else 's'} not run"
        in shown
    )
    left_out = audited.document["settings"]["left_out"]
    assert (f"{len(left_out)} left out on request" in shown) is bool(left_out)
    assert all(name in shown for name in left_out)


# --- what is left -------------------------------------------------------------------------------------


def recounted(audited: Counted) -> set[str]:
    """Every number that the counts of this module can give, as it is written."""
    texts = [str(audited.n), str(audited.correct), str(sum(map(bool, audited.by)))]
    ran = sum(row["status"] == "ran" for name, row in audited.rows.items() if name in audited.every)
    texts += [str(ran), str(len(audited.rows) - ran)]
    status = [probe["status"] for probe in audited.document["probes"]]
    texts += [str(status.count("pass")), str(status.count("pass") + status.count("finding"))]
    idle = sum(row["status"] != "ran" for row in audited.rows.values())
    texts += [str(idle), str(idle + status.count("not_applicable") + status.count("error"))]
    stages = (audited.document.get("plan") or {}).get("stages", [])
    texts += [str(count) for count in range(len(stages))]  # those that the page leaves to the JSON
    for k in (*audited.accuracies.values(), audited.by_gradient, audited.by_loss):
        texts += [audited.rate(k), str(k)]
    texts += [f"{bracketed(audited, level)} {audited.compared(level)}" for level in ("gradient", "loss")]
    for name, row in audited.rows.items():
        k = audited.correct - audited.broken_by(name)
        texts += [audited.rate(k), f"{k} {audited.broken_by(name)} {row['queries']:,} {duration(row['seconds'])}"]
        texts.append(audited.rate(audited.left(audited.strong | {name})))
    texts += [f"{100 * share:.1f}% {share:g}" for share in (*audited.slacks, 0.1, 0.12, 0.01, 0.01 / 2, 0.99)]
    texts += map(str, audited.document["points"]["index"])  # the list of those that break
    features, eps = audited.document["threat"].get("features") or {}, audited.document["threat"]["eps"]
    texts += [
        f"{low:g} {low + width:g} {eps * scale * width:g}"
        for low, width, scale in zip(*(features.get(key, []) for key in ("low", "width", "scale")), strict=True)
    ]
    return {number for one in texts for number in NUMBER.findall(one)}


def written(value: Any) -> Iterator[str]:
    """The texts and figures of a JSON document, as people may write them."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (str(key), *written(item))
    elif isinstance(value, list):
        yield str(len(value))
        for item in value:
            yield from written(item)
    elif isinstance(value, float):
        yield from (f"{value:.3g} {value:.4g} {100 * value:.1f} {value:g}", duration(abs(value)), f"{value:,.0f}")
        yield from (f"{float(f'{value:.3g}'):,.0f}", f"{value:.1e}".split("e")[0].removesuffix(".0"))
        yield f"{10 ** (value % 1):.2g}"  # of a figure kept as its logarithm: digits before a power of ten
        yield f"{10**value:.3g}" if abs(value) < 300 else ""
    elif value is not None and not isinstance(value, bool):
        yield f"{value:,}" if isinstance(value, int) else str(value)
        yield str(value)


#: Parts of the document that reports show as they are; everything that follows from points is left out.
SHOWN = (
    "tool",
    "environment",
    "target",
    "threat",
    "settings",
    "probes",
    "notes",
    "plan",
    "evidence",
    "power",
    "timing",
    "branches",
)


def unexplained(audited: Counted, shown: str) -> set[str]:
    document = audited.document
    parts = {name: document.get(name) for name in SHOWN}
    parts["words"] = [
        document["verdict"],
        [
            (r["title"], r["name"], r["settings"], r["reason"], r["attempted"], r["new"], r["sources"])
            for r in document["attacks"]
        ],
        document["claim"],
        document["accuracy"]["certified"],
        f"{document['timing']['peak_memory'] / 2**20:.0f} MiB",
    ]
    known = {number for one in written(json.loads(json.dumps(parts))) for number in NUMBER.findall(one)}
    return set(NUMBER.findall(shown)) - known - recounted(audited)


#: Fixed words of the program with figures in them: axes, references and advice of the checklist, units.
FIXED = {"0", "1", "2", "3", "4", "5", "10", "16", "32", "64", "100", "1.0", "8", "9", "40", "256"}


def test_no_number_of_the_text_is_unexplained(audited: Counted) -> None:
    assert unexplained(audited, "\n".join(lines_of(audited))) - FIXED == set()


def test_no_number_of_the_page_is_unexplained(audited: Counted) -> None:
    """The sections that hold figures; checklist, method and citations are prose, and curves are compared above."""
    page = page_of(audited)
    for name in (
        "verdict",
        "audited",
        "findings",
        "attacks",
        "coverage",
        "plan",
        "branches",
        "blind",
        "points",
        "test",
    ):
        found = next((part for part in page.iter("section") if part.get("id") == name), None)
        if found is not None:
            words = " ".join(" ".join("".join(part.itertext()).split()) for part in _leaves(found))
            left = unexplained(audited, words) - FIXED
            told = [words[max(0, m.start() - 60) : m.end() + 30] for m in NUMBER.finditer(words) if m[0] in left]
            assert not left, f"{name}: {left} in {told}"


def _leaves(element: Element) -> Iterator[Element]:
    """Elements without elements that are set apart, so that neighbouring figures do not run together."""
    for part in element.iter():
        if part.tag in ("p", "li", "td", "th", "dd", "dt", "h1", "h2", "h3", "h4", "caption", "summary"):
            yield part


def test_no_number_of_the_markdown_is_unexplained(audited: Counted) -> None:
    page = re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), markdown.render(audited.document))
    assert unexplained(audited, page.split("<details><summary>Checklist")[0]) - FIXED == set()


def test_the_paragraph_for_a_paper(audited: Counted) -> None:
    page = markdown.render(audited.document)
    shown = " ".join(
        page.split("Methods paragraph:")[1].split("BibTeX:")[0].replace("\\", "").replace("--", "–").split()
    )
    k = audited.accuracies
    assert f"classifies {audited.rate(k['clean'])} of them correctly" in shown
    robust = f"at most {audited.rate(k['best_known'])}"
    if not audited.black_box:
        usual, strong = audited.rate(k["reference"]), audited.rate(k["strong_reference"])
        robust = f"{usual} under the reference attack, {strong} under all white-box attacks together, {robust}"
    assert f"Robust accuracy was {robust} under every attack together" in shown
    compared = [level for level in ("gradient", "loss") if audited.compared(level)]
    hidden = " and ".join(f"{bracketed(audited, level)} at {level} level" for level in compared)
    assert f"Hidden shares were {hidden}." in shown or not compared
    card = page.split("Section for a model card:")[1]
    assert (
        f"**Robust accuracy**: at most {percent(k['best_known'], audited.n)} ({interval(k['best_known'], audited.n)})"
        in card
    )
