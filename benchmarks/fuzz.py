"""Do the readers survive hostile files? Mutations of valid files, through the functions that the commands use.

    OMP_NUM_THREADS=1 python benchmarks/fuzz.py                       # a million executions, both cores
    python benchmarks/fuzz.py --readers ONNX npz --executions 20000   # prints, writes nothing
    python benchmarks/fuzz.py --readers ONNX --replay 1234            # what one mutant does, with its traceback

Every execution has a limit of memory and time and runs in a child process (`benchmarks/fuzzing/running.py`). Right is
one of two things: the file is accepted, or it is refused by an exception of ours. TorchScript archives are code by
nature and torch's reader of them can end the process, so they go through the real command line, which must turn
whatever happens into one sentence and exit status 2 or 4.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fuzzing import mutations, running, samples
from benchmarks.fuzzing.readers import AUDIT, EVIDENCE, JOURNAL, MODEL, READERS, Reader, remember_digits
from benchmarks.fuzzing.running import LIMIT, MEMORY, Tally, fuzz, mutant
from benchmarks.records import ROOT, machine
from maskaudit.auditing.journal import Journal

ANSWER = Path(__file__).resolve().parent / "fuzz.md"
FINDINGS = ("exception", "message", "acted", "crash", "hang")
#: Longest that the command line may take for a damaged TorchScript archive, in seconds.
COMMAND_LIMIT = 120


def main() -> int:
    """Read the command line, fuzz, and say what was found; status 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [reader.name for reader in READERS]
    parser.add_argument("--readers", nargs="*", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--executions", type=int, default=1_000_000, help="in all, or per reader with --readers")
    parser.add_argument("--torchscript", type=int, metavar="N", help="archives through the command line (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--replay", type=int, metavar="NUMBER", help="run one mutant here, unprotected")
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()) / "maskaudit-fuzz", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="maskaudit-fuzz-") as name:
        return run(arguments, Path(name))


def run(arguments: argparse.Namespace, work: Path) -> int:
    """Everything that was asked for, in folders below `work`."""
    origin = prepare(work)
    chosen = [reader for reader in READERS if arguments.readers is None or reader.name in arguments.readers]
    if arguments.replay is not None:
        return replay(chosen[0], origin, arguments.seed, arguments.replay, arguments.kept)
    together = sum(reader.share for reader in READERS)
    counts = {
        reader.name: -(-arguments.executions * reader.share // together) if arguments.readers is None
        else arguments.executions
        for reader in chosen
    }  # fmt: skip
    scripts = arguments.torchscript if arguments.torchscript is not None else 200 if arguments.readers is None else 0
    began = time.monotonic()
    tallies = [of_reader(reader, counts[reader.name], origin, arguments) for reader in chosen]
    statuses = torchscript(scripts, origin, arguments)
    lines = table(tallies, statuses, time.monotonic() - began)
    print("\n".join(lines))
    if arguments.readers is None and arguments.executions >= 1_000_000:
        ANSWER.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(any(tally.findings for tally in tallies) or any(kind.startswith("WRONG") for kind in statuses))


def prepare(work: Path) -> Path:
    """The folder that every child gets a copy of: a model, a real audit of it, the other class of images."""
    origin = work / "origin"
    for part in ("a", "b"):
        (origin / part).mkdir(parents=True)
    remember_digits()
    (origin / MODEL).write_bytes(samples.trained())
    (origin / "b" / "other.png").write_bytes(samples.image())
    samples.audit(origin, origin / MODEL)
    Journal(origin / JOURNAL, {}, resume=False)
    return origin


def of_reader(reader: Reader, count: int, origin: Path, arguments: argparse.Namespace) -> Tally:
    """All executions of a reader, shared among the jobs."""
    seeds = list(reader.seeds(origin))
    warm_up(reader, seeds, origin)
    part = -(-count // arguments.jobs)
    starts = range(0, count, part)

    def some(start: int) -> Tally:
        return fuzz(reader, seeds, lambda: copied(origin), seed=arguments.seed, start=start,
                    count=min(part, count - start), kept=arguments.kept)  # fmt: skip

    with ThreadPoolExecutor(arguments.jobs) as pool:
        parts = list(pool.map(some, starts))
    whole = Tally(reader.name)
    for tally in parts:
        whole.executions += tally.executions
        whole.accepted += tally.accepted
        whole.refused += tally.refused
        whole.seconds = max(whole.seconds, tally.seconds)
        whole.peak = max(whole.peak, tally.peak)
        if tally.slowest > whole.slowest:
            whole.slowest, whole.slowest_at = tally.slowest, tally.slowest_at
        whole.findings.update(tally.findings)
        for key, number in tally.first.items():
            whole.first[key] = min(number, whole.first.get(key, number))
    print(row(whole), flush=True, file=sys.stderr)
    return whole


def warm_up(reader: Reader, seeds: list[bytes], origin: Path) -> None:
    """Read every valid file here, so that children find all modules loaded; one that is refused is an error."""
    folder = copied(origin)
    path = folder / reader.file
    before = os.getcwd()
    os.chdir(folder)
    try:
        for seed in seeds:
            path.write_bytes(seed)
            kind, what = running._verdict(reader, path)
            if kind != "accepted" and reader.name != "pickle":
                raise SystemExit(f"{reader.name}: a valid file is not accepted ({kind}: {what})")
    finally:
        os.chdir(before)


def copied(origin: Path) -> Path:
    """A folder of its own for a child, with links to what lies next to a mutant."""
    folder = Path(tempfile.mkdtemp(dir=origin.parent))
    for part in ("a", "b", JOURNAL):
        (folder / part).mkdir()
    for name in (MODEL, AUDIT, EVIDENCE, "b/other.png"):
        os.link(origin / name, folder / name)
    (folder / JOURNAL / "fingerprint").write_bytes((origin / JOURNAL / "fingerprint").read_bytes())
    return folder


def replay(reader: Reader, origin: Path, seed: int, number: int, kept: Path) -> int:
    """Make one mutant again, keep it, and read it without protection."""
    data = mutant(reader, list(reader.seeds(origin)), seed, number)
    folder = copied(origin)
    (folder / reader.file).write_bytes(data)
    kept.mkdir(parents=True, exist_ok=True)
    place = kept / f"{reader.name}-{number}-{Path(reader.file).name}".replace(" ", "-")
    place.write_bytes(data)
    print(f"{len(data)} bytes, kept as {place}", flush=True)
    os.chdir(folder)
    reader.read(folder / reader.file)
    print("accepted")
    return 0


def torchscript(count: int, origin: Path, arguments: argparse.Namespace) -> Counter[str]:
    """Damaged TorchScript archives through `maskaudit check`: how often each exit status, or what was wrong."""
    valid = samples.torchscript()
    change = mutations.archive(lambda name: mutations.pickle_ops if name.endswith(".pkl") else mutations.damage)

    def one(number: int) -> str:
        rng = Random(f"torchscript {arguments.seed} {number}")
        folder = copied(origin)
        (folder / "model.pt").write_bytes(change(valid, rng))
        command = [sys.executable, "-m", "maskaudit", "inspect", "model.pt"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=COMMAND_LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return f"WRONG: mutant {number} took longer than {COMMAND_LIMIT} s"
        errors = done.stderr.strip().splitlines()
        if done.returncode == 0:
            return "accepted (0)"
        last = errors[-1] if errors else "no message"
        if done.returncode in (2, 4) and last.startswith("maskaudit: ") and "Traceback" not in done.stderr:
            return "refused (2)" if done.returncode == 2 else "failed in one sentence (4)"
        return f"WRONG: mutant {number} ended with status {done.returncode}: {last[:100]}"

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return Counter(pool.map(one, range(count)))


def row(tally: Tally) -> str:
    """One line of the table."""
    found = " | ".join(str(tally.count(kind)) for kind in FINDINGS)
    return (
        f"| {tally.reader} | {tally.executions:,} | {tally.accepted:,} | {tally.refused:,} | {found} "
        f"| {tally.slowest:.2f} | {tally.peak:.0f} | {tally.executions / max(tally.seconds, 1e-9):,.0f} |"
    )


def table(tallies: list[Tally], statuses: Counter[str], seconds: float) -> list[str]:
    """The committed document."""
    total = Tally("all")
    for tally in tallies:
        total.executions += tally.executions
        total.accepted += tally.accepted
        total.refused += tally.refused
        total.slowest, total.peak = max(total.slowest, tally.slowest), max(total.peak, tally.peak)
        total.findings.update(tally.findings)
    total.seconds = sum(tally.seconds for tally in tallies)
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    lines = [
        "# Hostile files",
        "",
        f"`{command}` at commit {commit()}, {seconds / 60:.0f} minutes on {machine()}. Per execution at most "
        f"{LIMIT:g} s of the processor and {MEMORY // 2**30} GiB beyond what it starts with; slowest in such seconds, "
        "peak in MiB above the start of a process that reads thousands of files. *Acted*: started a process, "
        "opened a connection, or wrote a file.",
        "",
        "| reader | executions | accepted | refused | other exceptions | endless messages | acted | crashes | hangs "
        "| slowest | peak | per second |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *map(row, tallies),
        row(total),
    ]
    if statuses:
        counts = "; ".join(f"{kind}: {n}" for kind, n in sorted(statuses.items()) if not kind.startswith("WRONG"))
        wrong = [kind for kind in statuses if kind.startswith("WRONG")]
        lines += ["", f"TorchScript, {sum(statuses.values())} damaged archives through `maskaudit inspect`: {counts}; "
                  f"ended otherwise: {len(wrong)}."]  # fmt: skip
        lines += [f"- {kind}" for kind in wrong]
    if total.findings:
        lines += ["", "| reader | finding | what | times | first mutant |", "|---|---|---|---|---|"]
        lines += [
            f"| {tally.reader} | {kind} | {what} | {times} | {tally.first[kind, what]} |"
            for tally in tallies
            for (kind, what), times in tally.findings.most_common()
        ]
    return lines


def commit() -> str:
    """The commit that was checked out, and whether files differed from it."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
