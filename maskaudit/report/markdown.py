"""`summary.md`: the report as GitHub-flavoured Markdown, short enough for a CI step summary.

Every string of the document is escaped, so that it can neither form links,
images, HTML or mentions, nor break a table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from maskaudit.report import advice, methods, records, view, words
from maskaudit.report.checklist import Advice

#: Findings and rows that are shown in full; the JSON and the HTML have all.
MAX_ROWS = 40

#: Characters that mean something in Markdown or HTML, as numeric character references, which have no meaning in either.
_MEANINGFUL = re.compile(r"[\\`*_{}\[\]<>()#+!|&@~$\"']")
#: What GitHub turns into links without being asked.
_AUTOLINKS = re.compile(r"(?i)\b(?:(?P<scheme>[a-z][a-z0-9.-]*):(?=/|\w)|(?P<www>www)\.)")


def render(document: dict[str, Any]) -> str:
    """The report as Markdown.

    Args:
        document: the parsed JSON report.

    Raises:
        InputError: when the document is not a report that this version can read.
    """
    report = view.read(document)
    blocks = [
        f"## maskaudit: {report.label}",
        f"> **{escape(report.partial)}**" if report.partial else "",
        f"**{escape(report.sentence)}**",
        _bullets([escape(reason) for reason in report.reasons]),
        _table(("", ""), _facts(report)),
        _findings(report),
        _attacks(report),
        _left_out(report),
        _checklist(advice.read(document, report)),
        _reproduce(report),
        _paper(methods.read(document, report)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a paragraph as well as in a table."""
    parts = []
    position = 0
    for match in _AUTOLINKS.finditer(text):
        end = match.end() - 1
        parts += [_references(text[position:end]), f"&#{ord(text[end])};"]
        position = match.end()
    return "".join(parts) + _references(text[position:])


def code(text: str) -> str:
    """Text in a code element; HTML is used since a backtick span cannot hold every text inside a table."""
    return f"<code>{escape(text)}</code>" if text else ""


def _references(text: str) -> str:
    escaped = _MEANINGFUL.sub(lambda match: f"&#{ord(match.group())};", text)
    # GitHub looks for mentions after it has resolved references: the comment keeps "@" and a name apart.
    return escaped.replace("&#64;", "&#64;<!-- -->")


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    if not rows:
        return ""
    rule = ["---:" if align[i : i + 1] == "r" else "---" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _facts(report: records.View) -> list[tuple[str, str]]:
    causes = [
        f"{escape(cause.title)} ({escape(cause.confidence)} confidence) {_places(cause)}" for cause in report.mechanisms
    ]
    accuracy = report.accuracy
    best = f"at most {words.rate(accuracy['best_known'])}" if accuracy["best_known"] else "not measured"
    proven = accuracy["certified"]
    facts = [
        ("Model", code(report.model)),
        ("Threat model", escape(report.threat)),
        ("Gradient health", f"**{words.HEALTH[report.label]}**"),
        ("Cause", "<br>".join(causes)),
        ("Gradient level", words.rate(report.gradient_level)),
        ("Loss level", words.rate(report.loss_level)),
        ("Robust accuracy", f"**{best}**"),
        ("Reference attack", words.rate(accuracy["reference"])),
        ("Certified lower bound", words.percent(proven.value) if proven else ""),
        ("Clean accuracy", words.rate(accuracy["clean"])),
        ("Claim", "" if report.claimed is None else f"{words.percent(report.claimed)}: **{report.claim}**"),
        ("Power check", escape(report.power)),
        ("Proof", f"{words.plural(report.evidence_count, 'point')} broken" if report.evidence_count else ""),
    ]
    return [(name, value.strip()) for name, value in facts if value]


def _places(cause: records.MechanismView) -> str:
    return code(words.joined(map(str, cause.places[:3]), "; "))


def _findings(report: records.View) -> str:
    if not report.findings:
        return ""
    lines = [f"### {words.plural(len(report.findings), 'finding')}, worst first"]
    for rank, probe in enumerate(report.findings[:MAX_ROWS], start=1):
        figure = words.rate(probe.share) if probe.share else probe.figure
        limit = f", limit {escape(probe.limit)}" if probe.limit else ""
        lines.append(f"{rank}. **{escape(probe.title)}** ({code(probe.rule)}): {escape(figure)}{limit}  ")
        remedy = f"*{escape(probe.remedy)}*" if probe.remedy else ""
        lines.append(f"   {words.joined((escape(probe.meaning), remedy), ' ')}")
        lines += [
            f"   - {words.joined((code(str(seen.place)), escape(seen.message)), ' ')}"
            for seen in probe.observations[:5]
        ]
    return "\n".join(line for line in lines if line.strip())


def _attacks(report: records.View) -> str:
    rows = [
        (
            f"{escape(row.title)} {code(row.name)}",
            words.ROLES[row.role][0],
            words.rate(row.accuracy),
            f"{row.broken:,} of {row.attempted:,}",
            f"{row.queries:,}",
        )
        for row in report.attacks_run[:MAX_ROWS]
    ]
    table = _table(("Attack", "Role", "Robust accuracy", "Broken", "Queries"), rows, "llrrr")
    return f"### Attacks\n\n{table}" if table else ""


def _left_out(report: records.View) -> str:
    probes = [(p.rule, p.reason) for p in report.with_status("error", "not_applicable")]
    attacks = [(a.name, a.reason) for a in report.attacks_not_run]
    asked = [(name, "left out on request") for name in report.left_out]
    rows = [(code(name), escape(reason)) for name, reason in (*probes, *attacks, *asked)][:MAX_ROWS]
    if not rows:
        return ""
    summary = f"{words.plural(len(rows), 'probe or attack', 'probes and attacks')} did not run"
    table = _table(("Did not run", "Reason"), rows)
    return f"<details><summary>{summary}</summary>\n\n{table}\n\n</details>"


def _checklist(sources: Sequence[Advice]) -> str:
    """How much of each source's advice was followed, and what was not, with the reason."""
    rows = []
    for source in sources:
        open_items = [f"{escape(i.advice)}: {escape(i.how)}" for i in source.items if i.state in ("partly", "not done")]
        rows.append((f"{escape(source.title)}<br>{escape(source.source)}", source.tally, "<br>".join(open_items)))
    table = _table(("Advice", "State", "Partly or not done, and why"), rows)
    return f"<details><summary>Checklist: what was done, against the field's advice</summary>\n\n{table}\n\n</details>"


def _reproduce(report: records.View) -> str:
    commands = [line for line in (report.command, report.verify) if line]
    if not commands:
        return ""
    return f"### Reproduce\n\n{_fenced('sh', chr(10).join(commands))}"


def _paper(texts: methods.Methods) -> str:
    blocks = (
        *("Methods paragraph:", _fenced("tex", texts.latex), "BibTeX:", _fenced("bibtex", texts.bibtex)),
        *("Section for a model card:", _fenced("md", texts.card)),
    )
    return "\n\n".join(("<details><summary>For your paper and model card</summary>", *blocks, "</details>"))


def _fenced(kind: str, text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, words.backticks(text) + 1)
    return f"{fence}{kind}\n{text}\n{fence}"
