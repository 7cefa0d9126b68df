"""The public functions behind `maskaudit check`: resolve what was asked, fill in customary defaults, audit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from maskaudit.attacker import POOL_POINTS
from maskaudit.data import Dataset, load_data
from maskaudit.errors import InputError, MaskauditError, ModelError, UsageError
from maskaudit.journal import JOURNAL_FOLDER, Journal
from maskaudit.loading import LoadedModel, load_model
from maskaudit.loading.interface import count_parameters, state_digest
from maskaudit.report.text import brief
from maskaudit.runner import Audit, Keeper, run_audit
from maskaudit.settings import AuditSettings, Listener, ignore_events
from maskaudit.target import Target
from maskaudit.threat import Norm, ThreatModel, customary_eps

DEFAULT_DATA = "digits"

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


def prepare(request: Request) -> Prepared:
    """Load model and data and settle the threat model.

    Raises:
        MaskauditError: with the sentence for the user, when something is missing or does not fit.
    """
    loaded = load_model(
        request.model, arch=request.arch, trust_pickle=request.trust_pickle, device=request.settings.device
    )
    return _resolve(loaded, request)


def _resolve(loaded: LoadedModel, request: Request) -> Prepared:
    brought = loaded.metadata
    threat_brought = brought.get("threat") if isinstance(brought.get("threat"), dict) else {}
    assert isinstance(threat_brought, dict)
    defaults: list[str] = []

    def choose(name: str, said: Any, brought_value: Any, custom: Any) -> Any:
        if said is not None:
            return said
        defaults.append(f"{name} (from the model file)" if brought_value is not None else name)
        return brought_value if brought_value is not None else custom

    source = choose("data", request.data, brought.get("data"), DEFAULT_DATA)
    bounds = choose("bounds", request.bounds, _pair(threat_brought.get("bounds")), (0.0, 1.0))
    norm = choose("norm", request.norm, threat_brought.get("norm"), "Linf")
    if norm not in get_args(Norm):
        raise UsageError(f"The norm must be Linf or L2, got {norm!r}.")
    data = load_data(str(source), split="test", bounds=bounds)
    fits = threat_brought.get("norm") == norm
    eps = choose(
        "eps", request.eps, threat_brought.get("eps") if fits else None, customary_eps(norm, data.x.shape[1:], bounds)
    )
    settings = request.settings
    settings = replace(
        settings,
        mean=settings.mean or _floats(brought.get("mean")),
        std=settings.std or _floats(brought.get("std")),
        outputs=brought.get("outputs", "auto") if settings.outputs == "auto" else settings.outputs,
        reject_class=settings.reject_class if settings.reject_class is not None else brought.get("reject_class"),
        certified=settings.certified if settings.certified is not None else brought.get("certified"),
        defaults=tuple(defaults),
    )
    pool = load_data(str(source), split="train", bounds=bounds, limit=POOL_POINTS).x
    surrogates = tuple(_surrogate(spec, data) for spec in request.surrogates)
    threat = ThreatModel(norm, float(eps), bounds)
    _check_fit(loaded, data, settings, by_default=request.data is None)
    return Prepared(loaded, data, threat, settings, pool, surrogates)


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
    """Load a model as `maskaudit check` does; see `maskaudit.loading.load_model`."""
    return load_model(source, arch=arch, trust_pickle=trust_pickle, device=device)


def audit(
    model: nn.Module | Callable[[Tensor], Tensor] | str,
    data: str | Dataset | tuple[Tensor, Tensor] = DEFAULT_DATA,
    *,
    norm: Norm = "Linf",
    eps: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    settings: AuditSettings | None = None,
    on_event: Listener = ignore_events,
) -> Audit:
    """Audit a model from Python.

    Args:
        model: a module or callable from (N, C, H, W) or (N, D) to class scores (N, K), or a source
            as for `maskaudit check`.
        data: a data source, a `Dataset`, or a pair of inputs float32 (N, …) and labels int64 (N,).
        eps: radius in input units; the customary value if not given.
        settings: everything else, see `AuditSettings`.

    Returns:
        `Audit`: `.report.verdict.label` is the verdict, `.report.to_dict()` the JSON document.

    Raises:
        MaskauditError: when model or data are refused or do not fit together.
    """
    loaded = load_model(model) if isinstance(model, str) else in_memory(model)
    if isinstance(data, str):
        dataset = load_data(data, split="test", bounds=bounds)
        pool = load_data(data, split="train", bounds=bounds, limit=POOL_POINTS).x
    else:
        dataset = data if isinstance(data, Dataset) else dataset_of(*data, bounds=bounds)
        pool = dataset.some(POOL_POINTS).x
    radius = eps if eps is not None else customary_eps(norm, dataset.x.shape[1:], bounds)
    threat = ThreatModel(norm, radius, bounds)
    return run_audit(loaded, dataset, threat, settings or AuditSettings(), pool=pool, on_event=on_event)


def assert_not_masked(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: str | Dataset | tuple[Tensor, Tensor] = DEFAULT_DATA,
    *,
    norm: Norm = "Linf",
    eps: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
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
        raise InputError(f"The surrogate {source} does not accept the data: {error}") from error
    if not isinstance(answer, Tensor) or answer.shape[:1] != (2,) or answer.dim() != 2:
        raise InputError(f"The surrogate {source} does not return class scores (N, K).")
    return module


def _check_fit(loaded: LoadedModel, data: Dataset, settings: AuditSettings, *, by_default: bool) -> None:
    """One forward pass of two points: a model that does not take their shape needs other data, and is told so."""
    try:
        with Target(loaded.module, mean=settings.mean, std=settings.std, device=settings.device) as target:
            target.raw(data.x[:2])
    except ModelError as error:
        if not _SHAPE_TROUBLE.search(str(error.__cause__ or "")):
            raise
        shape = "×".join(str(n) for n in data.x.shape[1:])
        kind = "the default data" if by_default else "the given data"
        raise InputError(
            f"The model does not accept {data.name} ({shape}), {kind}: give inputs of the model's own shape, for "
            f"example `maskaudit check {loaded.source} --data test.npz`. ({error})"
        ) from error


def _fingerprint(prepared: Prepared) -> dict[str, Any]:
    settings, threat, data = prepared.settings, prepared.threat, prepared.data
    return {
        "model": prepared.loaded.sha256 or prepared.loaded.source,
        "arch": str(prepared.loaded.metadata.get("arch")),
        "data": [data.name, len(data), float(data.x.double().sum()), int(data.y.sum())],
        "threat": [threat.norm, threat.eps, threat.bounds],
        "settings": [
            settings.budget, settings.samples, settings.seed, settings.outputs, settings.mean, settings.std,
            settings.reject_class, settings.batch_size,
        ],
        "plan": settings.plan.to_dict() if settings.plan else None,
    }  # fmt: skip


def _pair(value: Any) -> tuple[float, float] | None:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return float(value[0]), float(value[1])
    return None


def _floats(value: Any) -> tuple[float, ...] | None:
    return tuple(float(v) for v in value) if isinstance(value, (list, tuple)) else None


__all__ = ["MaskauditError", "Prepared", "Request", "assert_not_masked", "audit", "load", "prepare", "run"]
