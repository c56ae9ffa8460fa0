"""Brush RLE: equal to label-studio-sdk in both directions, and safe on damaged or hostile streams."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter.brush import decode_rle, mask2rle

from rsvp_backend.errors import RleError
from rsvp_backend.labelstudio import rle

DATA = Path(__file__).parent / "data" / "label_studio"
ROOT = Path(__file__).parent.parent
CAPTURES = ("ui_submit_annotation_request.json", "ui_update_annotation_request.json")

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 41), st.integers(1, 41)))


def sdk_encode(mask: np.ndarray) -> list[int]:
    return mask2rle(mask.astype(np.uint8) * np.uint8(255))


def sdk_decode(stream: list[int], height: int, width: int) -> np.ndarray:
    return decode_rle(stream).reshape(height, width, 4)[:, :, 3] > 127


def bits_to_bytes(bits: str) -> list[int]:
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def header(count: int, word_bits: int = 8, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> str:
    return f"{count:032b}{word_bits - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)


@given(masks)
def test_random_masks_encode_and_decode_as_in_the_sdk(mask: np.ndarray) -> None:
    stream = rle.encode(mask)
    assert stream == sdk_encode(mask)
    assert np.array_equal(rle.decode(stream, *mask.shape), mask)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (301, 211), (257, 640), (1, 16384), (1, 16385), (128, 129)])
@pytest.mark.parametrize("kind", ["empty", "full", "rectangle", "noise", "stripes"])
def test_sizes_and_run_lengths_encode_as_in_the_sdk(size: tuple[int, int], kind: str) -> None:
    mask = np.zeros(size, dtype=np.bool_)
    if kind == "full":
        mask[:] = True
    elif kind == "rectangle":
        mask[size[0] // 3 : size[0] // 2 + 1, size[1] // 4 : size[1] // 2 + 1] = True
    elif kind == "noise":
        mask = np.random.default_rng(0).random(size) < 0.3
    elif kind == "stripes":
        mask[:, ::2] = True
    stream = rle.encode(mask)
    assert stream == sdk_encode(mask)
    assert all(type(byte) is int for byte in stream)
    assert np.array_equal(rle.decode(stream, *size), mask)


def test_non_contiguous_masks_are_encoded_as_they_are_seen() -> None:
    mask = (np.random.default_rng(1).random((50, 62)) < 0.5).T
    assert rle.encode(mask) == sdk_encode(mask)
    assert rle.encode(mask[::2, ::3]) == sdk_encode(np.ascontiguousarray(mask[::2, ::3]))


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Streams as a browser may write them: literals and runs of any value, other widths of the length field."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    sizes = draw(st.tuples(*[st.integers(1, 16)] * 4))
    count = height * width * 4
    bits, made = header(count, sizes=sizes), 0
    while made < count:
        field = draw(st.integers(0, 3))
        length = draw(st.integers(1, min(count - made, 1 << sizes[field])))
        is_run = draw(st.booleans())
        values = draw(st.lists(st.integers(0, 255), min_size=1 if is_run else length, max_size=1 if is_run else length))
        bits += f"{int(is_run)}{field:02b}{length - 1:0{sizes[field]}b}" + "".join(f"{value:08b}" for value in values)
        made += length
    return bits_to_bytes(bits), height, width


@given(streams())
def test_any_valid_stream_decodes_as_in_the_sdk(made: tuple[list[int], int, int]) -> None:
    stream, height, width = made
    assert np.array_equal(rle.decode(stream, height, width), sdk_decode(stream, height, width))


@pytest.mark.parametrize(("block_bytes", "row_bits"), [(16, 64), (7, 4096), (1 << 19, 40)])
@settings(max_examples=60)
@given(made=streams())
def test_records_across_rows_and_blocks_decode_as_in_the_sdk(
    made: tuple[list[int], int, int], block_bytes: int, row_bits: int
) -> None:
    stream, height, width = made
    with mock.patch.multiple(rle, _BLOCK_BYTES=block_bytes, _ROW_BITS=row_bits):
        assert np.array_equal(rle.decode(stream, height, width), sdk_decode(stream, height, width))


@pytest.mark.parametrize("share", [0.01, 0.11, 0.5])
def test_long_streams_decode(share: float) -> None:
    mask = np.random.default_rng(2).random((700, 610)) < share
    assert np.array_equal(rle.decode(rle.encode(mask), 700, 610), mask)


def test_a_long_literal_decodes_as_in_the_sdk() -> None:
    literal = "011" + f"{9999:016b}" + "".join(f"{i * 7 % 256:08b}" for i in range(10_000))
    stream = bits_to_bytes(header(40_000) + literal + "111" + f"{29_999:016b}" + "1" * 8)
    assert np.array_equal(rle.decode(stream, 100, 100), sdk_decode(stream, 100, 100))


@pytest.mark.parametrize("name", CAPTURES)
def test_what_people_drew_in_the_browser_decodes_as_in_the_sdk(name: str) -> None:
    results = json.loads((DATA / name).read_text())["body"]["result"]
    masks_seen = [result for result in results if result["type"] == "brushlabels"]
    assert masks_seen
    for result in masks_seen:
        stream, height, width = result["value"]["rle"], result["original_height"], result["original_width"]
        mask = rle.decode(stream, height, width)
        assert np.array_equal(mask, sdk_decode(stream, height, width))
        assert mask.any()


def test_captures_hold_anti_aliased_edges_cut_at_half() -> None:
    results = json.loads((DATA / "ui_update_annotation_request.json").read_text())["body"]["result"]
    alpha = decode_rle(results[0]["value"]["rle"]).reshape(427, 640, 4)[:, :, 3]
    assert len(np.unique(alpha)) > 2
    assert np.array_equal(rle.decode(results[0]["value"]["rle"], 427, 640), alpha > 127)


def test_another_image_size_is_refused_before_decoding() -> None:
    stream = rle.encode(np.ones((10, 20), dtype=np.bool_))
    with pytest.raises(RleError, match="announces 800 bytes, the image has 1600"):
        rle.decode(stream, 20, 20)


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = bits_to_bytes(header(2**32 - 4) + ("111" + "1" * 16 + "1" * 8) * 50)
    with pytest.raises(RleError, match="announces 4294967292"):
        rle.decode(bomb, 100, 100)
    with pytest.raises(RleError, match="image is 100000 x 100000"):
        rle.decode(bomb, 100_000, 100_000)


@pytest.mark.parametrize(
    "stream",
    [[], [0] * 6, [0, 0, 0, 256, 0, 0, 0], [-1] * 9, ["a"] * 9, [0.5] * 9, None],
    ids=["empty", "short", "above-255", "negative", "text", "float", "none"],
)
def test_what_is_no_byte_stream_is_refused(stream: object) -> None:
    with pytest.raises(RleError):
        rle.decode(stream, 1, 1)  # type: ignore[arg-type]


@settings(max_examples=200)
@given(masks, st.integers(0, 2**32 - 1))
def test_a_damaged_byte_gives_the_sdks_mask_or_an_rle_error(mask: np.ndarray, seed: int) -> None:
    stream, rng = rle.encode(mask), np.random.default_rng(seed)
    stream[int(rng.integers(len(stream)))] = int(rng.integers(256))
    try:
        decoded = rle.decode(stream, *mask.shape)
    except RleError:
        return
    assert np.array_equal(decoded, sdk_decode(stream, *mask.shape))


def test_cut_off_streams_and_overlong_runs_are_refused() -> None:
    stream = rle.encode(np.random.default_rng(3).random((30, 30)) < 0.5)
    with pytest.raises(RleError, match="cut off or damaged"):
        rle.decode(stream[: len(stream) // 2], 30, 30)
    too_long = bits_to_bytes(header(4) + "100" + "111" + "1" * 8)
    with pytest.raises(RleError, match="make 8 bytes"):
        rle.decode(too_long, 1, 1)


def test_other_word_sizes_are_refused() -> None:
    with pytest.raises(RleError, match="words of 16 bits"):
        rle.decode(bits_to_bytes(header(4, word_bits=16) + "0" * 80), 1, 1)


@pytest.mark.parametrize(
    "mask", [np.zeros((0, 4), bool), np.zeros((3, 3), np.uint8), np.zeros(4, bool), np.zeros((2, 2, 2), bool)]
)
def test_only_boolean_images_are_encoded(mask: np.ndarray) -> None:
    with pytest.raises(RleError, match="mask is"):
        rle.encode(mask)


def test_benchmark_prints_one_json_object_last() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "rle.py"), "--json", "--size", "120x90"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    answer = json.loads(run.stdout.splitlines()[-1])
    for key in ("encode_speckled_ratio", "decode_speckled_ratio", "encode_clean_ratio", "decode_clean_ratio"):
        assert answer[key] > 0
