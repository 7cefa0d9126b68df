"""Models that only answer: functions on arrays, sessions of ONNX Runtime, scikit-learn estimators, web services."""

from maskaudit.loading.blackbox.box import BlackBox, QueriesSpentError, computes_elsewhere
from maskaudit.loading.blackbox.local import answering, is_service

__all__ = ["BlackBox", "QueriesSpentError", "answering", "computes_elsewhere", "is_service"]
