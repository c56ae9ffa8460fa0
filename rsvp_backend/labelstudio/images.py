"""A task's image URI -> an upright RGB image, fetched with limits, by rules that a task's author cannot bend."""

from __future__ import annotations

import base64
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

import httpcore
import httpx
from PIL import Image

from rsvp_backend.errors import DeadlineError, ImageError, LabelStudioError
from rsvp_backend.labelstudio.auth import TokenAuth, origin
from rsvp_backend.labelstudio.hosts import HostRule
from rsvp_backend.labelstudio.network import GuardedBackend, Reach
from rsvp_backend.labelstudio.pixels import data_url_bytes, decode_image
from rsvp_backend.types import Deadline

_CLOUD_SCHEMES = ("s3", "s3s", "gs", "azure-blob", "azure_spi")
_FILES = re.compile(r"/(data|storage-data)/.|/tasks/(?P<task>\d+)/(presign|resolve)/")
_CLIMBS = re.compile(r"(^|[/\\])\.\.?([/\\]|$)")
TellHop = Callable[[str, bool], None]
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """``max_pixels`` is checked in the file's header, before decoding; ``timeout_s`` counts for one image in all."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 89_000_000
    timeout_s: float = 30.0
    max_redirects: int = 5


class ImageFetcher:
    """Fetches uploads and local files of Label Studio, http(s) and data URLs, and cloud URIs through Label Studio.

    The token goes to Label Studio's own origin only, and there only to paths that serve files. Private addresses are
    refused, Label Studio's own excepted, unless ``allow_private``; ``hosts``, where given, are the only others that are
    asked. ``public_url``: the address that Label Studio uses for itself in task data where it is not ``base_url`` (two
    networks); such URLs are fetched at ``base_url``. Proxy variables of the environment are not used. Safe to share by
    threads.
    """

    def __init__(
        self,
        base_url: str | None,
        auth: TokenAuth | None = None,
        limits: ImageLimits | None = None,
        allow_private: bool = False,
        public_url: str | None = None,
        hosts: tuple[HostRule, ...] | None = None,
    ) -> None:
        self._base = httpx.URL(base_url.rstrip("/")) if base_url else None
        self._public = httpx.URL(public_url) if public_url else None
        self._auth = auth
        self._limits = limits or ImageLimits()
        self._reach = Reach(_trusted(self._base), hosts, allow_private)
        self._tls: ssl.SSLContext | None = None
        self._tls_lock = threading.Lock()

    def fetch(
        self, uri: str, deadline: Deadline | None = None, task_id: int | None = None, tell: TellHop = lambda *_: None
    ) -> Image.Image:
        """The image upright (EXIF applied), RGB. Raises `ImageError`, or `DeadlineError` if ``deadline`` is over.

        ``tell`` hears of each request before it is made: its address, and whether the token goes along.
        """
        if uri[:5].lower() == "data:":
            return decode_image(data_url_bytes(uri, self._limits.max_bytes), self._limits.max_pixels)
        own = Deadline.after(self._limits.timeout_s)
        until = own if deadline is None or own.at_s < deadline.at_s else deadline
        url = self._locate(uri, task_id)
        try:
            data = self._download(url, until, task_id, tell)
        except httpcore.TimeoutException:
            if deadline is not None and deadline.expired:
                raise DeadlineError(f"{_shown(url)}: the request's time was over before the image came") from None
            raise ImageError(
                f"{_shown(url)}: no complete answer within {self._limits.timeout_s:g} s (RSVP_IMAGE_TIMEOUT_S)"
            ) from None
        except LabelStudioError as error:
            raise ImageError(f"{_shown(url)} cannot be fetched: {error}") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
            raise ImageError(f"{_shown(url)} cannot be fetched: {error or type(error).__name__}") from error
        try:
            return decode_image(data, self._limits.max_pixels)
        except ImageError as error:
            raise ImageError(f"{_shown(url)}: {error}") from None

    def _locate(self, uri: str, task_id: int | None) -> httpx.URL:
        try:
            url = _address(httpx.URL(uri))
        except (httpx.InvalidURL, ValueError) as error:  # the latter of names and texts that cannot be encoded
            raise ImageError(f"the image's address {uri[:100]!a} is not valid: {ascii(str(error))[1:-1]}") from None
        if url.scheme in ("http", "https") and url.host:
            is_public = self._public is not None and origin(url) == origin(self._public)
            return self._on_base(url.raw_path.decode("ascii")) if is_public and self._base else url
        if url.scheme in _CLOUD_SCHEMES:
            if task_id is None:
                raise ImageError(f"{_shown(url)} needs the task's id: Label Studio resolves cloud storage per task")
            encoded = base64.urlsafe_b64encode(uri.encode()).decode()
            return self._on_base(f"/tasks/{task_id}/presign/?fileuri={encoded}")
        if uri.startswith("/") and not uri.startswith("//"):
            return self._on_base(uri)
        raise ImageError(
            f"the image's address {uri[:100]!r} is not supported: http(s), data:, a path on Label Studio that begins "
            f"with /, or cloud storage ({', '.join(_CLOUD_SCHEMES)}) is expected"
        )

    def _on_base(self, path: str) -> httpx.URL:
        if self._base is None:
            raise ImageError(f"image {path[:100]!r} lies on Label Studio: set RSVP_LABEL_STUDIO_URL")
        prefix = self._base.path.rstrip("/")
        return self._base.join(path if prefix and path.startswith(f"{prefix}/") else prefix + path)

    def _download(self, url: httpx.URL, deadline: Deadline, task_id: int | None, tell: TellHop) -> bytes:
        """Follow redirects by hand: every hop is checked again, and the token stays behind at the first foreign one."""
        own = True
        for _ in range(self._limits.max_redirects + 1):
            own = own and self._base is not None and origin(url) == origin(self._base)
            signed = own and self._serves_files(url, task_id)
            tell(_shown(url), signed and self._auth is not None)
            answer = self._get(url, deadline, signed)
            if isinstance(answer, bytes):
                return answer
            url = answer
            if url.scheme not in ("http", "https"):
                raise ImageError(f"a redirect leads to {_shown(url)}: only http and https are followed")
        raise ImageError(f"{_shown(url)}: more than {self._limits.max_redirects} redirects")

    def _get(self, url: httpx.URL, deadline: Deadline, signed: bool) -> bytes | httpx.URL:
        """The body, or where a redirect leads; a 401 with a personal token is tried once more with a renewed one."""
        header = self._auth.header(timeout_s=deadline.remaining_s) if self._auth and signed else None
        answer = self._request(url, deadline, header)
        if answer == 401 and self._auth and header and self._auth.kind == "personal":
            answer = self._request(url, deadline, self._auth.header(header, deadline.remaining_s))
        if isinstance(answer, int):
            raise ImageError(f"{_shown(url)} answered {answer}{self._hint(answer, signed)}")
        return answer

    def _request(self, url: httpx.URL, deadline: Deadline, authorization: str | None) -> bytes | httpx.URL | int:
        """One GET: the body of a 200, the target of a redirect, or any other status."""
        headers = [("Accept", "image/*,*/*;q=0.5"), ("Accept-Encoding", "identity"), ("User-Agent", "rsvp-backend")]
        if authorization:
            headers.append(("Authorization", authorization))
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        backend = GuardedBackend(deadline, self._reach)
        with (
            httpcore.ConnectionPool(ssl_context=self._tls_context(), network_backend=backend) as pool,
            pool.stream("GET", target, headers=headers) as response,
        ):
            location = _header(response, b"location")
            if response.status in _REDIRECTS and location:
                return _target(url, location)
            return self._body(url, response) if response.status == 200 else response.status

    def _body(self, url: httpx.URL, response: httpcore.Response) -> bytes:
        limit = self._limits.max_bytes
        announced = _header(response, b"content-length")
        if not (announced.isdigit() and int(announced) > limit):
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        raise ImageError(f"{_shown(url)} is larger than {limit} bytes (RSVP_IMAGE_MAX_BYTES)")

    def _serves_files(self, url: httpx.URL, task_id: int | None) -> bool:
        """Whether the token may go to this path: an image URI must not make the backend call the API in its name, nor
        have another task's storage opened for it, however the path is written."""
        path = url.path
        while (plain := unquote(path)) != path:
            path = plain
        prefix = self._base.path.rstrip("/") if self._base else ""
        found = _FILES.match(path.removeprefix(prefix))
        if found is None or _CLIMBS.search(path):
            return False
        return found["task"] is None or task_id is None or int(found["task"]) == task_id

    def _tls_context(self) -> ssl.SSLContext:
        with self._tls_lock:
            if self._tls is None:
                self._tls = httpx.create_ssl_context(trust_env=False)
            return self._tls

    def _hint(self, status: int, signed: bool) -> str:
        if signed and status in (401, 403):
            return ": the token may not read it" if self._auth else ": set RSVP_LABEL_STUDIO_TOKEN"
        if signed and status in (404, 500):
            return ": the file is gone, or the project lacks the storage that serves it"
        return ""


def _trusted(base: httpx.URL | None) -> frozenset[tuple[str, int]]:
    if base is None:
        return frozenset()
    _, host, port = origin(base)
    names = ("localhost", "127.0.0.1", "::1") if host == "localhost" else (host,)
    return frozenset((name, port) for name in names)


def _address(url: httpx.URL) -> httpx.URL:
    """Raises `ValueError` for a host that only looks like an encoded name: it is decoded here first."""
    url.host.casefold()
    return url


def _target(url: httpx.URL, location: bytes) -> httpx.URL:
    try:
        return _address(url.join(location.decode("latin-1")))
    except (httpx.InvalidURL, ValueError):
        raise ImageError(f"{_shown(url)} leads to {location[:100]!r}, which is no address") from None


def _header(response: httpcore.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"")


def _shown(url: httpx.URL) -> str:
    """The address without user info and query, which may hold secrets."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"[:200]
