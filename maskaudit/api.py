"""The public functions behind `maskaudit check`: resolve what was asked, fill in customary defaults, audit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from maskaudit import __version__
from maskaudit.auditing.attacker import POOL_POINTS
from maskaudit.auditing.digest import content_digest, program_digest
from maskaudit.auditing.journal import JOURNAL_FOLDER, Journal
from maskaudit.auditing.runner import Audit, Keeper, run_audit
from maskaudit.data import Dataset, load_data
from maskaudit.errors import InputError, MaskauditError, ModelError, UsageError, describe_error
from maskaudit.loading import LoadedModel
from maskaudit.loading.brought import Settler
from maskaudit.loading.interface import count_parameters, state_digest
from maskaudit.report.text import brief
from maskaudit.settings import AuditSettings, Listener, ignore_events
from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.threat import Norm, ThreatModel, customary_eps

DEFAULT_DATA = "digits"

Points = Dataset | tuple[Tensor, Tensor]

_SHAPE_TROUBLE = re.compile(r"shape|size|channel|dimension|mat1", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What the user asked for; None means "not said", and a default is looked for.

    The defaults come from the model file first (data, threat model, normalisation, as our own
    trainer writes them), then from custom: digits as data, Linf, and the ε usual for such data.
    """

    model: str
    arch: str | None = None
    data: str | None = None
    norm: Norm | None = None
    eps: float | None = None
    bounds: tuple[float, float] | None = None
    trust_pickle: bool = False
    surrogates: tuple[str, ...] = ()
    settings: AuditSettings = field(default_factory=AuditSettings)


@dataclass(frozen=True)
class Prepared:
    """Everything an audit needs, resolved."""

    loaded: LoadedModel
    data: Dataset
    threat: ThreatModel
    settings: AuditSettings
    pool: Tensor
    surrogates: tuple[nn.Module, ...]
    surrogate_names: tuple[str, ...] = ()


def prepare(request: Request) -> Prepared:
    """Load model and data and settle the threat model.

    Raises:
        MaskauditError: with the sentence for the user, when something is missing or does not fit.
    """
    loaded = load_model(
        request.model, arch=request.arch, trust_pickle=request.trust_pickle, device=request.settings.device
    )
    prepared = _resolve(loaded, request)
    _check_fit(prepared, by_default=request.data is None)
    return prepared


def _resolve(loaded: LoadedModel, request: Request, points: Points | None = None) -> Prepared:
    """Settle every value that the request leaves open; `points` are used in place of a data source."""
    settler = Settler(loaded)
    if request.arch is None:
        settler.take("arch", None)
    given = points.bounds if isinstance(points, Dataset) else None
    bounds = settler.choose("bounds", request.bounds or given, (0.0, 1.0))
    data, pool = _points(settler, request.data, bounds, points)
    usual: Norm = "Linf"
    norm = settler.choose("norm", request.norm, usual)
    if norm not in get_args(Norm):
        raise UsageError(f"The norm must be Linf or L2, got {norm!r}.")
    if loaded.metadata.get("threat", {}).get("norm") != norm:
        settler.leave("eps")
    threat = ThreatModel(
        norm, settler.choose("eps", request.eps, customary_eps(norm, data.point_shape, bounds)), bounds
    )
    settings = _settings(settler, request.settings)
    surrogates = tuple(_surrogate(spec, data) for spec in request.surrogates)
    loaded = replace(loaded, notes=(*loaded.notes, *settler.note()))
    return Prepared(loaded, data, threat, settings, pool, surrogates, request.surrogates)


def _points(
    settler: Settler, said: str | None, bounds: tuple[float, float], points: Points | None
) -> tuple[Dataset, Tensor]:
    """The points to audit on, and inputs for those who need more."""
    if points is not None:
        data = points if isinstance(points, Dataset) else dataset_of(*points, bounds=bounds)
        return data, data.some(POOL_POINTS).x
    source = settler.choose("data", said, DEFAULT_DATA)
    pool = load_data(source, split="train", bounds=bounds, limit=POOL_POINTS).x
    return load_data(source, split="test", bounds=bounds), pool


def _settings(settler: Settler, said: AuditSettings) -> AuditSettings:
    """The settings with what the model brings where the user left them open."""
    return replace(
        said,
        outputs=settler.take("outputs", said.outputs if said.outputs != "auto" else None) or "auto",
        mean=settler.take("mean", said.mean),
        std=settler.take("std", said.std),
        reject_class=settler.take("reject_class", said.reject_class),
        certified=settler.take("certified", said.certified),
        defaults=tuple(settler.defaults),
    )


def run(
    prepared: Prepared,
    *,
    out: Path | None = None,
    resume: bool = False,
    on_event: Listener = ignore_events,
    keep: Keeper | None = None,
) -> Audit:
    """Audit what was prepared; with `out`, finished attacks are journalled there and `resume` continues them.

    The journal stays until whoever has written the report down calls `discard_journal`.
    """
    journal = None
    if out is not None:
        journal = Journal(out / JOURNAL_FOLDER, _fingerprint(prepared), resume=resume)
    return run_audit(
        prepared.loaded, prepared.data, prepared.threat, prepared.settings, pool=prepared.pool,
        surrogates=prepared.surrogates, journal=journal, on_event=on_event, keep=keep,
    )  # fmt: skip


def discard_journal(out: Path) -> None:
    """Remove the journal of an audit whose reports are safe."""
    shutil.rmtree(out / JOURNAL_FOLDER, ignore_errors=True)


def load(source: str, *, arch: str | None = None, trust_pickle: bool = False, device: str = "cpu") -> LoadedModel:
    """Load a model as `maskaudit check` does; see `maskaudit.sources.load_model`."""
    return load_model(source, arch=arch, trust_pickle=trust_pickle, device=device)


def audit(
    model: nn.Module | Callable[[Tensor], Tensor] | str,
    data: str | Points | None = None,
    *,
    norm: Norm | None = None,
    eps: float | None = None,
    bounds: tuple[float, float] | None = None,
    settings: AuditSettings | None = None,
    on_event: Listener = ignore_events,
) -> Audit:
    """Audit a model from Python; what is not given comes from the model file, else from custom, as for `check`.

    Args:
        model: a module or callable from (N, C, H, W) or (N, D) to class scores (N, K), or a source
            as for `maskaudit check`.
        data: a data source, a `Dataset`, or a pair of inputs float32 (N, …) and labels int64 (N,).
        norm: Linf or L2.
        eps: radius in input units; the customary value if not given.
        bounds: smallest and largest value of an input; (0, 1) if not given.
        settings: everything else, see `AuditSettings`.

    Returns:
        `Audit`: `.report.verdict.label` is the verdict, `.report.to_dict()` the JSON document.

    Raises:
        MaskauditError: when model or data are refused or do not fit together.
    """
    loaded = load_model(model) if isinstance(model, str) else in_memory(model)
    source, points = (data, None) if data is None or isinstance(data, str) else (None, data)
    request = Request(
        loaded.source, data=source, norm=norm, eps=eps, bounds=bounds, settings=settings or AuditSettings()
    )
    prepared = _resolve(loaded, request, points)
    if isinstance(model, str):
        _check_fit(prepared, by_default=data is None)
    return run(prepared, on_event=on_event)


def assert_not_masked(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: str | Points | None = None,
    *,
    norm: Norm | None = None,
    eps: float | None = None,
    bounds: tuple[float, float] | None = None,
    settings: AuditSettings | None = None,
) -> Audit:
    """Audit, and raise AssertionError with verdict, reasons, mechanism and figures when masking is proven."""
    result = audit(model, data, norm=norm, eps=eps, bounds=bounds, settings=settings)
    if result.failure is not None:
        raise result.failure
    if result.report.verdict.label == "masked":
        raise AssertionError(brief(result.report.to_dict()))
    return result


def in_memory(model: nn.Module | Callable[[Tensor], Tensor]) -> LoadedModel:
    """A model that is already in memory, as if it had been loaded."""
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
    return LoadedModel(model, f"in memory: {name}", "python", state_digest(model), count_parameters(model), {})


def dataset_of(x: Tensor, y: Tensor, *, bounds: tuple[float, float]) -> Dataset:
    """Points given as tensors, checked."""
    classes = max(2, int(y.max()) + 1) if len(y) else 2
    return Dataset("in memory", torch.as_tensor(x), torch.as_tensor(y), classes, bounds, split="all")


def _surrogate(spec: str, data: Dataset) -> nn.Module:
    """A module for `--surrogate MODEL[@SPEC]`, checked on the data's shape."""
    source, _, arch = spec.partition("@")
    module = load_model(source, arch=arch or None).module
    if not isinstance(module, nn.Module):
        raise UsageError(f"The surrogate {source} must be a torch module, got {type(module).__name__}.")
    try:
        with torch.no_grad():
            answer = module.eval()(data.x[:2])
    except Exception as error:  # a foreign model: whatever it raises means that it does not fit
        raise InputError(f"The surrogate {source} does not accept the data: {describe_error(error)}.") from error
    if not isinstance(answer, Tensor) or answer.shape[:1] != (2,) or answer.dim() != 2:
        raise InputError(f"The surrogate {source} does not return class scores (N, K).")
    return module


def _check_fit(prepared: Prepared, *, by_default: bool) -> None:
    """One forward pass of two points: a model that does not take their shape needs other data, and is told so.

    What the model file says of its outputs is held against the answers.
    """
    loaded, data, settings = prepared.loaded, prepared.data, prepared.settings
    try:
        with Target(loaded.module, mean=settings.mean, std=settings.std, device=settings.device) as target:
            answers = target.raw(data.x[:2])
    except ModelError as error:
        if not _SHAPE_TROUBLE.search(str(error.__cause__ or "")):
            raise
        shape = "×".join(str(n) for n in data.x.shape[1:])
        kind = "the default data" if by_default else "the given data"
        raise InputError(
            f"The model does not accept {data.name} ({shape}), {kind}: give inputs of the model's own shape, for "
            f"example `maskaudit check {loaded.source} --data test.npz`. ({error})"
        ) from error
    claimed = loaded.metadata.get("outputs")
    if "outputs (from the model file)" in settings.defaults and detect_outputs(answers) != claimed != "auto":
        raise InputError(
            f"{loaded.source} says of itself that it returns {claimed}, but its answers are {detect_outputs(answers)}; "
            "say with --outputs what is right."
        )


def _fingerprint(prepared: Prepared) -> dict[str, str | int | float | None]:
    """What makes an audit the same one, by the names that people know; what attacks depend on, the journal knows."""
    settings, threat, data, loaded = prepared.settings, prepared.threat, prepared.data, prepared.loaded
    names = zip(prepared.surrogate_names, prepared.surrogates, strict=True)
    return {
        "the model": f"{loaded.sha256 or loaded.source} {loaded.metadata.get('arch') or ''}".strip(),
        "--arch": settings.arch,
        "--data": f"{data.name} {content_digest(data.x, data.y, prepared.pool)[:12]}",
        "the threat model": f"{threat.norm} {threat.eps!r} in {threat.bounds}",
        **{
            f"--{name.replace('_', '-')}": str(getattr(settings, name))
            for name in ("budget", "samples", "seed", "outputs", "mean", "std", "reject_class", "batch_size", "device")
        },
        "--surrogate": ", ".join(f"{name} {content_digest(module)[:12]}" for name, module in names) or "none",
        "--plan": content_digest(settings.plan.to_dict())[:12] if settings.plan else "none",
        "maskaudit": f"{__version__} {program_digest()[:12]}",
        "torch": f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}",
    }  # fmt: skip


__all__ = ["MaskauditError", "Prepared", "Request", "assert_not_masked", "audit", "load", "prepare", "run"]
