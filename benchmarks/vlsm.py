"""Our VLSM against its reference: segment-anything and BEiT-3 (torchscale) as published, eager, same weights, one run.

``python benchmarks/vlsm.py --size b [--device cpu] [--repeats 3] [--json]``, with the dependency group ``benchmark``.
Each side is a process of its own (so that its peak memory is its own) and they take turns; ratios are medians of
reference / ours over the rounds, so above 1 is in our favour. Weights are random but for ``--size demo``. The last line
of ``--json``: ``speedup_cpu`` (end to end: PIL image + text -> mask), ``speedup_cpu_image_encoder``,
``peak_memory_ratio_cpu`` (ours / reference, weights included), ``speedup_gpu_b1``, ``speedup_gpu_b8`` (images/s at
batch 8), ``repeat_instruction_ratio`` (a further instruction on an embedded image / the first),
``max_mask_disagreement`` (largest share of pixels on which the two masks of one prompt differ); null where not run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from vlsm_sides import SIZES, Ours, Reference, Side

TEXTS = ["the thing that opens the door", "the red cup", "a wooden spoon", "the largest plate on the table"]


def serve(side: type[Side], size: str, device: str, threads: int, pipe: Connection) -> None:
    """One side's process: builds its model, then answers (method, arguments) until it is told None."""
    model = side(size, device, threads)
    pipe.send("ready")
    while (call := pipe.recv()) is not None:
        method, *arguments = call
        pipe.send(getattr(model, method)(*arguments))


class Process:
    """A side in a process of its own."""

    def __init__(self, side: type[Side], size: str, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(side, size, device, threads, theirs), daemon=True).start()
        self._pipe.recv()

    def __call__(self, *call: Any) -> Any:
        self._pipe.send(call)
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)


def alternate(reference: Process, ours: Process, repeats: int, *call: Any) -> tuple[float, float, float]:
    """Median seconds of both sides, and the median of the rounds' ratios reference / ours; one round warms up."""
    rounds = [(reference(*call), ours(*call)) for _ in range(repeats + 1)][1:]
    theirs, own = zip(*rounds, strict=True)
    return statistics.median(theirs), statistics.median(own), statistics.median(a / b for a, b in rounds)


def largest_disagreement(reference: Process, ours: Process) -> float:
    pairs = [(reference("mask", text), ours("mask", text)) for text in TEXTS]
    return max(float(np.mean(theirs != own)) for theirs, own in pairs)


def measure(size: str, device: str, repeats: int, threads: int) -> dict[str, Any]:
    reference, ours = (Process(side, size, device, threads) for side in (Reference, Ours))
    seen: dict[str, Any] = {"size": size, "device": device, "threads": threads}
    found: dict[str, float | None] = dict.fromkeys(
        ("speedup_cpu", "speedup_cpu_image_encoder", "peak_memory_ratio_cpu", "speedup_gpu_b1", "speedup_gpu_b8")
    )
    theirs, own, ratio = alternate(reference, ours, repeats, "end_to_end", TEXTS[0], 1)
    seen |= {"reference_s": round(theirs, 4), "ours_s": round(own, 4)}
    if device == "cpu":
        found["speedup_cpu"] = ratio
        found["speedup_cpu_image_encoder"] = alternate(reference, ours, repeats, "encode_image")[2]
        peaks = reference("peak_bytes"), ours("peak_bytes")
        found["peak_memory_ratio_cpu"] = peaks[1] / peaks[0]
        seen |= {"reference_peak_gib": round(peaks[0] / 2**30, 2), "ours_peak_gib": round(peaks[1] / 2**30, 2)}
    else:
        found["speedup_gpu_b1"] = ratio
        found["speedup_gpu_b8"] = alternate(reference, ours, repeats, "end_to_end", TEXTS[0], 8)[2]
    found["repeat_instruction_ratio"] = ours("repeat_ratio", TEXTS, repeats)
    disagreement = largest_disagreement(reference, ours)
    seen |= {key: None if value is None else round(value, 3) for key, value in found.items()}
    seen["max_mask_disagreement"] = disagreement
    seen["parts"] = ours("parts", TEXTS[0])
    reference.close()
    ours.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", choices=SIZES, default="b", help="SAM ViT-B/L/H with BEiT-3 base/large/large, or demo"
    )
    parser.add_argument("--device", default="cpu", help="cpu (fp32) or cuda (bf16 on both sides)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after the warm-up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    seen = measure(arguments.size, arguments.device, arguments.repeats, arguments.threads)
    for part in seen["parts"]:
        sys.stdout.write("{part:>14}: {ms:9.1f} ms, {gflop:8.1f} GFLOP, {gflop_s:7.0f} GFLOP/s\n".format(**part))
    if arguments.json:
        sys.stdout.write(json.dumps(seen) + "\n")
    else:
        sys.stdout.writelines(f"{key:28} {value}\n" for key, value in seen.items() if key != "parts")


if __name__ == "__main__":
    main()
