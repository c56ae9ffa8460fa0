"""Which open tasks a person should look at first: where the model doubts, where its versions disagree, some by chance.

Label Studio's own "uncertainty sampling" goes by the score alone. This order explains itself, and decides which tasks
are predicted again first after a promotion.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rsvp_backend.errors import RleError
from rsvp_backend.labelstudio.annotations import JSON, listed, regions_of
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.shapes import ShapeError, read_mask
from rsvp_backend.labelstudio.tags import LabelConfig, parse_label_config
from rsvp_backend.types import BoolMask

_CONSIDERED = 3  # tasks read per place: the order by score is only roughly that by usefulness


@dataclass(frozen=True, slots=True)
class Ranked:
    """An open task. ``score``: of the newest prediction, None without one; ``disagreement``: 1 - IoU of the two newest
    versions' masks, None where there are no two; ``at_random``: on this place by chance."""

    task: int
    score: float | None
    disagreement: float | None
    at_random: bool = False

    @property
    def value(self) -> float:
        """In [0, 1], the higher the more useful."""
        doubt = 1.0 if self.score is None else 1.0 - min(1.0, max(0.0, self.score))
        return max(doubt, self.disagreement or 0.0)

    @property
    def reason(self) -> str:
        if self.at_random:
            return "by chance: what the model is wrongly sure of shows up here"
        if self.score is None:
            return "not predicted yet"
        said = [f"score {self.score:.2f}"]
        if self.disagreement is not None:
            said.append(f"the two newest versions' masks have an IoU of {1 - self.disagreement:.2f}")
        return ", ".join(said)


def rank(tasks: Iterable[JSON], config: LabelConfig, random_share: float = 0.1, seed: int = 0) -> list[Ranked]:
    """``tasks`` with their predictions (of the API), the most useful first.

    ``random_share``: of the places, at regular distances, go to tasks drawn from those that would come later.
    """
    found = sorted((_ranked(task, config) for task in tasks), key=lambda one: (-one.value, one.task))
    return _mixed(found, random_share, np.random.default_rng(seed))


def doubtful(client: LabelStudioClient, project: int, limit: int, random_share: float = 0.1) -> list[Ranked]:
    """At most ``limit`` open tasks, the most useful first, out of those with the lowest scores.

    Raises `LabelStudioError` and `LabelConfigError`.
    """
    if not limit:
        return []
    config = parse_label_config(str(client.project(project).get("label_config") or ""))
    return rank(client.open_tasks(project, _CONSIDERED * limit), config, random_share)[:limit]


def _mixed(found: list[Ranked], share: float, rng: np.random.Generator) -> list[Ranked]:
    mixed: list[Ranked] = []
    while found:
        place = len(mixed) + 1
        drawn = int(place * share) > int((place - 1) * share) and len(found) > 1
        one = found.pop(int(rng.integers(1, len(found))) if drawn else 0)
        mixed.append(Ranked(one.task, one.score, one.disagreement, drawn))
    return mixed


def _ranked(task: JSON, config: LabelConfig) -> Ranked:
    newest: dict[str, JSON] = {}
    for prediction in sorted(listed(task.get("predictions")), key=_number, reverse=True):
        newest.setdefault(str(prediction.get("model_version")), prediction)
    if not newest:
        return Ranked(int(task["id"]), None, None)
    first, *others = newest.values()
    score = first.get("score")
    known = float(score) if isinstance(score, int | float) else None
    return Ranked(int(task["id"]), known, _disagreement(first, others[0], config) if others else None)


def _disagreement(one: JSON, other: JSON, config: LabelConfig) -> float | None:
    """None where the masks cannot be compared: damaged, or of images of different sizes."""
    try:
        first, second = _union(one, config), _union(other, config)
    except (ShapeError, RleError, ValueError):
        return None
    if first is None or second is None:
        return 0.0 if first is second else 1.0
    union = int((first | second).sum())
    return 1.0 - int((first & second).sum()) / union if union else 0.0


def _union(prediction: JSON, config: LabelConfig) -> BoolMask | None:
    """All masks of a prediction in one; None without any. Raises `ValueError` where their sizes differ."""
    masks: Sequence[BoolMask] = [
        read_mask(region.kind, region.value, region.size_px[1], region.size_px[0])
        for region in regions_of(prediction.get("result"), config).values()
        if region.size_px is not None
    ]
    return np.logical_or.reduce(masks) if masks else None


def _number(prediction: JSON) -> int:
    """Ids rise with time."""
    found = prediction.get("id")
    return found if isinstance(found, int) else 0
