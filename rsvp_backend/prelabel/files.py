"""A run without Label Studio: tasks from files, results into a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from PIL import Image

from rsvp_backend.access import make_fetcher
from rsvp_backend.flights import Flights
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.prelabel.results import Results
from rsvp_backend.prelabel.room import KEPT, size_bytes
from rsvp_backend.prelabel.running import Report, Result, Run, Steps
from rsvp_backend.prelabel.sources import FileFetch, Source
from rsvp_backend.prelabel.steps import Common, Work
from rsvp_backend.settings import Settings


@dataclass(frozen=True, slots=True)
class Goal:
    """``label_config``: XML; ``prefix``: goes before local images' names in Label Studio's file (``tasks.json``)."""

    out: Path
    label_config: str
    prefix: str = ""


class Files:
    """A source and the folder for what its tasks come to."""

    def __init__(self, source: Source, goal: Goal, settings: Settings, version: str, fetchers: int = 4) -> None:
        """Raises `LabelConfigError` and `ResultsError`."""
        self.source, self._settings, self._version, self._fetchers = source, settings, version, fetchers
        config = parse_label_config(goal.label_config)
        self._common = Common(config, settings.instruction_field, settings.default_instruction)
        identity = {"version": version, "labels": _digest(goal.label_config)}
        self.results = Results(goal.out, identity, config, goal.prefix)

    def steps(self) -> Steps:
        settings = self._settings
        read = FileFetch(self.source, make_fetcher(settings), settings.image_max_bytes, settings.image_max_pixels)
        images: Flights[Image.Image] = Flights(size_bytes, KEPT)
        return Steps(
            self._common,
            lambda question: images.get(question.uri, lambda: read(question), None),
            lambda answered: self.results.encode(answered, self._version),
            self.results.store,
            fetchers=self._fetchers,
            reasoners=settings.reasoner_concurrency,
            cut_batch=settings.vlsm_max_batch or 8,
        )

    def works(self, only_failed: bool = False, limit: int | None = None) -> Iterator[Work]:
        """Those that have no answer yet."""
        wanted = self.results.failed if only_failed else lambda key: not self.results.answered(key)
        return islice((work for work in self.source.works() if wanted(work.key)), limit)

    def count(self, only_failed: bool = False, limit: int | None = None) -> int:
        return sum(1 for _ in self.works(only_failed, limit))


def answer_files(files: Files, run: Run, works: Iterator[Work], tell: Callable[[Result], None]) -> Report:
    """Answer ``works``; at the end the whole files are written, also after an end before its time. `ResultsError`."""

    def note(result: Result) -> None:
        files.results.note(result)
        tell(replace(result, item=None))

    report = run.over(works, note)
    for file in files.results.finish(lambda: (work.key for work in files.source.works())):
        report.notes.append(f"written: {file}")
    return report


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
