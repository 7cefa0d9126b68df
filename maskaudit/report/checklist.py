"""What was done, set against the field's advice: done and how, or not done and why.

Every state is computed from the document: from the probes and attacks that ran, the
settings that they ran with and the figures that they gave. What an audit of this
kind cannot do, or the document does not hold, is listed as such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskaudit.report import coerce, words
from maskaudit.report.points import follows_cross_entropy
from maskaudit.report.records import AttackView, ProbeView, View

STATES = ("done", "partly", "not done", "not applicable")

#: Probes that compare attacks: without those attacks the comparison was not done, though it does apply.
OF_ATTACKS = (
    "one-step-beats-iterative", "gradient-free-gap", "transfer-gap", "random-beats-gradient", "unbounded-attack",
)  # fmt: skip

#: Draws of random noise per point that Carlini et al. ask for.
_ASKED_DRAWS = 10_000


@dataclass(frozen=True)
class Item:
    """One piece of advice: `how` it was followed or why not, `result` in figures, `section` of the report."""

    advice: str
    state: str
    how: str
    result: str = ""
    section: str = ""


@dataclass(frozen=True)
class Advice:
    """One source with its items."""

    key: str
    title: str
    source: str
    items: tuple[Item, ...]

    @property
    def tally(self) -> str:
        """`14 done, 3 partly, 6 not done`."""
        counts = [(state, sum(item.state == state for item in self.items)) for state in STATES]
        return ", ".join(f"{count} {state}" for state, count in counts if count)


class Facts:
    """What the document shows, asked in the terms of the advice."""

    def __init__(self, document: dict[str, Any], view: View) -> None:
        self.view = view
        self.settings = coerce.mapping(document["settings"])
        self.target = coerce.mapping(document["target"])
        self.ran = [row for row in view.attacks_run if row.attempted]
        self.curve = _curve(coerce.mapping(document.get("figures")).get("eps_curve"))

    def rows(self, wanted: Callable[[AttackView], bool]) -> list[AttackView]:
        """Attacks that ran, the sanity check excepted."""
        return [row for row in self.ran if row.role != "sanity" and wanted(row)]

    def white_box(self) -> list[AttackView]:
        """Attacks that follow the model's gradients, the reference among them."""
        return self.rows(lambda row: row.role in ("reference", "strong"))

    def kind(self, *kinds: str) -> list[AttackView]:
        """Attacks of the given kinds that count for the verdict."""
        return self.rows(lambda row: row.kind in kinds and row.role != "second_opinion")

    def role(self, role: str) -> list[AttackView]:
        """Attacks of one role that ran."""
        return self.rows(lambda row: row.role == role)

    def probe(self, rule: str) -> ProbeView | None:
        """The probe of that rule, whatever became of it."""
        return next((probe for probe in self.view.probes if probe.rule == rule), None)

    def why_not(self, role: str) -> str:
        """The reason that the document gives for attacks of a role that did not run."""
        return next((row.reason for row in self.view.attacks_not_run if row.role == role and row.reason), "")

    # --- items that several sources ask for ---------------------------------------------------------

    def threat(self, advice: str) -> Item:
        """Whether norm, radius and bounds are fixed."""
        if self.view.eps is None:
            return Item(advice, "not done", "The document names no radius.")
        return Item(
            advice, "done", "Norm, radius and input bounds hold for every example.", self.view.threat, "audited"
        )

    def clean(self, advice: str) -> Item:
        """Whether the accuracy without an attack is given."""
        clean = self.view.accuracy["clean"]
        if clean is None:
            return Item(advice, "not done", "The document holds no clean accuracy.")
        return Item(advice, "done", "Over all drawn points.", f"Clean accuracy {words.rate(clean)}", "audited")

    def attacks(self, advice: str, rows: list[AttackView], missing: str) -> Item:
        """Done when one of `rows` ran; the strongest gives the result."""
        if not rows:
            return Item(advice, "not done", missing)
        return Item(advice, "done", f"Attacks: {_names(rows)}.", _strongest(rows), "attacks")

    def measured(self, advice: str, rule: str) -> Item:
        """Done when the probe gave a figure."""
        probe = self.probe(rule)
        if probe is None:
            return Item(advice, "not done", f"The probe {rule} is not in this report.")
        if probe.status in ("pass", "finding"):
            figure = words.rate(probe.share) if probe.share else probe.figure
            outcome = "finding" if probe.status == "finding" else "no finding"
            limit = f", limit {probe.limit}" if probe.limit else ""
            where = "findings" if probe.status == "finding" else "coverage"
            result = f"{figure}{limit}: {outcome}" if figure else outcome
            return Item(advice, "done", f"Probe {rule}, {words.plural(probe.n, 'point')}.", result, where)
        without_use = probe.status == "not_applicable" and rule not in OF_ATTACKS
        state = "not applicable" if without_use else "not done"
        return Item(advice, state, probe.reason or f"The probe {rule} gave no figure.")

    def both(self, advice: str, *rules: str) -> Item:
        """Several probes on one question: done when all gave a figure, partly when some did."""
        parts = [self.measured(advice, rule) for rule in rules]
        done = [part for part in parts if part.state == "done"]
        state = "done" if len(done) == len(parts) else ("partly" if done else parts[0].state)
        return Item(
            advice, state, words.joined((part.how for part in parts), " "),
            words.joined((part.result for part in done), "; "), done[0].section if done else "",
        )  # fmt: skip

    def larger_ball(self, advice: str) -> Item:
        """Whether success grows with the radius, from the curve."""
        if len(self.curve) < 3:
            return Item(advice, "not done", "The report holds accuracies for fewer than three radii.")
        rises = [after[0] for before, after in zip(self.curve, self.curve[1:], strict=False) if after[1] > before[1]]
        course = f"rises again at ε {words.radius(rises[0])}" if rises else "never rises with ε"
        return Item(
            advice, "done", f"Accuracy at {len(self.curve)} radii.", f"Best known accuracy {course}", "curves"
        )  # fmt: skip

    def whole_curve(self, advice: str) -> Item:
        """Whether the curve reaches full success."""
        if len(self.curve) < 3:
            return Item(advice, "not done", "The report holds accuracies for fewer than three radii.")
        eps, left = self.curve[-1]
        state = "done" if left == 0 else "partly"
        ends = "reaches zero" if left == 0 else f"is still {words.percent(left)}"
        return Item(advice, state, f"Up to ε {words.radius(eps)}.", f"Accuracy {ends} there", "curves")

    def converged(self, advice: str) -> Item:
        """What the reference attack still gained in the second half of its steps."""
        for row in self.role("reference"):
            steps = coerce.number(_setting(row, "steps"))
            if steps and row.curve:
                half = max((broken for step, broken in row.curve if step <= steps / 2), default=0)
                late = max(row.curve[-1][1] - half, 0)
                gained = f"{words.plural(late, 'further point')} broken after half of the {words.number(steps)} steps"
                return Item(advice, "done", f"Progress of {row.name}, step by step.", gained, "curves")
        return Item(advice, "not done", "The reference attack recorded no progress.")

    def randomness(self, advice: str) -> Item:
        """Averaging over draws, where the model answers at random."""
        random = self.target.get("random")
        if random is False:
            return Item(advice, "not applicable", "The model gave identical answers to identical inputs.")
        draws = coerce.integer(self.settings.get("draws"))
        if random is True and draws and draws > 1:
            return Item(advice, "done", f"Scores and gradients are means over {draws} draws.", "", "audited")
        return Item(advice, "not done", "The document does not say whether the model answers at random.")

    def repaired(self, advice: str, otherwise: str) -> Item:
        """Attacks through a model whose backward pass was repaired."""
        rows = self.role("repaired")
        if rows:
            return Item(advice, "done", f"Attacks: {_names(rows)}.", _strongest(rows), "attacks")
        if reason := self.why_not("repaired"):
            return Item(advice, "not applicable", reason)
        return Item(advice, "not done", otherwise)

    def noise(self, advice: str) -> Item:
        """Random noise, with the number of draws."""
        rows = self.kind("random")
        draws = max((coerce.integer(_setting(row, "draws")) or 0 for row in rows), default=0)
        item = self.attacks(advice, rows, "No attack with random noise ran.")
        if not rows or draws >= _ASKED_DRAWS:
            return item
        how = f"{item.how} {draws:,} draws per point; the advice is {_ASKED_DRAWS:,} and more."
        return Item(advice, "partly", how, item.result, item.section)

    def white_box_by_loss(self) -> tuple[list[AttackView], list[AttackView]]:
        """White-box attacks on cross-entropy, and on other losses."""
        usual = [row for row in self.white_box() if follows_cross_entropy(row)]
        return usual, [row for row in self.white_box() if row not in usual]


def _curve(value: Any) -> list[tuple[float, float]]:
    """(radius, best-known accuracy) by radius."""
    pairs = ((coerce.number(row.get("eps")), coerce.number(row.get("best_known"))) for row in coerce.mappings(value))
    return sorted((eps, share) for eps, share in pairs if eps is not None and share is not None and 0 <= share <= 1)


def _setting(row: AttackView, name: str) -> float | None:
    """A number among the settings of an attack, which are kept as words."""
    try:
        return float(dict(row.settings).get(name, "").replace(",", ""))
    except ValueError:
        return None


def _names(rows: list[AttackView]) -> str:
    return words.joined(row.name for row in rows[:12]) + (f" and {len(rows) - 12} more" if len(rows) > 12 else "")


def _strongest(rows: list[AttackView]) -> str:
    """Figures of the strongest of some attacks."""
    best = max(rows, key=lambda row: (row.broken / row.attempted, row.broken))
    accuracy = f", robust accuracy {words.rate(best.accuracy)}" if best.accuracy else ""
    return f"{best.name} breaks {best.broken:,} of {best.attempted:,}{accuracy}"
