"""Assemble the report from what the run found."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskaudit import __version__
from maskaudit.attacks.torchattacks_adapter import installed
from maskaudit.auditing.branches import sentence
from maskaudit.auditing.forecast import Forecast
from maskaudit.auditing.judging import broken_by, judged_so_far, traced_mechanisms
from maskaudit.auditing.ledger import Ledger
from maskaudit.auditing.state import AuditState
from maskaudit.results import AuditReport, Partial
from maskaudit.settings import AuditEvent, AuditSettings, Listener
from maskaudit.target.memory import peak
from maskaudit.target.rescore import PROOF

#: Takes a report of what was found so far, marked as partial.
Keeper = Callable[[AuditReport], None]

#: Share of the time that reports of what was found so far may take.
KEEPING = 0.03
#: What such a report says, unless the caller that kept it knows more.
UNFINISHED = "It was broken off."


def report_so_far(state: AuditState, broken_off: str = "", *, partial: bool = True) -> AuditReport:
    """The report of what was found so far, without its evidence section (see `AuditReport.with_evidence`).

    Nothing asks the model any more here.

    Args:
        broken_off: the reason why there is no more, if that is not all.
        partial: whether it is a partial report for that; not where no more was asked for.
    """
    unfinished = "" if state.decided or state.judgement is not None else broken_off
    judgement = state.judgement or judged_so_far(state, unfinished)
    target, ledger = state.target, state.ledger
    return AuditReport(
        tool={"name": "maskaudit", "version": __version__},
        environment=_environment(state.settings),
        target=_target(state),
        threat=state.threat.to_dict(),
        settings=_settings(state),
        **_named(judgement, "verdict", "claim", "accuracy"),
        masking={
            **judgement.masking,
            "traced": [dataclasses.asdict(one) for one in traced_mechanisms(state)],
            "searched": state.searched,
            "matched": state.matched,
            "unfinished": unfinished,
        },
        power=state.power.to_dict(),
        probes=state.probe_results(),
        attacks=ledger.rows(),
        points=_points(ledger, state.certified),
        evidence={"file": None, "sha256": None},
        figures=state.figures,
        notes=(*state.notes, *filter(None, [target.batches.refusal]), *map(sentence, state.branches.values())),
        trace=state.trace,
        plan=state.adaptive.to_dict() if state.adaptive else {},
        partial=Partial(broken_off, judged=not unfinished) if broken_off and partial else None,
        branches=tuple(state.branches.values()),
        timing={
            "total_seconds": round(time.perf_counter() - state.started, 2),
            "forwards": target.ledger.forwards,
            "backwards": target.ledger.backwards,
            "peak_memory": peak(),
            "points_per_pass": target.batches.size,
        },
    )


def _target(state: AuditState) -> dict[str, Any]:
    """What was audited."""
    loaded, target, settings = state.loaded, state.target, state.settings
    return {
        **_named(loaded, "source", "format", "sha256", "parameters"),
        **_named(settings, "arch", "weights"),
        "architecture": str(loaded.metadata.get("arch", "")),
        "method": str(loaded.metadata.get("method", "")),
        "outputs": target.outputs,
        "classes": state.data.num_classes,
        "random": target.random,
        "depends_on": state.recognised.dependence.to_dict(),
        "caveats": list(state.recognised.caveats),
        "hopeless": state.recognised.hopeless,
        "reject_class": target.reject_class,
        "trusted_code": list(loaded.trusted_code),
    }


def _settings(state: AuditState) -> dict[str, Any]:
    """On what points, and how."""
    data, settings = state.data, state.settings
    return {
        **_named(settings, "seed", "budget"),
        "samples": len(state.ledger),
        **_named(settings, "precision", "certify", "black_box"),
        "looks": list(state.looks),
        "data": data.name,
        "split": data.split,
        "input_shape": list(data.x.shape[1:]),
        "mean": list(settings.mean) if settings.mean else None,
        "std": list(settings.std) if settings.std else None,
        **_named(settings, "batch_size", "memory"),
        "select": list(settings.select),
        "ignore": list(settings.ignore),
        "left_out": state.left_out(),
        "extra_attacks": list(settings.attacks),
        "branches": list(settings.branches),
        "draws": state.target.draws,
        "fail_on": settings.fail_on,
        "defaults": list(settings.defaults),
        "command": settings.command,
    }


def _named(source: object, *names: str) -> dict[str, Any]:
    """Attributes under their own names."""
    return {name: getattr(source, name) for name in names}


def scoring(state: AuditState) -> dict[str, Any]:
    """What the evidence file needs so that its examples can be scored again."""
    target, threat, settings = state.target, state.threat, state.settings
    return {
        "sha256": state.loaded.sha256,
        "threat": threat.to_dict(),
        "mean": settings.mean, "std": settings.std, "outputs": target.outputs, "reject_class": target.reject_class,
        "form": target.form.to_dict(),
        "random": target.random, "proof": PROOF.to_dict() if target.random else None,
        "seed": settings.seed, "device": settings.device,
    }  # fmt: skip


def _points(ledger: Ledger, certified: Tensor | None) -> dict[str, Any]:
    return {
        "index": ledger.index,
        "label": ledger.y.tolist(),
        "predicted": ledger.predicted.tolist(),
        "correct": ledger.correct.tolist(),
        "broken_by": broken_by(ledger),
        **({} if certified is None else {"certified": certified.tolist()}),
    }


def _environment(settings: AuditSettings) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchattacks": installed(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": settings.device,
    }


class Keeping:
    """Passes events on with the time left; at the end of a step it keeps what was found so far, where that is cheap."""

    def __init__(self, on_event: Listener, keep: Keeper | None) -> None:
        self.on_event, self.keep, self.keep_after = on_event, keep, 0.0
        self.state: AuditState | None = None
        self.forecast = Forecast()

    def tell(self, event: AuditEvent) -> None:
        """Pass an event on with the time left, and keep what has been found so far when it is time to."""
        state = self.state
        if state is not None:
            self.forecast.hear(event, state)
            event = dataclasses.replace(event, left=self.forecast.seconds(state))
        self.on_event(event)
        started = time.perf_counter()
        due = event.finished and started >= self.keep_after
        if due and self.keep is not None and state is not None and len(state.ledger):
            self.keep(report_so_far(state, UNFINISHED))
            ended = time.perf_counter()
            self.keep_after = ended + (ended - started) / KEEPING
