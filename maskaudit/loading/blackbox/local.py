"""Objects of other libraries as functions on tensors: sessions of ONNX Runtime, scikit-learn, array functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def is_service(made: object) -> bool:
    """Whether an object answers through methods of its own: a session of ONNX Runtime, an estimator of scikit-learn."""
    return isinstance(made, (_Session, _Estimator)) or _is_session(made) or _is_estimator(made)


def answering(made: Any) -> Callable[[Tensor], Any]:
    """A function from inputs (N, …) to scores for what `is_service`, or for a function on tensors or arrays."""
    if _is_session(made):
        return _Session(made)
    return _Estimator(made) if _is_estimator(made) else _Function(made)


def _is_session(made: object) -> bool:
    return callable(getattr(made, "run", None)) and callable(getattr(made, "get_inputs", None))


def _is_estimator(made: object) -> bool:
    return callable(getattr(made, "predict", None)) and hasattr(made, "get_params") and not callable(made)


class _Session:
    """ONNX Runtime: the first input takes the points; all float outputs with one row per point are returned by name."""

    def __init__(self, session: Any) -> None:
        self.session = session
        first = session.get_inputs()[0]
        self.name, self.dtype = first.name, _TYPES.get(first.type, np.float32)
        self.outputs = [output.name for output in session.get_outputs()]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs for points (N, …)."""
        found = self.session.run(None, {self.name: x.detach().cpu().numpy().astype(self.dtype)})
        arrays = zip(self.outputs, found, strict=True)
        return {name: torch.as_tensor(_table(array)) for name, array in arrays if _is_scores(array)}


def _is_scores(array: Any) -> bool:
    """Whether an output is a table of floats, as an array or as scikit-learn's converter writes it."""
    if isinstance(array, list):
        return bool(array) and isinstance(array[0], dict)
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _table(array: Any) -> np.ndarray[Any, Any]:
    if isinstance(array, list):  # one {class: probability} per point
        return np.array([[row[key] for key in sorted(row)] for row in array], dtype=np.float32)
    return np.asarray(array, dtype=np.float32)


class _Estimator:
    """scikit-learn: probabilities, else the decision function, else the decision itself; rows are flattened."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (N, K) for points (N, …), or (N,) of a decision between two."""
        rows = x.detach().cpu().flatten(1).numpy()
        for name in ("predict_proba", "decision_function"):
            if hasattr(self.estimator, name):
                return torch.as_tensor(np.asarray(getattr(self.estimator, name)(rows)))
        classes = np.asarray(self.estimator.classes_)
        return torch.as_tensor((np.asarray(self.estimator.predict(rows))[:, None] == classes[None]).astype(np.float32))


class _Function:
    """A function that takes tensors, or arrays where it refuses tensors; which, the first call shows."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.arrays: bool | None = None

    def __call__(self, x: Tensor) -> Any:
        """What it returns, as a tensor where it is an array or a list."""
        if self.arrays is not None:
            return _tensor(self.function(x.detach().cpu().numpy() if self.arrays else x))
        try:
            answer, self.arrays = self.function(x), False
        except Exception as error:
            try:
                answer, self.arrays = self.function(x.detach().cpu().numpy()), True
            except Exception:
                if isinstance(error, (TypeError, AttributeError)):  # a tensor is not what it takes
                    raise
                raise error from None
        return _tensor(answer)


def _tensor(answer: Any) -> Any:
    return torch.as_tensor(np.asarray(answer)) if isinstance(answer, (np.ndarray, list)) else answer
