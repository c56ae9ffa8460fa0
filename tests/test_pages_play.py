"""The playground and versions by hand, with the real demo models: what the pages' scripts ask, and what comes of it."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from job_lessons import until
from PIL import Image
from versions_data import projector_delta, record

from rsvp_backend import cli, presets
from rsvp_backend.engine import Engine
from rsvp_backend.pages.play_run import Run
from rsvp_backend.pages.sample import sample
from rsvp_backend.server import create_app, make_engine
from rsvp_backend.settings import Settings, settings_rows
from rsvp_backend.training.registry import Registry
from rsvp_backend.vlsm import weights

PAGE = {"Accept": "text/html"}
SEED = 3
JSON = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two versions that nobody promoted."""
    folder = tmp_path_factory.mktemp("play")
    registry, base = Registry(folder / "versions"), weights.load(presets.vlsm_source(Settings()))
    scores = {"before": {"held_out": 0.4, "replay": 0.9}, "after": {"held_out": 0.7, "replay": 0.9}}
    for seed in (1, 2):
        registry.add_candidate(projector_delta(base, seed), record(base.version, **scores))
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return Settings(versions=folder / "versions", traces=folder / "traces", backlog_tasks=0, image_max_pixels=10**6)


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Engine:
    return make_engine(settings)


@pytest.fixture(scope="module")
def client(settings: Settings, engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_app(settings, engine)) as client:
        until(lambda: client.get("/health").json()["state"] == "ready")
        yield client


@pytest.fixture(scope="module")
def scene(client: TestClient) -> JSON:
    found: JSON = client.get(f"/play/samples/{SEED}").json()
    return found


def ran(client: TestClient, **asked: Any) -> JSON:
    """The run at its end."""
    reply = client.post("/play/runs", json=asked)
    assert reply.status_code == 202, reply.text
    told: JSON = reply.json()

    def ended() -> bool:
        told.update(client.get(f"/play/runs/{told['id']}").json())
        return told["state"] in ("done", "failed")

    until(ended)
    return told


def mask_of(client: TestClient, run: JSON) -> np.ndarray:
    """Bool, of the picture that is laid over the image."""
    with Image.open(io.BytesIO(client.get(f"/play/runs/{run['id']}/mask").content)) as image:
        return np.asarray(image.getchannel("A")) > 0


# --- the playground ----------------------------------------------------------------------------------------------


def test_an_instruction_goes_through_all_stages(client: TestClient, scene: JSON) -> None:
    run = ran(client, image=scene["image"], name=scene["name"], instruction=scene["instruction"])
    assert (run["state"], run["error"]) == ("done", "")
    assert [(one["name"], one["state"]) for one in run["stages"]] == [
        (name, "went") for name in ("mark", "reason", "segment", "paste")
    ]
    assert run["verdict"].startswith("Both stages answered")
    assert run["pictures"] == ["marked", "mask"]
    for name in run["pictures"]:
        assert client.get(f"/play/runs/{run['id']}/{name}").status_code == 200
    assert mask_of(client, run).any()
    trace = client.get(f"/traces/{run['trace']}").json()
    assert (trace["project"], trace["image"], trace["instruction"]) == (
        "playground", scene["name"], scene["instruction"],
    )  # fmt: skip


def test_stages_appear_one_after_the_other(client: TestClient, scene: JSON, monkeypatch: pytest.MonkeyPatch) -> None:
    """While stage 1 is asked, the marked image is there; its answer, while stage 2 works."""
    told = list[JSON]()
    real = Run.begin

    def begin(self: Run, *values: Any) -> None:
        real(self, *values)
        told.append(client.get(f"/play/runs/{self.id}").json())

    monkeypatch.setattr(Run, "begin", begin)
    ran(client, image=scene["image"], name="a.png", instruction=scene["instruction"])
    assert [[one["name"] for one in run["stages"] if one["state"] == "running"] for run in told] == [
        ["mark"], ["reason"], ["segment"],
    ]  # fmt: skip
    assert {run["state"] for run in told} == {"running"}
    assert (told[0].get("pictures"), told[1]["pictures"]) == (None, ["marked"])
    assert (told[1]["proposals"], told[1]["crops"]) == ([], [])
    assert told[2]["proposals"][0]["object"]
    assert told[2]["crops"]


def test_clicks_refine_the_mask(client: TestClient, scene: JSON) -> None:
    asked = {"image": scene["image"], "name": scene["name"], "instruction": scene["instruction"]}
    first = ran(client, **asked)
    left, top, right, bottom = first["crops"][0]
    click = {"x": (left + right) / 2, "y": (top + bottom) / 2, "positive": True}
    refined = ran(client, **asked, clicks=[click], after=first["id"])
    assert refined["state"] == "done"
    assert refined["crops"] == first["crops"]
    assert refined["instances"][0]["object"] == first["instances"][0]["object"]
    assert [one["name"] for one in refined["stages"] if one["state"] == "went"] == ["segment", "paste"]
    forgotten = ran(client, **asked, clicks=[click], after="gone")
    assert np.array_equal(mask_of(client, forgotten), mask_of(client, refined))
    alone = ran(client, image=scene["image"], name="a.png", clicks=[click])
    assert alone["instances"][0]["object"] == "object"
    off = ran(client, image=scene["image"], name="a.png", clicks=[click | {"positive": False}])
    assert (off["tone"], "only negative clicks" in off["detail"]) == ("bad", True)


@pytest.mark.parametrize("clicked", [False, True])
def test_the_command_does_the_same(
    client: TestClient, scene: JSON, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clicked: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name = "it's one.png"
    asked = {
        "image": scene["image"],
        "name": name,
        "instruction": scene["instruction"],
        "padding": 0.45,
        "zoom": "auto",
    }
    run = ran(client, **asked)
    if clicked:
        left, top, right, bottom = run["crops"][0]
        clicks = [{"x": left + (right - left) * 0.5, "y": top + (bottom - top) * 0.4},
                  {"x": left + 1.5, "y": top + 1, "positive": False}]  # fmt: skip
        run = ran(client, **asked, clicks=clicks, after=run["id"])
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(sample(SEED).file)
    program, *words = shlex.split(run["command"])
    assert program == "rsvp-backend"
    assert cli.main([words[0], "--json", *words[1:]]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["instances"] == run["instances"]
    with Image.open(tmp_path / printed["files"] / "mask.png") as mask:
        assert np.array_equal(np.asarray(mask) > 0, mask_of(client, run))


def test_what_differs_is_named_in_the_command(client: TestClient, scene: JSON) -> None:
    plain = ran(client, image=scene["image"], name="a.png", instruction="-the cup")["command"]
    assert plain == "rsvp-backend predict -- a.png '-the cup'"
    changed = ran(client, image=scene["image"], name="x/a.png", instruction="cup", padding=0.5, zoom="always")[
        "command"
    ]
    assert changed == "rsvp-backend predict --padding 0.5 --zoom always -- a.png cup"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image": "gone"}, "choose it again"),
        ({"instruction": " "}, "type an instruction"),
        ({"marks": {"kind": "cells", "rows": 3, "columns": 3}}, "reads 9 x 9 bands and 9 x 9 cells only"),
        ({"padding": 3}, "less than or equal to 2"),
        ({"zoom": "much"}, "'off', 'auto' or 'always'"),
        ({"clicks": [{"x": -1, "y": 2}]}, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_asked_is_told(client: TestClient, scene: JSON, changed: JSON, words: str) -> None:
    reply = client.post("/play/runs", json={"image": scene["image"], "instruction": "the cup"} | changed)
    assert reply.status_code == 422
    assert words in json.dumps(reply.json(), ensure_ascii=False)


def test_pictures_are_bounded(client: TestClient) -> None:
    def brought(content: bytes, kind: str = "image/png") -> Any:
        return client.post("/play/images", content=content, headers={"Content-Type": kind})

    file = io.BytesIO()
    Image.new("1", (1001, 1000)).save(file, "PNG")
    refused = brought(file.getvalue())
    assert (refused.status_code, "RSVP_IMAGE_MAX_PIXELS" in refused.json()["detail"]) == (422, True)
    assert "not a readable image" in brought(b"no picture").json()["detail"]
    large = brought(b"x" * (256 * 2**20 // 16 + 1))
    assert (large.status_code, "RSVP_MAX_BODY_BYTES" in large.json()["detail"]) == (413, True)


def test_pictures_are_shown_upright(client: TestClient) -> None:
    file = io.BytesIO()
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, "TIFF", exif=exif)
    found = client.post("/play/images", content=file.getvalue(), headers={"Content-Type": "image/tiff"}).json()
    assert found["size"] == [20, 40]
    with Image.open(io.BytesIO(client.get(f"/play/images/{found['image']}").content)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (20, 40))
    assert client.get("/play/images/unknown").status_code == 404
    assert client.get("/play/runs/unknown").status_code == client.get("/play/runs/unknown/mask").status_code == 404


def test_only_so_many_tries_at_a_time(client: TestClient, scene: JSON, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsvp_backend.pages.playground.MAX_UNDER_WAY", 0)
    reply = client.post("/play/runs", json={"image": scene["image"], "instruction": "the cup"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
    assert "under way" in reply.json()["detail"]


def test_the_page_offers_only_the_marks_that_the_reasoner_reads(client: TestClient) -> None:
    text = client.get("/play").text
    assert "This reasoner reads 9 x 9 bands and 9 x 9 cells only." in text
    assert '<select name="kind">' in text
    assert 'name="rows" type="number" min="1" max="50" value="9" required disabled' in text


# --- versions ----------------------------------------------------------------------------------------------------


def test_the_same_instruction_under_another_version(client: TestClient, folder: Path, scene: JSON) -> None:
    run = ran(client, image=scene["image"], name="a.png", instruction=scene["instruction"])
    before, trace = client.get("/health").json()["model_version"], client.get(f"/traces/{run['trace']}").json()
    page = client.get(f"/traces/{run['trace']}", headers=PAGE).text
    ids = [version.id for version in Registry(folder / "versions").list()]
    for text in (*(f"segmenter: {one}" for one in ids), "segmenter: the base weights (current)"):
        assert text in page
    for version in (ids[0], None):
        under = json.dumps({"of": "vlsm", "version": version})
        answer = client.post(f"/traces/{run['trace']}/again", json={"under": under}).json()
        other = client.get(f"/traces/{answer['trace']}").json()
        assert other["again_of"] == run["trace"]
        assert (other["model_version"] == trace["model_version"]) == (version is None)
        assert version is None or version in other["model_version"]
        both = client.get(f"/traces/{answer['page']}", headers=PAGE).text
        assert both.count("/overlay") == 2 + bool(trace["instances"])
        assert other["model_version"] in both
    assert client.get("/health").json()["model_version"] == before
    assert Registry(folder / "versions").current() is None
    unknown = client.post(f"/traces/{run['trace']}/again", json={"under": '{"of": "vlsm", "version": "../x"}'})
    assert (unknown.status_code, "is unknown" in unknown.json()["detail"]) == (409, True)


def test_versions_are_promoted_and_rolled_back_by_hand(client: TestClient, folder: Path) -> None:
    first, second = [version.id for version in Registry(folder / "versions").list()]
    text = client.get("/jobs", headers=PAGE).text
    assert "The base weights are current." in text
    assert "0.400 → 0.700" in text
    assert text.count("Yes, promote") == 2
    assert "Roll back" not in text
    for version in (first, second):
        reply = client.post("/versions/promote", json={"of": "vlsm", "version": version})
        assert reply.json() == {"of": "vlsm", "current": version}
        until(lambda wanted=version: wanted in client.get("/health").json()["model_version"])
    text = client.get("/jobs", headers=PAGE).text
    assert f"<b>{second}</b> is current." in text
    assert "Yes, roll back" in text
    assert client.post("/versions/rollback", json={"of": "vlsm"}).json()["current"] == first
    assert client.post("/versions/rollback", json={"of": "vlsm"}).json()["current"] is None
    refused = client.post("/versions/rollback", json={"of": "vlsm"})
    assert (refused.status_code, "no way back" in refused.json()["detail"]) == (409, True)
    refused = client.post("/versions/promote", json={"of": "vlsm", "version": "unknown"})
    assert (refused.status_code, "is unknown" in refused.json()["detail"]) == (409, True)
    refused = client.post("/versions/promote", json={"of": "reasoner", "version": first})
    assert (refused.status_code, "RSVP_REASONER_VERSIONS" in refused.json()["detail"]) == (409, True)
