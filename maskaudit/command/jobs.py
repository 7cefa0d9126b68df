"""What the commands other than `check` do: train, demo, verify, explain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskaudit import __version__, api
from maskaudit.auditing.evidence import MAX_BYTES, Check, read_evidence, verify_audit
from maskaudit.auditing.inspection import inspect_model
from maskaudit.auditing.runner import Audit
from maskaudit.command.output import check_writable, is_special, parse_outputs, write_outputs
from maskaudit.command.terminal import Progress
from maskaudit.data import load_data
from maskaudit.errors import InputError
from maskaudit.files import is_folder, read_bounded
from maskaudit.repairs.attack import per_coordinate
from maskaudit.report.reading import read_report
from maskaudit.results import EVIDENCE_FILE, SCHEMA_VERSION
from maskaudit.settings import AuditSettings
from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.target.recognise import recognise
from maskaudit.threat import Norm, ThreatModel, customary_eps
from maskaudit.trace import MAX_POINTS
from maskaudit.train import TrainConfig, TrainEvent, save_trained, train

#: Points that `inspect` draws for each that it looks at, so that most it looks at are answered rightly.
DRAWN_PER_POINT = 4
#: What the demo trains, and the file names it uses.
DEMO_METHODS = ("great+ce", "pgd-at")


def train_to_file(
    method: str,
    *,
    data: str,
    out: Path,
    resume: bool = False,
    quiet: bool = False,
    model_spec: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    norm: Norm | None = None,
    eps: float | None = None,
) -> None:
    """Train by `method` and save a file that `check` opens with no further option.

    Raises:
        InputError: when no file can be written there, told before the training.
    """
    check_writable(out)
    if is_special(out):
        raise InputError(f"{out} is a device or a pipe; give the name of a file.")
    threat = None
    if norm is not None or eps is not None:
        shape = load_data(data, split="train").x.shape[1:]
        chosen: Norm = norm or "Linf"
        threat = ThreatModel(chosen, eps if eps is not None else customary_eps(chosen, shape, (0.0, 1.0)))
    config = TrainConfig(method=method, data=data, model=model_spec, epochs=epochs, seed=seed, threat=threat)
    progress = Progress(quiet=quiet)

    def show(event: TrainEvent) -> None:
        said = (
            f"{event.method} epoch {event.epoch}/{event.epochs}  loss {event.loss:.4g}  "
            f"accuracy {event.accuracy:.3f}  {event.eta_seconds:.0f} s left"
        )
        tenth = max(1, event.epochs // 10)
        (progress.line if event.epoch % tenth == 0 or event.epoch == event.epochs else progress.status)(said)

    module = train(config, on_event=show, resume=resume, out=out)
    save_trained(out, module, config)


def run_demo(out: Path, *, seed: int = 0, quiet: bool = False) -> Iterator[tuple[str, str, str, Path]]:
    """Train the demo's two networks, audit them, write their reports; yields (name, label, sentence, report)."""
    for method in DEMO_METHODS:
        folder = out / method.replace("+", "-")
        wanted = parse_outputs((), str(folder))
        file = folder / "model.safetensors"
        train_to_file(method, data="digits", out=file, seed=seed, quiet=quiet)
        audit = audit_source(str(file), AuditSettings(seed=seed, command=f"maskaudit check {file}"), quiet=quiet)
        document = audit.report.to_dict()
        write_outputs(wanted, document, audit.evidence)
        yield method, document["verdict"]["label"], document["verdict"]["sentence"], folder / "report.html"


def audit_source(source: str, settings: AuditSettings, *, quiet: bool = True) -> Audit:
    """Audit a model source with everything else at its default."""
    progress = Progress(quiet=quiet)
    audit = api.run(api.prepare(api.Request(source, settings=settings)), on_event=progress)
    progress.close()
    return audit


def inspect_source(request: api.Request) -> dict[str, Any]:
    """Trace a model on a few points of its data: gradient flow, cuts, randomness, what would be repaired; no attack.

    Points that the model answers rightly are preferred. Returns `maskaudit.auditing.inspection.inspection` with what
    was inspected: `source`, `format`, `sha256`, `notes`, `threat`, `tool`.
    """
    prepared = api.prepare(request)
    settings, threat = prepared.settings, prepared.threat
    with Target(
        prepared.loaded.module, bounds=threat.bounds, mean=settings.mean, std=settings.std, device=settings.device,
        reject_class=settings.reject_class, seed=settings.seed,
    ) as target:  # fmt: skip
        recognise(target, prepared.data, settings)
        _, x, y = prepared.data.sample(DRAWN_PER_POINT * MAX_POINTS, settings.seed)
        order = (target.predict(target.scores(x)) != y).int().argsort(stable=True)[:MAX_POINTS]
        found = inspect_model(target, x[order], y[order], eps=per_coordinate(threat, x))
    loaded = prepared.loaded
    return {
        "schema_version": SCHEMA_VERSION, "tool": f"maskaudit {__version__}", "source": loaded.source,
        "format": loaded.format, "sha256": loaded.sha256, "notes": list(loaded.notes),
        "threat": {"norm": threat.norm, "eps": threat.eps, "bounds": list(threat.bounds)}, **found,
    }  # fmt: skip


def verify_files(
    audit: Path, model: str, *, arch: str | None = None, trust_pickle: bool = False, device: str = "cpu"
) -> list[Check]:
    """Check a written audit (folder, audit.json, or the evidence file alone) against a model.

    Raises:
        InputError: when report or evidence are missing or damaged, or the audit kept no evidence.
    """
    document = None
    if audit.suffix == Path(EVIDENCE_FILE).suffix:
        evidence_path = audit
    else:
        path = audit / "audit.json" if is_folder(audit) else audit
        document = read_report(path)
        evidence_path = path.parent / Path(document["evidence"].get("file") or EVIDENCE_FILE).name
    content = read_bounded(
        evidence_path, MAX_BYTES, f"The evidence {evidence_path}", hint="; keep it beside the report"
    )
    loaded = load_model(model, arch=arch, trust_pickle=trust_pickle, device=device)
    return verify_audit(document, read_evidence(content, str(evidence_path)), loaded.module, loaded.sha256)
