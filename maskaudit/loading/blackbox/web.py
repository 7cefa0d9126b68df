"""A model behind a URL: JSON or .npy by POST, with retries, timeouts and authentication from the environment.

Request: `{"inputs": [[…], …]}`; where the service answers 415 (unsupported media type), the inputs are sent as one
.npy array from then on. Response: `{"scores": [[…], …]}` (or `outputs`, `predictions`, `probabilities`, `logits`), a
bare list, or a .npy array. `MASKAUDIT_AUTHORIZATION` is sent as the header Authorization, to the given host only:
redirections are not followed.
"""

from __future__ import annotations

import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from maskaudit.declared import Anything, Items, Kind, Number, Record, read
from maskaudit.declared.parsing import parse_json
from maskaudit.errors import InputError, ModelError, printable
from maskaudit.loading.interface import Contents

#: The variable whose value becomes the header Authorization.
AUTHORIZATION = "MASKAUDIT_AUTHORIZATION"
#: Seconds that one answer may take; times that a request is repeated; longest pause before, in seconds.
TIMEOUT, RETRIES, LONGEST_PAUSE = 30.0, 5, 60.0
#: Largest answer, in bytes.
MAX_BYTES = 64 << 20
#: Answers of a service that is busy or broken for the moment.
PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Answer of one that takes fewer points at once; a `Target` then asks fewer.
TOO_LARGE = 413
_NPY, _JSON = "application/x-npy", "application/json"

_ROW = Items(Number(-1e30, 1e30), 1_000_000, 1)
_ROWS = Items(_ROW, 1_000_000, 1)
_NAMES = ("scores", "outputs", "predictions", "probabilities", "logits")
_ANSWER = Record(dict.fromkeys(_NAMES, Anything()), ignore_unknown=True)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirections are errors: what was sent was meant for one host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Service:
    """A function from inputs (N, …) to scores that asks a URL.

    Args:
        url: http or https.
        timeout: seconds that one answer may take; sleep: waits between attempts.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url, self.timeout, self._sleep = url, timeout, sleep
        self._npy = False
        self._open = urllib.request.build_opener(_NoRedirect).open

    def __call__(self, x: Tensor) -> Tensor:
        """Scores for points (N, …).

        Raises:
            ModelError: when the service refuses, keeps failing, or answers something else.
        """
        problem = ""
        for attempt in range(RETRIES + 1):
            try:
                return self._ask(x)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 415 and not self._npy:
                        self._npy = True
                        continue
                    if error.code == TOO_LARGE:
                        raise ModelError(f"{self.url} takes fewer than {len(x)} points per request.") from error
                    if error.code not in PASSING:
                        raise ModelError(self._refused(error.code)) from None
                    problem, pause = f"status {error.code}", _pause(error.headers, attempt)
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                problem, pause = (
                    printable(str(getattr(error, "reason", error)) or type(error).__name__),
                    2.0**attempt / 4,
                )
            if attempt < RETRIES:
                self._sleep(pause)
        raise ModelError(f"{self.url} did not answer in {RETRIES + 1} attempts ({problem}).")

    def _ask(self, x: Tensor) -> Tensor:
        array = x.detach().cpu().numpy()
        if self._npy:
            held = io.BytesIO()
            np.save(held, array, allow_pickle=False)
            body = held.getvalue()
        else:
            body = json.dumps({"inputs": array.tolist()}).encode()
        headers = {"Content-Type": _NPY if self._npy else _JSON, "Accept": f"{_JSON}, {_NPY}"}
        if os.environ.get(AUTHORIZATION):
            headers["Authorization"] = os.environ[AUTHORIZATION]
        request = urllib.request.Request(self.url, body, headers, method="POST")
        with self._open(request, timeout=self.timeout) as response:
            content = response.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ModelError(f"{self.url} answered more than {MAX_BYTES >> 20} MiB.")
        return _read(content, self.url)

    def _refused(self, code: int) -> str:
        if code in (401, 403):
            return f"{self.url} refused access (status {code}); put your credentials into {AUTHORIZATION}."
        return f'{self.url} answered status {code}; it must take POST with JSON {{"inputs": [[…]]}} or a .npy array.'


def read_url(url: str) -> Contents:
    """`http://…` or `https://…`; nothing is asked before the audit."""
    if not urlsplit(url).hostname:
        raise InputError(f"{printable(url)} names no host; write https://HOST/PATH.")
    return Contents(
        Service(url), "http", notes=("The model is a web service: its answers are all that is known of it.",)
    )


def _read(content: bytes, url: str) -> Tensor:
    """The scores in an answer."""
    if content.startswith(b"\x93NUMPY"):
        try:
            array = np.load(io.BytesIO(content), allow_pickle=False)
            numbers = array.ndim == 1 and array.dtype.kind in "iu"  # of classes
            return torch.as_tensor(np.asarray(array, dtype=np.int64 if numbers else np.float32))
        except (ValueError, TypeError, EOFError, MemoryError, OSError):
            raise ModelError(f"{url} answered a damaged .npy array.") from None
    if content.lstrip()[:1] == b"<":
        raise ModelError(f"{url} answered a web page, not scores; look at the address, and at {AUTHORIZATION}.")
    document = parse_json(content, f"The answer of {url}", error=ModelError)
    if isinstance(document, dict):
        found = read(_ANSWER, document, f"The answer of {url}", error=ModelError)
        document = next((found[name] for name in _NAMES if name in found), None)
        if document is None:
            raise ModelError(f"{url} answered without any of {', '.join(_NAMES)}.")
    nested = isinstance(document, list) and any(isinstance(row, list) for row in document)
    kind: Kind[Any] = _ROWS if nested else _ROW
    numbers = isinstance(document, list) and all(type(row) is int for row in document)  # of classes
    rows = read(kind, document, f"The answer of {url}", error=ModelError)
    try:
        return torch.tensor(rows, dtype=torch.int64 if numbers else torch.float32)
    except ValueError:
        raise ModelError(f"{url} answered rows of different lengths.") from None


def _pause(headers: Message, attempt: int) -> float:
    """Seconds to wait: what the service asks for, else twice as long each time."""
    asked = headers.get("Retry-After", "")
    return min(LONGEST_PAUSE, float(asked) if asked.isdecimal() else 2.0**attempt / 4)
