"""Procedural scenes as an `EvaluationSet`: exact truth and known objects, so that every part of a diagnosis shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from rsvp_backend.evaluation.samples import EvaluationSet, Sample, Truth
from rsvp_backend.scenes import LevelName, Question, Scene, make_scene
from rsvp_backend.training.referring import SampleError


@dataclass(frozen=True, slots=True)
class SceneSource:
    """Picture and truth of the question ``number`` of a scene; drawn when asked for."""

    level: LevelName
    seed: int
    number: int

    def load(self) -> Image.Image:
        return _scene(self.level, self.seed).image

    def read(self, width_px: int, height_px: int) -> Truth:
        mask = _scene(self.level, self.seed).questions[self.number].mask
        if mask.shape != (height_px, width_px):
            raise SampleError(
                f"scene {self.seed} is {mask.shape[1]} x {mask.shape[0]} px, not {width_px} x {height_px}"
            )
        return Truth(mask)


def scene_set(level: LevelName, seeds: Iterable[int]) -> EvaluationSet:
    """One sample for each question of the scenes ``seeds``. Draws all of them once: seconds for hundreds."""
    samples = []
    for seed in seeds:
        for number, question in enumerate(_scene(level, seed).questions):
            samples.append(_sample(SceneSource(level, seed, number), question))
    return EvaluationSet("scenes", level, tuple(samples))


def _sample(source: SceneSource, question: Question) -> Sample:
    return Sample(
        f"{source.level}:{source.seed}:{source.number}", f"{source.seed}", source, question.instruction, source,
        object=question.objects[0] if question.present else None, groups={"kind": question.kind},
    )  # fmt: skip


@lru_cache(maxsize=32)
def _scene(level: LevelName, seed: int) -> Scene:
    return make_scene(seed, level)
