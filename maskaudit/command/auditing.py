"""Carry out one audit, put its files in their place and show it: for `check`, and for each model of the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskaudit import api
from maskaudit.auditing.document import Keeper
from maskaudit.auditing.runner import Audit
from maskaudit.command.results_out import Asked, naming_its_evidence, show, write
from maskaudit.command.status import exit_status
from maskaudit.command.terminal import ProgressLine
from maskaudit.files import only_one_in
from maskaudit.settings import Request

#: Tells a supervisor: the kind of message, and its content.
Tell = Callable[..., None]


@dataclass(frozen=True)
class Audited:
    """An audit whose files are written.

    Attributes:
        document: its report.
        status: its exit status by the contract.
        failure: why it is not finished; empty where it is.
        unwritten: why a file could not be written; empty where all are on the disk.
        cached: it was not made now, but found among earlier ones.
    """

    document: dict[str, Any]
    status: int
    failure: str = ""
    unwritten: str = ""
    cached: bool = False


def check_and_show(
    request: Request, wanted: Sequence[tuple[str, Path]], *, out: str | None, resume: bool, as_json: bool, quiet: bool,
    tell: Tell,
) -> int:  # fmt: skip
    """Audit, write the files and print the result.

    Args:
        request: what was asked for.
        wanted: (format, path) pairs of the files to write.
        out: folder of the reports and of the journal, with which `resume` goes on.
        as_json: print the report as one JSON document.
        quiet: no progress.
        tell: is given what a supervisor needs in case this process does not come back.

    Returns:
        The exit status.
    """
    asked = Asked(
        request.model, tuple((fmt, str(path)) for fmt, path in wanted), as_json, request.settings.fail_on,
        request.settings.call_timeout,
    )  # fmt: skip
    folder, progress = Path(out) if out else None, ProgressLine(quiet=quiet)
    audited = carry_out(
        lambda keep: api.run(api.prepare(request), out=folder, resume=resume, on_event=progress, keep=keep),
        asked, out=folder, tell=tell,
    )  # fmt: skip
    progress.close()
    return show(asked, audited.document, audited.status, failure=audited.failure, unwritten=audited.unwritten)


def carry_out(audit: Callable[[Keeper], Audit], asked: Asked, *, out: Path | None, tell: Tell) -> Audited:
    """Audit, write the files, and only then remove the journal; an audit that is not finished keeps it.

    Args:
        audit: runs the audit, and hands partial reports to what it is given.
        out: folder of the journal.
        tell: is given what a supervisor needs in case this process does not come back.

    Raises:
        MaskauditError: when the audit cannot start, or the model fails before anything was measured.
    """
    tell("asked", asked=asked.to_dict(), call_timeout=asked.call_timeout)
    with only_one_in(out):
        audited = _kept(audit(lambda report: tell("partial", document=report.to_dict())), asked)
        if out is not None and not audited.failure and not audited.unwritten:
            api.discard_journal(out)
        return audited


def _kept(audit: Audit, asked: Asked) -> Audited:
    """Write the files of an audit."""
    document = naming_its_evidence(audit.report.to_dict(), asked)
    status = exit_status(document, asked.fail_on, failed=audit.failure is not None)
    if audit.interrupted is not None:
        status = 128 + audit.interrupted.signum
    failure = str(audit.failure or audit.interrupted or "")
    return Audited(document, status, failure, write(asked, document, audit.evidence), audit.cached)
