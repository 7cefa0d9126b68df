"""A model behind a local port that is slow, fails, limits and wants a password, as it is orders."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


@dataclass
class Orders:
    """How the server behaves, and what it has seen.

    Attributes:
        statuses: what the next requests are answered instead of scores; slow: seconds that those with 0 wait.
    """

    model: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
    statuses: list[int] = field(default_factory=list)
    slow: float = 0.0
    retry_after: str = ""
    password: str = ""
    npy: bool = False
    raw: bytes = b""
    location: str = ""
    points: int = 0
    seen: list[str] = field(default_factory=list)


@contextmanager
def serving(orders: Orders) -> Iterator[str]:
    """The URL of a server that does as orders."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kind = self.headers["Content-Type"]
            orders.seen.append(kind)
            status = orders.statuses.pop(0) if orders.statuses else 200
            if status == 0:
                time.sleep(orders.slow)
                status = 503
            if orders.password and self.headers.get("Authorization") != orders.password:
                status = 401
            if orders.npy and "npy" not in kind:
                status = 415
            self.send_response(status)
            if orders.retry_after:
                self.send_header("Retry-After", orders.retry_after)
            if orders.location:
                self.send_header("Location", orders.location)
            self.end_headers()
            if status == 200:
                self.wfile.write(orders.raw or self.answer(body))

        def answer(self, body: bytes) -> bytes:
            if orders.npy:
                x = np.load(io.BytesIO(body), allow_pickle=False)
                held = io.BytesIO()
                np.save(held, orders.model(x))
                orders.points += len(x)
                return held.getvalue()
            x = np.array(json.loads(body)["inputs"], dtype=np.float32)
            orders.points += len(x)
            return json.dumps({"scores": orders.model(x).tolist()}).encode()

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/predict"
    finally:
        server.shutdown()
        server.server_close()
