"""Models that only answer: functions on arrays, sessions of ONNX Runtime, scikit-learn estimators, web services."""

from typing import Any

from torch import nn

from maskaudit.loading.blackbox.box import BlackBox, QueriesSpentError, computes_elsewhere
from maskaudit.loading.blackbox.local import answering, is_service

__all__ = ["BlackBox", "QueriesSpentError", "answering", "boxed", "computes_elsewhere", "is_service"]


def boxed(model: Any, *, limit: int | None = None, rate: float | None = None) -> BlackBox:
    """A model in memory as a black box of at most `limit` queries, `rate` a second."""
    ask = model.eval() if isinstance(model, nn.Module) else answering(model)
    return BlackBox(ask, limit=limit, rate=rate)
