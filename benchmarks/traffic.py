"""How long a mass pre-labelling takes and what it costs, on paper, from the times of its stages. See docs/scale.md.

    images/s = min over places of  workers / seconds an image        time = start + images / (images/s)
    cost     = GPUs * hours * price of an hour + images * price of a call

The stages overlap, so the slowest place sets the rate, not their sum. Stages that share a place add up there: both
models on one GPU. Places of GPUs grow with their number; Label Studio, which stores, is one for all.

    python benchmarks/traffic.py --stage1-s 9.2 --stage2-s 0.8 --store-s 0.048 --usd-per-gpu-hour 2
    python benchmarks/traffic.py --run report.json --devices 1 8      # report.json: of `rsvp-backend prelabel --json`
    python benchmarks/traffic.py --check 200 800                      # predict 800 tasks from 200, then run them

A table in Markdown, or one JSON object with ``--json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """What does one part of the work. ``seconds``: of one worker for one image; ``workers``: on each device where
    ``grows``, else in all."""

    name: str
    seconds: float
    workers: float = 1
    grows: bool = False

    def rate(self, devices: int) -> float:
        """Images a second."""
        return self.workers * (devices if self.grows else 1) / self.seconds if self.seconds else float("inf")


@dataclass(frozen=True)
class Prices:
    """``hour``: of one device; ``call``: of stage 1 on a server, for one image; any currency."""

    hour: float = 0.0
    call: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of the table. ``busy``: of the devices' time, in [0, 1], None where no place is on them."""

    devices: int
    images_per_s: float
    slowest: str
    hours: float
    busy: float | None
    device_cost: float
    call_cost: float


def row(places: Sequence[Place], devices: int, images: int, start_s: float, prices: Prices) -> Row:
    """`images` on so many devices. ``start_s``: until all models are loaded."""
    slowest = min(places, key=lambda place: place.rate(devices))
    rate = slowest.rate(devices)
    hours = (start_s + images / rate) / 3600
    own = [place.rate(devices) for place in places if place.grows]
    busy = rate / min(own) if own else None
    return Row(devices, rate, slowest.name, hours, busy, devices * hours * prices.hour, images * prices.call)


def measured(report: Mapping[str, Any]) -> list[Place]:
    """The stages of a run, from what ``prelabel --json`` printed: each had its own threads, busy for its share of the
    time, so it could have done ``tasks_per_s / share``. Further devices are further machines like that one."""
    shares = {name: share for name, share in report["stage_shares"].items() if share}
    return [Place(name, share / report["tasks_per_s"], grows=name != "store") for name, share in shares.items()]


def assumed(args: argparse.Namespace) -> list[Place]:
    """By the options. Raises `SystemExit` where they leave nothing to do."""
    places = [Place("fetch", args.fetch_s, args.fetchers), Place("store", args.store_s)]
    if args.remote_calls:
        places += [Place("stage 1, server", args.stage1_s, args.remote_calls), Place("GPU", args.stage2_s, grows=True)]
    else:
        places.append(Place("GPU", args.stage1_s + args.stage2_s, grows=True))
    places = [place for place in places if place.seconds]
    return places or sys.exit("no times: --run, --check, or --stage1-s and --stage2-s are expected")


def table(rows: Sequence[Row], images: int, device: str) -> str:
    """Markdown. A column of costs appears where there are any."""
    costs = any(one.device_cost + one.call_cost for one in rows)
    lines = [f"| {device} | images/s | slowest | {images:,} images take | {device} busy |", "|---|---|---|---|---|"]
    for one in rows:
        busy = "-" if one.busy is None else f"{one.busy:.0%}"
        lines.append(f"| {one.devices} | {one.images_per_s:,.3g} | {one.slowest} | {_duration(one.hours)} | {busy} |")
    if costs:
        lines[0] += f" {device} cost | calls | together |"
        lines[1] += "---|---|---|"
        for at, one in enumerate(rows, 2):
            both = one.device_cost + one.call_cost
            lines[at] += f" {one.device_cost:,.0f} | {one.call_cost:,.0f} | {both:,.0f} |"
    return "\n".join(lines) + "\n"


def check(first: int, then: int) -> dict[str, Any]:
    """Answer ``first`` tasks, say how long ``then`` more will take, answer them, and compare. Without Label Studio."""
    from prelabel import scenes

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, cases = scenes(first + then)
        for number, data in enumerate(pictures):
            (folder / f"{number}.png").write_bytes(data)
        lines = (json.dumps({"image": f"{case.image}.png", "instruction": case.instruction}) for case in cases)
        (folder / "tasks.jsonl").write_text("\n".join(lines), encoding="utf-8")
        places = measured(_prelabel(folder, first))
        predicted = row(places, 1, then, 0.0, Prices())
        report = _prelabel(folder, then)
    return {
        "tasks": then,
        "predicted_from": first,
        "predicted_s": round(predicted.hours * 3600, 1),
        "measured_s": report["seconds"],
        "measured_over_predicted": round(report["seconds"] / (predicted.hours * 3600), 3),
        "predicted_slowest": predicted.slowest,
        "measured_slowest": report["slowest"],
        "stage_shares": report["stage_shares"],
        "stage_seconds_a_task": report["stage_seconds_a_task"],
    }


def main() -> None:
    args = _options().parse_args()
    if args.check:
        figures = check(*args.check)
        lines = "".join(f"{name:24} {value}\n" for name, value in figures.items())
        sys.stdout.write(json.dumps(figures) + "\n" if args.json else lines)
        return
    places = measured(json.loads(args.run.read_text(encoding="utf-8").splitlines()[-1])) if args.run else assumed(args)
    call = (args.tokens_in * args.price_in + args.tokens_out * args.price_out) / 1e6 if args.remote_calls else 0.0
    rows = [row(places, n, args.images, args.start_s, Prices(args.usd_per_gpu_hour, call)) for n in args.devices]
    if args.json:
        sys.stdout.write(json.dumps({"images": args.images, "rows": [asdict(one) for one in rows]}) + "\n")
    else:
        sys.stdout.write(table(rows, args.images, "machines" if args.run else "GPUs"))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time and cost of a mass pre-labelling, from the times of its stages.")
    add = parser.add_argument
    add("--run", type=Path, metavar="FILE", help="stage times of a real run: what `prelabel --json` printed")
    add("--check", type=int, nargs=2, metavar=("FIRST", "THEN"), help="predict so many tasks from the first, run them")
    add("--stage1-s", type=float, default=0.0, help="GPU seconds an image in its batch; of a call, on a server")
    add("--stage2-s", type=float, default=0.0, help="GPU seconds an image")
    add("--fetch-s", type=float, default=0.0, help="seconds to fetch and decode an image")
    add("--fetchers", type=int, default=4, help="images fetched at a time, in all (default: 4)")
    add("--store-s", type=float, default=0.0, help="Label Studio's seconds a prediction")
    add("--remote-calls", type=int, default=0, metavar="N", help="stage 1 is on a server, N calls at a time")
    add("--tokens-in", type=float, default=0.0, help="of such a call; --tokens-out likewise")
    add("--tokens-out", type=float, default=0.0)
    add("--price-in", type=float, default=0.0, help="of a million tokens; --price-out likewise")
    add("--price-out", type=float, default=0.0)
    add("--usd-per-gpu-hour", type=float, default=0.0)
    add("--start-s", type=float, default=0.0, help="until the models are loaded")
    add("--images", type=int, default=1_000_000)
    add("--devices", "--gpus", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    add("--json", action="store_true")
    return parser


def _prelabel(folder: Path, tasks: int) -> dict[str, Any]:
    """The next ``tasks`` of the folder's; the models load before its clock starts."""
    command = [sys.executable, "-m", "rsvp_backend", "prelabel", "--json", "--tasks", str(folder / "tasks.jsonl")]
    command += ["--out", str(folder / "out"), "--limit", str(tasks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"prelabel ended with {done.returncode}: {done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["tasks"] == tasks, report
    return report


def _duration(hours: float) -> str:
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.0f} min"


if __name__ == "__main__":
    main()
