"""ONNX files, read as data."""

from maskaudit.loading.onnx.reader import (
    read,
)

__all__ = [
    "read",
]
