"""What the commands train, demo and inspect do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskaudit import __version__, api
from maskaudit.auditing.branches import sentence, try_branch
from maskaudit.auditing.inspection import inspect_model
from maskaudit.auditing.runner import Audit
from maskaudit.command.output import check_writable, is_special, parse_outputs, write_outputs
from maskaudit.command.terminal import ProgressLine, time_left
from maskaudit.data import load_data
from maskaudit.errors import InputError, UsageError
from maskaudit.repairs.branch import check_branches
from maskaudit.results import SCHEMA_VERSION
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS, AuditSettings
from maskaudit.target import Target
from maskaudit.target.recognise import recognise
from maskaudit.threat import Norm, ThreatModel, customary_eps
from maskaudit.trace import MAX_POINTS
from maskaudit.train import TrainConfig, TrainEvent, save_trained, train

#: Points that `inspect` draws for each that it looks at, so that most it looks at are answered rightly.
DRAWN_PER_POINT = 4
#: What the demo trains, and the file names it uses.
DEMO_METHODS = ("great+ce-reduced", "pgd-at")


def train_to_file(
    method: str, *, out: Path, data: str = "digits", resume: bool = False, quiet: bool = False,
    picture: str | None = None, norm: Norm | None = None, eps: float | None = None, **options: Any,
) -> None:  # fmt: skip
    """Train by `method` and save a file that `check` opens with no further option.

    `options` are those of `maskaudit.settings.TrainSettings`; None takes the default.
    """
    for file in (out, *([Path(picture)] if picture else [])):
        check_writable(file)
        if is_special(file):
            raise InputError(f"{file} is a device or a pipe; give the name of a file.")
    threat = None
    if norm is not None or eps is not None:
        shape = load_data(data, split="train", limit=1).x.shape[1:]
        chosen: Norm = norm or "Linf"
        threat = ThreatModel(chosen, eps if eps is not None else customary_eps(chosen, shape, (0.0, 1.0)))
    given = {key: value for key, value in options.items() if value is not None}
    config = TrainConfig(method=method, data=data, threat=threat, **given)
    progress = ProgressLine(quiet=quiet)

    def show(event: TrainEvent) -> None:
        tenth = max(1, event.epochs // 10)
        stays = event.epoch % tenth == 0 or event.epoch == event.epochs
        (progress.line if stays else progress.status)(training_line(event))

    module = train(config, on_event=show, resume=resume, out=out, picture=picture)
    save_trained(out, module, config)


def training_line(event: TrainEvent) -> str:
    """What a terminal shows of an epoch."""
    told = "" if event.auxiliary_accuracy is None else f"auxiliary {event.auxiliary_accuracy:.3f}  "
    return (
        f"{event.method} epoch {event.epoch}/{event.epochs}  loss {event.loss:.4g}  accuracy {event.accuracy:.3f}  "
        f"{told}logits {event.logit_scale:.3g}  {time_left(event.eta_seconds)} left"
    )


def run_demo(out: Path, *, seed: int = 0, quiet: bool = False) -> Iterator[tuple[str, str, str, Path]]:
    """Train the demo's two networks, audit them, write their reports; yields (name, label, sentence, report)."""
    for method in DEMO_METHODS:
        folder = out / method.replace("+", "-")
        wanted = parse_outputs((), str(folder))
        file = folder / "model.safetensors"
        train_to_file(method, out=file, seed=seed, quiet=quiet)
        audit = audit_source(str(file), AuditSettings(seed=seed, command=f"maskaudit check {file}"), quiet=quiet)
        document = audit.report.to_dict()
        write_outputs(wanted, document, audit.evidence)
        yield method, document["verdict"]["label"], document["verdict"]["sentence"], folder / "report.html"


def audit_source(source: str, settings: AuditSettings, *, quiet: bool = True) -> Audit:
    """Audit a model source with everything else at its default."""
    progress = ProgressLine(quiet=quiet)
    audit = api.run(api.prepare(api.Request(source, settings=settings)), on_event=progress)
    progress.close()
    return audit


def branches_of(
    target: Target, x: Tensor, y: Tensor, threat: ThreatModel, settings: AuditSettings
) -> list[dict[str, Any]]:
    """What each of the branches that were asked for does at those of the points that are answered rightly.

    Raises:
        UsageError: when answers are random, or a branch is none.
    """
    if settings.branches and target.random:
        raise UsageError("The model answers at random, so that parts of its gradient belong to no single answer.")
    right = target.predict(target.scores(x)) == y
    rows = [
        try_branch(
            target, x[right], y[right], branch, threat=threat, steps=BUDGETS["quick"].steps,
            rng=PointRNG.create(settings.seed, f"branch {branch}", torch.arange(int(right.sum()))),
        )[0]
        for branch in settings.branches
    ]  # fmt: skip
    return [{**dataclasses.asdict(row), "sentence": sentence(row)} for row in rows]


def inspect_source(request: api.Request) -> dict[str, Any]:
    """Trace a model on a few points of its data: gradient flow, cuts, randomness, what would be repaired; no attack.

    Points that the model answers rightly are preferred. Returns `maskaudit.auditing.inspection.inspection` with what
    was inspected: `source`, `format`, `sha256`, `notes`, `threat`, `tool`.
    """
    prepared = api.prepare(request)
    settings, threat = prepared.settings, prepared.threat
    with prepared.target() as target:
        recognised = recognise(target, prepared.data, settings).notes
        _, x, y = prepared.data.sample(DRAWN_PER_POINT * MAX_POINTS, settings.seed)
        order = (target.predict(target.scores(x)) != y).int().argsort(stable=True)[:MAX_POINTS]
        found = inspect_model(target, x[order], y[order], eps=threat.per_coordinate(x))
        check_branches(target.model, settings.branches)
        found["branches"] = branches_of(target, x[order], y[order], threat, settings)
    loaded = prepared.loaded
    return {
        "schema_version": SCHEMA_VERSION, "tool": f"maskaudit {__version__}", "source": loaded.source,
        "format": loaded.format, "sha256": loaded.sha256, "notes": [*loaded.notes, *recognised],
        "threat": threat.to_dict(), **found,
    }  # fmt: skip
