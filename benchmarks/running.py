"""Run audits and peers, each in a process of its own with a hard time limit, several at once."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.peers import PEERS
from benchmarks.peers.interface import CountingModel, PeerTask, PeerUnavailableError
from benchmarks.records import Record, commit, machine
from maskaudit import api
from maskaudit.auditing.evidence import read_evidence, verify_audit
from maskaudit.settings import AuditSettings
from maskaudit.target.rescore import clean_correct, rescore
from maskaudit.threat import ThreatModel

#: Modules that the server of processes imports once, so that a run does not wait for torch.
PRELOAD = ("benchmarks.running",)

#: Characters of an error that are kept.
REASON_LENGTH = 200


@dataclass(frozen=True)
class Job:
    """One run. `points` is what a peer gets, 0 for an audit, which chooses itself; `code` digests the sources."""

    kind: Literal["audit", "peer"]
    model: str
    weights: str
    seed: int
    budget: str
    code: str
    peer: str = ""
    points: int = 0

    @property
    def title(self) -> str:
        """For progress lines."""
        return f"{self.model} {self.peer or 'audit'} seed {self.seed}"


def run_all(
    jobs: Sequence[Job], *, at_once: int, limits: dict[str, float], on_record: Callable[[Record], None]
) -> None:
    """Run all jobs, `at_once` at a time; `limits` are seconds by kind. Every job yields one record."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    with ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(run_limited, job, limits[job.kind], context) for job in jobs]
        try:
            for finished in as_completed(running):
                on_record(finished.result())
        except BaseException:  # also the user's interrupt: what runs may end, nothing new begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_limited(job: Job, limit: float, context: multiprocessing.context.BaseContext | None = None) -> Record:
    """Run one job in a process of its own; past `limit` seconds it is ended and the record says so."""
    context = context or multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, sender), daemon=True)  # type: ignore[attr-defined]
    started = time.perf_counter()
    process.start()
    sender.close()
    outcome: Record
    try:
        if receiver.poll(limit):
            outcome = receiver.recv()
        else:
            outcome = {"status": "timeout", "reason": f"not finished after {limit:g} s"}
    except EOFError:
        outcome = {"status": "crash", "reason": "the process ended without an answer"}
    finally:
        process.kill() if process.is_alive() else None
        process.join()
        receiver.close()
    outcome.setdefault("seconds", round(time.perf_counter() - started, 2))
    return {**asdict(job), "machine": machine(), "commit": commit(), **outcome}


def _child(job: Job, sender: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    try:
        outcome = perform(job)
    except PeerUnavailableError as error:
        outcome = {"status": "unavailable", "reason": str(error)}
    except Exception as error:  # whatever a peer or a model raises is a row of the table
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"
        outcome = {"status": "crash", "reason": " ".join(text.split())[:REASON_LENGTH]}
    sender.send(outcome)
    sender.close()


def perform(job: Job) -> Record:
    """Do the job here: what the record holds besides the job itself."""
    settings = AuditSettings(budget=job.budget, seed=job.seed)
    prepared = api.prepare(api.Request(f"zoo:{job.model}", settings=settings))
    return _audit(prepared) if job.kind == "audit" else _peer(job, prepared)


def _audit(prepared: api.Prepared) -> Record:
    cpu = time.process_time()
    audit = api.run(prepared)
    cpu = time.process_time() - cpu
    document = audit.report.to_dict()
    points, module = document["points"], prepared.loaded.module
    checks = verify_audit(document, read_evidence(audit.evidence, "evidence"), module, prepared.loaded.sha256)
    return {
        "status": "ran" if audit.failure is None else "failed",
        "reason": "" if audit.failure is None else str(audit.failure)[:REASON_LENGTH],
        "seconds": document["timing"]["total_seconds"],
        "cpu_seconds": round(cpu, 2),
        "forwards": document["timing"]["forwards"],
        "backwards": document["timing"]["backwards"],
        "own": _white_box(document),
        "unproven": {check.name: check.detail[:REASON_LENGTH] for check in checks if not check.holds},
        "document": {
            "target": {"sha256": document["target"]["sha256"]},
            "verdict": document["verdict"],
            "accuracy": document["accuracy"],
            "masking": document["masking"],
            "power": document["power"],
            # which attack broke a point is of no use here: 1 for any attack
            "points": {
                "index": points["index"],
                "correct": [int(c) for c in points["correct"]],
                "broken_by": [[1] if names else [] for names in points["broken_by"]],
            },
        },
    }


def _white_box(document: Mapping[str, Any]) -> Record:
    """What the white-box attacks cost, and which points they left unbroken."""
    ran = [attack for attack in document["attacks"] if attack["role"] in ("reference", "strong")]
    names, points = {attack["name"] for attack in ran}, document["points"]
    return {
        "forwards": sum(attack["forwards"] for attack in ran),
        "backwards": sum(attack["backwards"] for attack in ran),
        "seconds": round(sum(attack["seconds"] for attack in ran), 3),
        "unbroken": [
            int(correct and names.isdisjoint(broken))
            for correct, broken in zip(points["correct"], points["broken_by"], strict=True)
        ],
    }


def _peer(job: Job, prepared: api.Prepared) -> Record:
    module = prepared.loaded.module
    assert isinstance(module, nn.Module)
    index, x, y = prepared.data.sample(job.points, job.seed)
    return {"status": "ran", "reason": "", "index": index.tolist()} | attacked(
        job.peer, module, x, y, prepared.threat, seed=job.seed
    )


def attacked(peer: str, module: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int) -> Record:
    """What a peer says of a model on points (N, …) with labels (N,), which of them its examples leave, and its cost."""
    module.eval()
    with torch.no_grad():
        random = not torch.equal(module(x), module(x))
    counting = CountingModel(module)
    task = PeerTask(counting, x, y, threat, seed, random)
    started, cpu = time.perf_counter(), time.process_time()
    answer = PEERS[peer].run(task)
    return {
        "seconds": round(time.perf_counter() - started, 2), "cpu_seconds": round(time.process_time() - cpu, 2),
        "forwards": counting.forwards, "backwards": counting.backwards,
        "indicators": dict(answer.indicators),
        "figures": {name: round(float(value), 4) for name, value in answer.figures.items()},
        "unbroken": None if answer.examples is None else _unbroken(module, task, answer.examples),
    }  # fmt: skip


def _unbroken(module: nn.Module, task: PeerTask, examples: Tensor) -> list[int]:
    """1 per point that is correct and withstands the peer's example, scored as an audit scores its own."""

    def raw(x: Tensor) -> Any:
        with torch.no_grad():
            return module(x)

    correct = clean_correct(raw, task.x, task.y, random=task.random)
    score = rescore(raw, examples.detach(), task.x, task.y, threat=task.threat, random=task.random)
    return (correct & ~score.broken).int().tolist()
