"""Lessons for the tests of jobs, and a worker that runs one of them: ``python job_lessons.py NAME``.

They leave in the folder that RSVP_VERSIONS names: ``begun`` (a line for each beginning: project and first step) and
``project-ID`` (the checkpoint: the last step). `steps` waits at step `HELD` while there is a file ``hold``.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsvp_backend.errors import LabelStudioError
from rsvp_backend.jobs.running import Learn, Taught, Tell
from rsvp_backend.jobs.worker import run_worker
from rsvp_backend.settings import Settings, load_settings

STEPS, HELD = 8, 3
WAIT_S = 60.0


@dataclass(frozen=True)
class Note:
    stage: str
    text: str
    done: int = 0
    total: int = 0
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Learned:
    project: int

    def to_dict(self) -> dict[str, Any]:
        scores = {"held_out_before": 0.25, "held_out_after": 0.75, "replay_before": float("nan")}
        return {"project": self.project, "version": "v-1", "promoted": True, "scores": scores}


def steps(settings: Settings, project: int, tell: Tell) -> Taught:
    assert settings.versions is not None
    folder = settings.versions
    checkpoint = folder / f"project-{project}"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    with (folder / "begun").open("a") as begun:
        begun.write(f"{project} {first}\n")
    for step in range(first + 1, STEPS + 1):
        checkpoint.write_text(str(step))
        tell(Note("training", f"step {step}", step, STEPS))
        while step == HELD and (folder / "hold").exists():
            time.sleep(0.01)
            tell(Note("training", "held", step, STEPS))
    logging.getLogger("rsvp_backend.lesson").info("learned all %d steps", STEPS)
    checkpoint.unlink()
    return Learned(project)


def refused(settings: Settings, project: int, tell: Tell) -> Taught:
    tell(Note("reading", "0 corrections"))
    raise LabelStudioError(f"GET /api/projects/{project}/ answered 404\nno such project")


def broken(settings: Settings, project: int, tell: Tell) -> Taught:
    raise ValueError("a fault\nof two lines")


def real(settings: Settings, project: int, tell: Tell) -> Taught:
    from rsvp_backend.learning import learn
    from rsvp_backend.training.finetune_config import FinetuneConfig

    config = FinetuneConfig(steps=2, batch=2, variants=0, replay_crops=2, replay_scored=2, evaluate_every=1)
    return learn(settings, project, tell, config=config)


LESSONS: dict[str, Learn] = {"steps": steps, "refused": refused, "broken": broken, "real": real}


@contextmanager
def working(lesson: str, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process; it is killed at the end, if it still runs. What it logs is in the folder's ``log``."""
    given = {f"RSVP_{name.upper()}": str(value) for name, value in settings.items()}
    with (Path(given["RSVP_VERSIONS"]) / "log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, lesson],
            env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **given},
            cwd=given["RSVP_VERSIONS"],
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
    """Its exit status after a signal."""
    process.send_signal(number)
    return process.wait(WAIT_S)


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    run_worker(load_settings(), LESSONS[sys.argv[1]])
