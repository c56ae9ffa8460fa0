"""What is compared: a variant is a pipeline by a name; all variants of an experiment answer the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np

from rsvp_backend.experiments.changes import AS_IT_IS, Change
from rsvp_backend.experiments.oracle import Known, OracleReasoner
from rsvp_backend.experiments.sampling import SampledChat, SampledLocal
from rsvp_backend.pipeline import RSVP, PipelineConfig
from rsvp_backend.training.referring import DataError
from rsvp_backend.types import Reasoner, Segmenter


class Who(Protocol):
    """Who answers in stage 1."""

    def on(self, known: Known, repeat: int) -> Reasoner:
        """The reasoner to ask this question, for the time ``repeat`` (from 0); of one version for all questions."""
        ...


@dataclass(frozen=True, slots=True)
class Same:
    """One reasoner for all questions, which knows nothing."""

    reasoner: Reasoner

    def on(self, known: Known, repeat: int) -> Reasoner:
        return self.reasoner


@dataclass(frozen=True, slots=True)
class Oracles:
    """See `OracleReasoner`."""

    noise: float = 0.0
    seed: int = 0

    def on(self, known: Known, repeat: int) -> Reasoner:
        return OracleReasoner(known, self.noise, self.seed, repeat)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Another draw at each repeat."""

    reasoner: SampledLocal | SampledChat

    def on(self, known: Known, repeat: int) -> Reasoner:
        return self.reasoner.repeated(repeat)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Both stages, loaded."""

    who: Who
    segmenter: Segmenter
    config: PipelineConfig

    def on(self, known: Known, repeat: int) -> RSVP:
        return RSVP(self.who.on(known, repeat), self.segmenter, self.config)

    @property
    def version(self) -> str:
        return self.on(Known("", np.zeros((1, 1), dtype=np.bool_), ""), 0).version


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """``series``: who answers; ``value``: of what the experiment varies. ``load`` is called when its turn comes.

    ``repeats``: times that each question is asked; ``change``: what is done to pictures before both stages,
    ``reword``: to instructions.
    """

    series: str
    value: str
    load: Callable[[], Pipeline]
    repeats: int = 1
    change: Change = AS_IT_IS
    reword: Callable[[str], str] | None = None

    @property
    def name(self) -> str:
        return f"{self.series}/{self.value}"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One experiment. ``varied``: what, in words; ``reference``: the value that others are compared with; ``notes``:
    what was left out, and why."""

    name: str
    varied: str
    reference: str
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.variants:
            raise DataError(f"experiment {self.name} has no variant: {' '.join(self.notes) or 'name reasoners'}")

    def only(self, patterns: Sequence[str]) -> Plan:
        """The variants whose series, value or ``series/value`` fits one of ``patterns`` (``*``: anything).

        Raises `DataError` for a pattern that fits none.
        """
        for pattern in patterns:
            if not any(_fits(variant, pattern) for variant in self.variants):
                names = ", ".join(variant.name for variant in self.variants)
                raise DataError(f"--variants: {pattern!r} fits none of {names}")
        kept = tuple(variant for variant in self.variants if any(_fits(variant, pattern) for pattern in patterns))
        return Plan(self.name, self.varied, self.reference, kept, self.notes)


def _fits(variant: Variant, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (variant.series, variant.value, variant.name))
