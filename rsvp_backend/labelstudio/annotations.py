"""What annotators left on a task, as typed regions: raw annotations and predictions of Label Studio's API come in.

A region is one result of an area type; what else carries its id (its TextArea, its Labels) belongs to it. After a
submit such companions carry a copy of the region's RLE: a result is a mask by its type, never by what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rsvp_backend.labelstudio.regions import RECORD_KEY
from rsvp_backend.labelstudio.shapes import TYPES
from rsvp_backend.labelstudio.tags import LabelConfig
from rsvp_backend.types import Box

JSON = Mapping[str, Any]
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Region:
    """One marked area as Label Studio stores it, not decoded yet.

    ``kind`` and ``value`` are the result's (see `shapes.read_mask`). ``size_px``: (width, height) of the image that the
    result states. ``label``: what the result carries (a label's alias where it has one). ``written``: the text of the
    region's own TextArea. ``record``: the backend's ``meta`` record, empty where a person drew.
    """

    id: str
    kind: str
    value: JSON
    origin: str
    size_px: tuple[int, int] | None = None
    label: str | None = None
    written: str = ""
    meta_text: str = ""
    record: JSON = field(default_factory=dict)
    control: str = ""
    image: str = ""
    turned: bool = False

    @property
    def object(self) -> str:
        found = self.record.get("object")
        return " ".join(found.split()) if isinstance(found, str) else ""

    @property
    def reasoning(self) -> str:
        """What a person wrote, else the reasoner's full text: the TextArea is filled with the short ``meta.text``."""
        if self.written and self.written != self.meta_text:
            return self.written
        full = self.record.get("reasoning")
        return full.strip() if isinstance(full, str) and full.strip() else self.meta_text

    def box(self, width_px: int, height_px: int) -> Box | None:
        """The crop that the mask was cut from, clipped to the image; None where the record states none that fits."""
        edges = self.record.get("box_xyxy")
        if not isinstance(edges, list) or len(edges) != 4 or not all(type(edge) is int for edge in edges):
            return None
        left, top, right, bottom = max(edges[0], 0), max(edges[1], 0), min(edges[2], width_px), min(edges[3], height_px)
        return Box(left, top, right, bottom) if left < right and top < bottom else None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A stored prediction's regions by id."""

    id: int
    created_at: datetime
    regions: Mapping[str, Region]

    @property
    def ours(self) -> bool:
        return any(region.record for region in self.regions.values())


def regions_of(results: object, config: LabelConfig) -> dict[str, Region]:
    """The regions by id, in the order of ``results``; of several areas with one id the first counts."""
    by_id: dict[str, list[JSON]] = {}
    for result in listed(results):
        if isinstance(result.get("id"), str) and isinstance(result.get("value"), Mapping):
            by_id.setdefault(result["id"], []).append(result)
    areas = {identity: next(filter(_is_area, group), None) for identity, group in by_id.items()}
    return {identity: _region(area, by_id[identity], config) for identity, area in areas.items() if area is not None}


def count_areas(results: object) -> int:
    """How many results are areas, readable or not."""
    return sum(map(_is_area, listed(results)))


def latest(annotations: Iterable[JSON]) -> list[JSON]:
    """The last submitted one of each person, in the order of their ids; without a known person each counts."""
    by_person: dict[object, JSON] = {}
    for annotation in sorted(annotations, key=lambda one: (when(one, "updated_at"), _number(one))):
        person = annotator(annotation)
        by_person[("unknown", _number(annotation)) if person is None else person] = annotation
    return sorted(by_person.values(), key=_number)


def annotator(annotation: JSON) -> int | None:
    """The user's id; Label Studio gives it bare or in an object, by endpoint."""
    person = annotation.get("completed_by")
    identity = person.get("id") if isinstance(person, Mapping) else person
    return identity if isinstance(identity, int) else None


def imported(annotation: JSON) -> bool:
    """Whether it came with an import and nobody has saved it since: Label Studio notes who saved, not who imported."""
    return annotation.get("updated_by") is None


def started_from(annotation: JSON, kept: Mapping[str, Region], predictions: Mapping[int, Prediction]) -> Prediction:
    """The prediction whose regions the annotator was shown; one without regions where there was none.

    It is the annotation's ``parent_prediction`` where that still exists. Else (an annotation by API or with
    Auto-Annotation): the newest prediction of this backend that is older than the annotation and shares a region with
    it, or any such prediction where the annotation is empty. Regions of a prediction that the annotation has nothing
    of were never shown to be refused.
    """
    parent = annotation.get("parent_prediction")
    if isinstance(parent, int) and parent in predictions:
        return predictions[parent]
    begun = when(annotation, "created_at")
    ours = [one for one in predictions.values() if one.ours and one.created_at <= begun]
    shown = [one for one in ours if not kept or not kept.keys().isdisjoint(one.regions)]
    return max(shown, key=lambda one: (one.created_at, one.id), default=Prediction(0, _NEVER, {}))


def predictions_of(task: JSON, config: LabelConfig) -> dict[int, Prediction]:
    """All predictions of a task by id."""
    return {
        _number(raw): Prediction(_number(raw), when(raw, "created_at"), regions_of(raw.get("result"), config))
        for raw in listed(task.get("predictions"))
    }


def listed(values: object) -> list[JSON]:
    """The objects of a JSON list; of anything else, none."""
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list) else []


def _region(result: JSON, companions: Sequence[JSON], config: LabelConfig) -> Region:
    meta = result.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    record = meta.get(RECORD_KEY)
    areas = [one for one in companions if one.get("type") == "textarea" and one.get("from_name")]
    written = [_joined(one["value"].get("text")) for one in areas if one["from_name"] == config.reasoning_name]
    return Region(
        id=result["id"],
        kind=result["type"],
        value=result["value"],
        origin=str(result.get("origin") or "manual"),
        size_px=_size_px(result),
        label=_label(result, companions),
        written=next(iter(written), ""),
        meta_text=_joined(meta.get("text")),
        record=record if isinstance(record, Mapping) else {},
        control=str(result.get("from_name") or ""),
        image=str(result.get("to_name") or config.image_name),
        turned=bool(result.get("image_rotation")),
    )


def _label(result: JSON, companions: Sequence[JSON]) -> str | None:
    """Its own, else that of a Labels tag beside a tag that only draws."""
    named = [result["value"].get(result["type"])]
    named += [one["value"].get("labels") for one in companions if one.get("type") == "labels"]
    for names in named:
        if isinstance(names, list) and names and isinstance(names[0], str) and names[0].strip():
            return names[0].strip()
    return None


def _joined(texts: object) -> str:
    lines = texts if isinstance(texts, list) else [texts]
    return "\n".join(line.strip() for line in lines if isinstance(line, str) and line.strip())


def _is_area(result: JSON) -> bool:
    return result.get("type") in TYPES


def _size_px(result: JSON) -> tuple[int, int] | None:
    width, height = result.get("original_width"), result.get("original_height")
    return (width, height) if type(width) is int and type(height) is int and min(width, height) > 0 else None


def _number(item: JSON) -> int:
    found = item.get("id")
    return found if isinstance(found, int) else 0


def when(item: JSON, name: str) -> datetime:
    """A time of the API (ISO 8601); the beginning of time where there is none."""
    try:
        found = datetime.fromisoformat(str(item.get(name)))
    except ValueError:
        return _NEVER
    return found if found.tzinfo else found.replace(tzinfo=UTC)
