"""What the commands other than `check` do: train, demo, verify, explain, run the zoo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskaudit import api
from maskaudit.attacks.registry import BUDGETS, BudgetName, battery
from maskaudit.attacks.second_opinion import second_opinions
from maskaudit.data import load_data
from maskaudit.errors import InputError, UsageError
from maskaudit.evidence import EVIDENCE_FILE, Check, read_evidence, read_report, verify_audit
from maskaudit.loading import load_model
from maskaudit.output import parse_outputs, write_outputs
from maskaudit.probes import PROBES
from maskaudit.probes.docs import full_text
from maskaudit.recognise import recognise
from maskaudit.repairs.attack import per_coordinate
from maskaudit.runner import Audit
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.terminal import Progress
from maskaudit.threat import Norm, ThreatModel, customary_eps
from maskaudit.trace import MAX_POINTS
from maskaudit.trace.inspect import inspect_model
from maskaudit.train import TrainConfig, TrainEvent, save_trained, train
from maskaudit.zoo import ZOO

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
    """Train by `method` and save a file that `check` opens with no further option."""
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
    """Trace a model on a few points of its data: gradient flow, cuts, randomness, what would be repaired; no attack."""
    prepared = api.prepare(request)
    settings, threat = prepared.settings, prepared.threat
    with Target(
        prepared.loaded.module, bounds=threat.bounds, mean=settings.mean, std=settings.std, device=settings.device,
        reject_class=settings.reject_class, seed=settings.seed,
    ) as target:  # fmt: skip
        recognise(target, prepared.data, settings)
        _, x, y = prepared.data.sample(MAX_POINTS, settings.seed)
        return inspect_model(target, x, y, eps=per_coordinate(threat, x))


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
        path = audit / "audit.json" if audit.is_dir() else audit
        document = read_report(path)
        named = document["evidence"].get("file") if isinstance(document["evidence"], dict) else None
        evidence_path = path.parent / Path(str(named or EVIDENCE_FILE)).name
    try:
        content = evidence_path.read_bytes()
    except OSError as error:
        raise InputError(
            f"The evidence {evidence_path} cannot be read ({error.strerror or error}); keep it beside the report."
        ) from error
    loaded = load_model(model, arch=arch, trust_pickle=trust_pickle, device=device)
    return verify_audit(document, read_evidence(content, str(evidence_path)), loaded.module, loaded.sha256)


def list_rules() -> Iterator[tuple[str, str, str]]:
    """(kind, name, title) of every probe and attack."""
    for probe in PROBES:
        yield "probe", probe.rule, probe.title
    for spec in (*battery(BUDGETS["standard"]), *second_opinions("Linf")):
        yield "attack", spec.name, spec.title


def explain_rule(name: str) -> str:
    """The documentation of a probe or an attack.

    Raises:
        UsageError: for a name that neither has.
    """
    for probe in PROBES:
        if probe.rule == name:
            return full_text(probe)
    for spec in (*battery(BUDGETS["standard"]), *second_opinions("Linf")):
        if spec.name == name:
            settings = ", ".join(f"{key} = {value}" for key, value in spec.settings.items())
            body = (spec.run.__doc__ or "").strip()
            head = f"{spec.title} ({spec.role}; {settings or 'no settings'})"
            return f"{head}\n\n{body}\n\nSource: {'; '.join(spec.sources)}"
    raise UsageError(f"There is no probe or attack {name!r}; `maskaudit probes` lists them.")


def check_zoo(names: tuple[str, ...], *, budget: BudgetName, seed: int) -> Iterator[tuple[str, bool]]:
    """Audit zoo models; yields a line and whether the verdict fits the truth."""
    for name in names or tuple(ZOO):
        if name not in ZOO:
            raise UsageError(f"The zoo has no model {name!r}; `maskaudit zoo list` shows what it has.")
        document = audit_source(f"zoo:{name}", AuditSettings(budget=budget, seed=seed)).report.to_dict()
        yield zoo_line(name, document)


def zoo_line(name: str, document: dict[str, Any]) -> tuple[str, bool]:
    """One line on a zoo model's audit, and whether its verdict is the truth."""
    truth = "masked" if ZOO[name].masked else "clear"
    label = document["verdict"]["label"]
    figures = {
        key: document["accuracy"][key]["value"] for key in ("clean", "reference", "strong_reference", "best_known")
    }
    levels = {key: document["masking"][key]["value"] for key in ("gradient_level", "loss_level")}
    numbers = "  ".join(f"{key} {value:.3f}" for key, value in {**figures, **levels}.items())
    mark = "right" if label == truth else "WRONG"
    seconds = document["timing"]["total_seconds"]
    return f"{mark}  {name:<18} {label:<13} {numbers}  n {document['settings']['samples']}  {seconds} s", label == truth
