"""Mass pre-labelling with the real Label Studio: how fast, what kills leave behind, and whether memory stays flat.

Scenes with several questions each become tasks of two projects. One is pre-labelled by one process: its rate is
compared with the pipeline's own (all images in memory, one task after another, with as many threads as is faster),
measured right before and after on the same tasks. The other one is killed (`kill -9`) at random moments. Prints one
JSON object:

    throughput_ratio kills doubles missing rss_drift_mb ...

``doubles``: predictions of the version beyond the first, over all tasks; ``missing``: tasks without one;
``rss_drift_mb``: resident memory at the end, less that after the first quarter of the tasks.

    python benchmarks/prelabel.py --json [--tasks 1000] [--kills 20]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rsvp_backend import presets
from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.login import create_personal_token
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, LEVELS, make_scene
from rsvp_backend.settings import Settings

LABELS = tuple(LEVELS["easy"].classes)
PER_SCENE = 5
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One task: number of its image, and its instruction."""

    image: int
    instruction: str


@dataclass(frozen=True)
class Studio:
    """Label Studio, running, and what ``rsvp-backend prelabel`` needs to reach it."""

    client: LabelStudioClient
    url: str
    token: str
    folder: Path

    def project(self, title: str, pictures: Sequence[bytes], cases: Sequence[Case]) -> int:
        """A project with the cases as tasks."""
        project = int(self.client.create_project(title, default_label_config(LABELS))["id"])
        paths = [self.folder / f"{number}.png" for number in range(len(pictures))]
        for path, data in zip(paths, pictures, strict=True):
            path.write_bytes(data)
        uris = self.client.upload_files(project, paths)
        tasks = [{"data": {"image": uris[case.image], "instruction": case.instruction}} for case in cases]
        for start in range(0, len(tasks), 250):
            self.client.import_tasks(project, tasks[start : start + 250])
        return project

    def prelabel(self, project: int) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RSVP_")} | {
            "RSVP_LABEL_STUDIO_URL": self.url,
            "RSVP_LABEL_STUDIO_TOKEN": self.token,
            "RSVP_LOG_LEVEL": "ERROR",
        }
        command = [sys.executable, "-m", "rsvp_backend", "prelabel", "--project", str(project), "--json"]
        command += ["--work-dir", str(self.folder / "work")]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def predictions(self, project: int) -> list[int]:
        """How many each task has."""
        return [len(task["predictions"]) for task in self.client.tasks(project)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Mass pre-labelling with the real Label Studio.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tasks", type=int, default=1000, help="in each project (default: 1000)")
    parser.add_argument("--kills", type=int, default=20, help="how often (default: 20)")
    args = parser.parse_args()
    pictures, cases = scenes(args.tasks)
    rsvp = presets.build(Settings(log_level="ERROR"))
    with tempfile.TemporaryDirectory() as folder, studio(Path(folder)) as running:
        _say(f"{len(cases)} tasks on {len(pictures)} images")
        figures = rates(running, rsvp, pictures, cases)
        figures |= killed(running, pictures, cases, args.kills, figures)
    sys.stdout.write(json.dumps(figures) + "\n" if args.json else "".join(f"{k:22} {v}\n" for k, v in figures.items()))


def scenes(tasks: int) -> tuple[list[bytes], list[Case]]:
    """Images as PNG files, and different questions about them."""
    pictures: list[bytes] = []
    cases: list[Case] = []
    while len(cases) < tasks:
        scene = make_scene(EVALUATION_SEEDS_FROM + len(pictures), "easy")
        file = io.BytesIO()
        scene.image.save(file, "PNG")
        asked = dict.fromkeys(question.instruction for question in scene.questions)
        cases += [Case(len(pictures), instruction) for instruction in list(asked)[:PER_SCENE]]
        pictures.append(file.getvalue())
    return pictures, cases[:tasks]


@contextmanager
def studio(folder: Path) -> Iterator[Studio]:
    home = Home(Path(__file__).parents[1] / Home().root)
    label_studio.prepare(home, _say)
    child, url, account = label_studio.start(home, folder / "label-studio", _say)
    try:
        token = create_personal_token(url, account.email, account.password, replace=True)
        with LabelStudioClient(url, token, timeout_s=120) as client:
            yield Studio(client, url, token, folder)
    finally:
        child.stop()


def rates(running: Studio, rsvp: RSVP, pictures: Sequence[bytes], cases: Sequence[Case]) -> dict[str, Any]:
    """The pipeline on one half of the tasks, ``prelabel`` on all, the pipeline on the other half."""
    project = running.project("rate", pictures, cases)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    threads = _faster(rsvp, images, cases)
    own_s = _alone(rsvp, images, cases[::2])
    began_s = time.monotonic()
    process = running.prelabel(project)
    resident = _watched(process, len(cases), running, project)
    output, complaint = process.communicate()
    wall_s = time.monotonic() - began_s
    if process.returncode:
        raise RuntimeError(f"prelabel ended with {process.returncode}: {complaint[-2000:]}")
    report = json.loads(output.splitlines()[-1])
    own_s += _alone(rsvp, images, cases[1::2])
    assert report["new"] == len(cases), report
    return {
        "throughput_ratio": round(own_s / report["seconds"], 3),
        "tasks_per_s": report["tasks_per_s"],
        "pipeline_tasks_per_s": round(len(cases) / own_s, 3),
        "pipeline_threads": threads,
        "rss_drift_mb": round(resident[-1] - resident[len(resident) // 4], 1),
        "rss_mb": round(resident[-1], 1),
        "start_s": round(wall_s - report["seconds"], 1),
        "stage_shares": report["stage_shares"],
        "slowest": report["slowest"],
        "tasks": len(cases),
        "images": len(pictures),
    }


def killed(
    running: Studio, pictures: Sequence[bytes], cases: Sequence[Case], kills: int, known: dict[str, Any]
) -> dict[str, Any]:
    """`kill -9` at random moments, before the last task; then a run to the end."""
    project = running.project("killed", pictures, cases)
    chance, done = random.Random(0), 0
    held: list[int] = []
    while done < kills:
        left = sum(not count for count in running.predictions(project)) / known["tasks_per_s"]
        process = running.prelabel(project)
        try:
            process.communicate(timeout=chance.uniform(0.2, known["start_s"] + 1.8 * left / (kills - done + 1)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
            held.append(sum(bool(count) for count in running.predictions(project)))
            _say(f"kill {done}: {held[-1]} of {len(cases)} tasks have their prediction")
        else:
            break  # nothing is left to kill
    process = running.prelabel(project)
    _, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"prelabel ended with {process.returncode}: {complaint[-2000:]}")
    counts = running.predictions(project)
    return {
        "kills": done,
        "kills_that_left_some": sum(0 < count < len(cases) for count in held),
        "doubles": sum(count - 1 for count in counts if count > 1),
        "missing": sum(not count for count in counts) + len(cases) - len(counts),
    }


def _faster(rsvp: RSVP, images: Sequence[Image.Image], cases: Sequence[Case]) -> int:
    """Set the number of threads with which the pipeline alone is faster: one, or one for each core."""
    choices = sorted({1, os.cpu_count() or 1})
    seconds = {}
    for threads in choices * 2:  # the first round warms up
        torch.set_num_threads(threads)
        seconds[threads] = _alone(rsvp, images, cases[:40])
    best = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(best)
    return best


def _alone(rsvp: RSVP, images: Sequence[Image.Image], cases: Sequence[Case]) -> float:
    began_s = time.monotonic()
    for case in cases:
        rsvp(images[case.image], case.instruction, LABELS)
    return time.monotonic() - began_s


def _watched(process: subprocess.Popen[str], tasks: int, running: Studio, project: int) -> list[float]:
    """Resident memory in MiB, sampled while tasks are answered; loading the models is left out."""
    resident: list[float] = []
    journal = next(iter((running.folder / "work").glob(f"*-{project}/sending.jsonl")), None)
    while process.poll() is None:
        journal = journal or next(iter((running.folder / "work").glob(f"*-{project}/sending.jsonl")), None)
        if journal is not None:
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            except (FileNotFoundError, IndexError):
                break
            resident.append(pages * os.sysconf("SC_PAGE_SIZE") / MIB)
        time.sleep(0.5)
    found = [value for value in resident if value > 0]
    assert found, "it ended before a sample was taken"
    return [float(np.median(found[max(0, at - 2) : at + 3])) for at in range(len(found))]


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
