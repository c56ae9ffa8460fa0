"""Image files that would keep a decoder busy without being large: counted by their outer form, before any decoder.

Decoders take a file's parts one by one, in Python. A file of 60 MB can have millions of parts without a pixel in them,
and take minutes; real ones have a few hundred. What is damaged is left to the decoder, which says so.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

MAX_PARTS = 20_000
MAX_SCANS = 64
"""Passes over the whole picture of a progressive JPEG; real ones have about ten."""
_TIFF_PIECES = (273, 324)  # offsets of strips and tiles
_NO_LENGTH = (0x01, *range(0xD0, 0xD9))
_START_OF_SCAN = 0xDA


def overload(data: bytes) -> str | None:
    """What there is too much of in an image file; None where nothing is known against it."""
    count = next((count for magic, count in _COUNTS if magic.match(data)), None)
    return None if count is None else count(data)


def _png(data: bytes) -> str | None:
    at = 8
    for _ in range(MAX_PARTS):
        if at + 12 > len(data) or data[at + 4 : at + 8] == b"IEND":
            return None
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return f"more than {MAX_PARTS} chunks"


def _jpeg(data: bytes) -> str | None:
    """Segments and stray bytes up to the first scan, then scans."""
    at = 2
    for _ in range(MAX_PARTS):
        if at + 4 > len(data):
            return None
        kind = data[at + 1]
        if data[at] != 0xFF or kind in (0x00, 0xFF):
            at += 1
        elif kind == _START_OF_SCAN:
            scans = data.count(b"\xff\xda", at)
            return f"{scans} scans" if scans > MAX_SCANS else None
        else:
            at += 2 if kind in _NO_LENGTH else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return f"more than {MAX_PARTS} segments and stray bytes"


def _gif(data: bytes) -> str | None:
    """Blocks of extensions, and stray bytes, up to the first frame."""
    at, in_extension = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0), False
    for _ in range(MAX_PARTS):
        if at >= len(data) or (not in_extension and data[at] in (0x2C, 0x3B)):  # a frame, the end
            return None
        if in_extension:
            in_extension = data[at] > 0
            at += 1 + data[at]
        else:
            in_extension = data[at] == 0x21
            at += 2 if in_extension else 1
    return f"more than {MAX_PARTS} blocks before its first frame"


def _tiff(data: bytes) -> str | None:
    """Entries of the first directory, and what they point to."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
        (at,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)
        (entries,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, at)
        for index in range(min(entries, MAX_PARTS)):
            entry = at + (8 + 20 * index if big else 2 + 12 * index)
            tag, _, pieces = struct.unpack_from(f"{order}HHQ" if big else f"{order}HHI", data, entry)
            if tag in _TIFF_PIECES and pieces > MAX_PARTS:
                return f"{pieces} strips or tiles"
    except struct.error:
        return None
    return f"{entries} tags" if entries > MAX_PARTS else None


def _bmp(data: bytes) -> str | None:
    """Pixels in runs: 1 and 2 at this place of the header, which is at least 40 bytes long."""
    runs = int.from_bytes(data[14:18], "little") >= 40 and int.from_bytes(data[30:34], "little") in (1, 2)
    return "pixels in runs (RLE), which browsers do not agree on" if runs else None


_COUNTS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], str | None]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"\xff\xd8"), _jpeg),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    (re.compile(rb"BM"), _bmp),
)
