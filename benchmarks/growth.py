"""Does a process that runs audit after audit grow?

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--audits 200] [--workers N]

Small audits of a model with a repairable fault run one after the other in one process, all phases included, each with a
journal in a folder of its own. After each, open files, live tensors, threads, and resident memory are noted. Memory
must not rise between the last three quarters of the run, and nothing else may differ from what the first tenth left.
The table is `benchmarks/growth.md`.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import commit, figures_of
from maskaudit import api
from maskaudit.settings import AuditSettings

HERE = Path(__file__).resolve().parent
MODEL = "zoo:quantised"
SAMPLES = 12
#: Rise of resident memory, from the second quarter to the last, that the allocator may explain; of the median.
ALLOWED_RISE = 0.02


@dataclass(frozen=True)
class State:
    """What a process holds: resident memory in MB, open files, live tensors, threads."""

    memory: float
    files: int
    tensors: int
    threads: int


def main() -> int:
    """Run the audits and write the table; 1 where the process grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=200)
    parser.add_argument("--workers", type=int, default=None)
    arguments = parser.parse_args()
    states, began = [], time.perf_counter()
    for number in range(arguments.audits):
        audited(number, arguments.workers)
        states.append(state())
        if number % 10 == 9:
            print(number + 1, states[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
            (HERE / "growth.md").write_text(table(states, arguments.workers), encoding="utf-8")
    (HERE / "growth.md").write_text(table(states, arguments.workers), encoding="utf-8")
    return int(not steady(states))


def audited(seed: int, workers: int | None = None, model: str = MODEL) -> str:
    """The label that one small audit gives."""
    settings = AuditSettings(budget="quick", samples=SAMPLES, seed=seed, workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        audit = api.run(api.prepare(api.Request(model, settings=settings)), out=Path(folder))
    return audit.report.verdict.label


def state() -> State:
    """What this process holds now (Linux)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    files = len(os.listdir("/proc/self/fd"))
    return State(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, tensors, threading.active_count())


def steady(states: Sequence[State]) -> bool:
    """Whether nothing grew after the first tenth, and memory not from the second quarter to the last."""
    early, quarter = states[: max(1, len(states) // 10)], max(1, len(states) // 4)
    held = max(early, key=lambda s: s.files).files, max(s.tensors for s in early), max(s.threads for s in early)
    last = states[-1]
    before = statistics.median(s.memory for s in states[quarter : 2 * quarter] or states)
    after = statistics.median(s.memory for s in states[-quarter:])
    return (last.files, last.tensors, last.threads) <= held and after <= (1 + ALLOWED_RISE) * before


def table(states: Sequence[State], workers: int | None) -> str:
    """The figures as Markdown."""
    shown = sorted({0, *(round(part * (len(states) - 1)) for part in (0.1, 0.25, 0.5, 0.75, 1.0))})
    return "\n".join([
        "# Audits one after the other in one process",
        "",
        f"Made by `OMP_NUM_THREADS=1 python benchmarks/growth.py --audits {len(states)}"
        f"{'' if workers is None else f' --workers {workers}'}` (its docstring says how): "
        f"`{MODEL}`, quick budget, {SAMPLES} points, another seed each. "
        f"Nothing grew: {'yes' if steady(states) else 'NO'}. {figures_of([commit()])}",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}.",
        "",
        "| after audit | resident memory (MB) | open files | live tensors | threads |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {n + 1} | {states[n].memory:.0f} | {states[n].files} | {states[n].tensors} | {states[n].threads} |"
            for n in shown
        ),
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
