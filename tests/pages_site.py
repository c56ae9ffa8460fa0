"""The real application on loopback with the demo models and something on every page: for browser tests and pictures."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from uvicorn_server import listening
from versions_data import PROJECTOR, projector_delta, record

from rsvp_backend import presets
from rsvp_backend.jobs.job import State
from rsvp_backend.jobs.service import Jobs
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.pages.sample import sample
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.server import create_app, make_engine
from rsvp_backend.settings import Settings
from rsvp_backend.training.registry import Registry
from rsvp_backend.vlsm import weights

ACCOUNT = ("annotator", "the-password")
CURVE = Path(__file__).parents[1] / "docs" / "curves" / "vlsm.jsonl"
READY_S = 60.0


@dataclass(frozen=True)
class Site:
    """``versions``: the promoted one, then a candidate; ``found`` and ``failed``: traces; ``picture``: a file."""

    url: str
    folder: Path
    versions: tuple[str, str]
    found: str
    failed: str
    picture: Path
    instruction: str
    jobs: Jobs


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    settings = Settings(
        versions=folder / "versions", traces=folder / "traces", backlog_tasks=0,
        label_studio_url="http://127.0.0.1:9", label_studio_token="0123456789abcdef",  # type: ignore[arg-type]
        basic_auth_user=ACCOUNT[0], basic_auth_password=ACCOUNT[1],  # type: ignore[arg-type]
    )  # fmt: skip
    versions, jobs = _versions(settings), Jobs(folder / "versions-work")
    _jobs(jobs, versions[0])
    shown = sample(3)
    (folder / shown.name).write_bytes(shown.file)
    with listening(create_app(settings, make_engine(settings))) as port:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, auth=ACCOUNT, timeout=60) as http:
            _wait(http)
            found, failed = _traces(http)
        yield Site(url, folder, versions, found, failed, folder / shown.name, shown.instruction, jobs)


def _versions(settings: Settings) -> tuple[str, str]:
    assert settings.versions is not None
    registry, base = Registry(settings.versions), weights.load(presets.vlsm_source(settings))
    bias = base.model.state_dict()[PROJECTOR].cpu().float()
    made = []
    for seed, after in ((1, 0.714), (2, 0.731)):
        delta = {PROJECTOR: (bias + 0.3 * (projector_delta(base, seed)[PROJECTOR].float() - bias)).half()}
        parent, held_out = (made[0], 0.714) if made else (None, 0.412)
        scores = {"before": {"held_out": held_out, "replay": 0.968}, "after": {"held_out": after, "replay": 0.966}}
        made.append(registry.add_candidate(delta, record(base.version, parent=parent, **scores)).id)
    registry.promote(made[0], base.version)
    return made[0], made[1]


def _jobs(jobs: Jobs, version: str) -> None:
    """One of each state; the running one's loss is that of a real training."""
    for project in (1, 2, 3, 4):
        jobs.start(project, "START_TRAINING" if project < 3 else "20 corrections")
    for number in (1, 2, 3):
        assert jobs.claim(number)
    lesson = {
        "version": version, "promoted": True, "corrections": 24, "reasons": ["better by 0.21 to 0.39"],
        "scores": {"held_out_before": 0.412, "held_out_after": 0.714, "replay_before": 0.968, "replay_after": 0.966},
    }  # fmt: skip
    points = [json.loads(line) for line in CURVE.read_text().splitlines()][:60]
    curve = tuple((n * 2 + 1, float(point["loss"]), None) for n, point in enumerate(points))
    with jobs.store.changing() as changes:
        changes.end(1, State.DONE, result=lesson)
        changes.end(2, State.FAILED, error="Label Studio at http://label-studio:8080 cannot be reached: is it up?")
        changes.update(3, stage="training", text=f"loss {curve[-1][1]:.3f}, 95 s left", done=119, total=240)
        changes.keep_curve(3, curve)
        changes.keep_log(
            3, ["10:00:01 INFO job 3, project 3: begins", "10:00:09 INFO project 3: 20 corrections of 24 tasks"]
        )


def _wait(http: httpx.Client) -> None:
    until_s = time.monotonic() + READY_S
    while http.get("/health").json()["state"] != "ready":
        assert time.monotonic() < until_s
        time.sleep(0.1)


def _traces(http: httpx.Client) -> tuple[str, str]:
    """What a project of generated scenes gives, and one task for each of some faults."""
    tasks: list[dict[str, Any]] = []
    for seed in range(6):
        scene = make_scene(EVALUATION_SEEDS_FROM + seed, "easy")
        tasks += [{"image": _data_url(scene.image), "instruction": one.instruction} for one in scene.questions]
    tasks += [{"image": "data:image/png;base64,aGVsbG8=", "instruction": "the cup"}, {"image": tasks[0]["image"]}]
    body = {
        "tasks": [{"id": index + 1, "data": data} for index, data in enumerate(tasks)], "project": "1.1",
        "label_config": default_label_config(["cup", "ball", "other"]),
    }  # fmt: skip
    assert http.post("/predict", json=body).status_code == 200
    found = http.get("/traces", params={"reason": "found"}).json()["traces"]
    failed = http.get("/traces", params={"reason": "absent"}).json()["traces"]
    return found[0]["id"], failed[0]["id"]


def _data_url(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
