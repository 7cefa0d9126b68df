"""Whether a hub can be reached, asked once and briefly: without a network packages retry for a minute."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from maskaudit.errors import InputError, describe_error

#: Longest wait for a hub to accept a connection, in seconds.
PATIENCE = 1.5
#: Variables by which the packages of Hugging Face are told to use what is on the disk only.
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
#: Where those packages keep what they read there when they were imported.
KEPT = (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_DATASETS_OFFLINE"))
#: Where each collection's weights or data are downloaded from.
HUBS = {
    "hf": "https://huggingface.co",
    "timm": "https://huggingface.co",
    "torchvision": "https://download.pytorch.org",
    "robustbench": "https://drive.google.com",
}


def address(prefix: str) -> str:
    """Where `prefix:` downloads from; for the packages of Hugging Face, as the environment says."""
    usual = HUBS[prefix]
    return os.environ.get("HF_ENDPOINT", usual) if "huggingface" in usual else usual


def reachable(url: str) -> bool:
    """Whether the host of a URL, or the proxy that the environment names, accepts a connection within `PATIENCE`."""
    answers: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # a name or a port that is none fails in another way than a network
            parts = urlsplit(url)
            proxy = os.environ.get(f"{parts.scheme}_proxy") or os.environ.get(f"{parts.scheme.upper()}_PROXY")
            parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}") if proxy else parts
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 443)
            with socket.create_connection((parts.hostname or "", port), timeout=PATIENCE):
                answers.append(True)

    asking = threading.Thread(target=ask, daemon=True)  # looking a name up may hang, and cannot be interrupted
    asking.start()
    asking.join(PATIENCE)
    return bool(answers)


@contextlib.contextmanager
def briefly(prefix: str) -> Iterator[bool]:
    """Within, packages that download for `prefix:` give up at once where their hub is not reachable.

    Yields:
        Whether it is. Everything is put back at the end.
    """
    if any(os.environ.get(name, "").lower() in ("1", "on", "yes", "true") for name in OFFLINE[:2]):
        yield False
        return
    if reachable(address(prefix)):
        yield True
        return
    with contextlib.ExitStack() as stack:
        before = socket.getdefaulttimeout()
        stack.callback(socket.setdefaulttimeout, before)
        socket.setdefaulttimeout(PATIENCE)
        for name in OFFLINE:
            stack.callback(_restore, name, os.environ.get(name))
            os.environ[name] = "1"
        for module, name in KEPT:
            held: Any = sys.modules.get(module)
            if hasattr(held, name):
                stack.callback(setattr, held, name, getattr(held, name))
                setattr(held, name, True)
        yield False


@contextlib.contextmanager
def explained(prefix: str, failed: str, advice: str = "") -> Iterator[None]:
    """As `briefly`; whatever a package raises within becomes a sentence, which tells whether the hub answers.

    Args:
        failed: what did not work, before the reason; advice: what to do, behind it.

    Raises:
        InputError: that sentence, or the one that was raised.
    """
    with briefly(prefix) as online:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # unknown names and downloads without a network each fail in their own way
            near = "" if online else f"; {address(prefix)} does not answer"
            raise InputError(f"{failed} ({describe_error(error)}){advice}{near}.") from error


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
