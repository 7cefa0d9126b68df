"""How far does an audit spread: workers on one machine, measured, and 1,000 workers of a cluster, simulated.

    OMP_NUM_THREADS=1 python benchmarks/workers.py [--repeats 3]

Throughput: one attack runs on the same points in this process, in worker processes, and on a Ray cluster of this
machine (where ray is installed), in turn, so that what else the machine does falls on all alike; the median counts.

Simulation: the durations of single tasks, the cost of sending a parcel and hearing of it, and its size are measured
here, in CPU time, which what else the machine does hardly changes. Then one driver hands out parcels, as
`maskaudit.auditing.engine` makes them, to ever more workers. Only the network is assumed. The page is
`benchmarks/workers.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import math
import os
import pickle
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import commit, figures_of
from maskaudit import zoo
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.registry import battery
from maskaudit.auditing.engine import engine_for
from maskaudit.auditing.engine.interface import Engine, Job, shard_points
from maskaudit.auditing.engine.local import Local
from maskaudit.auditing.engine.processes import Processes
from maskaudit.auditing.engine.ray import AHEAD
from maskaudit.auditing.engine.ray_messages import PARCEL_BYTES, BoundTask, parcel_tasks
from maskaudit.data import load_data
from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS, AuditSettings
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

HERE = Path(__file__).resolve().parent
#: Points of the throughput runs; tasks by which dispatch is measured; tasks that are timed.
POINTS, IDLE, TIMED = 768, 100, 6
#: Assumed network: bytes per second out of the driver's machine, and CPUs of a node.
BANDWIDTH, NODE = 1.25e9, 16
WORKERS = (1, 10, 100, 300, 1000)
TOTALS = (10**3, 10**4, 10**5, 10**6, 10**7)
SPECS = {spec.name: spec for spec in battery(BUDGETS["quick"])}


@dataclass(frozen=True)
class Costs:
    """What one kind of work costs.

    Attributes:
        name: of the work; shard: points of a task; seconds: durations of single tasks.
        size: bytes of a task; model: bytes of the model.
    """

    name: str
    shard: int
    seconds: tuple[float, ...]
    size: int
    model: int


class Small(nn.Module):
    """Two convolutions and a linear layer for images of 3×224×224."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 7, 4), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores


def main() -> None:
    """Measure, simulate, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    standard, data = zoo.network("standard").module, load_data("digits", split="all")
    assert isinstance(standard, nn.Module)
    x, y = data.x[:POINTS], data.y[:POINTS]
    rows = throughput(standard, x, y, repeats)
    pair = torch.rand(32, 3, 224, 224), torch.arange(32) % 10
    works = [
        costs("Square, 400 queries, on the digits", standard, SPECS["square"], (x, y)),
        costs("PGD, 40 steps, on the digits", standard, SPECS["pgd"], (x, y)),
        costs("PGD, 40 steps, two convolutions, 3×224×224", Small(), SPECS["pgd"], pair),
    ]
    sending = {"`--workers`": dispatch(Processes(1), standard, x, y)}
    with on_ray() as engine:
        if engine is not None:
            sending["`--ray`"] = dispatch(engine, standard, x, y)
    page = written(rows, works, sending)
    (HERE / "workers.md").write_text(page, encoding="utf-8")
    print(page)


def job(spec: AttackSpec, x: Tensor, y: Tensor) -> Job:
    """An attack on points."""
    rng = PointRNG.create(0, spec.name, torch.arange(len(x)))
    return Job(spec, x, y, ThreatModel("Linf", 0.1, (0.0, 1.0)), rng, dict(spec.settings))


@contextlib.contextmanager
def on_ray() -> Iterator[Engine | None]:
    """A cluster of this machine's CPUs, where one can be started."""
    try:
        engine = engine_for(AuditSettings(ray="local"))
    except UsageError:
        yield None
        return
    with contextlib.closing(engine):
        yield engine


def timed(engine: Engine, whole: Job, model: nn.Module) -> float:
    """Seconds of an attack."""
    with Target(model) as target:
        began = time.perf_counter()
        engine.run(whole.shards(target.device), target)
        return time.perf_counter() - began


def throughput(model: nn.Module, x: Tensor, y: Tensor, repeats: int) -> list[tuple[str, float, float]]:
    """Name of the engine, points per second, and how many times those of this process; medians of interleaved runs."""
    whole = job(SPECS["square"], x, y)
    with on_ray() as ray:
        engines: dict[str, Engine] = {"this process": Local()}
        engines |= {f"`--workers {n}`": Processes(n) for n in (1, 2, 4)}
        engines |= {"`--ray local`": ray} if ray is not None else {}
        for engine in engines.values():
            timed(engine, job(SPECS["pgd"], x[:256], y[:256]), model)  # what is done once is done before
        runs = [{name: timed(engine, whole, model) for name, engine in engines.items()} for _ in range(repeats)]
    rate = {name: len(x) / statistics.median(run[name] for run in runs) for name in engines}
    return [(name, value, value / rate["this process"]) for name, value in rate.items()]


def costs(name: str, model: nn.Module, spec: AttackSpec, points: tuple[Tensor, Tensor]) -> Costs:
    """What the tasks of an attack cost."""
    with Target(model) as target:
        shards = job(spec, *points).shards(target.device)
        Local().run(shards[:1], target)
        seconds = tuple(_cpu_seconds(Local(), [shard], target) for shard in shards[:TIMED])
        bare = Target(nn.Identity())
        size = len(pickle.dumps(BoundTask(bare, shards[0])))
    return Costs(name, shard_points(points[0]), seconds, size, len(pickle.dumps(model)))


def _cpu_seconds(engine: Engine, tasks: Sequence[Job], target: Target) -> float:
    """CPU seconds of this process, all threads, for tasks that run in it or that it hands out."""
    began = time.process_time()
    engine.run(tasks, target)
    return time.process_time() - began


def dispatch(engine: Engine, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """CPU seconds of the driver per parcel of one small task."""
    spec = replace(SPECS["noise"], settings={"draws": 1})
    with mock.patch("maskaudit.auditing.engine.ray_messages.parcel_tasks", return_value=1), Target(model) as target:
        shard = job(spec, x[:128], y[:128])
        engine.run([shard] * 8, target)
        return _cpu_seconds(engine, [shard] * IDLE, target) / IDLE


def efficiency(work: Costs, points: int, workers: int, sending: float) -> float:
    """Work done per worker and second, of what one alone does: the driver is serial, and its network is."""
    tasks, generator = math.ceil(points / work.shard), random.Random(0)
    size = max(1, min(parcel_tasks(tasks, workers), PARCEL_BYTES // work.size))
    fetching = work.model * math.ceil(workers / NODE) / BANDWIDTH  # the model goes once to each node
    free, flying, driver, spent = [fetching] * workers, list[float](), 0.0, 0.0
    for first in range(0, tasks, size):
        count = min(size, tasks - first)
        if len(flying) >= AHEAD * workers:
            driver = max(driver, heapq.heappop(flying))
        driver += sending + count * work.size / BANDWIDTH
        takes = sum(generator.choices(work.seconds, k=count))
        ends = max(driver, heapq.heappop(free)) + takes
        heapq.heappush(free, ends)
        heapq.heappush(flying, ends)
        spent += takes
    return spent / (workers * max(free))


def bound(work: Costs, sending: float) -> tuple[float, float]:
    """Workers that the driver can keep busy with single tasks, and with parcels of as many as it may make."""
    mean = statistics.fmean(work.seconds)
    most = max(1, PARCEL_BYTES // work.size)
    return tuple(  # type: ignore[return-value]
        count * mean / (sending + count * work.size / BANDWIDTH) for count in (1, most)
    )


def written(rows: Sequence[tuple[str, float, float]], works: Sequence[Costs], sending: dict[str, float]) -> str:
    """The page."""
    slowest = max(sending.values())
    lines = [
        "# Workers on one machine, and a thousand in a cluster",
        "",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/workers.py`; its docstring says how. "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}, "
        f"torch {torch.__version__}. {figures_of([commit()])}",
        "",
        "## Measured: throughput on this machine",
        "",
        f"Square (400 queries) on {POINTS:,} digits, median of interleaved runs. Where the load is above the number of "
        "CPUs, others worked on the machine: these figures then say how the engines compare under it, not how they "
        "scale.",
        "",
        "| | points per second | times this process |",
        "|---|---:|---:|",
        *(f"| {name} | {rate:,.0f} | {times:.2f} |" for name, rate, times in rows),
        "",
        "## Measured: what a task costs",
        "",
        "| work | points per task | CPU seconds per task, median | slowest | bytes per task | model, bytes |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {work.name} | {work.shard} | {statistics.median(work.seconds):.3f} | {max(work.seconds):.3f} | "
            f"{work.size:,} | {work.model:,} |"
            for work in works
        ),
        "",
        "Sending a parcel of one task and hearing of it takes the driver, in CPU time, "
        + ", ".join(f"{1000 * seconds:.2f} ms with {name}" for name, seconds in sending.items())
        + ".",
        "",
        "## Simulated: efficiency of a cluster",
        "",
        f"Assumed: the driver sends {BANDWIDTH / 1e9:g} GB/s, and a node has {NODE} CPUs. Efficiency is the work done "
        "per worker and second, divided by what a worker does that never waits.",
    ]
    for work in works:
        lines += ["", f"### {work.name}", "", "| points | " + " | ".join(f"{n:,} workers" for n in WORKERS) + " |"]
        lines += ["|---:|" + "---:|" * len(WORKERS)]
        for points in TOTALS:
            cells = [f"{efficiency(work, points, workers, slowest):.0%}" for workers in WORKERS]
            lines.append(f"| {points:,} | " + " | ".join(cells) + " |")
        single, parcels = bound(work, slowest)
        lines += ["", f"The driver alone could keep {single:,.0f} workers busy with single tasks, and {parcels:,.0f} "
                  "with the largest parcels."]  # fmt: skip
    return "\n".join([*lines, "", *WHERE_IT_BREAKS, ""])


WHERE_IT_BREAKS = (
    "## Where it breaks, and why",
    "",
    "- **Too few tasks.** Points of a task are fixed by the size of the inputs, so that results do not depend "
    "on workers: 1,000 digits are 8 tasks, and no cluster makes them faster than 8 workers. A worker needs "
    "several tasks, or the last ones are waited for.",
    "- **The driver's own time.** One process sends every parcel. Up to four tasks per worker a parcel holds a"
    " single one, and past the bound above the driver falls behind; with more points parcels grow and it "
    "catches up. That is why 10⁷ points are shared better by 1,000 workers than 10⁵.",
    "- **The driver's network.** Points leave it once per attack. Small inputs cost nothing; 32 images of "
    "3×224×224 are 19 MB, and a cheap attack on a small network uses up the link with fewer than twenty workers. No "
    "size of parcel helps; work that takes longer per byte (larger networks, more steps) does, in proportion.",
    "- **What is not shared.** The trace, surrogates and the power check of an audit run in the driver "
    "(docs/limits.md); the simulation is of one attack.",
)


if __name__ == "__main__":
    main()
