"""`Service`: the whole server without its HTTP face, for programs that have one of their own.

Calls come from any thread. What answers them is what answers the routes of `rsvp_backend.server`, in an event loop of
its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from rsvp_backend.access import open_client
from rsvp_backend.engine import Engine, State
from rsvp_backend.jobs.intake import Intake
from rsvp_backend.serving.answering import Batch
from rsvp_backend.serving.backlog import Backlog
from rsvp_backend.serving.body import read_body
from rsvp_backend.serving.crew import Crew
from rsvp_backend.serving.desk import Desk, Later
from rsvp_backend.serving.routes import SETUP_WAIT_S, ProjectDefaults
from rsvp_backend.serving.settling import Settler
from rsvp_backend.settings import Settings
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)
JSON = dict[str, Any]
T = TypeVar("T")

_READ = ("id", "data")


class Service:
    """One per process: it owns the models, which begin to load at once. `close` ends its threads."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self.engine = engine
        self.defaults = ProjectDefaults(settings.default_instruction)
        self._crew = Crew(engine.turns.slots)
        backlog, lacking = Backlog.of(settings)
        self._desk = Desk(engine, self._crew, Later(backlog, lacking), settings.max_requests)
        self._settler = (
            Settler(backlog, engine, self._crew, lambda: open_client(settings), self._desk.is_asked)
            if backlog
            else None
        )
        self._intake = Intake(settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="service", daemon=True)
        self._thread.start()
        engine.start()
        if self._settler is not None:
            self._settler.start()

    def version(self) -> str | None:
        """The version that is served; None while the models load. Raises `NotReadyError` where they cannot be."""
        until = time.monotonic() + SETUP_WAIT_S
        while self.engine.state is State.LOADING and time.monotonic() < until:
            time.sleep(0.01)
        if self.engine.state is State.FAILED:
            self.engine.ready()
        return self.engine.version

    def predict(
        self,
        tasks: Sequence[Mapping[str, Any]],
        label_config: str,
        project: str,
        context: Mapping[str, Any] | None = None,
    ) -> list[JSON]:
        """``/predict``'s ``results``. Raises `NotReadyError`, `BusyError` and `BodyError`, after which to ask again."""
        deadline = Deadline.after(self._settings.predict_timeout_s)
        sent = {
            "tasks": [{name: task[name] for name in _READ if name in task} for task in tasks],
            "label_config": label_config,
            "project": project,
            "params": {"context": context},
        }
        body = read_body(json.dumps(sent).encode())
        if not body.asks:
            return [{"result": []} for _ in body.tasks]
        batch = Batch(body.tasks, body.label_config, project, body.context, self.defaults.of(project))
        reply = self._run(self._desk.answer(batch, deadline, _stays))
        return list(json.loads(reply)["results"])

    def notify(self, event: Mapping[str, Any]) -> JSON:
        """What `/webhook` answers to ``event``: a job begins, or the correction is counted."""
        status, answer = self._run(self._intake.answer(event))
        return {"status": "accepted" if status < 400 else "refused", "action": str(event.get("action"))[:50], **answer}

    def close(self) -> None:
        """Later calls do nothing. What a request left open stays in the backlog."""
        if self._loop.is_closed():
            return
        self.engine.stop()
        self._intake.close()
        if self._settler is not None:
            self._settler.close()
        self._crew.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2.0)
        if not self._thread.is_alive():
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _stays() -> bool:
    """The caller waits for the end: whether it has hung up is its own server's matter."""
    return False
