"""An HTTP server on loopback that misbehaves on order: what real chat endpoints do only now and then."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


class FakeEndpoint:
    """Answers the n-th request by the n-th step (the last one for all later); keeps every request's body."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        self.bodies.append(body)
        self.steps[min(len(self.bodies), len(self.steps)) - 1](handler, body)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve while the context lasts; gives the base URL."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fake.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            server.server_close()


def reply(status: int, body: bytes, **headers: str) -> Step:
    def step(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(status)
        plain = {"content_type": "application/json", "content_length": str(len(body))}
        for name, value in (plain | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return step


def completion(text: str | None, finish_reason: str = "stop", **more: Any) -> bytes:
    """A chat completion with ``text``; ``more`` goes into its message."""
    message = {"role": "assistant", "content": text} | more
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    about = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return json.dumps(about | {"choices": choices, "usage": usage}).encode()


def says(text: str | None, finish_reason: str = "stop", **more: Any) -> Step:
    """Answers 200 with a `completion`."""
    return reply(200, completion(text, finish_reason, **more))


def streams(text: str) -> Step:
    """Server-sent events, which nobody asked for."""
    return reply(200, b"data: " + completion(text) + b"\n\ndata: [DONE]\n\n", content_type="text/event-stream")


def refuses(status: int, message: str, code: str | None = None, **headers: str) -> Step:
    return reply(status, json.dumps({"error": {"message": message, "type": "x", "code": code}}).encode(), **headers)


def hangs(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """No answer while the client waits, for 30 s at most."""
    handler.connection.settimeout(30)
    with suppress(TimeoutError, OSError):
        handler.rfile.read(1)  # ends when the client closes the connection


def trickles_at(status: int) -> Step:
    """Good headers, then one byte now and then for 30 s."""

    def step(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.end_headers()
        with suppress(OSError):  # the client has had enough, which is the point
            for _ in range(600):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)

    return step


def breaks_off(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """Half of the promised bytes, then the connection ends."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
