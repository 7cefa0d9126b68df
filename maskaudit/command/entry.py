"""From the arguments to the exit status: what runs where, and what becomes of every kind of end.

Commands that run foreign code do so in a child process (`maskaudit.command.supervise`). A status of 0 or 1 means that
a command has finished and reported it: neither `sys.exit` in a model nor the end of a process can pass for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import click

from maskaudit import foreign
from maskaudit.command import streams
from maskaudit.command.channel import tell_nobody
from maskaudit.command.status import BUG_STATUS, UNWRITTEN_STATUS
from maskaudit.command.terminal import say
from maskaudit.errors import MaskauditError, without_controls

if TYPE_CHECKING:
    from maskaudit.command.channel import Sender
    from maskaudit.command.supervise import Ended

#: Commands that load models, data or torch, and run foreign code; the gate supervises each of its audits itself.
SUPERVISED = frozenset({"check", "inspect", "train", "demo", "verify", "zoo"})
#: Parameters of glibc's `mallopt` (malloc.h), and the largest value that it takes.
_TRIM_THRESHOLD, _MMAP_MAX, _LARGEST = -1, -4, 2**31 - 1


@dataclass
class Session:
    """One run of the command line.

    Attributes:
        tell: speaks to the supervisor, where there is one.
        isolates: whether the command may run parts of its work in children.
        status: what the command ended with, once it has.
    """

    tell: Callable[..., None] = tell_nobody
    isolates: bool = False
    status: int | None = None

    @classmethod
    def current(cls) -> Session:
        """That of the running command; a new one where the command was not started by `main`."""
        return click.get_current_context().find_object(cls) or cls()


def finish(status: int) -> NoReturn:
    """End the running command with an exit status."""
    context = click.get_current_context()
    session = context.find_object(Session)
    if session is not None:
        session.status = status
    context.exit(status)


def asks_help(command: click.Command, arguments: list[str]) -> bool:
    """Whether these arguments make click print help: `-qh` does, `--data -h` does not."""
    context = None
    while True:
        context = click.Context(command, parent=context, resilient_parsing=True, **command.context_settings)
        try:
            options, rest, _ = command.make_parser(context).parse_args(list(arguments))
        except click.UsageError:
            return False
        option = command.get_help_option(context)
        if option is not None and options.get(option.name):
            return True
        inner = command.get_command(context, rest[0]) if isinstance(command, click.Group) and rest else None
        if inner is None:
            return False
        command, arguments = inner, rest[1:]


def main(cli: click.Group) -> NoReturn:
    """Run the command line and exit."""
    streams.make_lasting()
    try:
        status = _Run(cli, sys.argv[1:]).status()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except Exception:
        say("".join(without_controls(line) + "\n" for line in traceback.format_exc().splitlines()), streams.err())
        status = BUG_STATUS
    say("", streams.out())
    if why := streams.why_lost():
        say(f"maskaudit: {why}\n", streams.err())
    sys.exit(UNWRITTEN_STATUS if streams.results_lost() and not status else status)


class _Run:
    """One command line."""

    def __init__(self, cli: click.Group, arguments: list[str]) -> None:
        self.cli, self.arguments = cli, arguments
        self.as_json = "--json" in arguments
        self.command = next((argument for argument in arguments if not argument.startswith("-")), "")

    def status(self) -> int:
        """Run it, here or in a child."""
        from maskaudit.command import supervise
        from maskaudit.command.supervised import described

        if self.command in SUPERVISED and not asks_help(self.cli, self.arguments) and supervise.possible():
            return self._outcome(supervise.supervise(self._work, hold_output=self.as_json))
        try:
            foreign.handle_signals()
            return self._perform(Session(isolates=supervise.possible()))
        except BaseException as error:  # as a supervised command would end
            return self._outcome(supervise.Ended({"broke": described(error)}))

    def _work(self, sender: Sender) -> None:
        keep_freed_memory()
        sender.send("status", status=self._perform(Session(sender.send)))

    def _perform(self, session: Session) -> int:
        """Run the command and put foreseen errors into words; all others are raised."""
        try:
            code = self.cli.main(self.arguments, prog_name="maskaudit", standalone_mode=False, obj=session)
        except click.UsageError as error:
            if self.as_json:
                return refuse(error.format_message(), error.exit_code, as_json=self.as_json)
            error.show(file=streams.err())
            return error.exit_code
        except click.ClickException as error:
            return refuse(error.format_message(), 2, as_json=self.as_json)
        except MaskauditError as error:
            return refuse(str(error), error.exit_code, as_json=self.as_json)
        except click.Abort as abort:
            request = abort.__cause__
            if not isinstance(request, KeyboardInterrupt):
                raise
            asked = next((e for e in (request, request.__cause__) if isinstance(e, foreign.Interrupted)), None)
            signum = asked.signum if asked is not None else signal.SIGINT
            return refuse(_interrupted(request, self.command), 128 + signum, as_json=self.as_json)
        if session.status is not None:
            return session.status
        if code is not None and session.tell is not tell_nobody:  # only a foreign exit leaves a supervised command so
            raise SystemExit(code)
        return code or 0

    def _outcome(self, ended: Ended) -> int:
        """The exit status of supervised work, and what is to be reported about its end."""
        messages = ended.messages
        if ended.finished:
            say(ended.shown, streams.out())
            return ended.status(int(messages["status"]["status"]))
        if ended.trace:
            say(ended.trace, streams.err())
        reason, status = ended.why()
        if ended.at_once or "partial" not in messages or "asked" not in messages:
            return refuse(reason, status, as_json=self.as_json)
        from maskaudit.command.results_out import Asked, show, write

        asked, document = Asked.from_dict(messages["asked"]["asked"]), messages["partial"]["document"]
        document["partial"] = {**(document.get("partial") or {}), "reason": reason}
        return show(asked, document, status, failure=reason, unwritten=write(asked, document, None))


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for its next tensors; whether that could be arranged.

    glibc hands large blocks back to the system at once, which fills the next ones with zeros page by page: with batches
    of images that costs as much as a pass of a small network. For programs that are done with memory when they end;
    with another C library nothing changes. Results do not depend on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _LARGEST)) and bool(mallopt(_MMAP_MAX, 0))


def refuse(message: str, status: int, *, as_json: bool) -> int:
    """Say why there is no result, as a JSON document as well where one was asked for; returns the status."""
    say(f"maskaudit: {without_controls(message)}\n", streams.err())
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from maskaudit.report.github import Annotation

        say(f"{Annotation('error', message)}\n", streams.err())
    if as_json:
        error = {"schema_version": 1, "error": {"message": message, "exit_status": status}}
        say(json.dumps(error) + "\n", streams.out())
    return status


def _interrupted(error: KeyboardInterrupt, command: str) -> str:
    """What an interrupted command says: the error's own advice, if it has any."""
    if str(error) and not isinstance(error, foreign.Interrupted):
        return str(error)
    if command != "check":
        return "Interrupted before it was finished."
    return "Interrupted before a report could be made. What attacks had finished with --out is kept for --resume."
