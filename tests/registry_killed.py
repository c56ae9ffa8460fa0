"""Kills processes that change a registry, and looks at what they leave; test_registry.py runs it.

``python registry_killed.py FOLDER COUNT``: before the 1st, 2nd, ... change of a file, each time in a folder of its own,
until a process gets through; then COUNT processes that go on for ever, each after a random time, in one folder.
Prints one JSON object; what was not whole is in its lists ``problems``.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path

import torch

from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import Record

BASE = "tiny-12345678"
WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def change(registry: Registry, seed: int) -> None:
    """A version comes, is promoted, rolled back and deleted; at every second call it stays."""
    version = registry.add_candidate({"a.weight": torch.full((64, 64), float(seed % 8))}, Record(BASE)).id
    registry.promote(version, BASE)
    if seed % 2:
        registry.rollback(BASE)
        registry.delete(version)


def forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid


def killed_before(registry: Registry, step: int, seed: int) -> bool:
    """Whether a process was killed before its ``step``-th change of a file; False: it got through."""

    def work() -> None:
        steps = count(1)

        def hook(event: str, what: tuple[object, ...]) -> None:
            reads = event == "open" and str(what[1]).startswith("r")
            if event in WATCHED and str(registry.folder) in str(what[0]) and not reads and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        change(registry, seed)

    _, status = os.waitpid(forked(work), 0)
    return os.WIFSIGNALED(status)


def killed_after(registry: Registry, seconds: float, seed: int) -> None:
    def work() -> None:
        for further in count():
            change(registry, seed + further)

    pid = forked(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def problems_of(folder: Path) -> list[str]:
    """What is not whole, as a reader sees it, and after the next start has cleared it."""
    registry = Registry(folder)
    found = list(registry.damaged().values())
    for _ in range(2):
        for version in registry.list():
            registry.verify(version.id)
        current = registry.current()
        if current is not None:
            registry.verify(current)
        registry.clean()
    found += [f"left: {path.name}" for path in folder.glob(".*") if path.name != ".lock"]
    history = (folder / "history.jsonl").read_bytes() if (folder / "history.jsonl").exists() else b""
    last = json.loads(history.splitlines()[-1])["version"] if history else None
    if last != registry.current():
        found.append(f"the history says {last}, the pointer {registry.current()}")
    return found


def left_by(folder: Path) -> bool:
    return any(path.name != ".lock" for path in folder.glob(".*"))


def at_every_step(folder: Path) -> dict[str, object]:
    problems, left = [], 0
    for step in count(1):
        used = folder / str(step)
        if not killed_before(Registry(used), step, 1):
            return {"problems": problems, "kills": step - 1, "left": left}
        left += left_by(used)
        problems += [f"step {step}: {problem}" for problem in (problems_of(used) if used.exists() else [])]
    raise AssertionError("unreachable")


def at_random(folder: Path, trials: int) -> dict[str, object]:
    problems, rng = [], random.Random(5)
    for trial in range(trials):
        killed_after(Registry(folder), rng.uniform(0.0, 0.15), trial)
        problems += [f"trial {trial}: {problem}" for problem in (problems_of(folder) if folder.exists() else [])]
    return {"problems": problems, "versions": len(Registry(folder).list())}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    import_module("rsvp_backend.training.deltas")  # once, and not in every child
    home, random_kills = Path(sys.argv[1]), int(sys.argv[2])
    seen = {"steps": at_every_step(home / "steps"), "random": at_random(home / "random", random_kills)}
    sys.stdout.write(json.dumps(seen))
