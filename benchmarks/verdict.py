"""Audit the whole zoo with several seeds, run the peers beside it, and write the table of verdicts against the truth.

    python benchmarks/verdict.py [--seeds 3] [--budget standard] [--peers] [--jobs N]
    python benchmarks/verdict.py --render            the table from what has been run

Every finished run is appended to `benchmarks/verdict-BUDGET.jsonl`, behind what was committed of it
(`benchmarks/records.py`); a rerun skips what is there for the same weights, points and sources.
`benchmarks/verdict-BUDGET.md` is rendered from these records and from what the zoo knows.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several runs share the cores
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import PEERS
from benchmarks.records import DECIDING, UNDECIDING, Record, RecordFile, key_of, latest, sources_digest
from benchmarks.running import Job, run_all
from benchmarks.table import Knowledge, render
from maskaudit import zoo
from maskaudit.zoo import ZOO
from maskaudit.zoo.truth import read_truths

HERE = Path(__file__).resolve().parent

#: Points that a peer is given: about as many as its authors use to say anything.
PEER_POINTS = 200

#: What an audit, and what a peer, depends on.
AUDIT_SOURCES = tuple(f"maskaudit/{room}" for room in DECIDING)
PEER_SOURCES = ("benchmarks/peers", "maskaudit/zoo")


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="audits per model, seeds from 0")
    parser.add_argument("--first-seed", type=int, default=0, help="leave out the audits of smaller seeds")
    parser.add_argument("--budget", choices=("quick", "standard", "thorough"), default="standard")
    parser.add_argument("--models", nargs="*", default=list(ZOO), metavar="NAME", choices=list(ZOO))
    parser.add_argument("--part", choices=("tune", "check"), help="only this part of the zoo")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), metavar="PEER", help="run peers, all if none named")
    parser.add_argument("--peer-seeds", type=int, default=1, help="runs of each peer per model")
    parser.add_argument("--peer-points", type=int, help=f"points a peer gets, {PEER_POINTS} if not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one core")
    parser.add_argument("--limit", type=float, default=1800, help="seconds an audit may take")
    parser.add_argument("--peer-limit", type=float, default=600, help="seconds a peer may take on a model")
    parser.add_argument("--records", type=Path, help="the file of finished runs")
    parser.add_argument("--out", type=Path, help="the table")
    parser.add_argument("--render", action="store_true", help="run nothing, write the table")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing and write the table."""
    asked = options().parse_args(arguments)
    models = [name for name in asked.models if asked.part in (None, ZOO[name].part)]
    file = RecordFile(asked.records or HERE / f"verdict-{asked.budget}.jsonl")
    jobs = [] if asked.render else missing(planned_jobs(asked, models), file.read())
    print(f"{len(jobs)} runs to do, {len(file.read())} records in {file.path}", flush=True)
    left = len(jobs)

    def keep(record: Record) -> None:
        nonlocal left
        left -= 1
        file.append(record)
        print(f"{line(record)}  ({left} left)", flush=True)

    run_all(jobs, at_once=asked.jobs, limits={"audit": asked.limit, "peer": asked.peer_limit}, on_record=keep)
    chosen = [
        r
        for r in latest(file.read())
        if r["model"] in models and r["budget"] == asked.budget and (r["kind"] == "peer" or r["seed"] < asked.seeds)
    ]
    out = asked.out or HERE / f"verdict-{asked.budget}.md"
    given = [a for a in (sys.argv[1:] if arguments is None else arguments) if a != "--render"]
    command = shlex.join(["python", "benchmarks/verdict.py", *given])
    known = Knowledge(ZOO, read_truths())
    text = render(chosen, known, budget=asked.budget, command=command, planned=len(models) * asked.seeds)
    out.write_text(text, encoding="utf-8")
    print(f"written to {out}")


def planned_jobs(asked: argparse.Namespace, models: list[str]) -> list[Job]:
    """Everything that the command asks for, audits of a model first; networks are trained here if need be."""
    audit_code, peer_code = sources_digest(*AUDIT_SOURCES, but=UNDECIDING), sources_digest(*PEER_SOURCES)
    points = asked.peer_points or PEER_POINTS
    peers = [] if asked.peers is None else asked.peers or list(PEERS)
    jobs = []
    print(f"loading {len(models)} models; a network that is not in the cache is trained first", flush=True)
    for name in models:
        try:
            weights = zoo.load(name).sha256
        except Exception as error:  # one model that does not load must not stop the others
            print(f"{name} cannot be loaded and is left out: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        jobs += [
            Job("audit", name, weights, seed, asked.budget, audit_code) for seed in range(asked.first_seed, asked.seeds)
        ]
        jobs += [
            Job("peer", name, weights, seed, asked.budget, peer_code, peer, points)
            for seed in range(asked.peer_seeds)
            for peer in peers
        ]
    return jobs


def missing(jobs: list[Job], records: list[Record]) -> list[Job]:
    """Jobs without a record; what crashed is not tried again, what ran out of time or lacked a package is."""
    done = {key_of(r) for r in records if r["status"] in ("ran", "failed", "crash")}
    return [job for job in jobs if key_of(vars(job)) not in done]


def line(record: Record) -> str:
    """Progress, in a line."""
    title = f"{record['model']:<24} seed {record['seed']} {record['peer'] or 'audit':<24}"
    if record["status"] != "ran":
        return f"{title} {record['status']}: {record['reason']}"
    if record["kind"] == "audit":
        return f"{title} {record['document']['verdict']['label']:<13} {record['seconds']} s"
    fired = [name for name, on in record["indicators"].items() if on]
    return f"{title} {', '.join(fired) or 'quiet':<13} {record['seconds']} s"


if __name__ == "__main__":
    main()
