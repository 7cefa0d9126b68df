"""What an author can paste: a methods paragraph (plain and LaTeX), its BibTeX, and a section for a model card.

Everything is worded from the document, and as the report words it: a verdict is a
statement about the search, never about the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from maskaudit.report import bibliography, coerce, words
from maskaudit.report.records import AttackView, View
from maskaudit.results import Rate
from maskaudit.verdict.rules import ANY_LOOK


@dataclass(frozen=True)
class Methods:
    """The texts, each ready to paste."""

    paragraph: str
    latex: str
    bibtex: str
    card: str


def read(document: dict[str, Any], view: View) -> Methods:
    """Word the audit of a document."""
    version = coerce.text(coerce.mapping(document["tool"]).get("version"))
    return Methods(
        paragraph=_Paragraph(document, view, latex=False).text(),
        latex=_Paragraph(document, view, latex=True).text(),
        bibtex=bibliography.bibtex(bibliography.used(view), version if _VERSION.fullmatch(version) else ""),
        card=_card(document, view),
    )


#: Settings that the title of an attack states already.
_IN_TITLE = ("attack", "loss")

#: What a version may look like to enter a BibTeX field, where even escaped braces count.
_VERSION = re.compile(r"[\w.+-]{1,40}")

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$",
    "ε": r"$\varepsilon$", "α": r"$\alpha$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}  # fmt: skip


def latex(text: str) -> str:
    """Text that LaTeX prints as it is; no command of the document survives."""
    return "".join(_LATEX.get(mark, mark) for mark in text)


class _Paragraph:
    """The methods paragraph in one of its two dialects."""

    def __init__(self, document: dict[str, Any], view: View, *, latex: bool) -> None:
        self.document, self.view, self.latex = document, view, latex
        self.settings = coerce.mapping(document["settings"])
        self.rule = coerce.mapping(coerce.mapping(document["masking"]).get("rule"))

    def text(self) -> str:
        """The whole paragraph."""
        parts = (self._attacks(), self._scoring(), self._figures(), self._test()) if self.view.attacks_run else ()
        return words.joined((self._setup(), *parts, self._verdict()), " ")

    def _say(self, text: str) -> str:
        return latex(text) if self.latex else text

    def _cite(self, *keys: str) -> str:
        if not keys:
            return ""
        if self.latex:
            return f"~\\cite{{{','.join(keys)}}}"
        return f" ({'; '.join(bibliography.SHORT.get(key, key) for key in keys)})"

    def _setup(self) -> str:
        view = self.view
        clean = view.accuracy["clean"]
        sha = coerce.text(coerce.mapping(self.document["target"]).get("sha256"))[:16]
        split = coerce.text(self.settings.get("split"))
        data = words.joined((coerce.text(self.settings.get("data")), f"({split} split)" if split else ""), " ")
        hashed = f" (SHA-256 {sha}…)" if sha and not self.latex else (f" (SHA-256 {sha}...)" if sha else "")
        tool = "~\\cite{maskaudit}" if self.latex else ""
        points = f" on {words.plural(clean.n, 'point')}" if clean and clean.n else ""
        subject = f"{points} of {data}" if data and points else (f" on {data}" if data else points)
        right = f" The model classifies {words.rate(clean)} of them correctly without an attack." if clean else ""
        return (
            self._say(f"We audited {view.model}{hashed} for gradient masking with {view.tool}")
            + tool
            + self._say(f"{subject}, under the threat model {view.threat}{_bounds(self.document)}.{right}")
        )

    def _attacks(self) -> str:
        view = self.view
        families = (
            ("reference", "The reference attack was"),
            ("strong", "Further white-box attacks:"),
            ("challenger", "Attacks that do not trust these gradients:"),
            ("repaired", "Attacks through a copy with a repaired backward pass:"),
            (
                "second_opinion",
                "As a second opinion, an independent implementation attacked a sample of the points not broken yet:",
            ),
            ("exact", "Where the network is small, what was left was searched with bounds:"),
        )
        sentences = []
        for role, lead in families:
            rows = [row for row in view.attacks_run if row.role == role]
            if rows:
                sentences.append(f"{self._say(lead)} {'; '.join(map(self._attack, rows))}.")
        budget = coerce.text(self.settings.get("budget"))
        return words.joined((*sentences, self._say(f"The budget was {budget}.") if budget else ""), " ")

    def _attack(self, row: AttackView) -> str:
        settings = words.joined(f"{name} {value}" for name, value in row.settings if name not in _IN_TITLE)
        shown = self._say(f"{row.title} [{settings}]" if settings else row.title)
        return shown + self._cite(*bibliography.keys_of(row.name))

    def _scoring(self) -> str:
        return self._say(
            "Every adversarial example was scored again by code that did not make it: inside the ball, inside the "
            "bounds, misclassified in a fresh forward pass. Robust accuracy is over all drawn points, a wrong answer "
            "to the clean input counting as broken; hidden shares are over correctly classified points, their limits "
            "over all. Intervals"
            f"{' are ' + self.view.confidence if self.view.confidence else ' are'} exact intervals"
        ) + self._cite("clopper1934use") + "."  # fmt: skip

    def _figures(self) -> str:
        accuracy = self.view.accuracy
        named = (
            ("reference", "", "under the reference attack"),
            ("strong_reference", "", "under all white-box attacks together"),
            ("best_known", "at most ", "under every attack together"),
        )
        shown = [f"{lead}{words.rate(accuracy[key])} {phrase}" for key, lead, phrase in named if accuracy[key]]
        sentences = [f"Robust accuracy was {words.joined(shown)}."] if shown else []
        levels = [
            f"{words.rate(rate)} at {level} level"
            for level, rate in (("gradient", self.view.gradient_level), ("loss", self.view.loss_level))
            if rate
        ]
        sentences += [f"Hidden shares were {' and '.join(levels)}."] if levels else []
        return self._say(" ".join(sentences))

    def _test(self) -> str:
        alpha, looks = coerce.number(self.rule.get("alpha")), coerce.count(self.rule.get("looks"))
        screen = {"fired": self.view.screen_fired}
        slacks = [coerce.slack(self.rule, screen, level) for level in ("gradient_level", "loss_level")]
        at_any_look = self.rule.get("test") == ANY_LOOK
        if alpha is None or None in slacks or not (looks or at_any_look):
            return ""
        shares = [words.percent(slack) for slack in slacks if slack is not None]
        limit = shares[0] if shares[0] == shares[1] else f"{shares[0]} at gradient level or {shares[1]} at loss level"
        power = f" {self.view.power}" if self.view.power else ""
        if at_any_look:
            how = "the mixture likelihood ratio, valid at every look, is evidence that a hidden share exceeds"
            shared = "both levels"
        else:
            how = "the exact one-sided lower bound of a hidden share exceeds"
            shared = f"{words.plural(looks, 'look')} and both levels"
        return self._say(
            f"Masking is called proven when {how} {limit}, at an error level of {alpha:g} shared among {shared}.{power}"
        )

    def _verdict(self) -> str:
        seed = coerce.text(self.settings.get("seed"))
        repeat = f" Seed {seed}." if seed else ""
        claim = f" The claim of {words.percent(self.view.claimed)} is {self.view.claim}." if self.view.claimed else ""
        return self._say(
            f"Verdict: {self.view.label}. {self.view.sentence}{claim} This is a statement about the search, "
            f"not a guarantee about the model.{repeat}"
        )


def _bounds(document: dict[str, Any]) -> str:
    bounds = [coerce.number(b) for b in coerce.items(coerce.mapping(document["threat"]).get("bounds"))]
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return ""
    return f", inputs in [{words.number(bounds[0])}, {words.number(bounds[1])}]"


# --- model card -------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """Text without meaning in Markdown or HTML, yet legible in a source file."""
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)
    return escaped.replace("<", "&lt;").replace(">", "&gt;").replace("@", "@<!-- -->")


def _code(text: str) -> str:
    """A code span that holds any one-line text."""
    fence = "`" * (words.backticks(text) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def _card(document: dict[str, Any], view: View) -> str:
    target, settings = coerce.mapping(document["target"]), coerce.mapping(document["settings"])
    causes = [words.joined((markdown(m.title), f"({markdown(m.confidence)} confidence)"), " ") for m in view.mechanisms]
    left_out = [probe.rule for probe in view.with_status("error", "not_applicable")]
    left_out += [*(row.name for row in view.attacks_not_run), *view.left_out]
    data = words.joined((coerce.text(settings.get("data")), coerce.text(settings.get("split"))), ", ")
    clean = view.accuracy["clean"]
    lines = (
        ("Model", words.joined((_code(view.model), _hash(target.get("sha256"))), ", ")),
        ("Data", words.joined((markdown(data), words.plural(clean.n, "point") if clean and clean.n else ""))),
        ("Threat model", markdown(view.threat + _bounds(document))),
        ("Clean accuracy", _shown(clean)),
        ("Robust accuracy", _shown(view.accuracy["best_known"], "at most ")),
        ("Under the usual attack", _shown(view.accuracy["reference"])),
        ("Certified lower bound", words.percent(view.accuracy["certified"].value)
         if view.accuracy["certified"] else ""),
        ("Gradient masking", f"**{view.label}**. {markdown(view.sentence)}"),
        ("Cause", "; ".join(causes)),
        ("Claim", f"{words.percent(view.claimed)}: {view.claim}" if view.claimed is not None else ""),
        ("Did not run", words.joined(map(_code, left_out[:20]))),
        ("Evidence", words.joined((_code(view.evidence_file), _hash(view.evidence_hash)), ", ")),
        ("Check it", _code(view.verify)),
        ("Audit", markdown(words.joined((view.tool, f"budget {coerce.text(settings.get('budget'), 'unknown')}",
                                         f"seed {coerce.text(settings.get('seed'), 'unknown')}")))),
    )  # fmt: skip
    rows = [f"- **{name}**: {value}" for name, value in lines if value]
    limits = (
        "A verdict is a statement about this search, on these points, inside this ball; it is not a guarantee about "
        "the model."
    )
    return "\n".join(["## Adversarial robustness", "", *rows, "", limits])


def _shown(rate: Rate | None, lead: str = "") -> str:
    return f"{lead}{words.rate(rate)}".replace("[", "(").replace("]", ")") if rate else ""


def _hash(value: Any) -> str:
    text = coerce.text(value)
    return f"SHA-256 {_code(text)}" if text else ""
