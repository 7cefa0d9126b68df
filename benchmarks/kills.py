"""Does an audit that is killed at random moments end in the very report of one that is not?

    OMP_NUM_THREADS=1 python benchmarks/kills.py [--trials 100] [--seed 0] [--models NAME …] [--at-once N]

Per model one audit runs undisturbed in one process. Then trials of three kinds run by turns, with `maskaudit check` as
people call it:

* `audit`: the whole audit is killed (SIGKILL) at a moment drawn at random, once to three times, and resumed each time;
* `audit with workers`: the same with two workers, so that they lose their parent;
* `worker`: of two workers, one is killed at each of two random moments; the audit goes on by itself.

Each trial must end with the report and the evidence file of the undisturbed audit, apart from
`maskaudit.results.RUN_FIELDS`. The table is `benchmarks/kills.md`; trials of earlier calls are kept in
`benchmarks/kills.jsonl`, keyed by model, kind and seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import RecordFile, commit, figures_of
from maskaudit.auditing.engine.processes import WORKER_NAME
from maskaudit.auditing.journal import JOURNAL_FOLDER
from maskaudit.results import without_run_fields

HERE = Path(__file__).resolve().parent
#: Honest, masked by the loss, masked by an op (repaired attacks run), and random.
MODELS = ("standard", "great+ce", "quantised", "random-backward")
KINDS = ("audit", "audit with workers", "worker")
OPTIONS = ("--budget", "quick", "--samples", "40")
#: Kills of one trial at most, and of workers exactly: a task is given up when it has ended three.
MOST_KILLS, WORKER_KILLS = 3, 2
#: Seconds after which an audit counts as hanging, and between two looks at a process.
LIMIT, PAUSE = 600.0, 0.01

Row = dict[str, Any]


def main() -> int:
    """Run what is missing, and write the table; 1 where a trial did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="in all, over models and kinds")
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="NAME", help="of the zoo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    file = RecordFile(HERE / "kills.jsonl")
    rows = file.read()
    known = {(row["model"], row["kind"], row["seed"]) for row in rows}
    wanted = [
        (
            arguments.models[n % len(arguments.models)],
            KINDS[n // len(arguments.models) % len(KINDS)],
            arguments.seed + n,
        )
        for n in range(arguments.trials)
    ]
    missing = [trial for trial in wanted if trial not in known]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.at_once) as pool:
        usual = {model: undisturbed(model, Path(folder)) for model in {model for model, _, _ in missing}}
        for row in pool.map(lambda trial: tried(*trial, usual[trial[0]], Path(folder)), missing):
            print(row, flush=True)
            rows.append({**row, "commit": commit()})
            file.append(rows[-1])
    (HERE / "kills.md").write_text(table(rows), encoding="utf-8")
    return int(any(row["differs"] for row in rows))


def undisturbed(model: str, folder: Path) -> tuple[Row, float]:
    """The report of an audit that is not killed, and how long its work takes."""
    out = folder / f"{model}-undisturbed"
    process = started(model, out, workers=False)
    begun(process, out)
    at = time.perf_counter()
    process.wait(LIMIT)
    return report(out), time.perf_counter() - at


def tried(model: str, kind: str, seed: int, usual: tuple[Row, float], folder: Path) -> Row:
    """One trial."""
    chance = random.Random(f"{model} {kind} {seed}")
    out, seconds = folder / f"{model}-{kind.replace(' ', '-')}-{seed}", usual[1]
    kills = 0
    if kind == "worker":
        process = started(model, out, workers=True)
        begun(process, out)
        for moment in sorted(chance.uniform(0, seconds / WORKER_KILLS) for _ in range(WORKER_KILLS)):
            time.sleep(moment)
            kills += worker_killed(process, chance)
    else:
        for _ in range(chance.randint(1, MOST_KILLS)):
            process = started(model, out, workers=kind != "audit")
            if begun(process, out):
                time.sleep(chance.uniform(0, 0.7 * seconds))
            if process.poll() is not None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        if kills and process.returncode == -signal.SIGKILL:
            process = started(model, out, workers=kind != "audit")
    try:
        process.wait(LIMIT)
        differs = [*differences(without_run_fields(report(out)), without_run_fields(usual[0]))]
    except (subprocess.TimeoutExpired, OSError, ValueError) as error:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        differs = [f"no report: {type(error).__name__}, exit status {process.poll()}"]
    return {"model": model, "kind": kind, "seed": seed, "kills": kills, "differs": differs[:5]}


def started(model: str, out: Path, *, workers: bool) -> subprocess.Popen[bytes]:
    """`maskaudit check` on a model of the zoo, resuming what it finds in the folder."""
    command = [
        sys.executable,
        "-m",
        "maskaudit",
        "check",
        f"zoo:{model}",
        *OPTIONS,
        "--out",
        str(out),
        "--resume",
        "-q",
    ]
    command += ["--workers", "2"] if workers else []
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, start_new_session=True)


def begun(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Wait until the audit proper begins; whether it still runs."""
    while process.poll() is None and not (out / JOURNAL_FOLDER / "fingerprint").exists():
        time.sleep(PAUSE)
    return process.poll() is None


def worker_killed(process: subprocess.Popen[bytes], chance: random.Random) -> int:
    """Kill one of the workers as soon as there are any: 1, or 0 where the audit ends before."""
    while process.poll() is None:
        workers = [pid for pid in descendants(process.pid) if name_of(pid) == WORKER_NAME]
        if workers:
            try:
                os.kill(chance.choice(workers), signal.SIGKILL)
            except ProcessLookupError:
                continue
            return 1
        time.sleep(PAUSE)
    return 0


def descendants(pid: int) -> Iterator[int]:
    """Process ids below a process (Linux)."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield child
        yield from descendants(child)


def name_of(pid: int) -> str:
    """What the system calls a process; "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def report(out: Path) -> Row:
    """The JSON report of a finished audit."""
    document: Row = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    return document


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where two documents differ, at the first differing entry of every branch."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differences(one.get(key), other.get(key), f"{place}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{place}[{number}]")
    elif one != other:
        yield f"{place.lstrip('.')}: {str(one)[:60]} instead of {str(other)[:60]}"


def table(rows: Sequence[Row]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Audits killed at random moments",
        "",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/kills.py` (its docstring says how). Each audit: "
        f"`maskaudit check zoo:NAME {' '.join(OPTIONS)} --out DIR --resume`. Identical: report and evidence are those "
        "of an audit that was not killed and that ran in one process, seconds and command line aside. "
        "Trials of earlier calls, on other commits and machines, are kept. "
        + figures_of(row.get("commit") for row in rows),
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} cores.",
        "",
        "| model | killed | trials | kills | identical |",
        "|---|---|---:|---:|---:|",
    ]
    for model, kind in dict.fromkeys((row["model"], row["kind"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["kind"]) == (model, kind)]
        lines.append(f"| {model} | {kind} | {len(mine)} | {sum(r['kills'] for r in mine)} | {_same(mine)} |")
    lines.append(f"| all | | {len(rows)} | {sum(row['kills'] for row in rows)} | {_same(rows)} |")
    return "\n".join(lines) + "\n"


def _same(rows: Sequence[Row]) -> int:
    return sum(not row["differs"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
