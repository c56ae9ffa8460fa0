"""What all variants are asked: questions on generated scenes, or a split of a public data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rsvp_backend.evaluation.samples import EvaluationSet, Problems
from rsvp_backend.evaluation.scene_set import scene_set
from rsvp_backend.evaluation.scenes import HEADLINE_KINDS
from rsvp_backend.scenes import LevelName
from rsvp_backend.training.referring import DataError

DATASETS = ("reasonseg", "refcoco", "refcoco+", "refcocog", "coco", "clevr-ref")


def read_scenes(level: LevelName, seeds: Iterable[int]) -> EvaluationSet:
    """The questions that count in the headline figures of ``level`` (see `evaluation.scenes`)."""
    drawn = scene_set(level, seeds)
    kept = tuple(sample for sample in drawn.samples if sample.groups["kind"] in HEADLINE_KINDS[level])
    return replace(drawn, samples=kept)


def read_questions(spec: str, split: str, problems: Problems) -> EvaluationSet:
    """The split of a public data set with outlines, ``NAME:ROOT``. Raises `DataError`."""
    name, _, root = spec.partition(":")
    if name not in DATASETS or not root:
        raise DataError(f"--data is {spec!r}: NAME:ROOT is expected, NAME being one of {', '.join(DATASETS)}")
    from rsvp_backend.evaluation.datasets import read

    return read(name, Path(root).expanduser(), split, problems)
