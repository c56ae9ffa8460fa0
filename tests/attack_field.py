"""What attacks are tried on: our server behind uvicorn, a Label Studio, a service that nobody may reach, the logs."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from fake_models import fake_rsvp
from ls_http import Server, serving
from PIL import Image
from uvicorn_server import listening

from rsvp_backend.access import make_fetcher
from rsvp_backend.engine import Engine
from rsvp_backend.jobs.service import Jobs
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.security.logs import set_up_logging
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings
from rsvp_backend.traces import TraceLog

TOKEN = "0f9d8c7b6a5f4e3d2c1b0a-label-studio-token"
SECRET = "the-webhook-secret-0123456789"
ACCOUNT = ("label-studio", "the-password-0123456789")
MAX_BODY_BYTES = 2**20
PHOTO = "/data/upload/1/photo.png"


@dataclass(frozen=True)
class Attack:
    """``ends``: what comes of it, as docs/security.md tells; ``run`` fails where anything else does."""

    kind: str
    name: str
    ends: str
    run: Callable[[Field], None]


Attacks = list[Attack]


def attack(attacks: Attacks, kind: str, name: str, ends: str) -> Callable[[Callable[[Field], None]], None]:
    """Decorates what tries it."""

    def add(run: Callable[[Field], None]) -> None:
        attacks.append(Attack(kind, name, ends, run))

    return add


@dataclass(frozen=True)
class Field:
    """``studio`` may be asked for images; ``inner``, on another port, may be asked for nothing."""

    settings: Settings
    studio: Server
    inner: Server
    port: int
    folder: Path
    log: Callable[[], str]

    def http(self, **how: Any) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20, **({"auth": ACCOUNT} | how))

    def predict(self, image: str, instruction: str = "the cup", task: int = 5, **body: Any) -> dict[str, Any]:
        """The one task's result."""
        data = {"image": image, "instruction": instruction}
        asked = {"tasks": [{"id": task, "data": data}], "label_config": default_label_config(), "project": "1.1"}
        with self.http() as http:
            reply = http.post("/predict", content=json.dumps(asked | body))
        assert reply.status_code == 200, reply.text
        (result,) = reply.json()["results"]
        return dict(result)

    def refused(self, image: str, because: str = "") -> str:
        """The image of this address is not taken, and the private service was not asked. Gives the reason."""
        assert self.predict(image)["result"] == []
        assert self.inner.seen == []
        trace = self.trace()
        assert trace["reason"] == "image"
        assert because in trace["detail"], trace["detail"]
        return str(trace["detail"])

    def trace(self) -> dict[str, Any]:
        """The newest one."""
        with self.http() as http:
            return dict(http.get("/traces").json()["traces"][0])

    def gives(self, path: str, body: bytes, **headers: str) -> str:
        """The path, at which Label Studio now serves ``body``."""
        self.studio.routes[path.partition("?")[0]] = lambda _: (200, {"Content-Type": "image/png", **headers}, body)
        return path

    def fine(self) -> None:
        """The server goes on answering."""
        assert self.predict(PHOTO)["result"] != []

    def jobs(self) -> int:
        return len(Jobs.of(self.settings).store.all())


@contextmanager
def field_of(folder: Path, log: io.StringIO) -> Iterator[Field]:
    with serving() as studio, serving() as inner:
        studio.routes[PHOTO] = lambda _: (200, {"Content-Type": "image/png"}, png())
        inner.routes["/secret.png"] = lambda _: (200, {"Content-Type": "image/png"}, png())
        settings = Settings(
            label_studio_url=studio.url, label_studio_token=TOKEN, basic_auth_user=ACCOUNT[0],
            basic_auth_password=ACCOUNT[1], webhook_secret=SECRET, max_body_bytes=MAX_BODY_BYTES, image_timeout_s=2.0,
            image_max_bytes=2**19, image_max_pixels=10_000_000, versions=folder / "versions", train_every=3,
            traces=folder / "traces", backlog_tasks=0,
        )  # fmt: skip
        set_up_logging(settings)
        engine = Engine(fake_rsvp, make_fetcher(settings), TraceLog(settings.traces))
        with listening(create_app(settings, engine)) as port:
            yield Field(settings, studio, inner, port, folder, log.getvalue)


@contextmanager
def resolving(*answers: tuple[str, str]) -> Iterator[list[str]]:
    """Inside, each name's look-ups get these addresses, one after the other, the last one for good."""
    real, asked = socket.getaddrinfo, []
    waiting: dict[str, list[str]] = {}
    for name, address in answers:
        waiting.setdefault(name, []).append(address)

    def resolver(host: Any, *rest: Any, **options: Any) -> Any:
        known = waiting.get(host)
        if known is None:
            return real(host, *rest, **options)
        asked.append(host)
        return real(known.pop(0) if len(known) > 1 else known[0], *rest, **options)

    socket.getaddrinfo = resolver
    try:
        yield asked
    finally:
        socket.getaddrinfo = real


def png(size: tuple[int, int] = (90, 72)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "gray").save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def host_of(server: Server) -> str:
    return urlsplit(server.url).netloc


def table(attacks: Attacks) -> str:
    """As docs/security.md has it."""
    rows = [f"| {number} | {one.kind} | {one.name} | {one.ends} |" for number, one in enumerate(attacks, 1)]
    return "\n".join(["| | kind | attack | how it ends |", "|---|---|---|---|", *rows])
