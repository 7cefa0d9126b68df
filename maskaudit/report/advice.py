"""The advice itself: four sources, each item in our words, answered from the document (see `checklist`)."""

from __future__ import annotations

from typing import Any

from maskaudit.report import coerce, words
from maskaudit.report.checklist import Advice, Facts, Item
from maskaudit.report.records import View


def read(document: dict[str, Any], view: View) -> tuple[Advice, ...]:
    """All sources with their items."""
    facts = Facts(document, view)
    return (
        Advice(
            "carlini", "Evaluation checklist",
            "Carlini et al. 2019, On Evaluating Adversarial Robustness, arXiv:1902.06705", _carlini(facts),
        ),
        Advice(
            "athalye", "Five behaviours of obfuscated gradients",
            "Athalye, Carlini and Wagner 2018, Obfuscated Gradients Give a False Sense of Security, ICML, "
            "arXiv:1802.00420, section 3.1", _athalye(facts),
        ),
        Advice(
            "pintor", "Indicators of attack failure",
            "Pintor et al. 2022, Indicators of Attack Failure, NeurIPS, arXiv:2106.09947", _pintor(facts),
        ),
        Advice(
            "owasp", "Testing against evasion",
            "OWASP AI Exchange, Testing against evasion, owaspai.org/go/testingevasion", _owasp(facts),
        ),
    )  # fmt: skip


def _carlini(facts: Facts) -> tuple[Item, ...]:
    return (*_severe_flaws(facts), *_pitfalls(facts), *_special_cases(facts))


def _severe_flaws(facts: Facts) -> tuple[Item, ...]:
    view = facts.view
    hashed = bool(coerce.text(facts.target.get("sha256")))
    _, other = facts.white_box_by_loss()
    adaptive = facts.repaired("Attacks adapted to this model", "")
    if adaptive.state != "done" and other:
        what = "The loss was adapted; no attack went through a repaired model."
        adaptive = Item(adaptive.advice, "partly", words.joined((what, adaptive.how), " "), "", "attacks")
    elif adaptive.state == "not done":
        adaptive = Item(adaptive.advice, "not done", "Neither the loss nor the backward pass was adapted.")
    settings = [row for row in facts.ran if row.settings]
    level = view.gradient_level
    compared = "Compared point by point, never by averages."
    return (
        facts.threat("A precise threat model"),
        adaptive,
        Item(
            "Model and code released", "partly" if hashed else "not done",
            "The author's part; this report pins the model by its hash." if hashed else "The author's part.",
            "", "reproduce" if hashed else "",
        ),
        facts.clean("Accuracy without an attack"),
        facts.measured("Iterative attacks compared with a single step", "one-step-beats-iterative"),
        facts.larger_ball("Accuracy compared in larger balls"),
        facts.measured("Attacked with unlimited distortion", "unbounded-attack"),
        facts.whole_curve("Success against radius, up to full success"),
        Item("Adaptive attacks compared with all others, point by point", "done", compared,
             f"{words.rate(level)} of points are broken only by attacks other than white-box ones", "points")
        if level
        else Item("Adaptive attacks compared with all others, point by point", "not done",
                  "The document holds no paired rate."),
        Item("Attacks described with their parameters", "done" if len(settings) == len(facts.ran) else "partly",
             f"{len(settings)} of {len(facts.ran)} attacks list their settings.", "", "attacks")
        if settings
        else Item("Attacks described with their parameters", "not done", "No attack lists its settings."),
    )  # fmt: skip


def _pitfalls(facts: Facts) -> tuple[Item, ...]:
    kinds = sorted(
        {row.kind for row in facts.ran if row.kind and row.role not in ("sanity", "second_opinion", "exact")}
    )
    score, decision = facts.kind("score"), facts.kind("decision")
    free = facts.attacks("Gradient-free and hard-label attacks", score + decision, "None of either kind ran.")
    if bool(score) != bool(decision):
        missing = "hard-label" if score else "score-based"
        free = Item(free.advice, "partly", f"{free.how} No {missing} attack ran.", free.result, free.section)
    second = facts.role("second_opinion")
    prior = Item("Compared with prior work", "not done", "The author's part: an audit sees one model.")
    if facts.view.claimed is not None:
        text = f"Claim of {words.percent(facts.view.claimed)}: {facts.view.claim}"
        prior = Item(prior.advice, "partly", "Compared with the author's claim only.", text, "verdict")
    elif second:
        names = ", ".join(row.name for row in second)
        how = f"An independent implementation attacked a sample of the points not broken yet: {names}."
        prior = Item(prior.advice, "partly", how, "", "attacks")
    return (
        Item("A diverse set of attacks", "done" if len(kinds) > 2 else ("partly" if kinds else "not done"),
             f"Kinds of attack: {', '.join(kinds)}." if kinds else "No attack ran.", "", "attacks" if kinds else ""),
        free,
        facts.attacks("Transfer from a substitute model", facts.kind("transfer"), "No transfer attack ran."),
        facts.randomness("Averaged over the randomness of the model"),
        facts.repaired("Differentiable stand-ins for parts without a gradient",
                       "No attack went through a repaired backward pass."),
        facts.converged("Convergence of the attacks checked"),
        _varied(facts),
        prior,
        Item("Broader threat models", "not done", "One norm and one radius decide this audit."),
    )  # fmt: skip


def _varied(facts: Facts) -> Item:
    """Losses and restarts that the white-box attacks differ in."""
    advice, rows = "Parameters of the attacks explored", facts.white_box()
    if not rows:
        return Item(advice, "not done", "No white-box attack ran.")
    losses = {dict(row.settings).get("loss", "ce") for row in rows}
    restarts = max(_at_least_one(dict(row.settings).get("restarts", "")) for row in rows)
    how = words.joined((
        words.plural(len(rows), "white-box attack"), words.plural(len(losses), "loss", "losses"),
        f"up to {words.plural(restarts, 'restart')}.",
    ))  # fmt: skip
    return Item(advice, "done" if len(losses) > 1 else "partly", how, "", "attacks")


def _special_cases(facts: Facts) -> tuple[Item, ...]:
    certified, best = facts.view.accuracy["certified"], facts.view.accuracy["best_known"]
    targeted = facts.rows(lambda row: "targeted" in dict(row.settings).get("loss", ""))
    untargeted = [row for row in facts.white_box() if row not in targeted]
    aims = facts.attacks("Targeted and untargeted attacks", targeted + untargeted, "No white-box attack ran.")
    if bool(targeted) != bool(untargeted):
        missing = "untargeted" if targeted else "targeted"
        aims = Item(aims.advice, "partly", f"{aims.how} No {missing} attack ran.", aims.result, aims.section)
    return (
        Item("Provable bounds", "done", "A certified lower bound is given.", words.percent(certified.value), "verdict")
        if certified
        else Item("Provable bounds", "not done", "No certified lower bound was given or computed (--certify)."),
        facts.noise("Random noise of full size"),
        aims,
        Item("Parts of the defence removed one at a time", "not done", "The author's part: it needs the parts."),
        _validated(facts),
        Item("Other domains than images", "not applicable", "An audit is about one model and its data."),
        Item("Success per example: the worst over attacks, then the mean", "done",
             "Best known counts a point as broken if any attack breaks it.", f"Best known {words.rate(best)}", "points")
        if best
        else Item("Success per example: the worst over attacks, then the mean", "not done",
                  "The document holds no best-known accuracy."),
    )  # fmt: skip


def _validated(facts: Facts) -> Item:
    advice = "Attacks tried where the answer is known"
    if facts.view.power_passed is None:
        return Item(advice, "not done", facts.view.power or "The document holds no power check.")
    state = "done" if facts.view.power_passed else "partly"
    return Item(advice, state, facts.view.power, "passed" if facts.view.power_passed else "failed", "verdict")


def _athalye(facts: Facts) -> tuple[Item, ...]:
    return (
        facts.measured("One step against many", "one-step-beats-iterative"),
        facts.both("Black-box attacks against white-box attacks", "gradient-free-gap", "transfer-gap"),
        facts.measured("Success of unbounded attacks", "unbounded-attack"),
        facts.measured("Adversarial examples by random sampling", "random-beats-gradient"),
        facts.larger_ball("Success in larger balls"),
    )


def _pintor(facts: Facts) -> tuple[Item, ...]:
    lost = [row.name for row in facts.ran if row.curve and row.curve[-1][1] < row.broken]
    traced = [row for row in facts.ran if row.curve]
    silent = "Silent success: an example found on the way and lost"
    return (
        facts.both("Unavailable gradients", "zero-gradient", "output-kind"),
        facts.measured("Unstable predictions", "randomness"),
        Item(silent, "done", f"Progress of {words.plural(len(traced), 'attack')} against their re-scored results.",
             f"unaccounted for: {', '.join(lost)}" if lost else "every success on the way was kept", "attacks")
        if traced
        else Item(silent, "not done", "No attack recorded its progress."),
        facts.converged("Incomplete optimisation"),
        facts.measured("Transfer failure: found on a stand-in, lost on the model", "transfer-gap"),
        facts.measured("Unconstrained attack failure", "unbounded-attack"),
    )  # fmt: skip


def _owasp(facts: Facts) -> tuple[Item, ...]:
    view = facts.view
    clean = view.accuracy["clean"]
    best = view.accuracy["best_known"]
    one_model = "Out of scope: the audit sees the model, not the system around it."
    return (
        facts.threat("A limit on how far inputs may be changed"),
        Item("Search starts from inputs that are classified correctly", "done",
             "Points that are wrong without an attack are not attacked.",
             f"{round(clean.value * clean.n):,} of {clean.n:,} points", "audited")
        if clean and clean.n
        else Item("Search starts from inputs that are classified correctly", "not done",
                  "The document holds no clean accuracy."),
        facts.attacks("Perfect-knowledge search", facts.white_box(), "No white-box attack ran."),
        facts.attacks("Zero-knowledge search", facts.kind("score", "decision"), "No black-box attack ran."),
        facts.attacks("Transfer from a surrogate", facts.kind("transfer"), "No transfer attack ran."),
        Item("Heuristic changes from domain knowledge", "not done", "Only changes inside the norm ball were searched."),
        Item("Localised changes, such as patches", "not done", "Only changes inside the norm ball were searched."),
        Item("Inputs that belong to no class", "not done", "Only drawn points with a label were attacked."),
        Item("Search limited or noticed by the system", "not applicable", one_model),
        Item("Feasible for an attacker in the real world", "not applicable", one_model),
        facts.clean("Correct behaviour on benign inputs"),
        Item("Conclusion against a stated criterion", "done", f"Claim of {words.percent(view.claimed)}.",
             f"{view.claim}; best known {words.rate(best)}", "verdict")
        if view.claimed is not None
        else Item("Conclusion against a stated criterion", "not done", "No claim was given to the audit."),
    )  # fmt: skip


def _at_least_one(value: str) -> int:
    return max(int(value), 1) if value.isdecimal() and len(value) < 9 else 1
