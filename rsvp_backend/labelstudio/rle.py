"""Label Studio's brush RLE (the ``rle-pack`` bit stream), vectorised; equal to label-studio-sdk's codec.

The stream is a header (32 bits: number of bytes it decodes to; 5 bits: word size - 1; four times 4 bits: width - 1 of
the four length fields) and then records: 1 bit kind, 2 bits that choose a length field, the length - 1, and either one
word to repeat (kind 1) or as many words as the length says (kind 0). It decodes to row-major RGBA, ``(height, width,
4)`` bytes, whose alpha is the mask: 0 or 255 where this package or the SDK wrote it, anything between on edges that
were drawn in the browser. The browser decodes at the image's natural size, so masks must have exactly that size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rsvp_backend.errors import RleError
from rsvp_backend.types import BoolMask

MAX_PIXELS = 1 << 29  # four bytes each must be countable in 31 bits
_HEADER_BITS = 53
_WORD_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_LONGEST_RUN = 1 << 16
_BLOCK_BYTES = 1 << 19
_ROW_BITS = 1 << 12
_LONGEST_SHARE = 6  # bytes of RLE per pixel where each of its four bytes is a record of its own, 12 bits wide
_LITERAL = 1  # in place of a width: runs take 12 bits or more

_Ints = npt.NDArray[np.int64]


def encode(mask: BoolMask) -> list[int]:
    """Bool ``(height, width)`` -> the bytes of the brush RLE, byte-identical to the SDK's ``mask2rle(mask * 255)``.

    Raises `RleError` where the mask is not a boolean image of 1 to ``MAX_PIXELS`` pixels.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or not 0 < mask.size <= MAX_PIXELS:
        raise RleError(f"mask is {mask.dtype} {mask.shape}: bool (height, width), 1 to {MAX_PIXELS} pixels expected")
    flat = np.ascontiguousarray(mask).reshape(-1)
    firsts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    lengths = np.diff(firsts, append=flat.size) * 4
    codes, widths = _run_records(lengths, flat[firsts])
    lengths_header = sum((bits - 1) << (12 - 4 * i) for i, bits in enumerate(_LENGTH_BITS))
    header = np.array([flat.size * 4, (_WORD_BITS - 1) << 16 | lengths_header], dtype=np.int64)
    return _pack(np.concatenate((header, codes)), np.concatenate((np.array([32, 21]), widths)))


def decode(rle: Sequence[int], height_px: int, width_px: int) -> BoolMask:
    """Brush RLE -> bool ``(height_px, width_px)``, true where alpha > 127.

    Safe on hostile input: the announced size must equal the image's before anything is allocated for it, and all
    other work is linear in ``len(rle)``, which the image's size bounds. Raises `RleError` on any damage.
    """
    size_px = height_px * width_px
    if height_px < 1 or width_px < 1 or size_px > MAX_PIXELS:
        raise RleError(f"image is {width_px} x {height_px}: 1 to {MAX_PIXELS} pixels are expected")
    data = _to_bytes(rle, size_px)
    length_bits = _read_header(data, size_px * 4)
    starts = _record_starts(data, length_bits)
    values, lengths = _records(data, starts, length_bits, size_px * 4)
    ends = np.cumsum(lengths)
    # Only every fourth byte is alpha: bytes 3, 7, 11...; `end // 4` of them lie before byte `end`.
    mask: BoolMask = np.repeat(values > 127, np.diff(ends // 4, prepend=0)).reshape(height_px, width_px)
    return mask


def _run_records(lengths: _Ints, values: npt.NDArray[np.bool_]) -> tuple[_Ints, _Ints]:
    """Codes and bit widths of the records for runs of ``lengths`` bytes; runs over 65536 bytes take several."""
    kinds = np.searchsorted([1 << bits for bits in _LENGTH_BITS[:-1]], lengths, side="left")
    pieces = (lengths - 1) // _LONGEST_RUN + 1
    if pieces.max() > 1:
        rests = lengths - (pieces - 1) * _LONGEST_RUN
        lasts = np.cumsum(pieces) - 1
        lengths = np.full(int(pieces.sum()), _LONGEST_RUN, dtype=np.int64)
        lengths[lasts] = rests
        kinds, values = np.repeat(kinds, pieces), np.repeat(values, pieces)
    bits = np.array(_LENGTH_BITS)[kinds]
    codes = (((kinds | 4) << bits) | (lengths - 1)) << _WORD_BITS | values * 255
    return codes, bits + 3 + _WORD_BITS


def _pack(codes: _Ints, widths: _Ints) -> list[int]:
    """Concatenate codes of up to 32 bits, most significant bit first, and close with 1 to 8 zero bits."""
    ends = np.cumsum(widths)
    starts, total_bits = ends - widths, int(ends[-1])
    shifted = codes.astype(np.uint64) << (64 - (starts & 31) - widths).astype(np.uint64)
    words = starts >> 5
    firsts = np.concatenate(([0], np.flatnonzero(words[1:] != words[:-1]) + 1))
    words = words[firsts]
    packed = np.zeros(total_bits // 32 + 2, dtype=np.uint32)
    packed[words] = np.bitwise_or.reduceat(shifted >> np.uint64(32), firsts)
    packed[words + 1] |= np.bitwise_or.reduceat(shifted, firsts).astype(np.uint32)
    return list(packed.astype(">u4").tobytes()[: total_bits // 8 + 1])


def _to_bytes(rle: Sequence[int], size_px: int) -> bytes:
    # `bytes` of a number is that many zeros.
    if not isinstance(rle, list | tuple | bytes | bytearray):
        raise RleError(f"the RLE is {type(rle).__name__}: a list of integers from 0 to 255 is expected")
    if len(rle) > (longest := _LONGEST_SHARE * size_px + 64):
        raise RleError(f"the RLE has {len(rle)} bytes: at most {longest} are expected of {size_px} pixels")
    try:
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise RleError(f"the RLE is not a list of integers from 0 to 255: {error}") from None
    if len(data) * 8 < _HEADER_BITS:
        raise RleError(f"the RLE has {len(data)} bytes: at least 7 are expected")
    return data


def _read_header(data: bytes, expected: int) -> tuple[int, ...]:
    """The four widths of the length field."""
    count = int.from_bytes(data[:4], "big")
    if count != expected:
        raise RleError(f"the RLE announces {count} bytes, the image has {expected} (width * height * 4)")
    rest = int.from_bytes(data[4:7], "big") >> 3
    if (word_bits := (rest >> 16) + 1) != _WORD_BITS:
        raise RleError(f"the RLE has words of {word_bits} bits: {_WORD_BITS} are expected")
    return tuple(((rest >> shift) & 15) + 1 for shift in (12, 8, 4, 0))


def _record_starts(data: bytes, length_bits: tuple[int, ...]) -> _Ints:
    """Bit offsets of all records that lie in the data as a whole, found block by block."""
    steps_by_code = bytes([_LITERAL] * 4 + [3 + bits + _WORD_BITS for bits in length_bits] + [0] * 248)
    found, position, total_bits = [], _HEADER_BITS, len(data) * 8
    padded = data + bytes(1)
    while position < total_bits:
        base = position // 8
        bits = np.unpackbits(np.frombuffer(padded[base : base + _BLOCK_BYTES + 1], dtype=np.uint8))
        codes = bits[:-8] << 2 | bits[1:-7] << 1 | bits[2:-6]
        steps = codes.tobytes().translate(steps_by_code)
        flags, end = _walk(data, base * 8, steps, position - base * 8, length_bits)
        found.append(np.flatnonzero(flags) + base * 8)
        position = base * 8 + end
    starts = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    return starts[:-1] if position > total_bits else starts


def _walk(
    data: bytes, base: int, steps: bytes, position: int, length_bits: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint8], int]:
    """Flags of the record starts from ``position`` on, uint8 as long as ``steps``, and where the next block goes on.

    ``steps``: at each bit offset the width of a run's record that would start there, or ``_LITERAL``. One walker per
    row of ``_ROW_BITS`` goes ahead from a guessed start, all in lockstep. Two walks that meet stay together, and most
    meet soon: the true walk only has to reach the row's walker to take over all of its further way.
    """
    flags, trusted, stops = _guessed_walks(steps)
    settled = 0  # flags before this offset are final
    while position < len(steps):
        row, walked = position // _ROW_BITS, []
        row_end = min((row + 1) * _ROW_BITS, len(steps))
        while position < row_end and not (flags[position] and position >= trusted[row]):
            walked.append(position)
            step = steps[position]
            position += _literal_bits(data, base + position, length_bits) if step == _LITERAL else step
        until = min(position, len(steps))
        flags[settled:until] = bytes(until - settled)
        for offset in walked:
            flags[offset] = 1
        settled = until
        if position < row_end:
            position, settled = stops[row], row_end
    return np.frombuffer(flags, dtype=np.uint8), position


def _guessed_walks(steps: bytes) -> tuple[bytearray, list[int], list[int]]:
    """Walk each row from its first bit to its end: flags of all offsets met, and per row what to trust of them.

    A walker slides over what looks like a literal, which in a wrong phase is soon met, bit by bit. So its way counts
    only from the offset after its last slide on (the second value); the third is the offset where it left the row.
    """
    rows = -(-len(steps) // _ROW_BITS)
    # Beyond its row a walker stands still; no record of a run is wider than the 32 extra columns.
    table = np.zeros((rows, _ROW_BITS + 32), dtype=np.uint8)
    table[:, :_ROW_BITS] = np.frombuffer(steps.ljust(rows * _ROW_BITS, b"\0"), dtype=np.uint8).reshape(rows, _ROW_BITS)
    firsts = np.arange(rows, dtype=np.int64) * table.shape[1]
    walkers, trusted = firsts.copy(), firsts.copy()
    flags: npt.NDArray[np.uint8] = np.zeros(table.size, dtype=np.uint8)
    while (moves := table.reshape(-1)[walkers]).any():
        flags[walkers] = 1
        walkers += moves
        np.copyto(trusted, walkers, where=moves == _LITERAL)
    to_offset = np.arange(rows) * _ROW_BITS - firsts
    flags = flags.reshape(table.shape)[:, :_ROW_BITS].reshape(-1)[: len(steps)]
    return bytearray(flags), (trusted + to_offset).tolist(), (walkers + to_offset).tolist()


def _literal_bits(data: bytes, position: int, length_bits: tuple[int, ...]) -> int:
    window = int.from_bytes(data[position >> 3 : (position >> 3) + 4].ljust(4, b"\0"), "big") << (position & 7)
    bits = length_bits[(window >> 29) & 3]
    length = ((window >> (29 - bits)) & ((1 << bits) - 1)) + 1
    return 3 + bits + _WORD_BITS * length


def _records(
    data: bytes, starts: _Ints, length_bits: tuple[int, ...], expected: int
) -> tuple[npt.NDArray[np.uint64], _Ints]:
    """Values and lengths of the runs that make up exactly ``expected`` bytes; words of literals are runs of one."""
    windows: npt.NDArray[np.uint64] = np.ndarray((len(data) + 1,), dtype=">u8", buffer=data + bytes(8), strides=(1,))
    heads = _top(windows, starts)
    kinds = (heads >> np.uint64(61)).astype(np.intp)
    bits = np.array(length_bits)[kinds & 3]
    lengths = ((heads << np.uint64(3)) >> (64 - bits).astype(np.uint64)).astype(np.int64) + 1
    ends = np.cumsum(lengths)
    used = int(np.searchsorted(ends, expected)) + 1
    if used > len(ends) or ends[used - 1] != expected:
        seen = int(ends[min(used, len(ends)) - 1]) if len(ends) else 0
        raise RleError(f"the RLE's records make {seen} bytes, its header announces {expected}: cut off or damaged")
    starts, kinds, bits, lengths = starts[:used] + bits[:used] + 3, kinds[:used], bits[:used], lengths[:used]
    literal = kinds < 4
    if literal.any():
        starts, lengths = _spread(starts, lengths, literal)
    return _top(windows, starts) >> np.uint64(64 - _WORD_BITS), lengths


def _spread(starts: _Ints, lengths: _Ints, literal: npt.NDArray[np.bool_]) -> tuple[_Ints, _Ints]:
    """Replace each literal by runs of length 1; ``starts`` are bit offsets of a record's first word."""
    words = np.where(literal, lengths, 1)
    firsts = np.repeat(np.cumsum(words) - words, words)
    starts = np.repeat(starts, words) + _WORD_BITS * (np.arange(len(firsts)) - firsts)
    return starts, np.repeat(np.where(literal, 1, lengths), words)


def _top(windows: npt.NDArray[np.uint64], positions: _Ints) -> npt.NDArray[np.uint64]:
    """57 or more bits from each bit offset on, aligned to the top of a native uint64."""
    found = windows[positions >> 3].astype(np.uint64)
    shifted: npt.NDArray[np.uint64] = found << (positions & 7).astype(np.uint64)
    return shifted
