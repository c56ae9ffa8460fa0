"""A real HTTP proxy in front of Label Studio that misbehaves as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

FULL = b'{"detail": "database or disk is full"}'
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length", "host"}
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Fault:
    """``status``: answered in Label Studio's place; ``delay_s``: before it is asked; ``cut``: the connection is closed
    once it has answered, so that nobody knows whether it did the work."""

    status: int | None = None
    delay_s: float = 0.0
    cut: bool = False


@dataclass
class Proxy:
    """``upstream``: Label Studio's address now; ``fault``: asked for each request by method and path; None for none."""

    url: str
    upstream: str
    fault: Callable[[str, str], Fault | None] = lambda *_: None
    met: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response | None:
        """None: the connection is cut."""
        fault = self.fault(method, path) or Fault()
        with self.lock:
            self.met += fault != Fault()
        time.sleep(fault.delay_s)
        if fault.status is not None:
            return httpx.Response(fault.status, content=FULL, headers={"Content-Type": "application/json"})
        try:
            answer = httpx.request(
                method, self.upstream + path, headers=headers, content=body, timeout=120, trust_env=False
            )
        except httpx.HTTPError:
            return None  # it is down: so is this
        return None if fault.cut else answer


@contextmanager
def proxying(upstream: str) -> Iterator[Proxy]:
    class Handler(BaseHTTPRequestHandler):
        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            answer = proxy.answer(self.command, self.path, headers, body)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"date", "server"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _pass  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}", upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
