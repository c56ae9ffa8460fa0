"""The page of one trace: which stage failed, in a sentence, and below it all that is known of each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rsvp_backend.pages import layout, verdict
from rsvp_backend.trace_pictures import MAX_MASKS

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """A version that the same instruction can be run under. ``version``: None for the base weights."""

    of: str
    version: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """``pictures``: which of ``original`` and ``marked`` are kept; ``beside``: the same instruction under another
    version; ``choices``: versions to run it under, or ``lacking`` says why there are none."""

    record: Record
    pictures: frozenset[str]
    beside: Record | None = None
    choices: tuple[Choice, ...] = ()
    lacking: str = ""


def render(shown: Shown) -> str:
    record = shown.record
    parts = [
        f'<p class="note told {verdict.tone(record)}"><b>{verdict.sentence(record)}</b> {escape(record["detail"])}</p>',
        _stages(record), _pictures(record, shown.pictures), _instances(record), _answer(record),
        _beside(shown), _facts(record),
    ]  # fmt: skip
    return layout.page(f"Trace {record['id']}", _heading(record), "".join(parts), here="traces", root="../")


def _heading(record: Record) -> str:
    if record["instruction"]:
        return f"“{escape(record['instruction'])}”"
    return "Clicks or a rectangle alone" if verdict.by_hand(record) else "No instruction"


def _stages(record: Record) -> str:
    items = "".join(_stage(one) for one in verdict.stages(record))
    return f'<ol class="stages" aria-label="Stages">{items}</ol>'


def _stage(one: verdict.Stage) -> str:
    words = {"went": "", "failed": "ended here, ", "": "not begun"}[one.state]
    seconds = "" if one.seconds is None else f"{one.seconds:.3f} s"
    return f'<li class="{one.state}"><b>{one.title}</b><span>{f"{words}{seconds}".removesuffix(", ")}</span></li>'


def _pictures(record: Record, kept: frozenset[str]) -> str:
    place, found = escape(record["id"]), []
    if "marked" in kept:
        found.append(_figure(f"{place}/marked", "What stage 1 saw: the image with its marks"))
    if "original" in kept and record["instances"]:
        found.append(_figure(f"{place}/overlay", "The mask on the image, all else faded"))
    elif "original" in kept:
        found.append(_figure(f"{place}/original", "The image"))
    found += _crops(record, place) if "original" in kept else []
    if not found:
        return ""
    return f'<section class="card" aria-label="Pictures"><div class="pictures">{"".join(found)}</div></section>'


def _crops(record: Record, place: str) -> list[str]:
    found = []
    names = [one["object"] for one in record["proposals"]]
    for index, box in enumerate(record["crops_xyxy"][:MAX_MASKS]):
        of = f" of {names[index]}" if len(names) == len(record["crops_xyxy"]) else ""
        found.append(_figure(f"{place}/crop-{index}", f"What stage 2 saw: the crop{of}, {_box(box)}"))
    return found


def _figure(address: str, text: str) -> str:
    said = escape(text)
    return f'<figure><img src="{address}" alt="{said}" loading="lazy"><figcaption>{said}</figcaption></figure>'


def _instances(record: Record) -> str:
    rows = [
        (one["object"], one["label"] or "-", f"{one['score']:.3f}", f"{one['area_px']:,} px", one["reasoning"])
        for one in record["instances"]
    ]
    return _card("Masks", _table(("Object", "Label", "Score", "Area", "Reasoning"), rows, "Masks")) if rows else ""


def _answer(record: Record) -> str:
    """Stage 1: as it was written, and as it was read."""
    raw = "".join(f"<h3>{_try(n)}</h3><pre>{escape(text)}</pre>" for n, text in enumerate(record["raw_texts"]))
    rows = [
        (one["object"], "yes" if one["present"] else "no", _regions(one["regions"]), one["label"] or "-",
         one["reasoning"])
        for one in record["proposals"]
    ]  # fmt: skip
    parsed = _table(("Object", "Present", "Regions", "Label", "Reasoning"), rows, "Read as") if rows else ""
    zooms = "".join(f"<li>{escape(_zoom(step))}</li>" for step in record["zooms"])
    zoomed = f'<h3>Looked at more closely</h3><ul class="lines">{zooms}</ul>' if zooms else ""
    if not raw and not parsed:
        return ""
    titled = f"<h3>Read as</h3>{parsed}" if parsed else ""
    return _card("Stage 1's answer", f"{titled}{zoomed}{raw}")


def _try(number: int) -> str:
    return "As it was written" if number == 0 else "The repaired answer"


def _zoom(step: Mapping[str, Any]) -> str:
    found = "kept" if step["found_xyxy"] is None else f"-> {_box(step['found_xyxy'])}"
    return f"{step['object']}: window {_box(step['window_xyxy'])} {found} {step['note']} ({step['seconds']:.2f} s)"


def _beside(shown: Shown) -> str:
    body = "" if shown.beside is None else _two(shown.record, shown.beside)
    if shown.choices:
        body += _again(shown)
    elif shown.lacking:
        body += f'<p class="dim">{escape(shown.lacking)}</p>'
    return _card("The same instruction under another version", body)


def _two(record: Record, other: Record) -> str:
    return f'<div class="columns">{_one_of("This trace", record)}{_one_of("Run again", other)}</div>'


def _one_of(title: str, record: Record) -> str:
    version = escape(str(record.get("model_version") or "-"))
    picture = _figure(f"{escape(record['id'])}/overlay", f"{title}: the mask on the image") if record.get(
        "kept_px"
    ) else ""  # fmt: skip
    return (
        f'<div><h3>{title}: <a href="{escape(record["id"])}">{version}</a></h3>{picture}'
        f"<p>{verdict.sentence(record)} {escape(record['detail'])}</p></div>"
    )


def _again(shown: Shown) -> str:
    options = "".join(
        f'<option value="{escape(json.dumps({"of": one.of, "version": one.version}))}">{escape(one.text)}</option>'
        for one in shown.choices
    )
    return (
        f'<form class="fields" data-post="{escape(shown.record["id"])}/again">'
        f'<label class="wide">Version<select name="under">{options}</select></label>'
        '<button class="main">Run it</button></form><p class="dim small">On the image as it is kept here, with this '
        "server's marks, padding and zoom. What is served does not change.</p>"
    )


def _facts(record: Record) -> str:
    size = record.get("size_px")
    facts = {
        "Trace": record["id"], "Time": record["time"], "Request": record.get("request"),
        "Project": record.get("project"), "Task": record.get("task"),
        "Image": record.get("image"), "Version": record.get("model_version"),
        "Size": f"{size[0]} x {size[1]} px" if size else None,
        "Labels": ", ".join(record.get("labels") or ()), "Again, of": record.get("again_of"),
    }  # fmt: skip
    rows = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items() if value)
    notes = "".join(f"<li>{escape(note)}</li>" for note in record["notes"])
    told = f'<h3>Notes</h3><ul class="lines">{notes}</ul>' if notes else ""
    return _card("Record", f"<dl>{rows}</dl>{told}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], said: str) -> str:
    """The last column holds longer texts."""
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    lines = "".join(
        f'<tr>{"".join(f"<td>{escape(cell)}</td>" for cell in row[:-1])}<td class="text">{escape(row[-1])}</td></tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{said}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _regions(regions: Mapping[str, Sequence[int]]) -> str:
    return "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in regions.items() if ids) or "none"


def _box(box: Sequence[int]) -> str:
    left, top, right, bottom = box
    return f"{right - left} x {bottom - top} px at ({left}, {top})"


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{title}</h2>{body}</section>'
