"""Corrections put into the real Label Studio as annotators leave them, and lessons that are killed."""

from __future__ import annotations

import base64
import copy
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.demo.run import Stack, running
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.masks import paste
from rsvp_backend.scenes import make_scene
from rsvp_backend.settings import Settings, load_settings
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.samples import Correction
from rsvp_backend.training.versions import VersionError
from rsvp_backend.types import BoolMask, Instance, Outcome, Prompt, Regions, Trace
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.segmenter import VlsmSegmenter

LABELS = ("Object",)
TEST_SCENE = 10_000_000


@dataclass(frozen=True)
class Studio:
    """Label Studio and the backend, running, and what a lesson needs to reach them."""

    stack: Stack
    client: LabelStudioClient
    settings: Settings
    segmenter: VlsmSegmenter
    source: Path

    def project(self, title: str) -> int:
        """An empty project with the backend connected."""
        project = int(self.client.create_project(title, default_label_config(LABELS))["id"])
        self.client.create_ml_backend(project, self.stack.backend.url, self.stack.backend.model_version)
        return project

    def submit(self, project: int, corrections: Sequence[Correction], folder: Path) -> None:
        """Each as a task with a prediction (what the segmenter finds), corrected by hand and submitted."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{correction.task}-{n}.png" for n, correction in enumerate(corrections)]
        for path, correction in zip(paths, corrections, strict=True):
            correction.load_image().save(path)
        uris = self.client.upload_files(project, paths)
        data = [{"image": uri, "instruction": c.text} for uri, c in zip(uris, corrections, strict=True)]
        self.client.import_tasks(project, [{"data": one} for one in data])
        tasks = {task["data"]["image"]: int(task["id"]) for task in self.client.tasks(project)}
        for uri, correction in zip(uris, corrections, strict=True):
            self._annotate(tasks[uri], correction)

    def _annotate(self, task: int, correction: Correction) -> None:
        config = parse_label_config(default_label_config(LABELS))
        image = correction.load_image()
        found = self.segmenter.segment([image], [Prompt(correction.crop, correction.text)])[0]
        shown = _outcome(correction, paste(found.logits > 0, correction.crop, image.width, image.height))
        stored = self.client.create_prediction(task, prediction(shown, config, self.stack.backend.model_version))
        results = copy.deepcopy(stored["result"])
        right = prediction(_outcome(correction, correction.mask), config, "")["result"]
        results[0] |= {"value": right[0]["value"], "origin": "prediction-changed"}
        kept = results if correction.mask.any() else []
        self.client.create_annotation(task, {"result": kept, "parent_prediction": stored["id"], "was_cancelled": False})


@contextmanager
def studio(data: Path, source: Path) -> Iterator[Studio]:
    """Both servers, their data in ``data``; ``source``: the base weights."""
    home = Home()
    label_studio.prepare(home, _say)
    with running(home, data, _say) as stack, LabelStudioClient(stack.label_studio_url, stack.token) as client:
        settings = load_settings(
            versions=data / "versions", label_studio_url=stack.label_studio_url, label_studio_token=stack.token
        )
        yield Studio(stack, client, settings, VlsmSegmenter.load(source, device="cpu"), source)


@dataclass
class Kills:
    """What ``kills`` killed lessons and the finished ones between them left behind."""

    kills: int = 0
    finished: int = 0
    failed: int = 0
    submitted: int = 0
    half_versions: int = 0
    refused_requests: int = 0
    requests: int = 0
    log: str = ""


def kill_lessons(studio: Studio, project: int, more: Sequence[Sequence[Correction]], kills: int, folder: Path) -> Kills:
    """``kill -9`` for ``rsvp-backend finetune`` at random moments of the time that the last finished one took.

    Whenever one has finished, the next of ``more`` is submitted, so that there is something to learn again.
    """
    seen, rng = Kills(), random.Random(0)
    base = weights.load(studio.source)
    longest_s = _lesson(studio, project, None, seen)
    for n, corrections in enumerate(more):
        studio.submit(project, corrections, folder / f"more-{n}")
        seen.submitted += len(corrections)
        while seen.kills < kills:
            took_s = _lesson(studio, project, rng.uniform(0.3, 1.1) * longest_s, seen)
            _check(studio, base, seen)
            _ask(studio, seen)
            sys.stderr.write(f"\r{seen.kills} kills, {seen.finished} finished")
            if took_s:
                longest_s = took_s
                break
        if seen.kills >= kills:
            break
    _lesson(studio, project, None, seen)
    _check(studio, base, seen)
    return seen


def _lesson(studio: Studio, project: int, killed_after_s: float | None, seen: Kills) -> float:
    """Run the command, at most so long; seconds that it took, 0 where it was killed."""
    command = [sys.executable, "-m", "rsvp_backend", "finetune", "--project", str(project), "--steps", "20", "--json"]
    env = os.environ | {
        "RSVP_VERSIONS": str(studio.settings.versions),
        "RSVP_REPLAY": "none",  # it takes longer than all that can be hit
        "RSVP_LABEL_STUDIO_URL": studio.stack.label_studio_url,
        "RSVP_LABEL_STUDIO_TOKEN": studio.stack.token,
    }
    start = time.monotonic()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            output, _ = process.communicate(timeout=killed_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            seen.kills += 1
            return 0.0
    if process.returncode:
        seen.failed += 1
        seen.log += output.decode(errors="replace")[-2000:]
    else:
        seen.finished += 1
    return time.monotonic() - start


def _check(studio: Studio, base: weights.Weights, seen: Kills) -> None:
    """Every version that is listed must be whole, the current one as well."""
    assert studio.settings.versions is not None
    registry = Registry(studio.settings.versions)
    names = {version.id for version in registry.list()} | ({registry.current()} - {None})
    broken = dict(registry.damaged())
    for name in names:
        try:
            registry.verify(str(name))
        except VersionError as error:
            broken[str(name)] = str(error)
    if registry.current() is not None:
        registry.load(base, str(registry.current()))
    seen.half_versions += len(broken)


def _ask(studio: Studio, seen: Kills) -> None:
    """One prediction from the running server."""
    image = make_scene(TEST_SCENE, "easy", questions_per_kind=1)
    data = io.BytesIO()
    image.image.save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    task = {"id": 1, "data": {"image": url, "instruction": image.questions[0].instruction}}
    body = {"tasks": [task], "project": "1.1", "label_config": default_label_config(LABELS)}
    seen.requests += 1
    try:
        answer = httpx.post(f"{studio.stack.backend.url}/predict", json=body, timeout=60.0, trust_env=False)
        seen.refused_requests += not (answer.is_success and answer.json()["results"][0]["result"])
    except httpx.HTTPError:
        seen.refused_requests += 1


def _outcome(correction: Correction, mask: BoolMask) -> Outcome:
    instance = Instance(mask, correction.text, 0.5, f"This is the {correction.text}.", correction.crop, Regions())
    return Outcome((instance,), Trace(correction.text))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
