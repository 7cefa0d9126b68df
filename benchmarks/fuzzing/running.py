"""Executions in child processes: limits on memory and time, and a name for the mutant that ends one.

A mutant is a function of (reader, seed, number), so whatever goes wrong can be made again. A child works through a
range of numbers and keeps its counts in memory that it shares with its parent. When a child dies, or one execution
takes longer than the limit, the number it was at is the finding, and another child goes on behind it.

Within a child, an audit hook stops whatever no reader may do (start a process, open a connection, write outside its
folder) and counts it as a finding of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing.mutations import damage
from benchmarks.fuzzing.readers import JOURNAL, Reader
from maskaudit.errors import MaskauditError

#: Address space that a child may take beyond what it starts with, in bytes.
MEMORY = 2 * 2**30
#: Longest that one execution may take, in seconds of the processor; and by the clock, for one that waits.
LIMIT, WAITING = 10.0, 120.0
#: Longest message that is still a sentence for a person, in characters.
LONGEST_MESSAGE = 1500
#: Share of mutants that are made without knowledge of the format.
BLIND = 0.3
#: Executions per child: what a reader leaks must not add up without end, what a child costs must not show.
CHUNK = 5000

#: What no reader may do. Writing outside the child's folder is looked at apart.
FORBIDDEN = frozenset(
    [
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "subprocess.Popen",
        "os.mkdir",
        "os.symlink",
        "os.link",
        "os.chmod",
        "os.kill",
        "pty.spawn",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.bind",
        "urllib.Request",
    ]
)

#: Exit status of a child in which this program, not a reader, made a mistake.
TROUBLE = 70
#: Places in the shared array.
NUMBER, STARTED, STARTED_CPU, ACCEPTED, REFUSED, SLOWEST, SLOWEST_AT, PEAK = range(8)

#: For a child that starts anew: `fork` copies torch as it is loaded, at no cost.
_PROCESSES = multiprocessing.get_context("fork")
for _library in ("torch._dynamo", "matplotlib.font_manager"):
    importlib.import_module(_library)  # they make folders of their own, which must not be taken for an act of a file


class Acted(BaseException):
    """A file made a reader act; no reader's `except Exception` catches this."""


@dataclass
class Tally:
    """What became of a reader's executions; `findings` by what happened, with the first number at which it did."""

    reader: str
    executions: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_at: int = 0
    peak: float = 0.0
    seconds: float = 0.0
    findings: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], int] = field(default_factory=dict)

    def count(self, kind: str) -> int:
        """Findings of one kind: exception, message, acted, crash or hang."""
        return sum(times for (found, _), times in self.findings.items() if found == kind)

    def note(self, kind: str, what: str, number: int) -> None:
        """Record one finding."""
        self.findings[kind, what] += 1
        self.first.setdefault((kind, what), number)


def mutant(reader: Reader, seeds: list[bytes], seed: int, number: int) -> bytes:
    """The bytes of one execution; number 0 … len(seeds) − 1 are the valid files themselves."""
    if number < len(seeds):
        return seeds[number]
    rng = Random(f"{reader.name} {seed} {number}")
    data = rng.choice(seeds)
    blind = not reader.mutate or rng.random() < BLIND
    for _ in range(1 + min(int(rng.expovariate(1.2)), 6)):
        change = damage if blind else rng.choice(reader.mutate)
        try:
            data = change(data, rng)
        except Exception:  # a file that earlier mutations left in a state that this one does not expect
            data = damage(data, rng)
    return data


def fuzz(
    reader: Reader, seeds: list[bytes], folder: Callable[[], Path], *, seed: int, start: int, count: int, kept: Path
) -> Tally:
    """Run executions `start` … `start + count − 1` of a reader, one child after the other.

    Args:
        seeds: valid files; folder: makes a folder with what the reader needs next to a mutant.
        kept: where mutants with findings are put, by reader, kind and number.
    """
    tally, number, end, began = Tally(reader.name), start, start + count, time.monotonic()
    while number < end:
        number = _child(reader, seeds, folder(), seed, number, min(end, number + CHUNK), tally, kept)
    tally.executions, tally.seconds = count, time.monotonic() - began
    return tally


def examine(reader: Reader, path: Path, *, limit: float = LIMIT) -> tuple[str, str]:
    """What becomes of one file, read in a child with the same limits and hook; its folder is the child's.

    Returns:
        `accepted`, `refused`, `exception`, `message`, `acted`, `crash` or `hang`, and the message or the place.
    """
    answer = path.parent / f".{path.name}.answer"
    process = _PROCESSES.Process(target=_examined, args=(reader, path, answer), daemon=True)
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return "hang", f"above {limit:g} s"
    code = process.exitcode or 0
    if code:
        return "crash", signal.Signals(-code).name if code < 0 else f"exit status {code}"
    kind, what = json.loads(answer.read_text(encoding="utf-8"))
    return kind, what


def _examined(reader: Reader, path: Path, answer: Path) -> None:
    os.chdir(path.parent)
    faulthandler.disable()
    acted: list[str] = []
    _watch(acted, path.parent)
    _bound()
    verdict = _verdict(reader, path)
    answer.write_text(json.dumps(("acted", acted[0]) if acted else verdict), encoding="utf-8")
    os._exit(0)


def _child(
    reader: Reader, seeds: list[bytes], folder: Path, seed: int, start: int, end: int, tally: Tally, kept: Path
) -> int:
    """One child's life; returns the number to go on with."""
    shared = _PROCESSES.Array("d", 8)
    shared[NUMBER] = start
    log = folder.with_suffix(".log")
    process = _PROCESSES.Process(
        target=_guarded, args=(reader, seeds, folder, seed, start, end, shared, log), daemon=True
    )
    process.start()
    hung = False
    while process.is_alive():
        process.join(0.05)
        began, cpu = shared[STARTED], shared[STARTED_CPU]
        if not began or time.monotonic() - began < LIMIT:
            continue
        waited = time.monotonic() - began > WAITING
        if (waited or _cpu_seconds(process.pid) - cpu > LIMIT) and shared[STARTED] == began and process.is_alive():
            hung = True
            process.kill()
            process.join()
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        kind, what, at = json.loads(line)
        _note(tally, kind, what, at, reader, mutant(reader, seeds, seed, at), kept)
    log.unlink(missing_ok=True)
    tally.accepted += int(shared[ACCEPTED])
    tally.refused += int(shared[REFUSED])
    tally.peak = max(tally.peak, shared[PEAK])
    if shared[SLOWEST] > tally.slowest:
        tally.slowest, tally.slowest_at = shared[SLOWEST], int(shared[SLOWEST_AT])
    at = int(shared[NUMBER])
    if not hung and process.exitcode == 0 and at == end:
        return end
    code = process.exitcode or 0
    if code == TROUBLE:
        raise RuntimeError(f"{reader.name}, mutant {at}: {log.with_suffix('.trouble').read_text(encoding='utf-8')}")
    what = f"above {LIMIT:g} s" if hung else signal.Signals(-code).name if code < 0 else f"exit status {code}"
    if hung and tally.slowest < LIMIT:
        tally.slowest, tally.slowest_at = LIMIT, at
    _note(tally, "hang" if hung else "crash", what, at, reader, mutant(reader, seeds, seed, at), kept)
    return at + 1


def _cpu_seconds(pid: int | None) -> float:
    """Seconds of the processor that a process took; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _note(tally: Tally, kind: str, what: str, number: int, reader: Reader, data: bytes, kept: Path) -> None:
    """Record a finding; the first mutant of each is kept."""
    if (kind, what) not in tally.first:
        kept.mkdir(parents=True, exist_ok=True)
        name = f"{reader.name}-{number}-{kind}-{Path(reader.file).name}".replace(" ", "-").replace(",", "")
        (kept / name).write_bytes(data)
    tally.note(kind, what, number)


def _guarded(*arguments: Any) -> None:
    """In the child: leave at once, without what Python does at its end, which would meet the hook."""
    try:
        _work(*arguments)
    except BaseException:
        arguments[-1].with_suffix(".trouble").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(TROUBLE)
    os._exit(0)


def _work(
    reader: Reader, seeds: list[bytes], folder: Path, seed: int, start: int, end: int,
    shared: SynchronizedArray[Any], log: Path,
) -> None:  # fmt: skip
    """In the child: execute, classify, count."""
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    faulthandler.disable()
    base = _resident()
    acted: list[str] = []
    _watch(acted, folder)
    _bound()
    with open(log, "w", encoding="utf-8") as findings:
        for number in range(start, end):
            data = mutant(reader, seeds, seed, number)
            path.write_bytes(data)
            shared[NUMBER] = number
            began = shared[STARTED_CPU] = time.process_time()
            shared[STARTED] = time.monotonic()
            verdict = _verdict(reader, path)
            took = time.process_time() - began
            shared[STARTED] = 0
            if acted:
                verdict = ("acted", acted[0])
                acted.clear()
            if verdict[0] in ("accepted", "refused"):
                shared[ACCEPTED if verdict[0] == "accepted" else REFUSED] += 1
            else:
                findings.write(json.dumps([*verdict, number]) + "\n")
                findings.flush()
            if took > shared[SLOWEST]:
                shared[SLOWEST], shared[SLOWEST_AT] = took, number
    shared[PEAK] = (_resident() - base) / 2**20
    shared[NUMBER] = end


def _verdict(reader: Reader, path: Path) -> tuple[str, str]:
    """What a reader makes of a file."""
    try:
        reader.read(path)
    except MaskauditError as error:
        message = str(error)
        if len(message) > LONGEST_MESSAGE:
            return "message", f"{_place(error)}: longer than {LONGEST_MESSAGE} characters"
        return "refused", message
    except Acted as act:
        return "acted", str(act)
    except BaseException as error:
        return "exception", f"{type(error).__name__} at {_place(error)}"
    return "accepted", ""


def _place(error: BaseException) -> str:
    """The last line of ours that an exception went through, and the line that raised it where that is another."""
    frames = traceback.extract_tb(error.__traceback__)[-200:]
    ours = [frame for frame in frames if "/maskaudit/" in frame.filename]
    places = [f"{_shown(frame.filename)}:{frame.lineno}" for frame in (*ours[-1:], *frames[-1:])]
    return " in ".join(dict.fromkeys(reversed(places)))


def _shown(name: str) -> str:
    return "/".join(Path(name).parts[-2:])


def _resident() -> int:
    """Most memory this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _bound() -> None:
    """Limit the address space, and leave no core files."""
    with open("/proc/self/statm", encoding="ascii") as status:
        now = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(acted: list[str], folder: Path) -> None:
    """Stop and note what no reader may do. There is no way to take a hook away; the child ends with it."""
    inside = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[0], (str, bytes)) and _writes(arguments)
        if writes and os.path.realpath(os.fsdecode(arguments[0])).startswith((inside, os.devnull)):
            return
        if event == "os.mkdir" and os.path.basename(os.fsdecode(arguments[0])) == JOURNAL:
            return  # `--resume` makes its own folder
        if writes or event in FORBIDDEN:
            with contextlib.suppress(Exception):
                acted.append(f"{event} {str(arguments)[:80]}")
            raise Acted(event)

    sys.addaudithook(hook)


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
