"""What `maskaudit probes` and `maskaudit explain` print: the documentation of probes and attacks, plug-ins included."""

from __future__ import annotations

from collections.abc import Iterator

from maskaudit.auditing.catalogue import catalogue
from maskaudit.errors import UsageError
from maskaudit.probes.docs import full_text
from maskaudit.settings import BUDGETS


def list_rules() -> Iterator[tuple[str, str, str]]:
    """(kind, name, title) of every probe and attack."""
    known = catalogue(BUDGETS["standard"])
    for probe in known.probes:
        yield "probe", probe.rule, probe.title
    for spec in known.attacks:
        yield "attack", spec.name, spec.title


def explain_rule(name: str) -> str:
    """The documentation of a probe or an attack.

    Raises:
        UsageError: for a name that neither has.
    """
    known = catalogue(BUDGETS["standard"])
    for probe in known.probes:
        if probe.rule == name:
            return full_text(probe)
    for spec in known.attacks:
        if spec.name == name:
            settings = ", ".join(f"{key} = {value}" for key, value in spec.settings.items())
            body = (spec.run.__doc__ or "").strip()
            head = f"{spec.title} ({spec.role}; {settings or 'no settings'})"
            return f"{head}\n\n{body}\n\nSource: {'; '.join(spec.sources)}"
    raise UsageError(f"There is no probe or attack {name!r}; `maskaudit probes` lists them.")
