"""Hostile inputs by the hundred thousand: ``python benchmarks/fuzz.py [--inputs 100000] [--seed 0] [--target NAME]``.

Prints one JSON line. ``crashes``: inputs of which anything but the documented errors came, a reply of 500, or a process
that died; ``hangs``: inputs that took longer than a second three times in a row; ``memory_mb``: the most that one input
took at a time; ``cap_mb``: what the limits that are set here allow a picture, the largest thing there is. Each target's
inputs are made in processes of their own: the same seed gives the same inputs. What fails is printed to stderr. Exit
status 1 where a bound is broken. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz_targets import CAP_BYTES, TARGETS, Run, Target

PER_PROCESS = 2000
WARM = 20
"""Inputs of a process that make what it keeps."""
HANG_S = 1.0
PROCESS_S = 900.0
SHOWN = 3
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Tally:
    """What came of the inputs of one process, or of several."""

    inputs: int = 0
    crashes: int = 0
    hangs: int = 0
    slowest_s: float = 0.0
    memory_mb: float = 0.0
    shown: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.inputs += other.inputs
        self.crashes += other.crashes
        self.hangs += other.hangs
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.memory_mb = max(self.memory_mb, other.memory_mb)
        self.shown += other.shown


def take(target: Target, inputs: int, seed: int) -> Tally:
    """In a process of its own: about so many inputs, each given to the target."""
    logging.disable()
    warnings.simplefilter("ignore")
    tally = Tally()
    with target.opened() as run:

        @seeded(seed)
        @settings(
            max_examples=inputs,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(target.inputs)
        def one(value: Any) -> None:
            try_one(run, value, tally)

        one()
    return tally


def try_one(run: Run, value: Any, tally: Tally) -> None:
    tally.inputs += 1
    took_s = HANG_S + 1
    gc.collect(0)
    gc.freeze()  # what hypothesis holds is not gone through on the target's time
    PEAK_RESET.write_text("5")
    before_mb = resident_mb("VmRSS")
    for _ in range(3):  # a slow one is tried again: the machine may have been busy
        began_s = time.perf_counter()
        try:
            run(value)
        except Exception:
            tally.crashes += 1
            if len(tally.shown) < SHOWN:
                tally.shown.append(f"{value!r:.500}\n{traceback.format_exc(limit=-4)}")
        took_s = min(took_s, time.perf_counter() - began_s)
        if took_s <= HANG_S:
            break
    else:
        tally.hangs += 1
        tally.shown.append(f"{took_s:.1f} s: {value!r:.500}")
    tally.slowest_s = max(tally.slowest_s, took_s)
    if tally.inputs > WARM:
        tally.memory_mb = max(tally.memory_mb, resident_mb("VmHWM") - before_mb)


def resident_mb(name: str) -> float:
    """``VmRSS``: resident memory of this process now; ``VmHWM``: the most since it was reset."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def child(index: int, inputs: int, seed: int, answer: Connection) -> None:
    answer.send(take(TARGETS[index], inputs, seed))


def in_process(index: int, inputs: int, seed: int) -> Tally:
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=child, args=(index, inputs, seed, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(PROCESS_S):
            return receiver.recv()
        found = Tally(hangs=1, shown=[f"{TARGETS[index].name}, seed {seed}: no end after {PROCESS_S:.0f} s"])
    except EOFError:
        found = Tally(crashes=1, shown=[f"{TARGETS[index].name}, seed {seed}: the process died"])
    finally:
        process.kill()
        process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=[target.name for target in TARGETS], help="this one only")
    args = parser.parse_args()
    began_s, whole, by_target = time.perf_counter(), Tally(), {}
    for index, target in enumerate(TARGETS):
        if args.target not in (None, target.name):
            continue
        of_target, wanted = Tally(), args.inputs if args.target else round(args.inputs * target.share)
        while of_target.inputs < wanted and not (of_target.crashes or of_target.hangs):
            size = min(PER_PROCESS, wanted - of_target.inputs)
            of_target.add(in_process(index, size, args.seed + of_target.inputs))
        by_target[target.name] = of_target
        whole.add(of_target)
        for text in of_target.shown:
            sys.stderr.write(f"--- {target.name}\n{text}\n")
    rows = {name: {key: _round(value) for key, value in asdict(one).items() if key != "shown"}
            for name, one in by_target.items()}  # fmt: skip
    figures = {key: _round(value) for key, value in asdict(whole).items() if key != "shown"}
    cap_mb = CAP_BYTES / 2**20
    minutes = (time.perf_counter() - began_s) / 60
    print(json.dumps({**figures, "cap_mb": round(cap_mb), "minutes": round(minutes, 1), "targets": rows}))  # noqa: T201
    return int(whole.crashes > 0 or whole.hangs > 0 or whole.memory_mb > 2 * cap_mb)


def _round(value: float) -> float:
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
