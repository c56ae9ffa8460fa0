"""What a run keeps of each sample, and the file of it: one JSON object a line, so that a killed run can go on."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsvp_backend.evaluation.average_precision import Runs
from rsvp_backend.evaluation.metrics import Overlap
from rsvp_backend.evaluation.stages import Stages
from rsvp_backend.training.referring import DataError

log = logging.getLogger(__name__)
FILE = "samples.jsonl"


@dataclass(frozen=True, slots=True)
class Found:
    """One instance: its mask as run lengths in the image's size, score, and the words that it was segmented by."""

    runs: Runs
    score: float
    object: str


@dataclass(frozen=True, slots=True)
class Said:
    """Stage 1's part of it; ``crops_xyxy`` in image pixels. ``reason`` and ``detail``: why nothing was found."""

    raw_texts: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    crops_xyxy: tuple[tuple[int, int, int, int], ...] = ()
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One sample's result. ``outlined``: the truth is outlines; ``box_iou``: of the boxes around truth and answer,
    where the data set has boxes; ``fit``: the IoU that the diagnosis goes by; ``size_px``: (width, height)."""

    id: str
    image_id: str
    instruction: str
    size_px: tuple[int, int]
    intersection_px: int
    union_px: int
    truth_px: int
    found_px: int
    outlined: bool
    box_iou: float | None
    fit: float
    stages: Stages
    said: Said
    seconds: float
    instances: tuple[Found, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def overlap(self) -> Overlap:
        return Overlap(self.intersection_px, self.union_px)

    def to_line(self) -> str:
        """JSON without line breaks; see `from_dict`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """The inverse of `to_line`, after parsing. Raises KeyError, TypeError or ValueError for anything else."""
        said = Said(**{name: _tuples(value) for name, value in data["said"].items()})
        parts = {
            "size_px": tuple(data["size_px"]),
            "stages": Stages(**data["stages"]),
            "said": said,
            "instances": tuple(Found(**one) for one in data["instances"]),
        }
        return cls(**{**data, **parts})


class Store:
    """The records of one run in ``folder``, by sample, on disk and in memory.

    ``identity``: what must be the same for a run to go on, such as data set, folder, split and model version.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Raises `DataError` where the folder holds records of something else."""
        self.folder, self.path, self.identity = folder, folder / FILE, dict(identity)
        self.records: dict[str, Record] = {}
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._read():
                self.path.write_text(json.dumps({"evaluation": self.identity}) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror} (--out)") from None

    @classmethod
    def fresh(cls, folder: Path, identity: Mapping[str, Any]) -> Store:
        """A store without records; earlier ones are kept beside it under another name."""
        path = folder / FILE
        if path.exists():
            number = next(n for n in range(1, 10_000) if not (folder / f"samples-{n}.jsonl").exists())
            path.rename(folder / f"samples-{number}.jsonl")
        return cls(folder, identity)

    def add(self, record: Record) -> None:
        """Keep it; a kill right after loses nothing."""
        with self._lock:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(record.to_line() + "\n")
            self.records[record.id] = record

    def _read(self) -> bool:
        """Whether there were records, or at least their first line."""
        if not self.path.exists():
            return False
        whole, _, rest = self.path.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        if not lines:
            return False
        self._compare(lines[0])
        for number, line in enumerate(lines[1:], 2):
            try:
                record = Record.from_dict(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self.path}: line {number} is no record: choose another --out, or --fresh") from None
            self.records[record.id] = record
        if rest:  # the line that a kill cut off
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole) + 1)
        log.info("%s: %d samples were done before", self.path, len(self.records))
        return True

    def _compare(self, line: bytes) -> None:
        try:
            earlier = json.loads(line)["evaluation"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self.path} is no file of an evaluation: choose another --out, or --fresh") from None
        for name, value in self.identity.items():
            if earlier.get(name) != value:
                raise DataError(
                    f"{self.path} holds results with {name} {earlier.get(name)!r}, this is {value!r}: choose another "
                    "--out, or --fresh to begin anew"
                )


def _tuples(value: object) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
