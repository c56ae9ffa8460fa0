"""File bytes -> the upright RGB image that a browser would show."""

from __future__ import annotations

import base64
import binascii
import io
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rsvp_backend.errors import ImageError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Upright (EXIF orientation applied, as browsers do), RGB, transparency over white, first frame.

    The size is read from the header and checked before any pixel is decoded. Raises `ImageError`.
    """
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(_too_large(f"{image.width} x {image.height} pixels", max_pixels))
            return _rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_too_large(str(error), max_pixels)) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
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
    raw = unquote_to_bytes(payload)
    if not head.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error as error:
        raise ImageError(f"{head[:40]}: not valid base64 ({error})") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        page.alpha_composite(layer)
        return page.convert("RGB")
    return image.convert("RGB")


def _too_large(seen: str, max_pixels: int) -> str:
    return f"the image is too large ({seen}): at most {max_pixels} pixels are expected (RSVP_IMAGE_MAX_PIXELS)"
