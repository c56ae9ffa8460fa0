"""The image fetcher against real HTTP servers: limits, redirects, tokens, private addresses, orientation."""

import base64
import io
import itertools
import socket
import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from ls_http import Reply, Seen, Server, json_reply, serving
from PIL import Image

from rsvp_backend.errors import DeadlineError, ImageError
from rsvp_backend.labelstudio import network
from rsvp_backend.labelstudio.auth import TokenAuth
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.network import is_public
from rsvp_backend.labelstudio.pixels import decode_image
from rsvp_backend.types import Deadline

TOKEN = "legacy-token-of-forty-characters-or-less"
UPLOAD = "/data/upload/1/photo.jpg"


def photo(format: str = "PNG", size: tuple[int, int] = (30, 20), **options: object) -> bytes:
    image = Image.new("RGB", size, (200, 30, 30))
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 1000) + b"IDAT"


def file_reply(body: bytes = b"", kind: str = "image/png") -> Reply:
    return 200, {"Content-Type": kind}, body or photo()


def redirect(url: str, status: int = 302) -> Reply:
    return status, {"Location": url}, b""


@pytest.fixture
def studio() -> Iterator[Server]:
    with serving() as server:
        server.routes[UPLOAD] = lambda _: file_reply()
        yield server


@pytest.fixture
def other() -> Iterator[Server]:
    with serving() as server:
        server.routes["/photo.png"] = lambda _: file_reply()
        yield server


def fetcher(studio: Server, **options: object) -> ImageFetcher:
    return ImageFetcher(studio.url, TokenAuth(studio.url, TOKEN), **options)  # type: ignore[arg-type]


def test_an_upload_is_fetched_with_the_token(studio: Server) -> None:
    image = fetcher(studio).fetch(UPLOAD)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert image.getpixel((0, 0)) == (200, 30, 30)
    assert studio.seen[0].headers["authorization"] == f"Token {TOKEN}"


def test_absolute_local_files_urls_match_label_studio_by_any_name_of_this_machine(studio: Server) -> None:
    studio.routes["/data/local-files/"] = lambda _: file_reply()
    fetcher(studio).fetch(f"http://localhost:{studio.port}/data/local-files/?d=a%20b/c.png")
    assert studio.seen[0].path == "/data/local-files/?d=a%20b/c.png"
    assert "authorization" in studio.seen[0].headers


def test_label_studio_below_a_path_and_under_a_public_name(studio: Server) -> None:
    studio.routes["/label/data/upload/x.png"] = lambda _: file_reply()
    behind = ImageFetcher(f"{studio.url}/label/", TokenAuth(studio.url, TOKEN), public_url="https://label.example.com")
    for uri in ("/data/upload/x.png", "/label/data/upload/x.png", "https://label.example.com/data/upload/x.png"):
        behind.fetch(uri)
    assert studio.paths() == ["/label/data/upload/x.png"] * 3
    assert all("authorization" in seen.headers for seen in studio.seen)


def test_the_token_goes_only_to_paths_that_serve_files(studio: Server) -> None:
    studio.routes["/api/projects/1/export"] = lambda _: file_reply()
    fetcher(studio).fetch(f"{studio.url}/api/projects/1/export")
    assert "authorization" not in studio.seen[0].headers


def test_another_port_of_the_same_host_gets_no_token(studio: Server, other: Server) -> None:
    other.routes[UPLOAD] = lambda _: file_reply()
    fetcher(studio, allow_private=True).fetch(other.url + UPLOAD)
    assert "authorization" not in other.seen[0].headers


def test_a_redirect_from_label_studio_leaves_the_token_behind(studio: Server, other: Server) -> None:
    studio.routes[UPLOAD] = lambda _: redirect(f"{other.url}/photo.png", 303)
    fetcher(studio, allow_private=True).fetch(UPLOAD)
    assert "authorization" in studio.seen[0].headers
    assert "authorization" not in other.seen[0].headers


def test_a_foreign_redirect_to_label_studio_is_not_signed(studio: Server, other: Server) -> None:
    other.routes["/photo.png"] = lambda _: redirect(studio.url + UPLOAD)
    fetcher(studio, allow_private=True).fetch(f"{other.url}/photo.png")
    assert "authorization" not in studio.seen[0].headers


def test_private_addresses_are_refused_before_any_request(studio: Server, other: Server) -> None:
    for host in ("127.0.0.1", "localhost", "2130706433", "127.1"):
        with pytest.raises(ImageError, match=r"private or local address.*RSVP_ALLOW_PRIVATE_ADDRESSES"):
            fetcher(studio).fetch(f"http://{host}:{other.port}/photo.png")
    assert other.seen == []


def test_redirects_to_private_addresses_are_refused(studio: Server, other: Server) -> None:
    studio.routes[UPLOAD] = lambda _: redirect(f"{other.url}/photo.png")
    with pytest.raises(ImageError, match="private or local address"):
        fetcher(studio).fetch(UPLOAD)
    assert other.seen == []


def test_the_checked_address_is_the_one_connected_to(studio: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = socket.getaddrinfo, []

    def resolver(host: str, *rest: object, **options: object) -> object:
        if host != "studio.example":
            return real(host, *rest, **options)  # type: ignore[arg-type]
        asked.append(host)
        return real("127.0.0.1", *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with pytest.raises(ImageError, match=r"'studio.example' has the private or local address 127.0.0.1"):
        fetcher(studio).fetch(f"http://studio.example:{studio.port}/x.png")
    assert studio.seen == []
    asked.clear()
    trusted = ImageFetcher(f"http://studio.example:{studio.port}")
    assert trusted.fetch(UPLOAD).size == (30, 20)
    assert asked == ["studio.example"]  # a second look-up could name another address


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("127.0.0.1", False), ("10.0.0.1", False),
        ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False),
        ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False), ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True), ("64:ff9b::7f00:1", False), ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:0001::", False), ("2001:db8::1", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_redirects_are_followed_up_to_the_limit(studio: Server) -> None:
    for i in range(9):
        studio.routes[f"/data/{i}"] = lambda _, i=i: redirect(f"/data/{i + 1}")
    studio.routes["/data/5"] = lambda _: file_reply()
    assert fetcher(studio).fetch("/data/0").size == (30, 20)
    studio.routes["/data/5"] = lambda _: redirect("/data/6")
    with pytest.raises(ImageError, match="more than 5 redirects"):
        fetcher(studio).fetch("/data/0")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_redirects_to_other_schemes_are_refused(studio: Server, target: str) -> None:
    studio.routes[UPLOAD] = lambda _: redirect(target)
    with pytest.raises(ImageError, match="only http and https"):
        fetcher(studio).fetch(UPLOAD)


def test_too_many_bytes_are_refused_announced_or_not(studio: Server) -> None:
    small = ImageLimits(max_bytes=10_000)
    studio.routes[UPLOAD] = lambda _: file_reply(bytes(10_001))
    with pytest.raises(ImageError, match=r"larger than 10000 bytes \(RSVP_IMAGE_MAX_BYTES"):
        fetcher(studio, limits=small).fetch(UPLOAD)
    studio.routes[UPLOAD] = lambda _: (200, {}, itertools.repeat(bytes(1000)))
    with pytest.raises(ImageError, match="larger than 10000 bytes"):
        fetcher(studio, limits=small).fetch(UPLOAD)


def drip() -> Iterator[bytes]:
    while True:
        yield b"x"
        time.sleep(0.02)


def test_a_slow_drip_cannot_outlive_the_limit(studio: Server) -> None:
    studio.routes[UPLOAD] = lambda _: (200, {}, drip())
    with pytest.raises(ImageError, match=r"no complete answer within 0.3 s \(RSVP_IMAGE_TIMEOUT_S"):
        fetcher(studio, limits=ImageLimits(timeout_s=0.3)).fetch(UPLOAD)


def test_the_requests_deadline_counts_as_well(studio: Server) -> None:
    studio.routes[UPLOAD] = lambda _: (200, {}, drip())
    with pytest.raises(DeadlineError, match="time was over"):
        fetcher(studio).fetch(UPLOAD, Deadline.after(0.2))
    with pytest.raises(DeadlineError):
        fetcher(studio).fetch(UPLOAD, Deadline.after(0.0))


def test_exif_orientation_is_applied(studio: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 32, 32))  # the left half of the file is the top half of the photo
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    studio.routes[UPLOAD] = lambda _: file_reply(file.getvalue(), "image/jpeg")
    upright = fetcher(studio).fetch(UPLOAD)
    assert upright.size == (32, 64)
    assert np.asarray(upright)[:28].min() > 200
    assert np.asarray(upright)[36:].max() < 50


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(studio: Server, format: str) -> None:
    studio.routes[UPLOAD] = lambda _: file_reply(photo(format))
    assert fetcher(studio).fetch(UPLOAD).size == (30, 20)


def test_transparency_and_sixteen_bits_look_as_in_a_browser() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(file, "PNG")
    assert decode_image(file.getvalue(), 100).getpixel((0, 0)) == (255, 255, 255)
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2), 128 * 256, np.uint16)).save(file, "PNG")
    assert decode_image(file.getvalue(), 100).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("size", [(20_000, 15_000), (9_500, 9_400)], ids=["300MP", "89.3MP"])
def test_huge_images_are_refused_by_their_header(studio: Server, size: tuple[int, int]) -> None:
    studio.routes[UPLOAD] = lambda _: file_reply(png_header(*size))
    with pytest.raises(ImageError, match=r"photo.jpg: the image is too large.*89000000.*RSVP_IMAGE_MAX_PIXELS"):
        fetcher(studio).fetch(UPLOAD)


@pytest.mark.parametrize(
    "body", [b"<html>sign in</html>", photo("JPEG", (300, 300))[:900], b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_is_refused(studio: Server, body: bytes) -> None:
    studio.routes[UPLOAD] = lambda _: file_reply(body)
    with pytest.raises(ImageError, match=r"photo.jpg: not a readable image"):
        fetcher(studio).fetch(UPLOAD)


def test_an_empty_answer_is_refused(studio: Server) -> None:
    studio.routes[UPLOAD] = lambda _: (200, {}, b"")
    with pytest.raises(ImageError, match="not a readable image"):
        fetcher(studio).fetch(UPLOAD)


def test_data_urls() -> None:
    encoded = base64.b64encode(photo()).decode()
    alone = ImageFetcher(None)
    assert alone.fetch(f"data:image/png;base64,{encoded}").size == (30, 20)
    assert alone.fetch("data:image/png;base64," + encoded.replace("+", "%2B").replace("=", "%3D")).size == (30, 20)
    huge = base64.b64encode(png_header(20_000, 15_000)).decode()
    for uri, message in [
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png", "has no comma"),
        ("data:text/plain,hello", "not a readable image"),
        (f"data:image/png;base64,{huge}", "too large"),
    ]:
        with pytest.raises(ImageError, match=message):
            alone.fetch(uri)
    with pytest.raises(ImageError, match="larger than 10 bytes"):
        ImageFetcher(None, limits=ImageLimits(max_bytes=10)).fetch(f"data:image/png;base64,{encoded}")


def test_cloud_storage_goes_through_label_studio(studio: Server) -> None:
    studio.routes["/tasks/5/presign/"] = lambda _: redirect(UPLOAD, 303)
    uri = "s3://bucket/folder/ä?.png"
    assert fetcher(studio).fetch(uri, task_id=5).size == (30, 20)
    query = studio.seen[0].path.partition("?fileuri=")[2]
    assert base64.urlsafe_b64decode(query).decode() == uri
    assert "authorization" in studio.seen[0].headers
    with pytest.raises(ImageError, match="needs the task's id"):
        fetcher(studio).fetch(uri)


@pytest.mark.parametrize(
    "uri", ["", "photo.jpg", "//host/x.png", "file:///etc/passwd", "ftp://h/x", "/etc/../../x\x00", "http://", "c:\\x"]
)
def test_other_addresses_are_refused(studio: Server, uri: str) -> None:
    with pytest.raises(ImageError):
        fetcher(studio).fetch(uri)
    assert studio.seen == []


def test_a_path_needs_label_studios_address() -> None:
    with pytest.raises(ImageError, match="set RSVP_LABEL_STUDIO_URL"):
        ImageFetcher(None).fetch(UPLOAD)


def test_refusals_name_the_status_and_hide_secrets(studio: Server) -> None:
    studio.routes[UPLOAD] = lambda _: (401, {}, b"")
    with pytest.raises(ImageError, match=r"answered 401: the token may not read it") as caught:
        fetcher(studio).fetch(f"{UPLOAD}?signature=secret")
    assert "secret" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    with pytest.raises(ImageError, match="answered 401: set RSVP_LABEL_STUDIO_TOKEN"):
        ImageFetcher(studio.url).fetch(UPLOAD)
    with pytest.raises(ImageError, match="answered 404"):
        fetcher(studio).fetch("/data/upload/none.png")


def test_a_renewed_personal_token_is_tried_once(studio: Server) -> None:
    given = iter(["first", "second", "third"])
    studio.routes["/api/token/refresh/"] = lambda _: json_reply({"access": next(given)})

    def upload(request: Seen) -> Reply:
        return file_reply() if request.headers["authorization"] == "Bearer second" else (401, {}, b"")

    studio.routes[UPLOAD] = upload
    claims = base64.urlsafe_b64encode(b'{"token_type":"refresh"}').decode().rstrip("=")
    personal = ImageFetcher(studio.url, TokenAuth(studio.url, f"e30.{claims}.x"))
    assert personal.fetch(UPLOAD).size == (30, 20)
    studio.routes[UPLOAD] = lambda _: (401, {}, b"")
    before = len(studio.seen)
    with pytest.raises(ImageError, match="401"):
        personal.fetch(UPLOAD)
    assert studio.paths()[before:] == [UPLOAD, "/api/token/refresh/", UPLOAD]
    studio.routes["/api/token/refresh/"] = lambda _: (401, {}, b"")
    with pytest.raises(ImageError, match="refused the personal access token"):
        personal.fetch(UPLOAD)


def test_hosts_that_do_not_answer_are_image_errors(studio: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x.png"
        with pytest.raises(ImageError, match="cannot be fetched"):
            fetcher(studio, allow_private=True).fetch(url)

    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(network.socket, "getaddrinfo", unknown)
    with pytest.raises(ImageError, match="cannot be resolved"):
        fetcher(studio).fetch("https://no-such-host.example/x.png")
