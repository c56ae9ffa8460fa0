"""Attacks by a task's author: addresses that are to make the backend ask, or tell, what it must not."""

from __future__ import annotations

import gzip
import time
from functools import partial
from typing import Any

import httpcore
import pytest
from attack_field import PHOTO, TOKEN, Attack, Attacks, Field, attack, host_of, png, resolving
from ls_http import Reply, Seen

from rsvp_backend.labelstudio.auth import TokenAuth
from rsvp_backend.labelstudio.images import ImageFetcher

NETWORK: Attacks = []
SPELLINGS = {
    "`http://127.0.0.1`": ("http://127.0.0.1:{port}/secret.png", "private or local"),
    "`http://localhost`": ("http://localhost:{port}/secret.png", "private or local"),
    "a decimal number, `http://2130706433`": ("http://2130706433:{port}/secret.png", "private or local"),
    "a hexadecimal one, `http://0x7f000001`": ("http://0x7f000001:{port}/secret.png", "private or local"),
    "a short form, `http://127.1`": ("http://127.1:{port}/secret.png", "private or local"),
    "octal, `http://0177.0.0.1`": ("http://0177.0.0.1:{port}/secret.png", "not valid"),
    "IPv6, `http://[::1]`": ("http://[::1]:{port}/secret.png", "private or local"),
    "IPv4 inside of IPv6, `http://[::ffff:127.0.0.1]`": (
        "http://[::ffff:7f00:1]:{port}/secret.png",
        "private or local",
    ),
    "NAT64, `http://[64:ff9b::7f00:1]`": ("http://[64:ff9b::7f00:1]:{port}/secret.png", "private or local"),
    "6to4, `http://[2002:7f00:1::]`": ("http://[2002:7f00:1::]:{port}/secret.png", "private or local"),
    "site-local, `http://[fec0::1]`": ("http://[fec0::1]:{port}/secret.png", "private or local"),
    "the unspecified address, `http://0.0.0.0`": ("http://0.0.0.0:{port}/secret.png", "private or local"),
    "other full stops, `http://127。0。0。1`": ("http://127。0。0。1:{port}/secret.png", "private or local"),
    "a user name before it, `http://images.example@127.0.0.1`": (
        "http://images.example@127.0.0.1:{port}/secret.png",
        "private or local",
    ),
    "a trailing dot, `http://localhost.`": ("http://localhost.:{port}/secret.png", ""),
    "a cloud's metadata, `http://169.254.169.254`": ("http://169.254.169.254/latest/meta-data/", "private or local"),
}


def _spelled(address: str, because: str, field: Field) -> None:
    field.refused(address.format(port=field.inner.port), because)


for name, (address, because) in SPELLINGS.items():
    ends = "refused, no connection" if because != "not valid" else "refused as no address"
    NETWORK.append(Attack("SSRF", name, ends, partial(_spelled, address, because)))


@attack(NETWORK, "SSRF", "a name that has a private address", "refused, no connection")
def _private_name(field: Field) -> None:
    with resolving(("images.example", "127.0.0.1")):
        field.refused(f"http://images.example:{field.inner.port}/secret.png", "private or local")


@attack(NETWORK, "SSRF", "a name that is public when it is checked and private after (rebinding)", "looked up "
        "once, that address is connected to")  # fmt: skip
def _rebinding(field: Field) -> None:
    real, connected = httpcore.SyncBackend.connect_tcp, []

    def connect(backend: httpcore.SyncBackend, host: str, port: int, *rest: Any, **options: Any) -> Any:
        if port != field.inner.port:
            return real(backend, host, port, *rest, **options)
        connected.append(host)
        raise httpcore.ConnectError("nobody is there")

    public, private = "93.184.216.34", "127.0.0.1"
    with (
        resolving(("images.example", public), ("images.example", private)) as asked,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
        field.refused(f"http://images.example:{field.inner.port}/secret.png", "nobody is there")
    assert (connected, asked) == ([public], ["images.example"])


@attack(NETWORK, "SSRF", "Label Studio redirects to a private address", "the redirect is checked like an address")
def _redirect(field: Field) -> None:
    field.studio.routes["/data/upload/r"] = lambda _: (302, {"Location": f"{field.inner.url}/secret.png"}, b"")
    field.refused("/data/upload/r", "private or local")


@attack(NETWORK, "SSRF", "`file:///etc/passwd`, `gopher://`, `ftp://`", "only http(s) and data: are fetched")
def _schemes(field: Field) -> None:
    for uri in ("file:///etc/passwd", f"gopher://{host_of(field.inner)}/_x", f"ftp://{host_of(field.inner)}/x"):
        field.refused(uri, "not supported")


@attack(NETWORK, "SSRF", "a redirect to `file:///etc/passwd`", "only http(s) is followed")
def _redirect_to_file(field: Field) -> None:
    field.studio.routes["/data/upload/f"] = lambda _: (302, {"Location": "file:///etc/passwd"}, b"")
    field.refused("/data/upload/f", "only http and https")


@attack(NETWORK, "SSRF", "redirects that never end", "five are followed")
def _redirect_loop(field: Field) -> None:
    field.studio.routes["/data/upload/loop"] = lambda _: (302, {"Location": "/data/upload/loop"}, b"")
    field.refused("/data/upload/loop", "more than 5 redirects")


def _unsigned(field: Field, path: str, task: int = 5) -> None:
    """Label Studio is asked, without the token."""
    before = len(field.studio.seen)
    field.predict(path, task=task)
    asked = field.studio.seen[before:]
    assert asked
    assert not any("authorization" in request.headers for request in asked), path


@attack(NETWORK, "traversal", "`/data/%2e%2e/api/...`, `/data/..%252fapi/...`, `/data/..\\api/...`", "asked for "
        "without the token")  # fmt: skip
def _traversal(field: Field) -> None:
    for path in ("/data/%2e%2e/api/users", "/data/..%252fapi/users", "/data/../api/users", "/data/..%5capi/users"):
        _unsigned(field, path)


@attack(
    NETWORK, "traversal", "another task's cloud file, `/tasks/9/presign/?fileuri=...`", "asked for without the token"
)
def _other_task(field: Field) -> None:
    _unsigned(field, "/tasks/9/presign/?fileuri=czM6Ly9iL3g=", task=5)
    before = len(field.studio.seen)
    field.predict("s3://bucket/x.png", task=5)  # the way that is meant to be gone
    assert field.studio.seen[before].headers["authorization"] == f"Token {TOKEN}"


@attack(
    NETWORK, "token leak", "an image at Label Studio's API, `/api/projects/1/export`", "asked for without the token"
)
def _api(field: Field) -> None:
    _unsigned(field, f"{field.studio.url}/api/projects/1/export")


@attack(NETWORK, "token leak", "Label Studio redirects an image to another server", "the token stays behind")
def _token_on_redirect(field: Field) -> None:
    field.studio.routes["/data/upload/away"] = lambda _: (302, {"Location": f"{field.inner.url}/secret.png"}, b"")
    careless = ImageFetcher(field.studio.url, TokenAuth(field.studio.url, TOKEN), allow_private=True)
    careless.fetch("/data/upload/away")
    (request,) = field.inner.seen
    field.inner.seen.clear()
    assert "authorization" not in request.headers


@attack(NETWORK, "token leak", "Label Studio's host as a user name, `http://label-studio:8080@evil.example`", "the "
        "token goes to its origin only")  # fmt: skip
def _host_as_user(field: Field) -> None:
    careless = ImageFetcher(field.studio.url, TokenAuth(field.studio.url, TOKEN), allow_private=True)
    careless.fetch(f"http://{host_of(field.studio)}@{host_of(field.inner)}/secret.png")
    (request,) = field.inner.seen
    field.inner.seen.clear()
    assert "authorization" not in request.headers


@attack(NETWORK, "token leak", "a signed address that fails", "neither log, trace nor reply has the signature")
def _signature(field: Field) -> None:
    reply = str(field.predict("/data/upload/none.png?X-Amz-Signature=5ec7e75ec7e7&token=5ec7e75ec7e7"))
    assert "5ec7e75ec7e7" not in reply + field.log() + field.trace()["detail"]


@attack(NETWORK, "bomb", "a download without an end", "cut at RSVP_IMAGE_MAX_BYTES")
def _endless(field: Field) -> None:
    def endless(_: Seen) -> Reply:
        return 200, {"Content-Type": "image/png"}, (b"x" * 65536 for _ in range(10_000))

    field.studio.routes["/data/upload/endless"] = endless
    field.refused("/data/upload/endless", "RSVP_IMAGE_MAX_BYTES")


@attack(NETWORK, "bomb", "an image that comes byte by byte", "given up after RSVP_IMAGE_TIMEOUT_S")
def _drip(field: Field) -> None:
    def drip(_: Seen) -> Reply:
        return 200, {"Content-Length": "1000"}, (time.sleep(0.1) or b"x" for _ in range(1000))

    field.studio.routes["/data/upload/drip"] = drip
    field.refused("/data/upload/drip", "RSVP_IMAGE_TIMEOUT_S")


@attack(NETWORK, "bomb", "a small reply that says it is compressed (gzip bomb)", "never unpacked")
def _gzip(field: Field) -> None:
    field.refused(field.gives("/data/upload/gz", gzip.compress(bytes(2**24)), **{"Content-Encoding": "gzip"}))
    assert field.predict(field.gives(PHOTO, png()))["result"]
