"""The folder that a run without Label Studio fills: results line by line, PNG masks, and at the end the whole files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from rsvp_backend.answers import answer
from rsvp_backend.errors import RsvpError
from rsvp_backend.jobs.job import one_line
from rsvp_backend.labelstudio.regions import choose_label
from rsvp_backend.labelstudio.tags import LabelConfig
from rsvp_backend.prelabel import coco
from rsvp_backend.prelabel.running import DETAIL_CHARS, Result
from rsvp_backend.prelabel.steps import Answered
from rsvp_backend.training import durable
from rsvp_backend.types import BoolMask

RESULTS, TASKS, COCO, MASKS = "results.jsonl", "tasks.json", "coco.json", "masks"
_NAME_CHARS = 60
Record = dict[str, Any]


class ResultsError(RsvpError):
    """The folder holds something else, or cannot be written."""


class Results:
    """The results in ``folder``. ``identity``: what must be the same for a run to go on, such as the version.

    ``prefix`` goes before a local image's name in Label Studio's file, where it will be found.
    """

    def __init__(self, folder: Path, identity: dict[str, str], config: LabelConfig, prefix: str = "") -> None:
        """Raises `ResultsError`."""
        self.folder, self.config, self._prefix = folder, config, prefix
        self._file = folder / RESULTS
        self._lock = threading.Lock()
        self._at: dict[str, int] = {}  # where the last line of each key begins; of a failed one, below 0
        try:
            (folder / MASKS).mkdir(parents=True, exist_ok=True)
            self._open(identity)
        except OSError as error:
            raise ResultsError(f"{folder} cannot be written: {error.strerror} (--out)") from None

    def answered(self, key: str) -> bool:
        return self._at.get(key, -1) >= 0

    def failed(self, key: str) -> bool:
        return self._at.get(key, 0) < 0

    def encode(self, answered: Answered, version: str) -> Result:
        """The record of a task, and its masks as files."""
        outcome, work = answered.outcome, answered.work
        data = dict(work.task["data"])
        assert answered.size_px is not None  # an answer has an image
        instances = []
        for number, instance in enumerate(outcome.instances, 1):
            file = f"{MASKS}/{safe_name(answered.uri, work.key)}-{number}.png"
            _write_mask(self.folder / file, instance.mask)
            instances.append(
                {
                    "label": choose_label(instance, self.config)[0].value,
                    "object": instance.object,
                    "score": round(float(np.nan_to_num(instance.score)), 4),
                    "reasoning": instance.reasoning,
                    "area_px": int(np.count_nonzero(instance.mask)),
                    "bbox": coco.bounding_box(instance.mask),
                    "runs": coco.packed_runs(instance.mask),
                    "mask": file,
                }
            )
        record = {
            "key": work.key,
            "data": data,
            "image": answered.uri[:2000],
            "size_px": list(answered.size_px),
            "instruction": outcome.trace.instruction,
            "reason": outcome.reason,
            "instances": instances,
            "prediction": answer(outcome, self.config, version, ""),
        }
        reason = None if outcome.reason is None else str(outcome.reason)
        return Result(work.key, "new", record, len(instances), reason, one_line(outcome.detail, DETAIL_CHARS))

    def store(self, results: Sequence[Result]) -> Sequence[Result]:
        """Add lines, down to the disk. Raises `ResultsError`."""
        lines = [result.item for result in results if result.item is not None]
        self._add(lines)
        return results

    def note(self, result: Result) -> None:
        """Remember that a task failed."""
        if result.state == "failed":
            self._add([{"key": result.key, "failed": result.reason, "detail": result.detail}])

    def finish(self, keys: Callable[[], Iterator[str]]) -> tuple[Path, Path]:
        """Write Label Studio's file and COCO's, with the answered ones of ``keys``, in their order. `ResultsError`."""

        def records() -> Iterator[Record]:
            with self._file.open("rb") as stream:
                for key in keys():
                    if self.answered(key):
                        stream.seek(self._at[key])
                        yield json.loads(stream.readline())

        labels = self.config.label_values
        try:
            with _whole(self.folder / TASKS) as stream:
                _write_tasks(stream, records(), self.config.image_field, self._prefix)
            with _whole(self.folder / COCO) as stream:
                coco.write(stream, labels, records(), records())
        except OSError as error:
            raise ResultsError(f"{self.folder} cannot be written: {error.strerror} (--out)") from None
        return self.folder / TASKS, self.folder / COCO

    def _open(self, identity: dict[str, str]) -> None:
        if not self._file.exists():
            durable.append(self._file, json.dumps({"prelabel": identity}).encode() + b"\n")
            return
        with self._file.open("r+b") as stream:
            self._compare(stream.readline(), identity)
            while True:
                start = stream.tell()
                line = stream.readline()
                if not line.endswith(b"\n"):
                    stream.truncate(start)  # a kill cut it off
                    return
                self._index(line, start)

    def _compare(self, line: bytes, identity: dict[str, str]) -> None:
        try:
            earlier = json.loads(line)["prelabel"]
        except (ValueError, KeyError, TypeError):
            raise ResultsError(f"{self._file} is no file of prelabel: choose another --out") from None
        for name, value in identity.items():
            if earlier.get(name) != value:
                raise ResultsError(
                    f"{self._file} holds results with {name} {earlier.get(name)!r}, this is {value!r}: choose "
                    "another --out"
                )

    def _index(self, line: bytes, start: int) -> None:
        try:
            record = json.loads(line)
            self._at[str(record["key"])] = -start if "failed" in record else start
        except (ValueError, KeyError, TypeError):
            raise ResultsError(f"{self._file}: the line at byte {start} is no result: choose another --out") from None

    def _add(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            with self._lock, self._file.open("ab") as stream:
                for record in records:
                    line = json.dumps(record).encode() + b"\n"
                    start = stream.tell()
                    stream.write(line)
                    self._at[record["key"]] = -start if "failed" in record else start
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ResultsError(f"{self._file} cannot be written: {error.strerror} (--out)") from None


def safe_name(uri: str, key: str) -> str:
    """A file name that stays where it is put, whatever ``uri`` holds; ``key`` keeps it apart from others."""
    stem = "" if uri.startswith("data:") else PurePosixPath(uri.partition("?")[0].replace("\\", "/")).stem
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:_NAME_CHARS].strip("_-")
    return f"{plain or 'image'}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def _write_mask(file: Path, mask: BoolMask) -> None:
    """8 bits grey, 255 inside."""
    aside = durable.aside(file)
    try:
        Image.fromarray(mask.astype(np.uint8) * 255).save(aside, "PNG")
        os.replace(aside, file)
    except OSError as error:
        raise ResultsError(f"{file} cannot be written: {error.strerror} (--out)") from None
    finally:
        aside.unlink(missing_ok=True)


def _write_tasks(stream: IO[str], records: Iterator[Record], image_field: str, prefix: str) -> None:
    """Label Studio's import format."""
    stream.write("[")
    for number, record in enumerate(records):
        data = record["data"]
        if prefix and "://" not in str(data[image_field]) and not str(data[image_field]).startswith("data:"):
            data = {**data, image_field: prefix + str(data[image_field])}
        task = {"data": data, "predictions": [record["prediction"]]}
        stream.write(("," if number else "") + "\n" + json.dumps(task))
    stream.write("]\n")


@contextmanager
def _whole(file: Path) -> Iterator[IO[str]]:
    """A file that appears when it is whole."""
    aside = durable.aside(file)
    try:
        with aside.open("x", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, file)
        durable.flush_folder(file.parent)
    finally:
        aside.unlink(missing_ok=True)
