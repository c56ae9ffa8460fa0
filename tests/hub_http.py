"""A local server that speaks the routes of the Hugging Face hub which a download uses, on a port of its own."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@dataclass
class Hub:
    """``files``: name -> content of every repository ``OWNER/NAME``; large ones are served as LFS files are.

    ``cut_at``: after so many bytes of the next large file the connection is ``reset``, or closed. ``refuse``: status
    and X-Error-Code of all answers. ``requests``: (method, path, Range header) of all that came.
    """

    repositories: dict[str, dict[str, bytes]]
    commit: str = COMMIT
    large_bytes: int = 100_000
    cut_at: int | None = None
    reset: bool = True
    refuse: tuple[int, str] | None = None
    wrong_content: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def ranges(self, name: str) -> list[str | None]:
        return [asked for method, path, asked in self.requests if method == "GET" and path.endswith(name)]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            hub.requests.append((self.command, self.path, self.headers["Range"]))
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            repository = hub.repositories.get(found[1]) if found else None
            if hub.refuse is not None:
                self._refuse(*hub.refuse)
            elif found is None or repository is None:
                self._refuse(404, "RepoNotFound")
            elif found[2] not in ("main", hub.commit):
                self._refuse(404, "RevisionNotFound")
            elif found[3] not in repository:
                self._refuse(404, "EntryNotFound")
            else:
                self._send(repository[found[3]], body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, content: bytes, body: bool) -> None:
            large = len(content) >= hub.large_bytes
            etag = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            start = int(asked[1]) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("Content-Length", str(len(content) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if body:
                sent = bytes(len(content)) if hub.wrong_content and large else content
                self._write(sent[start:], large)

        def _write(self, content: bytes, large: bool) -> None:
            if not large or hub.cut_at is None:
                self.wfile.write(content)
                return
            self.wfile.write(content[: hub.cut_at])
            self.wfile.flush()
            hub.cut_at = None
            if hub.reset:
                # Wait until the client has read what was sent: a reset throws away what is still under way.
                self._wait_until_read()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close() if hub.reset else self.connection.shutdown(socket.SHUT_WR)

        def _wait_until_read(self) -> None:
            threading.Event().wait(0.3)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
