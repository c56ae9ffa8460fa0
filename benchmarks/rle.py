"""The brush RLE codec against label-studio-sdk's, side by side in one run; results are compared as well.

``python benchmarks/rle.py [--size 4000x3000] [--repeats 3] [--json]``: ratios are SDK time / our time, medians. The
SDK's share is `mask2rle` on a ready uint8 mask and `decode_rle` without the step from RGBA bytes to a mask, which
ours includes. It runs once on the speckled mask, where it takes a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle

from rsvp_backend.labelstudio import rle
from rsvp_backend.types import BoolMask


def clean_mask(width_px: int, height_px: int) -> BoolMask:
    """Two ellipses, as a segmenter would give."""
    y, x = np.mgrid[:height_px, :width_px]
    y, x = y / height_px, x / width_px
    mask: BoolMask = ((x - 0.3) / 0.2) ** 2 + ((y - 0.4) / 0.3) ** 2 < 1
    return mask | (((x - 0.7) / 0.15) ** 2 + ((y - 0.7) / 0.2) ** 2 < 1)


def speckled_mask(width_px: int, height_px: int) -> BoolMask:
    """Independent specks on 10.77 % of the pixels: 2.3 million runs at 4000 x 3000."""
    return np.random.default_rng(0).random((height_px, width_px)) < 0.1077


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def compare(name: str, mask: BoolMask, repeats: int, sdk_repeats: int) -> dict[str, float]:
    height_px, width_px = mask.shape
    pixels = mask.astype(np.uint8) * np.uint8(255)
    encode_s, stream = timed(lambda: rle.encode(mask), repeats)
    decode_s, decoded = timed(lambda: rle.decode(stream, height_px, width_px), repeats)
    sdk_encode_s, sdk_stream = timed(lambda: mask2rle(pixels), sdk_repeats)
    sdk_decode_s, sdk_decoded = timed(lambda: decode_rle(stream), sdk_repeats)
    if stream != sdk_stream or not np.array_equal(decoded, sdk_decoded.reshape(height_px, width_px, 4)[:, :, 3] > 127):
        raise SystemExit(f"{name}: our codec and the SDK's differ")
    return {
        f"encode_{name}_ratio": round(sdk_encode_s / encode_s, 1),
        f"decode_{name}_ratio": round(sdk_decode_s / decode_s, 1),
        f"encode_{name}_s": round(encode_s, 5),
        f"decode_{name}_s": round(decode_s, 5),
        f"sdk_encode_{name}_s": round(sdk_encode_s, 5),
        f"sdk_decode_{name}_s": round(sdk_decode_s, 5),
        f"{name}_bytes": len(stream),
        f"{name}_runs": int(np.count_nonzero(np.diff(mask.reshape(-1)))) + 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="4000x3000", help="WIDTHxHEIGHT in pixels (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    width_px, height_px = (int(part) for part in options.size.split("x"))
    figures: dict[str, Any] = {"size": options.size}
    figures |= compare("clean", clean_mask(width_px, height_px), options.repeats, options.repeats)
    figures |= compare("speckled", speckled_mask(width_px, height_px), options.repeats, 1)
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.writelines(f"{key:24} {value}\n" for key, value in figures.items())


if __name__ == "__main__":
    main()
