"""What the server shows of itself at each scrape: how many wait, what is kept in memory, which version is served."""

from __future__ import annotations

import logging
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from rsvp_backend.engine import Engine, NotReadyError
from rsvp_backend.errors import RsvpError
from rsvp_backend.jobs.intake import Intake
from rsvp_backend.jobs.job import State
from rsvp_backend.serving.crew import Crew
from rsvp_backend.serving.desk import Desk
from rsvp_backend.serving.settling import Settler
from rsvp_backend.serving.turns import Urgency

log = logging.getLogger(__name__)


class ServingCollector(Collector):
    """Reads what it shows when it is asked. ``settler`` is None without a backlog."""

    def __init__(self, engine: Engine, crew: Crew, desk: Desk, settler: Settler | None, intake: Intake) -> None:
        self._engine = engine
        self._crew = crew
        self._desk = desk
        self._settler = settler
        self._intake = intake

    def collect(self) -> Iterator[Metric]:
        yield from self._queues()
        yield from self._caches()
        yield from self._process()
        yield from self._backlog()
        yield from self._jobs()

    def describe(self) -> Iterator[Metric]:
        """Nothing is read while it is registered."""
        return iter(())

    def _queues(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("rsvp_waiting_tasks", "Tasks of requests that are not begun.", labels=["class"])
        for urgency, count in self._crew.waiting().items():
            waiting.add_metric([_name(urgency)], count)
        yield waiting
        inside = GaugeMetricFamily("rsvp_requests", "Requests to /predict that are being answered.", labels=["class"])
        for urgency, count in self._desk.inside().items():
            inside.add_metric([_name(urgency)], count)
        yield inside
        yield GaugeMetricFamily("rsvp_computing_tasks", "Tasks on the models now.", self._engine.turns.running)
        yield CounterMetricFamily("rsvp_requests_refused", "Answered 503 for want of room.", self._desk.refused)

    def _caches(self) -> Iterator[Metric]:
        """``how``: computed, shared with an equal one under way, kept (found in memory)."""
        lookups = CounterMetricFamily("rsvp_cache_lookups", "How values were come by.", labels=["cache", "how"])
        size = GaugeMetricFamily("rsvp_cache_bytes", "Values kept in memory, bytes.", labels=["cache"])
        answerer = self._engine.answerer
        for name, flights in (("answers", answerer.answers), ("images", answerer.images)):
            for how, count in flights.counts().items():
                lookups.add_metric([name, how], count)
            size.add_metric([name], flights.kept_bytes)
        segmenter = self._segmenter()
        for how, count in getattr(segmenter, "lookups", Counter[str]()).items():
            lookups.add_metric(["embeddings", how], count)
        if hasattr(segmenter, "kept_bytes"):
            size.add_metric(["embeddings"], segmenter.kept_bytes)
        yield lookups
        yield size

    def _process(self) -> Iterator[Metric]:
        yield InfoMetricFamily("rsvp_version", "The version that is served.", {"version": self._engine.version or ""})
        memory = GaugeMetricFamily("rsvp_memory_bytes", "Memory of this process, by where it is.", labels=["device"])
        memory.add_metric(["cpu"], resident_bytes())
        for device, used in cuda_bytes().items():
            memory.add_metric([device], used)
        yield memory

    def _backlog(self) -> Iterator[Metric]:
        tasks = GaugeMetricFamily("rsvp_backlog_tasks", "Tasks that are answered later, by state.", labels=["state"])
        pushed = 0
        if self._settler is not None:
            pushed = self._settler.pushed
            try:
                for standing, count in self._settler.backlog.counts().items():
                    tasks.add_metric([standing], count)
            except RsvpError as error:
                log.warning("/metrics without the backlog: %s", error)
        yield tasks
        yield CounterMetricFamily("rsvp_backlog_pushed", "Predictions pushed to Label Studio later.", pushed)

    def _jobs(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("rsvp_jobs", "Training jobs on record, by state.", labels=["state"])
        if self._intake.jobs is not None:
            try:
                counted = Counter(job.state for job in self._intake.jobs.store.all())
                for state in State:
                    jobs.add_metric([state], counted[state])
            except RsvpError as error:
                log.warning("/metrics without the jobs: %s", error)
        yield jobs

    def _segmenter(self) -> object:
        try:
            return self._engine.ready().segmenter
        except NotReadyError:
            return None


def resident_bytes() -> int:
    """Of this process: what it holds now, where the system tells; else the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize()


def cuda_bytes() -> dict[str, int]:
    """What torch holds of each GPU, bytes; empty without one, or before torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    return {f"cuda:{index}": torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count())}


def _name(urgency: Urgency) -> str:
    return urgency.name.lower()
