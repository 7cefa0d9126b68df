"""What does a whole audit cost when more points are there?

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [--models NAME …] [--points N …] [--budgets NAME …] [--render]
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --autoattack --points 100 300 1000

Each audit is offered N points of the model's data set and `--samples N`. Its cost should grow linearly until the
verdict is decided, and then stay flat: an audit draws points in looks, and stops at the first that decides.

Fashion-MNIST serves its 10,000 test images first and then its training images; of other data sets the test points are
repeated with uniform noise of 1/100 of the bounds on every repeat, so that no point comes twice.

With `--autoattack` the official AutoAttack, a clone of https://github.com/fra31/auto-attack on `PYTHONPATH`, attacks N
points of the test images instead; what it costs in points and seconds is given next to the audits.

Finished rows are kept in `benchmarks/scaling.jsonl` (`benchmarks/records.py`), keyed by model, budget and N; the table
is `benchmarks/scaling.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import RecordFile, commit, figures_of
from benchmarks.running import Job, perform
from maskaudit import api
from maskaudit.data import Dataset, load_data
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS, AuditSettings
from maskaudit.verdict.statistics import rate

HERE = Path(__file__).resolve().parent
#: One model that breaks at once and one that is robust.
MODELS = ("fashion-standard", "fashion-pgd-at")
POINTS = (100, 300, 1_000, 3_000, 10_000, 50_000)
#: Stands in the place of a budget in the rows of the official AutoAttack.
AUTOATTACK = "AutoAttack"
#: Half-width of the noise on repeated points, as a share of the bounds: too little to change a label.
REPEAT_NOISE = 0.01

Row = dict[str, Any]


def main() -> int:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="NAME", help="of the zoo")
    parser.add_argument("--points", nargs="*", type=int, default=list(POINTS), metavar="N")
    parser.add_argument("--budgets", nargs="*", choices=list(BUDGETS), default=["quick", "standard"])
    parser.add_argument("--autoattack", action="store_true", help="run the official AutoAttack instead of audits")
    parser.add_argument("--render", action="store_true", help="write the table from the kept rows alone")
    arguments = parser.parse_args()
    file, rows = RecordFile(HERE / "scaling.jsonl"), list[Row]()
    for record in file.read():
        rows = merged(rows, record)
    budgets = [AUTOATTACK] if arguments.autoattack else arguments.budgets
    for budget in () if arguments.render else budgets:
        for model in arguments.models:
            for n in arguments.points:
                row = attacked(model, n) if budget == AUTOATTACK else measured(model, budget, n)
                print(row, flush=True)
                file.append({**row, "commit": commit()})
                rows = merged(rows, {**row, "commit": commit()})
    (HERE / "scaling.md").write_text(table(rows), encoding="utf-8")
    return 0


def measured(model: str, budget: Any, n: int) -> Row:
    """One audit of a model of the zoo that is offered `n` points."""
    settings = AuditSettings(budget=budget, samples=n)
    prepared = api.prepare(api.Request(f"zoo:{model}", settings=settings))
    prepared = dataclasses.replace(prepared, data=offered(prepared.data, n))
    started = time.process_time()
    document = api.run(prepared).report.to_dict()
    seconds = time.process_time() - started
    return {
        "model": model, "budget": budget, "points": n, "drawn": document["settings"]["samples"],
        "verdict": document["verdict"]["label"], "robust": document["accuracy"]["best_known"],
        "forwards": document["timing"]["forwards"], "backwards": document["timing"]["backwards"],
        "cpu_seconds": round(seconds, 2), "machine": machine(),
    }  # fmt: skip


def attacked(model: str, n: int) -> Row:
    """The official AutoAttack on `n` points of a model of the zoo."""
    record = perform(Job("peer", model, "", 0, "standard", "", peer="autoattack", points=n))
    unbroken = record["unbroken"]
    return {
        "model": model, "budget": AUTOATTACK, "points": n, "drawn": len(unbroken), "verdict": "",
        "robust": dataclasses.asdict(rate(sum(unbroken), len(unbroken))),
        "forwards": record["forwards"], "backwards": record["backwards"],
        "cpu_seconds": record["cpu_seconds"], "machine": machine(),
    }  # fmt: skip


def machine() -> str:
    """Processor, threads and torch."""
    return f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def offered(data: Dataset, n: int) -> Dataset:
    """`n` points of the data set: as they come, then the training images of Fashion-MNIST, else noisy repeats."""
    x, y = data.x, data.y
    if data.name == "fashion-mnist" and n > len(x):
        more = load_data("fashion-mnist", split="train", bounds=data.bounds)
        x, y = torch.cat([x, more.x]), torch.cat([y, more.y])
    while len(x) < n:
        step = len(x) // len(data.x)
        width = data.bounds[1] - data.bounds[0]
        noise = 2 * PointRNG.create(step, "repeats", torch.arange(len(data.x))).uniform(data.x.shape[1:]) - 1
        x = torch.cat([x, (data.x + REPEAT_NOISE * width * noise).clamp(*data.bounds)])
        y = torch.cat([y, data.y])
    return dataclasses.replace(data, x=x[:n], y=y[:n])


def merged(rows: list[Row], row: Row) -> list[Row]:
    """All rows with the new one in the place of an old one of the same key, sorted."""
    kept = {(r["budget"], r["model"], r["points"]): r for r in (*rows, row)}
    return [kept[key] for key in sorted(kept)]


def table(rows: list[Row]) -> str:
    """The committed document."""
    command = "OMP_NUM_THREADS=1 python benchmarks/scaling.py"
    lines = [
        "# Cost of an audit against the points that are there", "",
        "Each audit was offered N points and `--samples N`; *drawn* is how many it took before the verdict was decided "
        "or no more were allowed. AutoAttack attacks all of them. Robust accuracy is the best known one on the drawn "
        "points, with its exact 99 % interval for more of them. Passes are counted in points. Made by "
        f"`{command}`, and with `--autoattack --points 100 300 1000`. See [README.md](README.md). "
        + figures_of(r.get("commit") for r in rows), "",
        "| budget | model | N offered | drawn | verdict | robust accuracy | forward passes | backward passes "
        "| CPU seconds | machine |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['budget']} | {r['model']} | {r['points']:,} | {r['drawn']:,} | {r['verdict'] or '–'} "
        f"| {r['robust']['value']:.3f} ({r['robust']['low']:.2f}–{r['robust']['high']:.2f}) | {r['forwards']:,} "
        f"| {r['backwards']:,} | {r['cpu_seconds']:.1f} | {r['machine']} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
