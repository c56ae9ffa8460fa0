"""`make demo`: Label Studio, the backend and its worker, a project with twelve pre-annotated images, until Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.request import ProxyHandler, build_opener

from PIL import Image

from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Account, Home
from rsvp_backend.demo.picture import Shown, render
from rsvp_backend.demo.process import LOOPBACK, Child, ChildError, Say, free_port
from rsvp_backend.demo.project import Backend, open_project, preannotate, regions_of
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.login import create_personal_token

PREFERRED_PORT = 9090
START_TIMEOUT_S = 180.0
SHOWN_IN_PICTURE = 3
_COMMAND = (sys.executable, "-m", "rsvp_backend")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """``once``: end after the predictions. ``data``: another data folder. ``picture``: where the picture goes."""

    once: bool = False
    home: Path = Home().root
    data: Path | None = None
    picture: Path | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """The servers and the worker, running. ``children``: Label Studio, the backend, the worker."""

    label_studio_url: str
    account: Account
    token: str
    backend: Backend
    children: tuple[Child, ...]


@contextmanager
def running(home: Home, data: Path, say: Say) -> Iterator[Stack]:
    """Start Label Studio, then the backend and its worker with a token for it; all are stopped on the way out.

    Raises `ChildError` where one does not get ready.
    """
    children: list[Child] = []
    try:
        say("Label Studio: starting (a few seconds, on a busy machine up to a minute)")
        child, url, account = label_studio.start(home, data, say)
        children.append(child)
        token = create_personal_token(url, account.email, account.password, replace=True)
        say("Backend: starting and loading its models")
        env = _environment(data, url, token)
        child, backend_url = _start_backend(home, data, env)
        children.append(child)
        child.wait_until_ready(lambda: _ready(backend_url), START_TIMEOUT_S, say)
        log = home.logs / f"worker-{data.name}.log"
        children.append(Child("the worker", [*_COMMAND, "worker"], env, log, Path.cwd()))
        yield Stack(
            url,
            account,
            token,
            Backend(backend_url, str(_get(f"{backend_url}/health")["model_version"])),
            tuple(children),
        )
    finally:
        with _uninterrupted():
            for child in reversed(children):
                child.stop()


def run_demo(options: DemoOptions, say: Say) -> int:
    """The whole demo; the exit status: 0 if every task got its prediction (a model may find nothing on a picture)."""
    home = Home(options.home)
    data = options.data or home.data
    start = time.monotonic()
    try:
        with _terminate_as_interrupt():
            label_studio.prepare(home, say)
            with running(home, data, say) as stack:
                done = _fill(stack, options, data, say)
                say(f"Ready after {time.monotonic() - start:.0f} s.")
                if not options.once:
                    _stay(stack, say)
    except KeyboardInterrupt:
        say("Stopped.")
        return 0
    except ChildError as error:
        say(str(error))
        return 1
    return 0 if done else 1


def _fill(stack: Stack, options: DemoOptions, data: Path, say: Say) -> bool:
    """Project, predictions, picture; whether every task has a prediction, and some of them a mask."""
    with LabelStudioClient(stack.label_studio_url, stack.token) as client:
        project = open_project(client, stack.backend, data, say)
        tasks = preannotate(client, project, say)
    predicted = sum(bool(task["predictions"]) for task in tasks)
    masked = [task for task in tasks if regions_of(task)]
    say(f"{predicted} of {len(tasks)} tasks have a prediction, {len(masked)} of them with a mask.")
    if masked:
        path = options.picture or data / "demo.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = sorted((_shown(task, data) for task in masked), key=lambda one: -len(one.reasoning))
        render(shown[:SHOWN_IN_PICTURE]).save(path)
        say(f"Picture of {min(len(masked), SHOWN_IN_PICTURE)} results: {path}")
    say("")
    say(f"Open      {stack.label_studio_url}/projects/{project.project}/data")
    say(f"Log in    {stack.account.email}   password {stack.account.password}")
    say(f"Backend   {stack.backend.url}   model version {stack.backend.model_version}")
    say(f"Learning  {stack.backend.url}/jobs   starts there, or in Label Studio by Settings, Model, Start Training")
    say("Logs      " + ", ".join(str(child.log) for child in stack.children))
    return predicted == len(tasks) and bool(masked)


def _stay(stack: Stack, say: Say) -> None:
    say("Press Ctrl-C to stop.")
    while True:
        for child in stack.children:
            if not child.running:
                raise ChildError(f"{child.name} has ended.\n{child.tail()}")
        time.sleep(0.5)


def _start_backend(home: Home, data: Path, env: Mapping[str, str]) -> tuple[Child, str]:
    port = free_port(PREFERRED_PORT)
    command = [*_COMMAND, "serve", "--host", LOOPBACK, "--port", str(port)]
    child = Child("the backend", command, env, home.logs / f"backend-{data.name}.log", Path.cwd())
    return child, f"http://{LOOPBACK}:{port}"


def _environment(data: Path, label_studio_url: str, token: str) -> dict[str, str]:
    """The caller's own RSVP_* (another reasoner, a device) count, less what the demo must decide; empty means unset."""
    return dict(os.environ) | {
        "RSVP_LABEL_STUDIO_URL": label_studio_url,
        "RSVP_LABEL_STUDIO_PUBLIC_URL": "",
        "RSVP_LABEL_STUDIO_TOKEN": token,
        "RSVP_BASIC_AUTH_USER": "",
        "RSVP_BASIC_AUTH_PASSWORD": "",
        "RSVP_TRACES": str((data / "traces").absolute()),
        "RSVP_VERSIONS": os.environ.get("RSVP_VERSIONS") or str((data / "versions").absolute()),
    }


def _ready(backend_url: str) -> bool:
    """Whether the weights are loaded. Raises `ChildError` where they could not be."""
    try:
        health = _get(f"{backend_url}/health")
    except OSError:
        return False
    if health["state"] == "failed":
        raise ChildError(f"the backend could not load its models: {health.get('reason')}")
    return bool(health["state"] == "ready")


def _get(url: str) -> dict[str, Any]:
    with build_opener(ProxyHandler({})).open(url, timeout=10.0) as response:
        answer = json.load(response)
    return dict(answer)


def _shown(task: dict[str, Any], data: Path) -> Shown:
    """A task of Label Studio's as the picture shows it: its uploaded image, and the mask that Label Studio stored."""
    upload = str(task["data"]["image"]).removeprefix("/data/")
    image = Image.open(data / "media" / upload).convert("RGB")
    regions = regions_of(task)
    mask = rle.decode(regions[0]["value"]["rle"], image.height, image.width)
    for region in regions[1:]:
        mask = mask | rle.decode(region["value"]["rle"], image.height, image.width)
    reasoning = " ".join(text for region in regions for text in region["meta"]["text"])
    return Shown(image, str(task["data"]["instruction"]), mask, reasoning)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """`kill` and a closed terminal end the demo as Ctrl-C does, so that no child is left behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        _restore(numbers, before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C while the children are being stopped changes nothing."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        _restore(numbers, before)


def _restore(numbers: Sequence[signal.Signals], handlers: Sequence[Any]) -> None:
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
