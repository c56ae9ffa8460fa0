"""What stands in the backlog is answered when nobody waits for the models, and pushed to Label Studio.

Label Studio saves what ``/predict`` answered only after the answer has arrived, so the empty one of a task may come
after the right one was pushed: every task is looked at again, and what is empty or double is deleted then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from rsvp_backend.answers import RETRY_SUFFIX, summary
from rsvp_backend.engine import Engine, State
from rsvp_backend.errors import LabelStudioError, RsvpError
from rsvp_backend.jobs.job import one_line
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.pushing import push
from rsvp_backend.labelstudio.replies import TaskGoneError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.serving.answering import Answered, Asked, Batch
from rsvp_backend.serving.backlog import Backlog, BacklogError, Entry, Standing
from rsvp_backend.serving.crew import Crew, Party
from rsvp_backend.serving.turns import Urgency
from rsvp_backend.training import durable
from rsvp_backend.types import Deadline, EmptyReason

log = logging.getLogger(__name__)

LOOKS_S = (8.0, 40.0, 150.0)
"""When Label Studio is looked at again, after the answer to its request; by the last it has saved what it got."""
RETRIES_S = (10.0, 60.0, 600.0, 3600.0)
"""Waits before each further try of a task that could not be answered."""
AWAY_S = (2.0, 5.0, 15.0, 60.0)
"""Waits while Label Studio cannot be reached; these are no task's tries."""
ANSWER_S = 1800.0
POLL_S = 1.0
_HOPELESS = frozenset({EmptyReason.NO_INSTRUCTION, EmptyReason.LABEL_CONFIG})
_MANY = 32


class _StoppedError(Exception):
    """The server stops; the entry stays as it is."""


class Settler:
    """``open_client`` may raise `LabelStudioError`. ``asked``: whether a (project, task) is being answered by a request
    now, which is left to it. One process at a time settles a backlog; another waits until that one ends.
    """

    def __init__(
        self,
        backlog: Backlog,
        engine: Engine,
        crew: Crew,
        open_client: Callable[[], LabelStudioClient],
        asked: Callable[[tuple[int, int]], bool],
    ) -> None:
        self.backlog = backlog
        self.trouble = ""
        """Why nothing is settled at present."""
        self.pushed = 0
        self._engine = engine
        self._crew = crew
        self._open_client = open_client
        self._asked = asked
        self._client: LabelStudioClient | None = None
        self._claimed: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """One more thread than tasks are computed at a time: one pushes meanwhile."""
        lead = threading.Thread(target=self._lead, name="backlog", daemon=True)
        self._threads.append(lead)
        lead.start()

    def close(self) -> None:
        """Stop; what is under way stays in the backlog. Waits for it a few seconds at most."""
        self._stopped.set()
        self.backlog.added.set()
        for thread in self._threads:
            thread.join(2.0)

    def _lead(self) -> None:
        """Wait until there is something to settle and this process may do it; then work along with the others."""
        with ExitStack() as stack:
            while not self._stopped.is_set():
                if self.backlog.path.exists() and self._alone(stack):
                    for number in range(self._engine.turns.slots):
                        thread = threading.Thread(target=self._work, name=f"backlog-{number + 2}", daemon=True)
                        self._threads.append(thread)
                        thread.start()
                    return self._work()
                self._rest(POLL_S)

    def _alone(self, stack: ExitStack) -> bool:
        try:
            stack.enter_context(durable.locked(self.backlog.path.with_suffix(".lock"), 0.0))
        except TimeoutError:
            self.trouble = f"another server settles {self.backlog.path}: give each server its own RSVP_BACKLOG"
            return False
        except OSError as error:
            self.trouble = f"{self.backlog.path} cannot be locked: {error.strerror or error}"
            return False
        self.trouble = ""
        return True

    def _work(self) -> None:
        away = 0
        while not self._stopped.is_set():
            try:
                entry = self._claim() if self._engine.state is State.READY else None
                if entry is None:
                    self._rest(POLL_S)
                    continue
                try:
                    self._settle(entry)
                    away, self.trouble = 0, ""
                finally:
                    self._claimed.discard(entry.key)
            except _StoppedError:
                return
            except (LabelStudioError, BacklogError) as error:  # not the task's fault
                self.trouble = one_line(str(error))
                wait_s = AWAY_S[min(away, len(AWAY_S) - 1)]
                log.warning("the backlog waits %.0f s: %s", wait_s, error)
                away += 1
                self._stopped.wait(wait_s)
            except Exception:
                log.exception("the backlog met a fault of this program")
                self._stopped.wait(AWAY_S[-1])

    def _claim(self) -> Entry | None:
        with self._lock:
            for entry in self.backlog.due(_MANY + len(self._claimed)):
                if entry.key not in self._claimed and not self._asked(entry.key):
                    self._claimed.add(entry.key)
                    return entry
        return None

    def _settle(self, entry: Entry) -> None:
        """Raises `LabelStudioError` and `BacklogError` for what is not this task's fault."""
        client = self._connected()
        try:
            self._settle_with(client, entry)
        except TaskGoneError:
            log.info("task %d of project %d is gone: nothing to answer", entry.task, entry.project)
            self.backlog.remove(entry)
        except LabelStudioError as error:
            client.whoami()  # raises where it is Label Studio that does not answer
            self._again(entry, str(error))

    def _settle_with(self, client: LabelStudioClient, entry: Entry) -> None:
        rsvp = self._engine.ready()
        task = client.task(entry.project, entry.task)
        if any(one.get("model_version") == rsvp.version for one in task["predictions"]):
            return self._tidy(client, entry, task, rsvp.version)
        answered, asked = self._computed(rsvp, entry, task)
        if not answered.final:
            return self._again(entry, summary(answered.outcome), answered.outcome.reason in _HOPELESS)
        if self._asked(entry.key):
            return  # a request came meanwhile: it gets the same answer
        stored = push(client, entry.task, answered.item(asked, rsvp.version), rsvp.version)
        with self._lock:
            self.pushed += stored
        log.info("task %d: answered later, %s", entry.task, summary(answered.outcome))
        now = time.time()
        self.backlog.later(entry, Standing.STORED, min([*_looks(entry, now), now + LOOKS_S[0]]))

    def _computed(self, rsvp: RSVP, entry: Entry, task: Mapping[str, Any]) -> tuple[Answered, Asked]:
        """In the crew, after all that somebody waits for."""
        batch = Batch([task], entry.label_config, str(entry.project), None, entry.default_instruction)
        asked = Asked.of(batch, Deadline.after(ANSWER_S), Urgency.BACKGROUND)
        answered: Future[Answered] = Future()
        party = Party(
            Urgency.BACKGROUND, [lambda: answered.set_result(self._engine.answerer.answer(rsvp, task, asked))]
        )
        self._crew.start()
        self._crew.add(party)
        while not answered.done():
            if self._stopped.is_set():
                self._crew.withdraw(party)
                raise _StoppedError
            try:
                answered.result(POLL_S)
            except TimeoutError:
                continue
        return answered.result(), asked

    def _tidy(self, client: LabelStudioClient, entry: Entry, task: Mapping[str, Any], version: str) -> None:
        """Delete what is empty or double, and look again until Label Studio has saved all that it was given."""
        right = sorted(int(one["id"]) for one in task["predictions"] if one.get("model_version") == version)
        for one in task["predictions"]:
            empty = str(one.get("model_version")).endswith(RETRY_SUFFIX) and not one.get("result")
            if empty or int(one["id"]) in right[1:]:
                client.delete_prediction(int(one["id"]))
        looks = _looks(entry, time.time())
        if looks:
            self.backlog.later(entry, Standing.STORED, min(looks))
        else:
            self.backlog.remove(entry)

    def _again(self, entry: Entry, why: str, hopeless: bool = False) -> None:
        why = one_line(why)
        if hopeless or entry.tries >= len(RETRIES_S):
            log.warning("task %d of project %d is given up: %s (see /backlog)", entry.task, entry.project, why)
            return self.backlog.fail(entry, why)
        due = time.time() + RETRIES_S[entry.tries]
        self.backlog.later(entry, Standing.WAITING, due, entry.tries + 1, why)

    def _connected(self) -> LabelStudioClient:
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._open_client()
                except LabelStudioError:
                    raise
                except RsvpError as error:
                    raise LabelStudioError(str(error)) from error
            return self._client

    def _rest(self, most_s: float) -> None:
        self.backlog.added.wait(most_s)
        if not self._stopped.is_set():
            self.backlog.added.clear()


def _looks(entry: Entry, now: float) -> list[float]:
    return [entry.asked + wait_s for wait_s in LOOKS_S if entry.asked + wait_s > now]
