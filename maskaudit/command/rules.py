"""What `maskaudit probes` and `maskaudit explain` print: the documentation of probes and attacks, plug-ins included.

Our own are read from `rules.json`, which `docs/generate.py` writes from the catalogue, so that neither command loads
torch; only what an installed plug-in adds is asked of the catalogue itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path

from maskaudit.errors import UsageError, meant
from maskaudit.foreign import PLUGIN_GROUPS
from maskaudit.results import dump_json
from maskaudit.verdict.mechanisms import TITLES

RULES = Path(__file__).with_name("rules.json")


@dataclass(frozen=True)
class Rule:
    """A probe or an attack: kind, name, title, and the text that explains it."""

    kind: str
    name: str
    title: str
    text: str


def list_rules() -> Iterator[tuple[str, str, str]]:
    """(kind, name, title) of every probe and attack."""
    for rule in _known():
        yield rule.kind, rule.name, rule.title


def explain_rule(name: str) -> str:
    """The documentation of a probe, an attack, or a mechanism that a verdict names.

    Raises:
        UsageError: for a name that none has.
    """
    if name in TITLES:
        return (
            f"{TITLES[name]}.\n\nA mechanism: what a verdict names as the cause. docs/verdict.md says how it is found."
        )
    names = [*TITLES]
    for rule in _known():
        if rule.name == name:
            return rule.text
        names.append(rule.name)
    hint = f"{meant(name, names)}; `maskaudit probes` lists probes and attacks"
    raise UsageError(f"There is no probe, attack or mechanism {name!r}{hint}.")


def written_rules() -> str:
    """What `rules.json` ought to hold."""
    return dump_json([asdict(rule) for rule in catalogued()])


def catalogued() -> list[Rule]:
    """Everything in the catalogue, probes first."""
    from maskaudit.auditing.catalogue import catalogue
    from maskaudit.probes.docs import full_text
    from maskaudit.settings import BUDGETS

    known = catalogue(BUDGETS["standard"])
    found = [Rule("probe", probe.rule, probe.title, full_text(probe)) for probe in known.probes]
    for spec in known.attacks:
        settings = ", ".join(f"{key} = {value}" for key, value in spec.settings.items())
        head = f"{spec.title} ({spec.role}; {settings or 'no settings'})"
        text = f"{head}\n\n{(spec.run.__doc__ or '').strip()}\n\nSource: {'; '.join(spec.sources)}"
        found.append(Rule("attack", spec.name, spec.title, text))
    return found


def _known() -> Iterator[Rule]:
    ours = [Rule(**entry) for entry in json.loads(RULES.read_text(encoding="utf-8"))]
    yield from ours
    if any(entry_points(group=group) for group in PLUGIN_GROUPS):
        names = {rule.name for rule in ours}
        yield from (rule for rule in catalogued() if rule.name not in names)
