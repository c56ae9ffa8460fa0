"""The current version as it is served: shared with its base, swapped while requests run, kept where the next fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from fake_models import FakeReasoner, FakeSegmenter, fake_rsvp
from fastapi.testclient import TestClient
from ls_http import Server, serving
from PIL import Image
from test_server import batch, engine_of, png
from versions_data import projector_delta, record, whole_delta
from vlsm_models import random_folder

from rsvp_backend import presets
from rsvp_backend.engine import Engine
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.server import create_app, make_engine
from rsvp_backend.settings import Settings
from rsvp_backend.training import durable, versioned
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versioned import VersionedSegmenter
from rsvp_backend.training.versions import VersionError
from rsvp_backend.types import Box, Prompt, Segmentation
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.segmenter import SegmenterOptions, VlsmSegmenter
from rsvp_backend.vlsm.weights import Weights

PICTURE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (60, 90, 3), dtype=np.uint8))
PROMPT = Prompt(Box(0, 0, 90, 60), text="the red ball")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def base(folder: Path) -> Weights:
    return weights.load(folder)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "versions")


def promoted(registry: Registry, base: Weights, **known: Any) -> str:
    version = registry.add_candidate(whole_delta(base), record(base.version, **known)).id
    return registry.promote(version, base.version).id


def point_at(registry: Registry, version: str) -> None:
    """As a person would, past all checks."""
    durable.replace(registry.folder / "current", f"{version}\n".encode())


def answer(segmenter: VlsmSegmenter) -> Segmentation:
    return segmenter.segment([PICTURE], [PROMPT])[0]


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.01)


# --- one segmenter over another ----------------------------------------------------------------------------------


def test_without_a_promotion_the_base_is_served(registry: Registry, folder: Path, base: Weights) -> None:
    segmenter = versioned.load(registry.folder, folder, device="cpu")
    plain = VlsmSegmenter.load(folder, device="cpu")
    assert segmenter.version == plain.version == base.version
    np.testing.assert_array_equal(answer(segmenter).logits, answer(plain).logits)


def test_a_promotion_and_its_rollback_are_followed(registry: Registry, folder: Path, base: Weights) -> None:
    segmenter = versioned.load(registry.folder, folder, device="cpu")
    before = answer(segmenter)
    assert segmenter.source.changed() is None
    version = promoted(registry, base)
    fresh = segmenter.source.changed()
    assert isinstance(fresh, VersionedSegmenter)
    assert fresh.version == version
    assert not np.allclose(answer(fresh).logits, before.logits, atol=1e-3)
    np.testing.assert_array_equal(answer(segmenter).logits, before.logits)  # requests that run end on the old one
    assert fresh.source.changed() is None
    registry.rollback(base.version)
    back = fresh.source.changed()
    assert back is not None
    assert back.version == base.version
    np.testing.assert_array_equal(answer(back).logits, before.logits)


def test_the_current_version_is_served_from_the_start(registry: Registry, folder: Path, base: Weights) -> None:
    version = promoted(registry, base)
    segmenter = versioned.load(registry.folder, folder, device="cpu", options=SegmenterOptions(view="full+box"))
    assert segmenter.version == f"{version}-full+box"
    assert segmenter.source.changed() is None


def test_versions_share_the_image_embeddings_of_their_base(registry: Registry, folder: Path, base: Weights) -> None:
    segmenter = versioned.load(registry.folder, folder, device="cpu")
    (kept,) = segmenter.embed([PICTURE])
    promoted(registry, base)
    fresh = segmenter.source.changed()
    assert fresh is not None
    assert fresh.embed([PICTURE])[0] is kept


def test_scores_are_calibrated_as_the_version_says(registry: Registry, folder: Path, base: Weights) -> None:
    promoted(registry, base)
    raw = answer(versioned.load(registry.folder, folder, device="cpu"))
    calibrated = promoted(registry, base, calibration={"knots": [[0.0, 0.25], [1.0, 0.25]], "table": []})
    segmenter = versioned.load(registry.folder, folder, device="cpu")
    assert (segmenter.version, answer(segmenter).predicted_iou) == (calibrated, 0.25)
    np.testing.assert_array_equal(answer(segmenter).logits, raw.logits)


def test_a_start_with_a_damaged_version_serves_the_base_and_says_why(
    registry: Registry, folder: Path, base: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    version = promoted(registry, base)
    (registry.folder / version / "delta.safetensors").write_bytes(b"")
    segmenter = versioned.load(registry.folder, folder, device="cpu")
    assert segmenter.version == base.version
    (line,) = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert line.startswith(f"version {version} is damaged: delta.safetensors has 0 bytes")
    assert line.endswith(f"The base weights {base.version} are served")


@pytest.mark.parametrize("pointed", ["tiny-00000000", "../../etc", ""])
def test_a_pointer_to_nothing_changes_nothing_and_is_told_once(
    registry: Registry, folder: Path, base: Weights, pointed: str
) -> None:
    promoted(registry, base)
    segmenter = versioned.load(registry.folder, folder, device="cpu")
    point_at(registry, pointed)
    with pytest.raises(VersionError):
        segmenter.source.changed()
    assert segmenter.source.changed() is None
    registry.clean()  # the history sets it right
    fresh = segmenter.source.changed()
    assert fresh is not None
    assert fresh.version == segmenter.version


def test_a_folder_that_goes_away_leaves_the_version_in_place(registry: Registry, folder: Path, base: Weights) -> None:
    promoted(registry, base)
    segmenter = versioned.load(registry.folder, folder, device="cpu")
    registry.folder.rename(registry.folder.with_name("away"))
    with pytest.raises(VersionError, match="names no current version any more"):
        segmenter.source.changed()
    registry.folder.with_name("away").rename(registry.folder)
    fresh = segmenter.source.changed()
    assert fresh is not None
    assert fresh.version == segmenter.version


# --- the engine and the server -----------------------------------------------------------------------------------


@pytest.fixture
def images() -> Iterator[Server]:
    with serving() as server:
        server.routes["/bus.jpg"] = lambda _: (200, {}, png(Image.new("RGB", (90, 72), "gray")))
        yield server


def test_an_engine_goes_over_to_what_its_update_gives(images: Server, caplog: pytest.LogCaptureFixture) -> None:
    first, second = fake_rsvp(), RSVP(FakeReasoner(), FakeSegmenter(version="fake-2"))
    answers: list[Exception | RSVP | None] = [None, RuntimeError("a bug"), second, VersionError("damaged"), None]
    asked: list[RSVP] = []
    released, drained = Event(), Event()

    def update(rsvp: RSVP) -> RSVP | None:
        assert released.wait(20)
        asked.append(rsvp)
        found = answers.pop(0) if answers else None
        if not answers:
            drained.set()
        if isinstance(found, Exception):
            raise found
        return found

    engine = Engine(lambda: first, engine_of(images, first)._fetcher, update=update, poll_s=0.001)
    with TestClient(create_app(Settings(), engine)) as client:
        body = batch(images, ("/bus.jpg", "the cup"))
        assert client.post("/predict", json=body).json()["results"][0]["model_version"] == first.version
        released.set()
        assert drained.wait(20)
        assert client.post("/predict", json=body).json()["results"][0]["model_version"] == second.version
        assert client.get("/health").json()["model_version"] == second.version
    assert asked[:5] == [first, first, first, second, second]
    errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert errors == [f"a bug. Version {first.version} is served on", f"damaged. Version {second.version} is served on"]
    assert engine._thread is not None
    engine._thread.join(20)
    assert not engine._thread.is_alive()  # the application stopped it


def test_the_running_server_takes_up_promotions_without_a_failed_request(
    images: Server, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """The demo preset: predict all the while, promote, predict on; a damaged version changes nothing; roll back."""
    base = weights.load(presets.DEMO_ASSETS / "vlsm")
    scene = make_scene(EVALUATION_SEEDS_FROM, "easy")
    data = png(scene.image)
    images.routes["/data/upload/1.png"] = lambda _: (200, {}, data)
    question = next(question for question in scene.questions if question.kind == "name" and question.present)
    task = {"id": 1, "data": {"image": "/data/upload/1.png", "instruction": question.instruction}}
    body = {"tasks": [task], "label_config": default_label_config(), "project": "1.1", "params": {"context": None}}
    settings = Settings(label_studio_url=images.url, versions=registry.folder)
    seen: list[tuple[int, str]] = []
    done = Event()

    with TestClient(create_app(settings, make_engine(settings))) as client, ThreadPoolExecutor(2) as pool:

        def predict() -> str:
            reply = client.post("/predict", json=body)
            version = reply.json()["results"][0]["model_version"] if reply.status_code == 200 else ""
            seen.append((reply.status_code, version))
            return str(version)

        def keep_asking() -> None:
            while not done.is_set():
                predict()

        try:
            first = predict()
            assert first.startswith(f"rsvp-{base.version}-")
            asking = [pool.submit(keep_asking) for _ in range(2)]
            version = registry.add_candidate(projector_delta(base), record(base.version)).id
            registry.promote(version, base.version)
            until(lambda: predict().startswith(f"rsvp-{version}-"))
            assert client.post("/setup", json={"schema": default_label_config()}).json()["model_version"] == predict()
            damaged = registry.add_candidate(projector_delta(base, 2), record(base.version)).id
            (registry.folder / damaged / "delta.safetensors").write_bytes(b"")
            point_at(registry, damaged)
            until(lambda: f"version {damaged} is damaged" in caplog.text)
            assert predict().startswith(f"rsvp-{version}-")
            registry.rollback(base.version)
            until(lambda: predict() == first)
        finally:
            done.set()
        for one in asking:
            one.result(60)
    assert {status for status, _ in seen} == {200}
    assert caplog.text.count(f"version {damaged} is damaged") == 1
