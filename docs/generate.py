"""Write the generated pages and regions of this site from the program itself.

    python docs/generate.py            rewrite what is out of date
    python docs/generate.py --check    exit with 1 when something is out of date
    python docs/generate.py --audits   audit the sample models anew first (about two minutes)

Whole pages: `probes.md`, `attacks.md`, `commands.md`. Other pages have regions between
`<!-- begin generated: NAME -->` and `<!-- end generated -->`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from json_fields import CLASSES, GATE_BASELINE, GATE_MODEL, SECTIONS, TOP  # noqa: E402
from reference import attacks_page, commands_page, markdown, probes_page, zoo_table  # noqa: E402

from benchmarks.great_page import REGIONS as GREAT  # noqa: E402
from maskaudit import results  # noqa: E402
from maskaudit.command.rules import RULES, written_rules  # noqa: E402
from maskaudit.report import text  # noqa: E402
from maskaudit.report.words import TERMS  # noqa: E402
from maskaudit.settings import OPTIONS  # noqa: E402
from maskaudit.verdict.mechanisms import TITLES  # noqa: E402

#: Audits whose reports `reading-a-report.md` quotes: sample name → model and claim.
SAMPLES: dict[str, tuple[str, float]] = {"masked": ("zoo:quantised", 0.95), "clear": ("zoo:pgd-at", 0.6)}

#: Day on which the gate's example was run: its baseline must not expire while the page is read.
GATE_DAY = date(2026, 11, 21)

PAGES: dict[str, Callable[[], str]] = {
    "probes.md": probes_page,
    "attacks.md": attacks_page,
    "commands.md": commands_page,
}

_REGION = re.compile(r"(<!-- begin generated: ([\w-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def sample(name: str) -> dict[str, Any]:
    """The stored report of a sample audit."""
    document: dict[str, Any] = json.loads((DOCS / "samples" / f"{name}.json").read_text(encoding="utf-8"))
    return document


def sample_command(name: str) -> str:
    """The command that makes this sample."""
    model, claim = SAMPLES[name]
    return f"maskaudit check {model} --budget quick --claim {claim} --out report"


def run_sample(name: str) -> dict[str, Any]:
    """Audit the sample's model; what belongs to the machine rather than to the audit is left out."""
    from maskaudit import api
    from maskaudit.settings import AuditSettings

    model, claim = SAMPLES[name]
    settings = AuditSettings(budget="quick", claim=claim, command=sample_command(name))
    document = api.run(api.prepare(api.Request(model, settings=settings))).report.to_dict()
    document["environment"]["platform"] = document["environment"]["platform"].partition("-")[0]
    return dict(relative({**document, "figures": {}}))


def relative(value: Any) -> Any:
    """A document whose paths inside the checkout begin there."""
    if isinstance(value, dict):
        return {key: relative(item) for key, item in value.items()}
    if isinstance(value, list):
        return [relative(item) for item in value]
    return value.replace(f"{DOCS.parent}{os.sep}", "") if isinstance(value, str) else value


def store(name: str, document: dict[str, Any]) -> None:
    """Keep a sample."""
    (DOCS / "samples" / f"{name}.json").write_text(results.dump_json(document), encoding="utf-8")


def run_gate_sample() -> dict[str, Any]:
    """The gate's summary for `samples/maskaudit.toml`."""
    from maskaudit.gate.config import read_config
    from maskaudit.gate.running import run_gate
    from maskaudit.gate.summary import build

    file = DOCS / "samples" / "maskaudit.toml"
    return dict(relative({**build(run_gate(read_config(file), today=GATE_DAY)), "config": file.name}))


def gate_summary() -> str:
    """The stored summary of the gate as text."""
    from maskaudit.gate.summary import text as gate_text

    return fenced(gate_text(json.loads((DOCS / "samples" / "gate.json").read_text(encoding="utf-8"))).rstrip("\n"))


def paragraphs(name: str) -> list[str]:
    """The report of a sample as text, cut at its empty lines: verdict, facts, attacks, findings, …"""
    return text.render(sample(name)).rstrip("\n").split("\n\n")


def fenced(content: str) -> str:
    """A block of plain text."""
    return f"```text\n{content}\n```\n"


def first_finding(name: str) -> str:
    """Heading and first entry of the findings."""
    lines = paragraphs(name)[3].splitlines()
    second = next((i for i, line in enumerate(lines) if line.startswith("2. ")), len(lines))
    return "\n".join(lines[:second])


def masked_in_figures() -> str:
    """The figures of the masked sample that the page talks about."""
    document = sample("masked")
    correct = sum(document["points"]["correct"])
    broken = {row["name"]: row["broken"] for row in document["attacks"]}
    hidden = round(document["masking"]["gradient_level"]["value"] * correct)
    rows = [row for row in document["attacks"] if row["kind"] != "sanity"]
    white_box = max(row["broken"] for row in rows if row["role"] in ("reference", "strong"))
    through = next(row for row in rows if row["role"] == "repaired")
    return (
        f"Here {correct} of {document['settings']['samples']} points are classified correctly. PGD breaks "
        f"{broken['pgd']} of them, and no white-box attack breaks more than {white_box}. "
        f"Attacks through the repaired gradient met the {through['attempted']} points that were left and broke "
        f"{through['broken']}. So {hidden} points are hidden at gradient level, masking is proven, and no other "
        "challenger had to search.\n"
    )


def clear_in_figures() -> str:
    """The figures of the clear sample that the page talks about."""
    document = sample("clear")
    accuracy, masking = document["accuracy"], document["masking"]

    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    return (
        f"Here the reference attack leaves {percent(accuracy['reference']['value'])} of the points, all white-box "
        f"attacks together {percent(accuracy['strong_reference']['value'])}, and everything together "
        f"{percent(accuracy['best_known']['value'])}. The usual attack was a little weak, "
        "which is ordinary: stronger attacks on the *same* gradients close nearly all of that gap. Only "
        f"{percent(masking['gradient_level']['value'])} of the correctly classified points were left to the "
        f"challengers alone; the interval reaches up to {percent(masking['gradient_level']['high'])}.\n"
    )


def json_fields() -> str:
    """Tables of every field of the report, from the dataclasses and `json_fields.py`."""
    hints = typing.get_type_hints(results.AuditReport)
    names = [field.name for field in dataclasses.fields(results.AuditReport)]
    parts = ["| section | type | meaning |\n| --- | --- | --- |\n"]
    rows = [("schema_version", "whole number", TOP["schema_version"])]
    for name in names:
        known = TOP.get(name) or (f"see [{name}](#{name})" if name in SECTIONS else _see(name, hints[name]))
        rows.append((name, type_words(hints[name]), known))
    parts += [f"| `{name}` | {kind} | {meaning} |\n" for name, kind, meaning in rows]
    for section in (name for name in names if name in SECTIONS):
        parts.append(f"\n### {section}\n\n| field | meaning |\n| --- | --- |\n")
        parts += [f"| `{key}` | {meaning} |\n" for key, meaning in SECTIONS[section].items()]
    for name, meanings in CLASSES.items():
        parts.append(f"\n### {_title(name)}\n\n| field | type | meaning |\n| --- | --- | --- |\n")
        kinds = typing.get_type_hints(getattr(results, name))
        for field in dataclasses.fields(getattr(results, name)):
            parts.append(f"| `{field.name}` | {type_words(kinds[field.name])} | {meanings[field.name]} |\n")
    return "".join(parts)


def gate_keys() -> str:
    """Every key of the gate's configuration, by table."""
    meant = {key: f"{one.help} A list." if one.takes_list else one.help for key, one in OPTIONS.items()}
    tables = {
        "Once for all models, or per model": {k: words for k, words in meant.items() if not OPTIONS[k].one_model},
        "Per model": {**GATE_MODEL, **{k: words for k, words in meant.items() if OPTIONS[k].one_model}},
        "Baseline": GATE_BASELINE,
    }
    parts = []
    for title, meanings in tables.items():
        rows = "".join(f"| `{key}` | {markdown(meaning)} |\n" for key, meaning in meanings.items())
        parts.append(f"**{title}**\n\n| key | meaning |\n| --- | --- |\n{rows}\n")
    return "".join(parts)


def python_options() -> str:
    """Every keyword of `maskaudit.audit` that is an option of `check`."""
    rows = "".join(f"| `{key}` | `{one.flag}` | {markdown(one.help)} |\n" for key, one in OPTIONS.items())
    return f"| keyword | command line | meaning |\n| --- | --- | --- |\n{rows}"


def type_words(kind: Any) -> str:
    """A Python type in the words of JSON."""
    simple = {float: "number", int: "whole number", str: "text", bool: "true or false", type(None): "null"}
    if kind in simple:
        return simple[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(one) for one in arguments)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {type_words(arguments[0])}"
    if dataclasses.is_dataclass(kind):
        name = _title(str(getattr(kind, "__name__", "")))
        return f"[{name}](#{name.replace(' ', '-')})"
    return "object"


def _title(name: str) -> str:
    """`ProbeResult` → `probe result`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _see(section: str, kind: Any) -> str:
    arguments = [one for one in typing.get_args(kind) if dataclasses.is_dataclass(one)]
    found = arguments[0] if arguments else kind
    if not dataclasses.is_dataclass(found):
        raise ValueError(f"describe the report's section {section!r} in docs/json_fields.py")
    name = _title(str(getattr(found, "__name__", "")))
    return f"see [{name}](#{name.replace(' ', '-')})"


def mechanisms() -> str:
    """Every mechanism that a verdict may name."""
    rows = [f"| `{name}` | {title} |\n" for name, title in TITLES.items()]
    return "".join(["| id | what it says |\n| --- | --- |\n", *rows])


def glossary() -> str:
    """Every term of the glossary, which HTML reports show as well."""
    rows = (f"| {markdown(term)} | {markdown(meaning)} |\n" for term, meaning in TERMS)
    return "".join(["| term | meaning here |\n| --- | --- |\n", *rows])


REGIONS: dict[str, Callable[[], str]] = {
    "json-fields": json_fields,
    "mechanisms": mechanisms,
    "glossary": glossary,
    "masked-command": lambda: f"```sh\n{sample_command('masked')}\n```\n",
    "masked-verdict": lambda: fenced("\n\n".join(paragraphs("masked")[:2])),
    "masked-attacks": lambda: fenced(paragraphs("masked")[2]),
    "masked-finding": lambda: fenced(first_finding("masked")),
    "masked-figures": masked_in_figures,
    "clear-command": lambda: f"```sh\n{sample_command('clear')}\n```\n",
    "clear-verdict": lambda: fenced("\n\n".join(paragraphs("clear")[:2])),
    "clear-attacks": lambda: fenced(paragraphs("clear")[2]),
    "clear-figures": clear_in_figures,
    "gate-config": lambda: "```toml\n" + (DOCS / "samples" / "maskaudit.toml").read_text(encoding="utf-8") + "```\n",
    "gate-summary": gate_summary,
    "gate-keys": gate_keys,
    "python-options": python_options,
    "zoo-table": zoo_table,
    **GREAT,
}


def generated() -> dict[Path, str]:
    """What every page with generated parts ought to hold."""
    pages = {RULES: written_rules(), **{DOCS / name: build() for name, build in PAGES.items()}}
    for path in sorted(DOCS.glob("*.md")):
        if path not in pages and _REGION.search(content := path.read_text(encoding="utf-8")):
            pages[path] = _REGION.sub(lambda match: match[1] + REGIONS[match[2]]() + match[3], content)
    return pages


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when something is out of date")
    parser.add_argument("--audits", action="store_true", help="audit the sample models anew first")
    options = parser.parse_args()
    if options.audits:
        for name in SAMPLES:
            store(name, run_sample(name))
        store("gate", run_gate_sample())
    stale = [path for path, content in generated().items() if not path.is_file() or path.read_text("utf-8") != content]
    for path in stale:
        print(f"{'out of date' if options.check else 'written'}: {path.name}")
        if not options.check:
            path.write_text(generated()[path], encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
