"""Models that only answer: functions on arrays, sessions of ONNX Runtime, scikit-learn estimators, web services."""

from typing import Any

from torch import nn

from maskaudit.errors import UsageError
from maskaudit.loading.blackbox.box import BlackBox, QueriesSpentError, computes_elsewhere
from maskaudit.loading.blackbox.local import answering, is_service

__all__ = ["BlackBox", "QueriesSpentError", "answering", "boxed", "computes_elsewhere", "is_service"]


def boxed(
    model: Any, *, limit: int | None = None, rate: float | None = None, workers: bool = False, ray: bool = False,
    classes: int = 0,
) -> BlackBox:  # fmt: skip
    """A model in memory as a black box of at most `limit` queries, `rate` a second, those of workers included.

    Args:
        classes: number of classes, for one that answers with class numbers.

    Raises:
        UsageError: where the model cannot be asked by other processes, or not be counted there.
    """
    if ray:
        raise UsageError("Queries of a black box are not counted on a Ray cluster; leave --ray out.")
    if workers and is_service(model):
        raise UsageError(
            f"A {type(model).__name__} runs on threads of its own, which forked processes do not have; leave --workers "
            "out."
        )
    ask = answering(model.eval() if isinstance(model, nn.Module) else model)
    return BlackBox(ask, limit=limit, rate=rate, shared=workers, classes=classes)
