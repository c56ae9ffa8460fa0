"""The process's one engine: loads the models once, follows their versions, and holds what answers tasks with them."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from enum import StrEnum

from rsvp_backend.errors import RsvpError
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.metrics import Metrics
from rsvp_backend.pipeline import RSVP
from rsvp_backend.serving.answering import Answerer
from rsvp_backend.serving.turns import Turns
from rsvp_backend.traces import TraceLog

log = logging.getLogger(__name__)

POLL_S = 2.0


class NotReadyError(RsvpError):
    """The models are not loaded: not yet, or loading failed."""


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Engine:
    """Safe to share by threads. ``build`` loads the models; it runs once, in a thread of its own, after `start`.

    ``update`` is asked every ``poll_s`` seconds in that thread whether there is something newer than what is served:
    requests that run by then end on what they began with. ``turns``: how many tasks are computed at a time.
    """

    def __init__(
        self,
        build: Callable[[], RSVP],
        fetcher: ImageFetcher,
        traces: TraceLog | None = None,
        instruction_field: str | None = None,
        update: Callable[[RSVP], RSVP | None] | None = None,
        poll_s: float = POLL_S,
        turns: Turns | None = None,
    ) -> None:
        self._build = build
        self._update = update
        self._poll_s = poll_s
        self._stopped = threading.Event()
        self._fetcher = fetcher
        self.turns = turns or Turns()
        self.traces = traces or TraceLog()
        self.metrics = Metrics()
        self.answerer = Answerer(fetcher, self.traces, self.metrics, self.turns, instruction_field)
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()
        self._rsvp: RSVP | None = None
        self._version: str | None = None
        self.failure = ""

    def start(self) -> None:
        """Begin to load in the background; later calls do nothing."""
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="load-models", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Follow no update any more; what is loaded goes on answering."""
        self._stopped.set()
        gc.unfreeze()

    @property
    def state(self) -> State:
        if not self._settled.is_set():
            return State.LOADING
        return State.READY if self._rsvp is not None else State.FAILED

    @property
    def version(self) -> str | None:
        """``RSVP.version``, known as soon as the models are loaded."""
        return self._version

    def ready(self) -> RSVP:
        """The models, loaded. Raises `NotReadyError` while they load or where loading failed."""
        if not self._settled.is_set():
            raise NotReadyError("the models are still loading: ask again later")
        if self._rsvp is None:
            raise NotReadyError(f"the models could not be loaded: {self.failure}")
        return self._rsvp

    def _run(self) -> None:
        self._load()
        if self._rsvp is not None and self._update is not None:
            self._follow(self._rsvp, self._update)

    def _follow(self, rsvp: RSVP, update: Callable[[RSVP], RSVP | None]) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                fresh = update(rsvp)
            except Exception as error:  # of whatever kind: what is served stays, and the next update is waited for
                log.error("%s. Version %s is served on", error, self._version)
                continue
            if fresh is not None:
                rsvp = self._rsvp = fresh
                self._version = fresh.version
                log.info("version %s is served from now on", self._version)

    def _load(self) -> None:
        try:
            self._rsvp = self._build()
            self._version = self._rsvp.version
            self.metrics.watch(self._rsvp.reasoner)
            # The model libraries make a million objects: going through them for garbage stops all threads for 0.3 s.
            gc.freeze()
        except Exception as error:  # whatever a model library raises must reach /health and /setup
            self._rsvp = None
            self.failure = str(error) if isinstance(error, RsvpError) else f"{type(error).__name__}: {error}"
            log.error("the models could not be loaded: %s", self.failure, exc_info=not isinstance(error, RsvpError))
        finally:
            self._settled.set()
