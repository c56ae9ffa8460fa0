"""File bytes -> the upright RGB image that a browser would show."""

from __future__ import annotations

import base64
import binascii
import io
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rsvp_backend.errors import ImageError
from rsvp_backend.labelstudio.containers import overload

_PART_PIXELS = 2**20
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Upright (EXIF orientation applied, as browsers do), RGB, transparency over white, first frame.

    The size is read from the header and checked before any pixel is decoded. Takes up to eight bytes per pixel at a
    time, some decoders as much again. Raises `ImageError`.
    """
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    if (much := overload(data)) is not None:
        raise ImageError(f"the image file has {much}: save it anew as PNG or JPEG")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(_too_large(f"{image.width} x {image.height} pixels", max_pixels))
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_too_large(str(error), max_pixels)) from None
    except Exception as error:  # on a damaged file the decoders raise nearly anything
        seen = "of no known format" if isinstance(error, UnidentifiedImageError) else f"damaged: {error}"
        raise ImageError(
            f"not a readable image ({len(data)} bytes that begin with {data[:12]!r}, {seen}): "
            f"{', '.join(formats)} is expected"
        ) from None


def data_url_bytes(uri: str, max_bytes: int) -> bytes:
    """The bytes of ``data:[type][;base64],...``. Raises `ImageError`."""
    head, comma, payload = uri.partition(",")
    if not comma:
        raise ImageError(f"the data URL {uri[:40]!r} has no comma: data:image/png;base64,... is expected")
    if len(payload) > max_bytes * 4 // 3 + 4:
        raise ImageError(f"{head[:40]} is larger than {max_bytes} bytes (RSVP_IMAGE_MAX_BYTES)")
    raw = unquote_to_bytes(payload.encode("utf-8", "replace"))
    if not head.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{head[:40]}: not valid base64 ({error})") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Part by part: all at once would take three times the memory."""
    page = Image.new("RGB", image.size)
    rows = max(1, _PART_PIXELS // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        page.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
    return page


def _too_large(seen: str, max_pixels: int) -> str:
    return f"the image is too large ({seen}): at most {max_pixels} pixels are expected (RSVP_IMAGE_MAX_PIXELS)"
