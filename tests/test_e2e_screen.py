"""Every kind of mask tag through the real Label Studio: predicted, saved, submitted, exported, read back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.demo.project import DemoProject, create_project, demo_tasks, preannotate
from rsvp_backend.demo.run import Stack, running
from rsvp_backend.labelstudio.annotations import regions_of
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.corrections import Reading, read_corrections
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.shapes import read_mask
from rsvp_backend.labelstudio.tags import MASK_TAGS, Kind, default_label_config, parse_label_config
from rsvp_backend.scenes import LEVELS
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.types import BoolMask

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)
LABELS = tuple(LEVELS["easy"].classes)
TASKS = 2


@dataclass(frozen=True)
class Rounds:
    """By kind: what was predicted (by task, in the order of the images), and its project."""

    client: LabelStudioClient
    stack: Stack
    predicted: dict[Kind, list[dict[str, Any]]]
    projects: dict[Kind, DemoProject]


def say(line: str) -> None:
    print(line)  # noqa: T201


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rounds]:
    """One project of each kind with the same images, predicted by the demo models and submitted as predicted."""
    data = tmp_path_factory.mktemp("screen")
    label_studio.prepare(HOME, say)
    images = demo_tasks(data / "images", TASKS)
    with running(HOME, data, say) as stack, LabelStudioClient(stack.label_studio_url, stack.token) as client:
        done = Rounds(client, stack, {}, {})
        for kind in MASK_TAGS:
            project = create_project(client, stack.backend, images, kind, default_label_config(LABELS, kind))
            done.projects[kind] = project
            done.predicted[kind] = []
            for task in preannotate(client, project, say):
                (prediction,) = task["predictions"]
                done.predicted[kind].append(prediction)
                submitted = {"result": copy.deepcopy(prediction["result"]), "parent_prediction": prediction["id"]}
                client.create_annotation(int(task["id"]), submitted | {"was_cancelled": False})
        yield done


def mask_of(results: list[dict[str, Any]], kind: Kind) -> BoolMask:
    (region,) = regions_of(results, parse_label_config(default_label_config(LABELS, kind))).values()
    assert region.kind == f"{kind}labels"
    assert region.size_px is not None
    return read_mask(region.kind, region.value, region.size_px[1], region.size_px[0])


def corrections(rounds: Rounds, kind: Kind) -> list[Correction]:
    """In the order of the tasks."""
    reading = Reading()
    fetcher = ImageFetcher(rounds.client.base_url, rounds.client.auth)
    found = list(read_corrections(rounds.client, rounds.projects[kind].project, fetcher, 0.2, reading))
    assert not reading.left_out, str(reading)
    return sorted(found, key=lambda one: one.task)


def iou(one: BoolMask, other: BoolMask) -> float:
    return int((one & other).sum()) / int((one | other).sum())


@pytest.mark.parametrize(("kind", "least"), [("brush", 1.0), ("bitmask", 1.0), ("polygon", 0.95), ("rectangle", 0.2)])
def test_a_submitted_prediction_is_read_back_as_the_mask(rounds: Rounds, kind: Kind, least: float) -> None:
    found = corrections(rounds, kind)
    assert [one.origin for one in found] == [Origin.CONFIRMED] * TASKS
    for correction, exact, made in zip(found, rounds.predicted["brush"], rounds.predicted[kind], strict=True):
        mask = mask_of(exact["result"], "brush")
        assert iou(correction.mask, mask) >= least
        assert np.array_equal(correction.mask, mask_of(made["result"], kind))
        assert correction.text in correction.reasoning or correction.label in LABELS


def test_a_rectangle_is_the_masks_tight_box(rounds: Rounds) -> None:
    for correction, exact in zip(corrections(rounds, "rectangle"), rounds.predicted["brush"], strict=True):
        mask = mask_of(exact["result"], "brush")
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert correction.mask.sum() == (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
        assert not (mask & ~correction.mask).any()


@pytest.mark.parametrize("kind", list(MASK_TAGS))
def test_the_record_says_what_the_kind_loses(rounds: Rounds, kind: Kind) -> None:
    for prediction, correction in zip(rounds.predicted[kind], corrections(rounds, kind), strict=True):
        region = next(one for one in prediction["result"] if one["type"] == f"{kind}labels")
        drawn = region["meta"]["rsvp"].get("drawn")
        if kind in ("brush", "bitmask"):
            assert drawn is None
        else:
            assert 0 < drawn["iou"] < 1
        assert region["meta"]["rsvp"]["object"] == correction.text
        assert any(one["type"] == "textarea" and one["id"] == region["id"] for one in prediction["result"])


@pytest.mark.parametrize("kind", list(MASK_TAGS))
def test_label_studios_own_export_holds_the_same(rounds: Rounds, kind: Kind) -> None:
    url = f"{rounds.client.base_url}/api/projects/{rounds.projects[kind].project}/export"
    answer = httpx.get(url, params={"exportType": "JSON"}, auth=rounds.client.auth, timeout=60.0, trust_env=False)
    exported = sorted(answer.raise_for_status().json(), key=lambda task: int(task["id"]))
    masks = [mask_of(task["annotations"][0]["result"], kind) for task in exported]
    for mask, correction in zip(masks, corrections(rounds, kind), strict=True):
        assert np.array_equal(mask, correction.mask)
