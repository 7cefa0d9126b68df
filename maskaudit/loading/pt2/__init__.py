"""`torch.export` programs, read as data."""

from maskaudit.loading.pt2.reader import (
    read,
)

__all__ = [
    "read",
]
