"""The worst samples of a run as one HTML page: pictures inside it, nothing fetched, no script, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from rsvp_backend.evaluation import overlays
from rsvp_backend.evaluation.records import Record
from rsvp_backend.evaluation.samples import Sample, Truth
from rsvp_backend.evaluation.stages import SIGNATURES
from rsvp_backend.evaluation.summary import Run
from rsvp_backend.training.coco_masks import decode
from rsvp_backend.training.referring import SampleError
from rsvp_backend.types import BoolMask, Marks

log = logging.getLogger(__name__)
_STAGES = {"stage1": "stage 1", "stage2": "stage 2", "both": "both stages"}
_LONGEST_TEXT = 4000


def worst(records: Sequence[Record], count: int) -> list[Record]:
    """Of those that went wrong the ``count`` with the lowest IoU; of equal ones the larger object first."""
    wrong = [record for record in records if record.stages.wrong]
    return sorted(wrong, key=lambda record: (record.fit, -record.truth_px, record.id))[:count]


def page(run: Run, summary: Mapping[str, Any], marks: Marks, count: int) -> str:
    """The page on the ``count`` worst of ``run``; ``marks``: those that stage 1 saw."""
    shown = worst(run.records, count)
    samples = {sample.id: sample for sample in run.data.samples}
    cards = "".join(_cards(shown, samples, marks)) or '<p class="dim">No sample went wrong.</p>'
    wrong = sum(bool(record.stages.wrong) for record in run.records)
    title = f"{run.data.name}, {run.data.split}"
    partial = f'<p class="note">Partial result: {escape("; ".join(summary["partial_because"]))}.</p>'
    style = _style()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} - worst samples</title><style>{style}</style></head><body><header>"
        f"<h1>{escape(title)}</h1><p>{wrong} of {len(run.records)} samples went wrong; the {len(shown)} worst are "
        f"shown. Model <code>{escape(run.version)}</code></p>{partial if summary['partial'] else ''}"
        f"{_shares(summary)}{_LEGEND}</header><main>{cards}</main></body></html>\n"
    )


_LEGEND = (
    '<p class="legend"><span><i class="truth"></i>truth (outline)</span><span><i class="answer"></i>answer (filled)'
    '</span><span><i class="crop"></i>crop</span><span><i class="ignored"></i>ignored in scores</span></p>'
)


@cache
def _style() -> str:
    return files(__package__).joinpath("page.css").read_text(encoding="utf-8")


@cache
def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _shares(summary: Mapping[str, Any]) -> str:
    """How often each stage was wrong, and the four signatures."""
    found = summary["diagnosis"]
    names = ["right", *_STAGES, *SIGNATURES]
    titles = {name: _STAGES.get(name, name.replace("_", " ")) for name in names}
    cells = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{100 * (found[name] or 0):.1f} %</dd></div>"
        for name, title in titles.items()
    )
    return f"<dl>{cells}</dl>"


def _cards(records: Sequence[Record], samples: Mapping[str, Sample], marks: Marks) -> Iterator[str]:
    for number, record in enumerate(records, 1):
        try:
            image = samples[record.id].image.load()
            truth = samples[record.id].truth.read(*image.size)
            found = _found(record)
        except (SampleError, KeyError) as error:
            log.warning("%s cannot be shown: %s", record.id, error)
            continue
        yield _card(number, record, _pictures(record, image, truth, found, marks))


def _found(record: Record) -> BoolMask:
    width, height = record.size_px
    mask: BoolMask = np.zeros((height, width), dtype=np.bool_)
    for instance in record.instances:
        mask |= decode(instance.runs, height, width)
    return mask


def _pictures(record: Record, image: Image.Image, truth: Truth, found: BoolMask, marks: Marks) -> str:
    crops = [tuple(float(edge) for edge in box) for box in record.said.crops_xyxy]
    boxes = [(a, b, c, d) for a, b, c, d in crops]
    shown = [
        ("stage 1: marks and crop", overlays.stage1(image, marks, boxes)),
        ("truth and answer", overlays.answer(image, truth, found)),
    ]
    close = overlays.crop(image, truth, found, boxes)
    if close is not None:
        shown.append(("the crop", close))
    return "".join(
        f'<figure><img src="{overlays.data_uri(picture)}" width="{picture.width}" height="{picture.height}" '
        f'alt="{escape(name)}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, picture in shown
    )


def _card(number: int, record: Record, pictures: str) -> str:
    stages, said = record.stages, record.said
    measured = {
        "IoU": record.fit, "crop recall": stages.crop_recall, "crop / image": stages.crop_share,
        "stage 2 on the true crop": stages.true_crop_iou,
    }  # fmt: skip
    numbers = "".join(f"<div><dt>{name}</dt><dd>{_number(value)}</dd></div>" for name, value in measured.items())
    objects = ", ".join(said.objects) or (f"nothing ({said.reason}: {said.detail})" if said.reason else "nothing")
    raw = "\n".join(_readable(text) for text in said.raw_texts)[:_LONGEST_TEXT] or "none"
    signature = stages.signature.replace("_", " ")
    return (
        f'<article><div class="top"><h2>{escape(record.instruction)}</h2><span class="tag bad">{escape(signature)}'
        f'</span><span class="tag">{escape(_STAGES[stages.wrong])}</span></div>'
        f'<p class="why">{escape(stages.why)}</p><div class="pictures">{pictures}</div><dl>{numbers}</dl>'
        f"<p>Stage 1 named: <b>{escape(objects)}</b></p><details><summary>Raw answer</summary><pre>{escape(raw)}</pre>"
        f'</details><p class="dim">{number}. {escape(record.id)}</p></article>'
    )


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.2f}"


def _readable(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text
