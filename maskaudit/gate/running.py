"""Run the gate: audit every model of a configuration, hold the baselines against it, keep its report.

One model that cannot be loaded, or that fails, costs its own entry and no other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, chdir
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from maskaudit import api
from maskaudit.auditing.document import Keeper
from maskaudit.auditing.runner import Audit
from maskaudit.command import streams
from maskaudit.command.auditing import Audited, Tell, carry_out
from maskaudit.command.channel import Sender, tell_nobody
from maskaudit.command.output import DIRECTORY_FILES
from maskaudit.command.results_out import Asked, write
from maskaudit.command.status import BUG_STATUS, UNWRITTEN_STATUS, exit_status
from maskaudit.command.supervise import supervise
from maskaudit.command.terminal import say
from maskaudit.errors import MaskauditError, UsageError
from maskaudit.foreign import Interrupted
from maskaudit.gate.baselines import Baseline, Ruling, rule_on
from maskaudit.gate.cache import Cache
from maskaudit.gate.cluster import Auditor, audits_on_ray, refusal
from maskaudit.gate.config import GateConfig, GateEntry, checked_request
from maskaudit.gate.side_by_side import in_turn
from maskaudit.settings import AuditEvent, Listener, ignore_events
from maskaudit.sources import lacking

#: Exit statuses, worst first: what could not be audited goes before what was found, as in a single audit.
WORST_FIRST = (BUG_STATUS, 4, 2, 1, 3, 0)


@dataclass(frozen=True)
class GateOutcome:
    """What became of one entry.

    Attributes:
        entry: the entry.
        status: its exit status by the contract, after the baselines.
        document: its report; None when it could not be audited at all.
        ruling: what the baselines made of the report.
        error: why it could not be audited, or not to the end.
        folder: name of the sub-folder that holds its files, if they were kept.
        cached: its audit was found among earlier ones.
    """

    entry: GateEntry
    status: int
    document: dict[str, Any] | None = None
    ruling: Ruling | None = None
    error: str = ""
    folder: str | None = None
    cached: bool = False


@dataclass(frozen=True)
class GateResult:
    """All outcomes in the order of the configuration, and what is to be reported about its baselines."""

    config: GateConfig
    outcomes: tuple[GateOutcome, ...]
    notes: tuple[str, ...]

    @property
    def status(self) -> int:
        """The worst exit status of all models."""
        return worst(outcome.status for outcome in self.outcomes)


def worst(statuses: Iterable[int]) -> int:
    """The worst of several exit statuses: 4 (failed), 2 (refused), 1 (a finding), 3 (inconclusive), 0."""
    return min(statuses, key=WORST_FIRST.index, default=0)


def run_gate(
    config: GateConfig, *, out: Path | None = None, today: date | None = None, audit: Auditor | None = None,
    on_event: Listener = ignore_events, isolate: bool = False, ray: str = "", jobs: int = 1, cache: Path | None = None,
) -> GateResult:  # fmt: skip
    """Audit every entry, a few at a time, or on a Ray cluster all at once.

    Args:
        config: a checked configuration.
        out: absolute folder that gets a sub-folder with the usual files for each model.
        today: the day against which baselines are held.
        audit: what audits an entry; `audit_entry` if not given.
        on_event: called with every step.
        isolate: audit each entry in a process of its own.
        ray: address of the cluster, if any; its nodes' processes take the place of those of `isolate`.
        jobs: how many entries are audited side by side, each in a process of its own.
        cache: absolute folder of finished audits, which are taken instead of making them again.

    Raises:
        UsageError: for `ray` together with `jobs` or `cache`.
        KeyboardInterrupt: when the user wants to stop; the files of finished entries are kept.
    """
    if ray and (cache is not None or jobs > 1):
        raise UsageError("--ray audits all models at once and keeps nothing; leave out --jobs and --cache.")
    day = today or date.today()
    outcomes: dict[int, GateOutcome] = {}
    with chdir(config.file.resolve().parent), ExitStack() as stack:
        if ray:
            audit, isolate = stack.enter_context(audits_on_ray(config.entries, ray, isolate=isolate)), False
        carried = audit or (audit_entry if cache is None else functools.partial(audit_entry, cache=Cache(cache)))
        listener = on_event if jobs == 1 else ignore_events

        def task(number: int) -> GateOutcome:
            return _outcome(config.entries[number], config.baselines, out, day, carried, listener, isolate)

        def begun(number: int) -> None:
            on_event(AuditEvent(f"{config.entries[number].name} ({number + 1} of {len(config.entries)})"))

        for number, outcome in in_turn(task, _order(config.entries), jobs, begun):
            result = outcome.document["verdict"]["label"] if outcome.document else outcome.error
            how = ", unchanged since an earlier audit" if outcome.cached else ""
            on_event(AuditEvent(outcome.entry.name, 0, True, f"{result}, status {outcome.status}{how}"))
            outcomes[number] = outcome
    ordered = [outcomes[number] for number in range(len(config.entries))]
    return GateResult(config, tuple(ordered), _notes(config.baselines, ordered, day))


def audit_entry(
    entry: GateEntry, folder: Path | None, on_event: Listener, keep: Keeper, *, cache: Cache | None = None
) -> Audit:
    """Audit one entry for real, unless the cache has it."""
    prepared = api.prepare(checked_request(entry))

    def run() -> Audit:
        return api.run(prepared, out=folder, on_event=on_event, keep=keep)

    return run() if cache is None else cache.audit(prepared, run)


def _order(entries: Sequence[GateEntry]) -> list[int]:
    """Numbers of the entries, those first whose file is not there: that is told before hours of other audits."""
    return sorted(range(len(entries)), key=lambda number: not lacking(entries[number].request.model))


def _isolated(carried_out: Callable[[Tell], Audited], asked: Asked) -> Audited:
    """Audit in a child process, which a model may end without harm to the other entries.

    Raises:
        MaskauditError: when it could not be audited at all.
        Interrupted: when the user wants to stop; what was found is written.
    """

    def work(sender: Sender) -> None:
        try:
            sender.send("audited", **asdict(carried_out(sender.send)))
        except MaskauditError as error:
            sender.send("refused", text=str(error), status=error.exit_code)

    ended = supervise(work, hold_output=True)
    messages = ended.messages
    if ended.finished and "audited" in messages:
        audited = Audited(**{key: value for key, value in messages["audited"].items() if key != "kind"})
        audited = replace(audited, status=ended.status(audited.status))
    elif ended.finished:
        raise refusal(messages["refused"]["text"], messages["refused"]["status"])
    else:
        if ended.trace:
            say(ended.trace, streams.err())
        reason, status = ended.why()
        if "partial" not in messages:
            raise refusal(reason, status)
        document = dict(messages["partial"]["document"])
        document["partial"] = {**(document.get("partial") or {}), "reason": reason}
        audited = Audited(document, status, reason, write(asked, document, None))
    if ended.signum:
        raise Interrupted(ended.signum)
    return audited


def _outcome(
    entry: GateEntry, baselines: tuple[Baseline, ...], out: Path | None, today: date, audit: Auditor,
    on_event: Listener, isolate: bool,
) -> GateOutcome:  # fmt: skip
    folder = out / entry.folder if out is not None else None
    asked = _asked(entry, folder)

    def carried_out(tell: Tell) -> Audited:
        return carry_out(lambda keep: audit(entry, folder, on_event, keep), asked, out=folder, tell=tell)

    try:
        done = _isolated(carried_out, asked) if isolate else carried_out(tell_nobody)
    except MaskauditError as error:
        return GateOutcome(entry, error.exit_code, error=str(error))
    if done.status > 128:
        raise Interrupted(done.status - 128)
    ruling = rule_on(done.document, baselines, model=entry.name, today=today)
    return GateOutcome(
        entry,
        _status(ruling, entry.fail_on, done),
        done.document,
        ruling,
        " ".join(filter(None, (done.failure, done.unwritten))),
        entry.folder if folder is not None else None,
        done.cached,
    )


def _asked(entry: GateEntry, folder: Path | None) -> Asked:
    wanted = () if folder is None else tuple((fmt, str(folder / name)) for fmt, name in DIRECTORY_FILES.items())
    return Asked(entry.name, wanted, False, entry.fail_on, entry.request.settings.call_timeout)


def _status(ruling: Ruling, fail_on: str, done: Audited) -> int:
    if done.failure:
        return done.status
    judged = {"verdict": {"label": ruling.label}, "claim": {"status": ruling.claim}}
    return exit_status(judged, fail_on) or (UNWRITTEN_STATUS if done.unwritten else 0)


def _notes(baselines: tuple[Baseline, ...], outcomes: list[GateOutcome], today: date) -> tuple[str, ...]:
    """What the user should change about the baselines."""
    rulings = [outcome.ruling for outcome in outcomes if outcome.ruling is not None]
    notes = [f"{outcome.entry.name}: {note}" for outcome in outcomes if outcome.ruling for note in outcome.ruling.notes]
    used = frozenset[int]().union(*(ruling.used for ruling in rulings))
    for baseline in baselines:
        if baseline.number in used:
            continue
        if baseline.expired(today):
            notes.append(f"{baseline} expired on {baseline.expires} and matches nothing: remove it.")
        elif len(rulings) == len(outcomes):
            notes.append(f"{baseline} matches nothing that was found: remove it.")
    return tuple(notes)
