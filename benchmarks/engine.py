"""How much an attack costs beyond its passes through the model.

    python benchmarks/engine.py [--networks NAME …] [--attacks NAME …] [--points N …] [--threads N …]
                                [--repeats N] [--device cpu|cuda] [--no-peers] [--most-seconds S] [--check]
    python benchmarks/engine.py --memory | --agreement [--device cuda]

All sizes:         --networks small-cnn resnet18 --points 100 1000 10000 --threads 1 2 --most-seconds 600
Large images:      --networks image-cnn --points 16 --no-peers
On an accelerator: --device cuda --networks resnet18 wrn28-10 --points 100 1000 10000, then --agreement --device cuda

The engine ratio is the CPU time of an attack (device time on an accelerator) over passes × time of one
optimally batched pass of the same network, forward or forward and backward to the input, measured right
before and after the attack. 1 is the physical limit. All engines run interleaved, on the same points, with
an ε so small that hardly any point breaks: every engine then makes all its passes, and what is compared is
what it does around them. The figure is the median of the repeats.

From 1,000 points on the attacks take fewer steps (`plan`), and with `--most-seconds` a combination of which one run
would take longer is named and left out.

Results are appended to `benchmarks/engine-DEVICE.jsonl` (`benchmarks/records.py`), the newest of each combination are
the table `engine-DEVICE.md`.
`--check` measures our ratios anew and compares them with the committed ones instead; exit status 1 where
one has slipped by more than `SLACK`. `--agreement` runs every attack on the CPU and on the device with the same seeds
and notes how many points share their fate (on the CPU: with batches of another size).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.engine_agreement import agreement_rows, machine
from benchmarks.engine_networks import NETWORKS
from benchmarks.engine_subjects import BATCH, FORWARD, Counted, Run, subjects
from benchmarks.records import Record, RecordFile, commit, figures_of

HERE = Path(__file__).resolve().parent

#: Attack → (steps or queries, target classes) by size of network: the expensive ones get fewer steps.
SMALL = {
    "pgd": (40, 1), "apgd-ce": (100, 1), "apgd-t": (100, 3), "square": (1000, 1), "finite-differences": (2000, 1),
    "decision": (300, 1), "noise": (300, 1),
}  # fmt: skip
LARGE = {
    "pgd": (10, 1), "apgd-ce": (10, 1), "apgd-t": (10, 2), "square": (20, 1), "finite-differences": (300, 1),
    "decision": (20, 1), "noise": (20, 1),
}  # fmt: skip
#: Most of those steps from so many points on: a run must end, and fewer would weigh how an attack begins.
FEWER = ((1_000, 20),)
#: … for large networks.
FEWER_LARGE = ((10_000, 2), (1_000, 4))
#: Radius at which hardly any point breaks.
EPS = 1e-3
#: How much a ratio may rise above the committed one, as a share of it: what repeated runs on a busy machine differ by.
SLACK = 0.08
#: Steps between which memory may not grow.
MEMORY_STEPS = (50, 400)

Row = dict[str, Any]


def main() -> int:
    """Measure, and write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=["small-cnn"])
    parser.add_argument("--attacks", nargs="*", choices=list(SMALL), default=list(SMALL))
    parser.add_argument("--points", nargs="*", type=int, default=[100])
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--most-seconds", type=float, default=float("inf"), metavar="S")
    parser.add_argument("--agreement", action="store_true", help="compare results of CPU and device instead")
    parser.add_argument("--memory", action="store_true", help="measure memory against steps instead")
    parser.add_argument("--peak", nargs=3, metavar=("ENGINE", "ATTACK", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_bytes(arguments.peak[0], arguments.peak[1], int(arguments.peak[2]), arguments.device))
        return 0
    file = RecordFile(HERE / f"engine-{arguments.device}.jsonl")
    if arguments.check:
        slips = slipped(document_of(file.read())["rows"], list(measured(arguments)))
        print("\n".join(slips) or f"No ratio rose by more than {SLACK:.0%}.")
        return 1 if slips else 0
    part, rows = "rows", measured(arguments)
    if arguments.memory:
        part, rows = "memory", memory_rows(arguments.device)
    elif arguments.agreement:
        part, rows = "agreement", agreement_rows(arguments.device)
    for row in rows:  # the table after every row, so that a run that is broken off loses nothing
        file.append({"part": part, **row, "commit": commit()})
        text = table(document_of(file.read()), arguments.device)
        file.path.with_suffix(".md").write_text(text, encoding="utf-8")
    return 0


def document_of(records: list[Record]) -> dict[str, list[Row]]:
    """The newest rows by part: ratios, sorted; peaks of memory, and fates on two devices."""
    found: dict[str, dict[tuple[Any, ...], Row]] = {"rows": {}, "memory": {}, "agreement": {}}
    for record in records:
        part = record.get("part", "rows")
        name = key(record) if part == "rows" else (record["attack"], record.get("engine"), record.get("points"))
        found[part][name] = record
    return {part: [rows[k] for k in (sorted(rows) if part == "rows" else rows)] for part, rows in found.items()}


def measured(arguments: argparse.Namespace) -> Any:
    """Rows of the asked combinations."""
    for name in arguments.networks:
        factory, shape = NETWORKS[name]
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for n in arguments.points:
                torch.manual_seed(0)
                network = factory().eval().to(arguments.device)
                x = torch.rand(n, *shape, device=arguments.device)
                with torch.no_grad():
                    y = torch.cat([network(part).argmax(1) for part in x.split(BATCH)])
                for attack in arguments.attacks:
                    steps, targets = plan(attack, shape, n)
                    expected = n * steps * targets * floor(network, x)[attack not in FORWARD]
                    if expected > arguments.most_seconds:
                        print(f"{name} {attack}-{steps} N={n} threads={threads}: left out, {expected:.0f} s a run")
                        continue
                    engines = subjects(attack, steps, targets, EPS)
                    if arguments.no_peers or arguments.check:
                        engines = {"maskaudit": engines["maskaudit"]}
                    for engine, figures in ratios(network, x, y, engines, arguments.repeats).items():
                        row = {"network": name, "attack": attack, "steps": steps, "targets": targets, "points": n,
                               "threads": threads, "engine": engine, "machine": machine(arguments.device),
                               **figures}  # fmt: skip
                        spread = f"{row['lowest']:.3f}–{row['highest']:.3f}"
                        print(f"{name} {attack}-{steps} N={n} threads={threads} {engine}: ratio {row['ratio']:.3f} "
                              f"({spread}), {row['seconds']:.2f} s", flush=True)  # fmt: skip
                        yield row


def plan(attack: str, shape: tuple[int, ...], n: int) -> tuple[int, int]:
    """Steps or queries, and target classes, of an attack on `n` points of a shape (C, H, W)."""
    steps, targets = (SMALL if shape[0] == 1 else LARGE)[attack]
    most = next((few for least, few in (FEWER if shape[0] == 1 else FEWER_LARGE) if n >= least), steps)
    return min(steps, most), targets


def ratios(network: nn.Module, x: Tensor, y: Tensor, engines: dict[str, Run], repeats: int) -> dict[str, Row]:
    """Engine → median, lowest and highest ratio, seconds and passes; engines take turns in every repeat."""
    seen: dict[str, list[tuple[float, float, int, int]]] = {engine: [] for engine in engines}
    for _ in range(repeats):
        for engine, run in engines.items():
            counted = Counted(network).eval()
            before = floor(network, x)
            seconds = clocked(lambda run=run, counted=counted: run(counted, x, y), x.device)  # type: ignore[misc]
            after = floor(network, x)
            forward, both = ((before[i] + after[i]) / 2 for i in range(2))
            least = counted.backwards * both + (counted.forwards - counted.backwards) * forward
            seen[engine].append((seconds / least, seconds, counted.forwards, counted.backwards))
    return {
        engine: {
            "ratio": round(statistics.median(r[0] for r in runs), 4),
            "lowest": round(min(r[0] for r in runs), 4),
            "highest": round(max(r[0] for r in runs), 4),
            "seconds": round(statistics.median(r[1] for r in runs), 3),
            "forwards": runs[0][2],
            "backwards": runs[0][3],
            "repeats": repeats,
        }
        for engine, runs in seen.items()
    }


def floor(network: nn.Module, x: Tensor, passes: int = 5) -> tuple[float, float]:
    """Seconds per point of a forward pass and of a forward and backward pass to the input, medians."""
    batch = x[:BATCH]

    def forward() -> None:
        with torch.no_grad():
            network(batch)

    def both() -> None:
        leaf = batch.detach().requires_grad_(True)
        torch.autograd.grad(network(leaf).sum(), leaf)

    forward(), both()
    return tuple(statistics.median(clocked(f, x.device) for _ in range(passes)) / len(batch) for f in (forward, both))  # type: ignore[return-value]


def clocked(work: Callable[[], Any], device: torch.device) -> float:
    """CPU seconds of all threads, or on an accelerator the seconds between two device events."""
    if device.type != "cuda":
        started = time.process_time()
        work()
        return time.process_time() - started
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def memory_rows(device: str) -> list[Row]:
    """Peak memory above the start of the attack, per engine and number of steps, each in a process of its own."""
    rows = []
    for attack in ("pgd", "apgd-ce"):
        for engine in subjects(attack, 1, 1, EPS):
            peaks = []
            for steps in MEMORY_STEPS:
                command = [sys.executable, __file__, "--device", device, "--peak", engine, attack, str(steps)]
                peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            rows.append(
                {"attack": attack, "engine": engine, "steps": MEMORY_STEPS, "mebibytes": [p >> 20 for p in peaks]}
            )
            print(rows[-1], flush=True)
    return rows


def peak_bytes(engine: str, attack: str, steps: int, device: str) -> int:
    """Rise of this process's peak memory while an attack runs on a network whose parameters require gradients."""
    torch.manual_seed(0)
    factory, shape = NETWORKS["strided-cnn"]
    network, x = factory().eval().to(device), torch.rand(64, *shape, device=device)
    y = network(x).argmax(1)
    runs = {size: subjects(attack, size, 1, EPS)[engine] for size in (2, steps)}
    runs[2](network, x, y)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.max_memory_allocated()
        runs[steps](network, x, y)
        return torch.cuda.max_memory_allocated() - held
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs[steps](network, x, y)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * 1024


def key(row: Row) -> tuple[Any, ...]:
    """What a ratio belongs to."""
    return tuple(row[name] for name in ("network", "attack", "steps", "targets", "points", "threads", "engine"))


def slipped(committed: list[Row], now: list[Row]) -> list[str]:
    """One sentence for each of our ratios that rose by more than `SLACK`, and for each that was never committed."""
    known = {key(row): row["ratio"] for row in committed}
    sentences = []
    for row in now:
        name = f"{row['network']} {row['attack']}-{row['steps']} on {row['points']} points, {row['threads']} thread(s)"
        if key(row) not in known:
            sentences.append(f"{name}: ratio {row['ratio']:.3f}, nothing committed to compare with.")
        elif row["ratio"] > known[key(row)] * (1 + SLACK):
            sentences.append(f"{name}: ratio {row['ratio']:.3f}, committed {known[key(row)]:.3f}.")
    return sentences


def table(document: dict[str, Any], device: str) -> str:
    """The committed document."""
    rows = document["rows"]
    lines = [
        f"# Engine ratio on {device}", "",
        "CPU time (device time on an accelerator) of an attack over passes × time of one optimally batched pass; 1 is "
        "the physical limit. Median of interleaved repeats (lowest–highest). See [README.md](README.md). "
        + figures_of(r.get("commit") for r in (*rows, *document["memory"], *document["agreement"])), "",
        "| network | attack | points | threads | engine | ratio | range | seconds | machine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in rows:
        targets = f"×{r['targets']}" if r["targets"] > 1 else ""
        lines.append(
            f"| {r['network']} | {r['attack']}-{r['steps']}{targets} | {r['points']} | {r['threads']} | {r['engine']} "
            f"| {r['ratio']:.3f} | {r['lowest']:.3f}–{r['highest']:.3f} | {r['seconds']:.2f} | {r['machine']} |"
        )
    if document["memory"]:
        lines += [
            "", "Rise of the peak memory during an attack (strided-cnn, 64 points, parameters that require gradients):",
            "", "| attack | engine | " + " | ".join(f"{s} steps" for s in MEMORY_STEPS) + " |", "|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {r['attack']} | {r['engine']} | " + " | ".join(f"{m} MiB" for m in r["mebibytes"]) + " |"
            for r in document["memory"]
        ]
    if document["agreement"]:
        lines += [
            "", "Same seeds on the CPU and on the device (on the CPU: in batches of another size):", "",
            "| attack | points | broken on the CPU | same fate | same step of first success | machine |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {r['attack']} | {r['points']} | {r['broken']} | {r['same_fate']} | {r['same_step']} | {r['machine']} |"
            for r in document["agreement"]
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
