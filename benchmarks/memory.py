"""Does memory stay flat? ``python benchmarks/memory.py [--predictions 1000] [--json]``: both stages, preset demo, CPU.

Pictures are new all the time, and the cache of embeddings is small enough to be full after the first tenth. The last
line of ``--json``: ``drift_mb`` (resident memory at the end less that after a tenth), ``first_mb``, ``last_mb``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path

from rsvp_backend import presets
from rsvp_backend.scenes import make_scene
from rsvp_backend.settings import load_settings

FIRST_SEED = 10_000_000


def resident_mb() -> float:
    """Resident memory of this process, MB (Linux)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    rsvp = presets.build(load_settings(preset="demo", vlsm_cache_bytes=8 * 2**20))
    seen: dict[int, float] = {}
    done, seed = 0, FIRST_SEED
    while done < arguments.predictions:
        scene = make_scene(seed, "easy", questions_per_kind=1)
        for question in scene.questions:
            rsvp(scene.image, question.instruction)
            done += 1
        seed += 1
        seen[done] = resident_mb()
    first = next(mb for count, mb in seen.items() if count >= arguments.predictions / 10)
    last = list(seen.values())[-1]
    found = {
        "predictions": done, "first_mb": round(first, 1), "last_mb": round(last, 1), "drift_mb": round(last - first, 1)
    }  # fmt: skip
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.writelines(f"{key:12} {value}\n" for key, value in found.items())


if __name__ == "__main__":
    main()
