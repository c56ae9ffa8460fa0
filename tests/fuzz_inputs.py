"""Hostile inputs as hypothesis strategies: real ones damaged, odd values in real places, and plain noise."""

from __future__ import annotations

import io
import json
import string
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.tags import default_label_config

DATA = Path(__file__).parent / "data" / "label_studio"
SIZE_PX = (40, 30)
CONFIG = default_label_config(["Cup", "Ball"])
Bytes = st.SearchStrategy[bytes]

ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 0.1, True]
)
ODD_TEXTS = st.sampled_from(
    ["", " ", "\0", "\ud800", "\udfff\ud800", "\u202e", "\u2028", "a" * 5000, "<", "]]>", "&", "$image", "${x}",
     "%s", "{}", "../../etc/passwd", "'; drop table jobs --", "\r\nX: 1", "\U0010ffff", "\ufdfa" * 100,
     "data:image/png;base64,AAAA", "http://[::1", "http://127.0.0.1:1/x", "s3://a/b", "/data/upload/x",
     "null", "-", "1e999", "\x1b[2J"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ODD_NUMBERS | ODD_TEXTS | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | ODD_TEXTS, inner, max_size=4),
    max_leaves=10,
)
DEEP = st.builds(lambda depth, pair: pair[0] * depth + pair[1] * depth, st.integers(1, 3000), st.sampled_from(
    [("[", "]"), ('{"a":', "1}"), ('[{"a":', ""), ("{", ""), ('"', "")]))  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6)
MAGIC = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xda", b"\0\xff", b"IEND", b"\n\n")


def damaged(data: bytes, changes: Sequence[tuple[int, int, int]]) -> bytes:
    """Each change: what is done, where, and with which byte."""
    body = bytearray(data)
    for kind, place, byte in changes:
        at = place % (len(body) + 1)
        if kind == 0:
            body[at : at + 1] = bytes([byte])
        elif kind == 1:
            body[at:at] = MAGIC[byte % len(MAGIC)]
        elif kind == 2:
            del body[at : at + 1 + byte]
        elif kind == 3:
            body[at : at + 4] = MAGIC[byte % 4]
        elif kind == 4:
            del body[at:]
        else:
            body[at:at] = body[at : at + 64] * (1 + byte % 50)
    return bytes(body)


def damage(seeds: Callable[[], Sequence[bytes]]) -> Bytes:
    """Real inputs, damaged; the seeds are made when the first one is drawn."""
    chosen = st.deferred(lambda: st.sampled_from(seeds()))
    return st.builds(damaged, chosen, CHANGES)


@cache
def pictures() -> list[bytes]:
    """Small files of every format and several of their kinds."""
    picture = Image.effect_noise(SIZE_PX, 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("RGB", "PNG", {}), ("RGBA", "PNG", {}), ("P", "PNG", {"exif": exif}), ("1", "PNG", {}), ("I;16", "PNG", {}),
        ("RGB", "JPEG", {"exif": exif}), ("CMYK", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}),
        ("P", "GIF", {"comment": b"x" * 300}), ("RGB", "BMP", {}), ("P", "BMP", {}), ("RGBA", "WEBP", {}),
        ("RGB", "WEBP", {"lossless": True, "exif": exif}), ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}), ("L", "TIFF", {"exif": exif}), ("RGB", "AVIF", {}),
    ]  # fmt: skip
    return [_file(picture.convert(mode), form, **options) for mode, form, options in kinds]


def _file(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


@cache
def masks() -> list[bytes]:
    """RLE of masks of `SIZE_PX`."""
    noise = np.random.default_rng(0)
    shape = SIZE_PX[1], SIZE_PX[0]
    found = [np.zeros(shape, dtype=np.bool_), np.ones(shape, dtype=np.bool_)]
    found += [noise.random(shape) < share for share in (0.01, 0.1, 0.5)]
    return [bytes(rle.encode(mask)) for mask in found]


@cache
def bodies(*names: str) -> list[bytes]:
    """Requests that Label Studio sent."""
    return [json.dumps(json.loads((DATA / f"{name}.json").read_text())["body"]).encode() for name in names]


HEADER = struct.pack(">I", SIZE_PX[0] * SIZE_PX[1] * 4)
RLES = (
    st.builds(lambda data: list(HEADER + data[4:]), damage(masks))
    | st.builds(lambda data: list(HEADER + data), st.binary(max_size=300))
    | st.lists(st.integers(-1, 256) | SCALARS, max_size=20)
    | SCALARS
)
TAGS = st.sampled_from(
    ["View", "Image", "BrushLabels", "Label", "TextArea", "Header", "KeyPointLabels", "x", "a:b", ""]
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["name", "toName", "value", "alias", "predicted_values", "perRegion", "smart", "hint"]),
    st.sampled_from(["image", "mask", "$image", "$instruction", "true", "prompt", "a,b", "&#0;", "&x;", "<"])
    | ODD_TEXTS,
    max_size=4,
)
ELEMENTS = st.recursive(
    st.builds(lambda tag, given: _element(tag, given, ""), TAGS, ATTRIBUTES),
    lambda inner: st.builds(lambda tag, given, inside: _element(tag, given, "".join(inside)), TAGS, ATTRIBUTES,
                            st.lists(inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


def _element(tag: str, given: dict[str, str], inside: str) -> str:
    attributes = "".join(f' {name}="{value}"' for name, value in given.items())
    return f"<{tag}{attributes}>{inside}</{tag}>"


DOCTYPES = st.sampled_from(
    [
        "",
        "",
        '<?xml version="1.0" encoding="utf-16"?>',
        '<!DOCTYPE x [<!ENTITY a "b">]>',
        "<!DOCTYPE x>",
        "<!--",
        "\ufeff",
    ]
)
XML = st.builds(str.__add__, DOCTYPES, ELEMENTS) | st.builds(
    lambda data: data.decode("utf-8", "surrogateescape"), damage(lambda: [CONFIG.encode()])
)

GOOD_ITEM = '{"object": "cup", "label": "Cup", "present": true, "rows": [1, 2], "columns": [3], "reasoning": "r"}'
GOOD_ANSWER = f'{{"proposals": [{GOOD_ITEM}]}}'
FRAGMENTS = st.sampled_from(
    [GOOD_ANSWER, GOOD_ITEM, "<think>", "</think>", "<reasoning>", "```json\n", "```", '{"', '[{"a":', "[{", "}]",
     '\\"', '"', "\n", '{"proposals": [', '{"object": ', "null", "NaN", "\u2028", "{}", "9" * 500, "true", "\\ud800"]
)  # fmt: skip
ANSWERS = (
    st.builds("".join, st.lists(FRAGMENTS | st.builds(str.__mul__, FRAGMENTS, st.integers(1, 3000)), max_size=8))
    | st.builds(lambda data: data.decode("utf-8", "replace"), damage(lambda: [GOOD_ANSWER.encode()]))
    | st.builds(lambda item: json.dumps({"proposals": [item]}), VALUES)
    | st.text(max_size=200)
    | DEEP
)
HOSTS = st.sampled_from(
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433", "a.example", "xn--a", "①.example",
     "[fe80::1%25x]", "[", "", "a" * 70, "127。0。0。1", "%31", "-", "*", "a..b", "[v1.x]", "\ud800", "ß.example"]
)  # fmt: skip
ADDRESSES = (
    st.builds(
        lambda scheme, user, host, port, path: f"{scheme}{user}{host}{port}{path}",
        st.sampled_from(["http://", "https://", "HTTP://", "s3://", "data:", "//", "", "/", "file://", "http:/"]),
        st.sampled_from(["", "", "user@", "user:pass@", "a.example@", "@", ":@"]),
        HOSTS,
        st.sampled_from(["", "", ":1", ":0", ":99999", ":-1", ":x", ":", ":８０"]),
        st.sampled_from(["", "/", "/data/../api", "/%2e%2e/x", "?a=b", "#x", "/\\x", "/\r\n", "/\0", "/data/upload/ä"]),
    )
    | st.text(alphabet=string.printable + "\ud800é", max_size=40)
    | ODD_TEXTS
)  # fmt: skip


def holes(body: Any, filler: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """``body`` with some of its values, at any depth, replaced by others."""
    places = list(_places(body))

    def filled(chosen: list[tuple[int, Any]]) -> Any:
        copy = json.loads(json.dumps(body))
        for number, value in chosen:
            *way, last = places[number]
            target = copy
            for step in way:
                target = target[step] if _has(target, step) else {}
            if _has(target, last):
                target[last] = value
        return copy

    return st.builds(filled, st.lists(st.tuples(st.integers(0, len(places) - 1), filler), min_size=1, max_size=4))


def _places(value: Any, way: tuple[Any, ...] = ()) -> Any:
    steps = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*way, step)
        yield from _places(inner, (*way, step))


def _has(target: Any, step: Any) -> bool:
    if isinstance(target, dict):
        return step in target
    return isinstance(target, list) and isinstance(step, int) and step < len(target)
