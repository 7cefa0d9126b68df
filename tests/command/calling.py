"""Run the command line in a process of its own, forked from this one so that torch need not be loaded again."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from maskaudit.cli import main
from maskaudit.report import html  # noqa: F401  loaded once for all commands

ROOT = Path(__file__).parent.parent.parent
#: Seconds after which a command hangs.
PATIENCE = 300


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Running:
    """A command that was started, and the files that hold what it writes."""

    pid: int
    out: Path
    err: Path

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> Done:
        """Wait until it has ended."""
        found: list[int] = []

        def ended() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            found.append(status)
            return pid == self.pid

        self.wait_for(ended)
        return Done(os.waitstatus_to_exitcode(found[-1]), self.out.read_text(), self.err.read_text())


def command(*arguments: str, cwd: Path, largest_file: int | None = None, reader: bool = True) -> Running:
    """Start the command line.

    Args:
        largest_file: bytes of the largest file that it can write; any if not given.
        reader: whether somebody reads its standard output.
    """
    kept = Path(tempfile.mkdtemp(dir=cwd))
    running = kept / "out", kept / "err"
    for file in running:
        file.touch()
    pid = os.fork()
    if pid:
        return Running(pid, *running)
    status: object = 1
    try:
        torch.set_num_threads(1)
        os.chdir(cwd)
        for descriptor, file in zip((1, 2), running, strict=True):
            os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
        if not reader:
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, 1)
        os.closerange(3, 1024)  # what belongs to the tests
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        sys.argv = ["maskaudit", *arguments]
        sys.path.insert(0, str(cwd))
        main()
    except SystemExit as ended:
        status = ended.code
    finally:
        os._exit(status if isinstance(status, int) else 1)


def start(model: str, *arguments: str, cwd: Path, largest_file: int | None = None, reader: bool = True) -> Running:
    """Start `check` on a model of `models.py`."""
    audit = ("check", f"py:models:{model}", "--data", "x.npz", "--budget", "quick", "-q", *arguments)
    return command(*audit, cwd=cwd, largest_file=largest_file, reader=reader)


def check(model: str, *arguments: str, cwd: Path, largest_file: int | None = None, reader: bool = True) -> Done:
    """`check` from its start to its end."""
    return start(model, *arguments, cwd=cwd, largest_file=largest_file, reader=reader).end()
