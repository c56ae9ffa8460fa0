"""What a version is: the base weights it changes, what it learned from, how it scored; kept as ``version.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rsvp_backend.errors import RsvpError

RECORD_FILE = "version.json"
DELTA_FILE = "delta.safetensors"


class VersionError(RsvpError):
    """A version is unknown, damaged or of other base weights, or must stay where it is."""


class VersionState(StrEnum):
    """What became of a version; a promoted one need not be the current one any more."""

    CANDIDATE = "candidate"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True, slots=True)
class Record:
    """What training knows of a version.

    ``base``: `weights.Weights.version` of the base weights, name and digest; ``parent``: the version that was current
    when training began (None: the base itself); ``data``: keys of the corrections; ``before`` and ``after``: scores of
    parent and version by name; ``decision``: the gate's, with its ``reasons``; ``calibration``: as
    `gate.Calibration.to_dict` gives it, applied to the scores of what is served.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="strings")  # a mean of nothing is nan

    base: str
    parent: str | None = None
    data: tuple[str, ...] = ()
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    decision: Literal["promote", "keep"] = "keep"
    reasons: tuple[str, ...] = ()
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """A version as its folder describes it. ``id`` is what the segmenter calls itself under it, see `version_id`.

    ``delta_sha256``: of the file of ``delta_bytes`` bytes; ``created``: UTC.
    """

    id: str
    created: datetime
    delta_sha256: str
    delta_bytes: int
    record: Record

    @classmethod
    def of(cls, record: Record, delta: bytes) -> Version:
        """The version that the delta's file makes of the record's base, created now."""
        digest = hashlib.sha256(delta).hexdigest()
        return cls(version_id(record, digest), datetime.now(UTC), digest, len(delta), record)

    @classmethod
    def read(cls, folder: Path) -> Version:
        """The version in ``folder``; of the delta only its size is looked at. Raises `VersionError`."""
        try:
            version = _VERSION.validate_json((folder / RECORD_FILE).read_bytes())
            delta_bytes = (folder / DELTA_FILE).stat().st_size
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise VersionError(f"version {folder.name} is damaged: {RECORD_FILE}: {where}: {first['msg']}") from None
        except OSError as error:
            raise VersionError(f"version {folder.name} is damaged: {error.filename}: {error.strerror}") from None
        if version.id != folder.name or version.id != version_id(version.record, version.delta_sha256):
            raise VersionError(f"version {folder.name} is damaged: {RECORD_FILE} describes another one, {version.id}")
        if delta_bytes != version.delta_bytes:
            raise VersionError(
                f"version {folder.name} is damaged: {DELTA_FILE} has {delta_bytes} bytes instead of "
                f"{version.delta_bytes}"
            )
        return version

    def to_json(self) -> bytes:
        return _VERSION.dump_json(self, indent=2) + b"\n"


_VERSION: TypeAdapter[Version] = TypeAdapter(Version)


def version_id(record: Record, delta_sha256: str) -> str:
    """``demo-ab12cd34`` with a delta -> ``demo-9f8e7d6c``: the base's name, and a digest of what changes predictions
    (base, delta and calibration), so that the same training gives the same version."""
    name = record.base.rpartition("-")[0] or record.base
    parts = json.dumps([record.base, delta_sha256, record.calibration], sort_keys=True)
    return f"{name}-{hashlib.sha256(parts.encode()).hexdigest()[:8]}"
