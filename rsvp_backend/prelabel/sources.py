"""Tasks without Label Studio: a folder of images with one instruction, or a CSV, JSONL or JSON file of tasks."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from rsvp_backend.answers import Question
from rsvp_backend.errors import ImageError, SettingsError
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.pixels import decode_image
from rsvp_backend.prelabel.steps import Work

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_LONGEST_FIELD = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """``path``: a folder of images, or a file of tasks. ``root``: where local images may lie, and relative ones start.

    ``instruction`` and ``image_field``: what a folder's images are asked, and the field that they are put into.
    """

    path: Path
    root: Path
    image_field: str = "image"
    instruction: str | None = None

    @classmethod
    def folder(cls, path: Path, instruction: str, image_field: str) -> Source:
        """Raises `SettingsError`."""
        if not path.is_dir():
            raise SettingsError(f"--images is {str(path)!r}: a folder with images is expected")
        if not instruction.strip():
            raise SettingsError("--instruction is empty: what to segment in the images is expected")
        return cls(path, path, image_field, instruction)

    @classmethod
    def file(cls, path: Path, root: Path | None) -> Source:
        """Raises `SettingsError`."""
        if path.suffix.lower() not in (".csv", ".jsonl", ".ndjson", ".json") or not path.is_file():
            raise SettingsError(f"--tasks is {str(path)!r}: a file .csv, .jsonl or .json is expected")
        if root is not None and not root.is_dir():
            raise SettingsError(f"--root is {str(root)!r}: a folder is expected")
        return cls(path, root or path.parent)

    def works(self) -> Iterator[Work]:
        """Each different task once, in the source's order. Raises `SettingsError` where the file cannot be read."""
        seen: set[bytes] = set()
        for data in self._rows():
            digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).digest()[:12]
            if digest not in seen:
                seen.add(digest)
                yield Work(digest.hex(), {"data": data})

    def local(self, uri: str) -> Path | None:
        """The file that ``uri`` names, None for an address of another kind. Raises `ImageError` for one outside."""
        if _SCHEME.match(uri):
            return None
        root = self.root.resolve()
        try:
            file = (self.root / uri).resolve()
        except (OSError, ValueError) as error:
            raise ImageError(f"{uri!r:.200} is no name of a file: {error}") from None
        if file.is_relative_to(root):
            return file
        if uri.startswith("/"):
            return None  # a path on Label Studio, for all we know
        raise ImageError(f"{uri!r:.200} lies outside of {root}: name the folder that holds the images by --root")

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        if self.instruction is not None:
            yield from self._images(self.instruction)
            return
        readers: dict[str, Callable[[Path], Iterator[Any]]] = {".csv": _csv_rows, ".json": _json_rows}
        read = readers.get(self.path.suffix.lower(), _jsonl_rows)
        try:
            for number, row in enumerate(read(self.path), 1):
                data = row.get("data", row) if isinstance(row, Mapping) else None
                if not isinstance(data, Mapping):
                    raise SettingsError(
                        f"{self.path}: task {number} is {row!r:.60}: an object with its data is expected"
                    )
                yield dict(data)
        except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
            raise SettingsError(f"{self.path} cannot be read as {self.path.suffix}: {error}") from None

    def _images(self, instruction: str) -> Iterator[Mapping[str, Any]]:
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path)
            hidden = any(part.startswith(".") for part in name.parts)
            if file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file():
                yield {self.image_field: name.as_posix(), "instruction": instruction}


@dataclass(frozen=True, slots=True)
class FileFetch:
    """Images of a `Source`: local ones are read, all others go through ``fetcher``."""

    source: Source
    fetcher: ImageFetcher
    max_bytes: int
    max_pixels: int

    def __call__(self, question: Question) -> Image.Image:
        """Raises `ImageError`."""
        file = self.source.local(question.uri)
        if file is None or (question.uri.startswith("/") and not file.exists()):
            return self.fetcher.fetch(question.uri)
        try:
            if not file.is_file():
                raise ImageError(f"there is no file {file}")
            if file.stat().st_size > self.max_bytes:
                raise ImageError(f"{file} is larger than {self.max_bytes} bytes (RSVP_IMAGE_MAX_BYTES)")
            return decode_image(file.read_bytes(), self.max_pixels)
        except OSError as error:
            raise ImageError(f"{file} cannot be read: {error.strerror}") from None
        except ImageError as error:
            raise ImageError(f"{file.name}: {error}") from None


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = max(",;\t", key=head.count)
        for row in csv.DictReader(stream, delimiter=delimiter):
            if None in row:
                raise csv.Error(f"a row has more fields than the {len(row) - 1} of the first line")
            yield {str(name): value for name, value in row.items()}


def _jsonl_rows(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as stream:
        for line in stream:
            if line.strip():
                yield json.loads(line)


def _json_rows(path: Path) -> Iterator[Any]:
    found = json.loads(path.read_text(encoding="utf-8-sig"))
    yield from found if isinstance(found, list) else [found]
