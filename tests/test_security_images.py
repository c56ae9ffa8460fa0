"""Pictures that keep decoders busy, what decoders raise, addresses in odd spellings, hosts that may be asked."""

from __future__ import annotations

import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator

import httpcore
import numpy as np
import pytest
from fuzz_inputs import pictures
from ls_http import Server, serving
from PIL import Image

from rsvp_backend.errors import ImageError, InstructionError
from rsvp_backend.labelstudio import network
from rsvp_backend.labelstudio.containers import MAX_PARTS, MAX_SCANS, overload
from rsvp_backend.labelstudio.hints import read_hints
from rsvp_backend.labelstudio.hosts import HostRule, allowed_hosts
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.network import is_public
from rsvp_backend.labelstudio.pixels import data_url_bytes, decode_image
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.types import Deadline


def file_of(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SMALL = Image.new("RGB", (4, 4))
PNG, JPEG, GIF = file_of(SMALL, "PNG"), file_of(SMALL, "JPEG"), file_of(SMALL.convert("P"), "GIF")
GIF_HEAD = GIF.index(b",")


def tiff(strips: int, order: str = "<", big: bool = False) -> bytes:
    """The header of a TIFF, and a directory of one entry."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
        return head + struct.pack(f"{order}QHHQQ", 1, 273, 4, strips, 0)
    return mark + struct.pack(f"{order}HIHHHII", 42, 8, 1, 273, 4, strips, 0)


# --- containers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", pictures(), ids=lambda data: repr(data[:4]))
def test_real_files_are_not_overloaded(data: bytes) -> None:
    assert overload(data) is None
    assert decode_image(data, 10_000).mode == "RGB"


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (PNG[:33] + chunk(b"prVt") * MAX_PARTS + PNG[33:], "20000 chunks"),
        (JPEG[:2] + b"\xff\xfe\0\2" * MAX_PARTS + JPEG[2:], "segments and stray bytes"),
        (JPEG[:2] + b"\xff" * MAX_PARTS + JPEG[2:], "segments and stray bytes"),
        (JPEG[:2] + b"\0" * MAX_PARTS + JPEG[2:], "segments and stray bytes"),
        (JPEG + JPEG[JPEG.index(b"\xff\xda") :] * MAX_SCANS, f"{MAX_SCANS + 1} scans"),
        (GIF[:GIF_HEAD] + b"!\xfe\1a\0" * MAX_PARTS + GIF[GIF_HEAD:], "before its first frame"),
        (GIF[:GIF_HEAD] + b"!\xfe" + b"\1a" * MAX_PARTS + b"\0" + GIF[GIF_HEAD:], "before its first frame"),
        (GIF[:GIF_HEAD] + b"\0" * MAX_PARTS + GIF[GIF_HEAD:], "before its first frame"),
        (tiff(MAX_PARTS + 1), "20001 strips"),
        (tiff(MAX_PARTS + 1, ">"), "20001 strips"),
        (tiff(MAX_PARTS + 1, "<", big=True), "20001 strips"),
        (tiff(MAX_PARTS + 1, ">", big=True), "20001 strips"),
        (b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 4, 4, 1, 8, 1) + bytes(100), "in runs"),
        (b"BM" + bytes(12) + struct.pack("<IiiHHI", 124, 4, 4, 1, 4, 2) + bytes(100), "in runs"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_files_that_keep_a_decoder_busy_are_refused_undecoded(data: bytes, seen: str) -> None:
    with pytest.raises(ImageError, match=f"the image file has .*{seen}.*save it anew"):
        decode_image(data, 10_000)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"GIF89a", b"II*\0", b"BM", PNG[:8], PNG[:20], tiff(1)[:9], tiff(5)]
)
def test_damage_is_left_to_the_decoder(data: bytes) -> None:
    assert overload(data) is None
    with pytest.raises(ImageError, match="not a readable image"):
        decode_image(data, 10_000)


# --- decoding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_px", [(1, 1), (3, 2000), (2000, 3), (1100, 1000)])
def test_transparency_over_white_is_the_same_part_by_part(size_px: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size_px[1], size_px[0], 4), dtype=np.uint8)
    picture = Image.fromarray(noise)
    page = Image.new("RGBA", size_px, "white")
    page.alpha_composite(picture)
    assert decode_image(file_of(picture, "PNG"), 2_000_000).tobytes() == page.convert("RGB").tobytes()


def test_what_a_decoder_raises_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError(274)

    monkeypatch.setattr("rsvp_backend.labelstudio.pixels.ImageOps.exif_transpose", broken)
    with pytest.raises(ImageError, match="damaged: 274"):
        decode_image(PNG, 100)


def test_data_urls_with_odd_characters() -> None:
    with pytest.raises(ImageError, match="not valid base64"):
        data_url_bytes("data:image/png;base64,\ud800\xe4", 1000)
    assert data_url_bytes("data:,\ud800", 1000) == b"?"


@pytest.mark.parametrize("number", [10**400, float("nan"), float("inf"), 1e300, -(10**30), True, "5", None])
def test_clicks_at_no_place(number: object) -> None:
    config = parse_label_config(default_label_config())
    result = {"type": "keypointlabels", "to_name": "image", "value": {"x": number, "y": 1.0}}
    with pytest.raises(InstructionError, match=r"x is .*a number is expected"):
        read_hints({"result": [result]}, config, 100, 100)


# --- hosts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("images.example", 443, True), ("images.example", 80, True), ("IMAGES.example.", 80, True),
        ("x.images.example", 80, False), ("a.cdn.example", 443, True), ("a.b.cdn.example", 443, True),
        ("a.cdn.example", 80, False), ("cdn.example", 443, False), ("evilcdn.example", 443, False),
        ("minio", 9000, True), ("minio", 9001, False), ("2001:db8::1", 80, True), ("other.example", 443, False),
    ],
)  # fmt: skip
def test_host_rules(host: str, port: int, allowed: bool) -> None:
    rules = allowed_hosts("images.example, *.CDN.example:443,minio:9000,[2001:db8::1]")
    assert rules is not None
    assert any(rule.allows(host, port) for rule in rules) is allowed


@pytest.mark.parametrize(
    "text", ["", ",", "http://a", "a b", "*", "*.", "a:port", "a/b", "*a.example", "ä.example", "a:123456"]
)
def test_host_rules_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST\[:PORT\]"):
        allowed_hosts(text)


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    with serving() as studio, serving() as other:
        for server in (studio, other):
            server.routes["/data/x.png"] = lambda _: (200, {}, PNG)
        yield studio, other


def test_only_label_studio_and_the_named_hosts_are_asked(servers: tuple[Server, Server]) -> None:
    studio, other = servers
    named = ImageFetcher(studio.url, allow_private=True, hosts=(HostRule("127.0.0.1", other.port),))
    assert named.fetch("/data/x.png").size == (4, 4)
    assert named.fetch(f"{other.url}/data/x.png").size == (4, 4)
    none = ImageFetcher(studio.url, allow_private=True, hosts=())
    assert none.fetch("/data/x.png").size == (4, 4)
    with pytest.raises(ImageError, match="is not one that images may come from: see RSVP_IMAGE_HOSTS"):
        none.fetch(f"{other.url}/data/x.png")
    studio.routes["/data/moved"] = lambda _: (302, {"Location": f"{other.url}/data/x.png"}, b"")
    with pytest.raises(ImageError, match="RSVP_IMAGE_HOSTS"):
        none.fetch("/data/moved")
    assert len(other.seen) == 1


def test_a_named_host_may_still_not_be_private(servers: tuple[Server, Server]) -> None:
    studio, other = servers
    with pytest.raises(ImageError, match="private or local"):
        ImageFetcher(studio.url, hosts=(HostRule("127.0.0.1"),)).fetch(f"{other.url}/data/x.png")
    assert other.seen == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("fec0::1", False), ("3fff::1", False), ("5f00::1", False), ("64:ff9b:1::7f00:1", False), ("::7f00:1", False),
        ("::ffff:0:7f00:1", False), ("2001:0:7f00:1::", False), ("2002:c0a8:1::", False), ("192.88.99.1", True),
        ("2a00:1450:4001:80b::200e", True), ("2002:5db8:d822::", True), ("198.18.0.1", False), ("192.0.2.1", False),
    ],
)  # fmt: skip
def test_more_addresses_that_are_public_and_not(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_look_up_that_takes_long_ends_with_the_images_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def slow(*_: object, **__: object) -> object:
        assert ended.wait(20)
        raise socket.gaierror(-2, "too late")

    monkeypatch.setattr(network.socket, "getaddrinfo", slow)
    with pytest.raises(ImageError, match="RSVP_IMAGE_TIMEOUT_S"):
        ImageFetcher(None, limits=ImageLimits(timeout_s=0.1)).fetch("http://slow.example/x.png")
    ended.set()


@pytest.mark.parametrize(
    "uri", ["http://xn--a/", "http://a:99999/x", "http://\ud800/", "/\ud800", "http://" + "a" * 70]
)
def test_addresses_that_are_none(uri: str) -> None:
    with pytest.raises(ImageError, match=r"not valid|cannot be resolved|cannot be fetched"):
        ImageFetcher("http://127.0.0.1:1").fetch(uri, Deadline.after(10))


def test_a_guarded_connection_has_no_way_around_its_checks() -> None:
    reach = network.Reach(frozenset({("127.0.0.1", 1)}))
    backend = network.GuardedBackend(Deadline.after(5), reach)
    with pytest.raises(httpcore.ConnectError):
        backend.connect_tcp("127.0.0.1", 1)  # allowed, though nobody is there
    with pytest.raises(ImageError, match="private or local"):
        backend.connect_tcp("127.0.0.1", 2)
    with pytest.raises(NotImplementedError):
        backend.connect_unix_socket("/run/docker.sock")
