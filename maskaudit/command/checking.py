"""What `maskaudit check` does with a request: audit, write, show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskaudit import api
from maskaudit.command.auditing import Tell, carry_out
from maskaudit.command.delivery import Asked, show
from maskaudit.command.terminal import ProgressLine
from maskaudit.settings import Request


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
