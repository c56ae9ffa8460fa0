"""Prometheus metrics of one process: outcomes and stage times as they are computed, the reasoner's counters at scrape.

Labels hold reasons, stages, results and the model's name; never addresses, instructions or keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from rsvp_backend.reasoner.usage import Meter
from rsvp_backend.types import EmptyReason, Outcome

CONTENT_TYPE = CONTENT_TYPE_LATEST
FOUND = "found"
STAGE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)


@runtime_checkable
class _Metered(Protocol):
    """A reasoner whose calls are counted."""

    meter: Meter


@runtime_checkable
class _Cached(Protocol):
    """A reasoner that counts what became of its questions."""

    @property
    def counts(self) -> dict[str, int]: ...


class Metrics:
    """One registry of its own. Safe to share by threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._outcomes = Counter(
            "rsvp_outcomes",
            "Computed outcomes: found, or why nothing was; answers repeated from memory are not counted again.",
            ["reason"],
            registry=self._registry,
        )
        self._stages = Histogram(
            "rsvp_stage_seconds",
            "Time of each stage of a computed outcome.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=self._registry,
        )
        self._waits = Histogram(
            "rsvp_wait_seconds",
            "From a task's request until the models begin with it, its image's fetching included.",
            ["class"],
            buckets=STAGE_BUCKETS_S,
            registry=self._registry,
        )
        for reason in (FOUND, *EmptyReason):
            self._outcomes.labels(reason)

    def observe(self, outcome: Outcome) -> None:
        """Count one outcome and the times in its trace."""
        self._outcomes.labels(outcome.reason or FOUND).inc()
        for stage, seconds in outcome.trace.timings_s.items():
            self._stages.labels(stage).observe(seconds)

    def waited(self, kind: str, seconds: float) -> None:
        """Note how long a task of class ``kind`` waited for the models."""
        self._waits.labels(kind).observe(seconds)

    def show(self, collector: Collector) -> None:
        """Show what ``collector`` reads at each scrape."""
        self._registry.register(collector)

    def watch(self, reasoner: object) -> None:
        """Show the counters of ``reasoner`` and of those it wraps, as far as they count; once per `Metrics`."""
        self._registry.register(_ReasonerCollector(reasoner))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format, see `CONTENT_TYPE`."""
        return generate_latest(self._registry)


def layers(reasoner: object) -> Iterator[object]:
    """``reasoner``, the one it wraps, and so on inwards."""
    layer: object | None = reasoner
    while layer is not None:
        yield layer
        layer = getattr(layer, "inner", None)


def meter_of(reasoner: object) -> Meter | None:
    """The meter of the innermost reasoner, where its calls are counted."""
    return next((layer.meter for layer in layers(reasoner) if isinstance(layer, _Metered)), None)


class _ReasonerCollector(Collector):
    def __init__(self, reasoner: object) -> None:
        self._reasoner = reasoner

    def collect(self) -> Iterator[Metric]:
        meter = meter_of(self._reasoner)
        if meter is not None:
            yield from _usage(meter)
        for layer in layers(self._reasoner):
            if isinstance(layer, _Cached):
                questions = CounterMetricFamily(
                    "rsvp_reasoner_questions",
                    "Questions by what became of them: asked, shared with an equal one under way, stored on disk.",
                    labels=["how"],
                )
                for how, count in sorted(layer.counts.items()):
                    questions.add_metric([how], count)
                yield questions


def _usage(meter: Meter) -> Iterator[Metric]:
    usage = meter.usage
    calls = CounterMetricFamily("rsvp_reasoner_calls", "Calls to the model by result.", labels=["model", "result"])
    for result, count in sorted(usage.calls.items()):
        calls.add_metric([meter.model, result], count)
    yield calls
    tokens = CounterMetricFamily("rsvp_reasoner_tokens", "Tokens as reported.", labels=["model", "kind"])
    tokens.add_metric([meter.model, "input"], usage.prompt_tokens)
    tokens.add_metric([meter.model, "output"], usage.completion_tokens)
    yield tokens
    cost = CounterMetricFamily("rsvp_reasoner_cost", "Cost by the prices set, in their currency.", labels=["model"])
    cost.add_metric([meter.model], usage.cost)
    yield cost
