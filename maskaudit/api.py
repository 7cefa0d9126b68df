"""The public functions behind `maskaudit check`: resolve what was asked, fill in customary defaults, audit."""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskaudit.auditing.digest import content_digest, machine
from maskaudit.auditing.document import Keeper
from maskaudit.auditing.journal import JOURNAL_FOLDER, Journal
from maskaudit.auditing.preparing import Points, Prepared, in_memory, prepare
from maskaudit.auditing.runner import Audit, run_audit
from maskaudit.declared.options import options_of
from maskaudit.errors import InconclusiveAuditWarning, MaskauditError, MaskedError, UsageError
from maskaudit.report.text import brief
from maskaudit.settings import OPTIONS, AuditSettings, Listener, Request, fails, ignore_events
from maskaudit.sources import load_model as load
from maskaudit.target.memory import limited


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
        journal = Journal(out / JOURNAL_FOLDER, fingerprint(prepared), resume=resume)
    with limited(prepared.settings.memory):
        return run_audit(prepared, journal=journal, on_event=on_event, keep=keep)


def discard_journal(out: Path) -> None:
    """Remove the journal of an audit whose reports are safe."""
    shutil.rmtree(out / JOURNAL_FOLDER, ignore_errors=True)


def _takes_options(function: Callable[..., Audit]) -> Callable[..., Audit]:
    """Lets `help()` and editors show every option in place of `**options`."""
    signature = inspect.signature(function)
    *own, _ = signature.parameters.values()
    keywords = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=one.default)
        for key, one in OPTIONS.items()
        if key not in signature.parameters
    ]
    function.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
    return function


@_takes_options
def audit(
    model: nn.Module | Callable[[Tensor], Tensor] | str,
    data: str | Points | None = None,
    *,
    settings: AuditSettings | None = None,
    on_event: Listener = ignore_events,
    **options: Any,
) -> Audit:
    """Audit a model from Python; what is not given comes from the model file, else from custom, as for `check`.

    Args:
        model: a module or callable from (N, C, H, W) or (N, D) to class scores (N, K), or a source
            as for `maskaudit check`.
        data: a data source, a `Dataset`, or a pair of inputs float32 (N, …) and labels int64 (N,).
        settings: what holds for options of `AuditSettings` that are not given as keywords.
        on_event: is told how the audit goes.
        options: the options of `maskaudit check` by the names that they have in a configuration: `eps`, `norm`,
            `budget`, `claim`, … (`maskaudit.settings.OPTIONS`).

    Returns:
        `Audit`: `.report.verdict.label` is the verdict, `.report.to_dict()` the JSON document.

    Raises:
        MaskauditError: when model, data or options are refused or do not fit together.
    """
    if not isinstance(model, str) and not callable(model):
        raise UsageError(f"The model must be a module, a callable or a source; found a {type(model).__name__}.")
    loaded = None if isinstance(model, str) else in_memory(model)
    points = None if data is None or isinstance(data, str) else data
    options = {name: _scalar(value) for name, value in options.items()}
    values = options if points is not None else {**options, "data": data}
    request = Request.of(loaded.source if loaded else str(model), values, settings, where="maskaudit.audit")
    return run(prepare(request, loaded=loaded, points=points), on_event=on_event)


@_takes_options
def assert_not_masked(
    model: nn.Module | Callable[[Tensor], Tensor] | str,
    data: str | Points | None = None,
    *,
    settings: AuditSettings | None = None,
    on_event: Listener = ignore_events,
    **options: Any,
) -> Audit:
    """Audit, and raise when masking is proven or a claim (`claim=0.53`) is refuted; arguments as for `audit`.

    `fail_on` is the mildest verdict that fails: `masked` (the default), `suspect` or `inconclusive`; with `never`
    nothing does. An inconclusive audit that does not fail warns (`InconclusiveAuditWarning`).

    Returns:
        The audit, for further assertions.

    Raises:
        MaskedError: an AssertionError with verdict, reasons, mechanism and figures.
        MaskauditError: as `audit` does, and when the model fails while it is audited.
    """
    result = audit(model, data, settings=settings, on_event=on_event, **options)
    if result.failure is not None:
        raise result.failure
    require_not_masked(result, options.get("fail_on"), settings)
    return result


def require_not_masked(result: Audit, fail_on: str | None = None, settings: AuditSettings | None = None) -> None:
    """Raise or warn about a finished audit as `assert_not_masked` does; `fail_on` goes before that of the settings.

    Raises:
        MaskedError: an AssertionError with verdict, reasons, mechanism and figures.
    """
    verdict, report = result.report.verdict, result.report
    if fails(verdict.label, report.claim.status, fail_on or (settings or AuditSettings()).fail_on):
        raise MaskedError(brief(report.to_dict()))
    if verdict.label == "inconclusive":
        warnings.warn(InconclusiveAuditWarning(" ".join([verdict.sentence, *verdict.reasons])), stacklevel=3)


def _scalar(value: Any) -> Any:
    """A number of torch or numpy without dimensions as a number of Python; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def fingerprint(prepared: Prepared) -> dict[str, str | int | float | None]:
    """What makes an audit the same one, by the names that people know; what attacks depend on, the journal knows."""
    settings, threat, data, loaded = prepared.settings, prepared.threat, prepared.data, prepared.loaded
    names = zip(prepared.surrogate_names, prepared.surrogates, strict=True)
    return {
        "the model": f"{loaded.sha256 or loaded.source} {loaded.metadata.get('arch') or ''}".strip(),
        "--arch": settings.arch,
        "--weights": settings.weights,
        "--data": f"{data.name} {content_digest(data.x, data.y, prepared.pool)[:12]}",
        "the threat model": f"{threat.norm} {threat.eps!r} in {threat.bounds}"
        + (f", features {content_digest(threat.features)[:12]}" if threat.features else ""),
        **{
            one.flag: str(getattr(settings, key))
            for key, one in options_of(AuditSettings).items()
            if one.resumes
        },
        "--surrogate": ", ".join(f"{name} {content_digest(module)[:12]}" for name, module in names) or "none",
        "--plan": content_digest(settings.plan.to_dict())[:12] if settings.plan else "none",
        **machine(),
    }  # fmt: skip


__all__ = ["MaskauditError", "Prepared", "Request", "assert_not_masked", "audit", "in_memory", "load", "prepare", "run"]
