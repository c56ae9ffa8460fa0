"""The server as Label Studio calls it: captured requests in, the contract's answers out."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import FakeReasoner, FakeSegmenter, fake_rsvp
from fastapi.testclient import TestClient
from ls_http import Server, serving
from PIL import Image

from rsvp_backend.engine import Engine
from rsvp_backend.errors import WeightsError
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.server import create_app, make_engine
from rsvp_backend.settings import Settings
from rsvp_backend.traces import TraceLog
from rsvp_backend.types import Box, Click, Prompt

DATA = Path(__file__).parent / "data" / "label_studio"
AGENT = {"User-Agent": "heartex/1.23.2"}
SIZE_PX = (90, 72)
CONFIG = default_label_config(["Cup", "Ball", "Other"])


def captured(name: str) -> dict[str, Any]:
    """The body of a request that Label Studio sent."""
    body: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())["body"]
    return body


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def huge_png() -> bytes:
    return png(Image.new("1", (20_000, 15_000)))


@pytest.fixture
def images(huge_png: bytes) -> Iterator[Server]:
    """Stands for Label Studio's file server: a good picture, a text, and a picture of 300 megapixels."""
    with serving() as server:
        for path in ("/zebra.jpg", "/bus.jpg", "/data/upload/17/8f1e32f3-zebra.jpg"):
            server.routes[path] = lambda _: (200, {"Content-Type": "image/png"}, png(Image.new("RGB", SIZE_PX, "gray")))
        server.routes["/notes.txt"] = lambda _: (200, {"Content-Type": "image/png"}, b"not an image")
        server.routes["/huge.png"] = lambda _: (200, {"Content-Type": "image/png"}, huge_png)
        yield server


def engine_of(images: Server, rsvp: RSVP, folder: Path | None = None) -> Engine:
    fetcher = ImageFetcher(images.url, None, ImageLimits(timeout_s=10.0))
    return Engine(lambda: rsvp, fetcher, TraceLog(folder))


@contextmanager
def running(engine: Engine, **settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(**settings), engine)) as client:
        yield client


@pytest.fixture
def reasoner() -> FakeReasoner:
    return FakeReasoner()


@pytest.fixture
def client(images: Server, reasoner: FakeReasoner) -> Iterator[TestClient]:
    with running(engine_of(images, fake_rsvp(reasoner))) as client:
        yield client


def on(images: Server, body: dict[str, Any]) -> dict[str, Any]:
    """A captured body with its image addresses moved to the running file server."""
    moved: dict[str, Any] = json.loads(json.dumps(body).replace("http://127.0.0.1:8091", images.url))
    return moved


def batch(images: Server, *tasks: tuple[str, str | None], **more: Any) -> dict[str, Any]:
    """A /predict body of (image path, instruction) tasks."""
    data = [
        {"image": f"{images.url}{path}", **({} if asked is None else {"instruction": asked})} for path, asked in tasks
    ]
    listed = [{"id": index + 1, "data": entry} for index, entry in enumerate(data)]
    return {"tasks": listed, "label_config": CONFIG, "project": "7.1", "params": {"context": None}, **more}


def masks(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [region for region in result["result"] if region["type"] == "brushlabels"]


# --- health, setup, versions -------------------------------------------------------------------------------------


def test_health_and_setup_answer_while_the_models_load(images: Server) -> None:
    loaded = threading.Event()

    def build() -> RSVP:
        assert loaded.wait(20)
        return fake_rsvp()

    with running(Engine(build, ImageFetcher(images.url))) as client:
        health = client.get("/health")
        assert health.status_code == 200
        assert health.json()["status"] == "UP"
        assert (health.json()["state"], health.json()["model_version"]) == ("loading", None)
        setup = client.post("/setup", json=captured("setup"))
        assert (setup.status_code, setup.json()["model_version"]) == (200, None)
        assert client.get("/versions").json() == {"versions": []}
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(client.post, "/predict", json=batch(images, ("/bus.jpg", "the cup")))
            loaded.set()
            answer = waiting.result(20).json()
        assert len(masks(answer["results"][0])) == 1
        version = client.post("/setup", json=captured("setup")).json()["model_version"]
        assert version == fake_rsvp().version == answer["results"][0]["model_version"]
        assert client.get("/versions").json() == {"versions": [version]}
        assert client.get("/health").json()["state"] == "ready"


def test_models_are_loaded_once_for_all_requests(images: Server) -> None:
    builds = []

    def build() -> RSVP:
        builds.append(1)
        return fake_rsvp()

    with running(Engine(build, ImageFetcher(images.url))) as client:
        for _ in range(3):
            client.post("/setup", json=captured("setup"))
            client.post("/predict", json=batch(images, ("/bus.jpg", "the cup")))
    assert builds == [1]


def test_models_that_do_not_load_are_reported(images: Server) -> None:
    def build() -> RSVP:
        raise WeightsError("model.safetensors is damaged")

    with running(Engine(build, ImageFetcher(images.url))) as client:
        setup = client.post("/setup", json=captured("setup"))
        assert setup.status_code == 503
        assert "model.safetensors is damaged" in setup.json()["error"]
        health = client.get("/health").json()
        assert (health["state"], health["reason"]) == ("failed", "model.safetensors is damaged")
        refused = client.post("/predict", json=batch(images, ("/bus.jpg", "the cup")))
        assert refused.status_code == 503
        assert "results" not in refused.json()


def test_a_config_without_a_mask_tag_is_told_what_to_add(client: TestClient) -> None:
    body = {**captured("setup"), "schema": '<View><Image name="image" value="$image"/></View>'}
    refused = client.post("/setup", json=body)
    assert refused.status_code == 400
    assert '<BrushLabels name="mask" toName="image">' in refused.json()["error"]


def test_label_studio_is_led_to_an_address_that_says_what_to_add(client: TestClient) -> None:
    """It shows its users the address of a refused request and nothing else."""
    body = {**captured("setup"), "schema": "<View></View>"}
    refused = client.post("/setup", json=body, headers=AGENT, follow_redirects=True)
    assert refused.status_code == 400
    assert "has_no_BrushLabels" in str(refused.url)
    assert "Add_inside_View" in str(refused.url)


def test_setup_keeps_no_token(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    body = {**captured("setup"), "access_token": "0123456789abcdef"}
    assert client.post("/setup", json=body).status_code == 200
    assert "0123456789abcdef" not in caplog.text
    assert "0123456789abcdef" not in client.get("/").text + client.get("/traces").text


# --- predict -----------------------------------------------------------------------------------------------------


def test_a_captured_batch_gets_one_result_per_task_in_order(client: TestClient, images: Server) -> None:
    results = client.post("/predict", json=on(images, captured("predict_batch"))).json()["results"]
    assert [len(masks(result)) for result in results] == [0, 1, 1]  # the first task has no instruction
    assert [masks(result)[0]["meta"]["rsvp"]["instruction"] for result in results[1:]] == [
        "Segment every zebra that faces right.",
        "Segment the leftmost bus.",
    ]


def test_a_prediction_is_a_mask_with_its_reasoning(client: TestClient, images: Server) -> None:
    (result,) = client.post("/predict", json=batch(images, ("/bus.jpg", "the cup"))).json()["results"]
    mask, text = result["result"]
    assert (mask["original_width"], mask["original_height"]) == SIZE_PX
    assert (mask["from_name"], mask["to_name"], mask["value"]["brushlabels"]) == ("mask", "image", ["Cup"])
    # Bands 4 to 6 of 9 are 30 x 24 pixels; padding adds a tenth of that on each side.
    expected = np.zeros((72, 90), dtype=np.bool_)
    expected[22:50, 27:45] = True
    assert np.array_equal(rle.decode(mask["value"]["rle"], 72, 90), expected)
    assert (text["id"], text["value"]["text"]) == (mask["id"], ["It is the cup."])
    assert result["score"] == mask["score"] == 0.75


def test_one_bad_task_spoils_nothing(client: TestClient, images: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rsvp_backend")
    asked = batch(
        images,
        ("/bus.jpg", "the cup"), ("/missing.png", "the cup"), ("/notes.txt", "the cup"), ("/huge.png", "the cup"),
        ("/bus.jpg", None), ("/bus.jpg", "the broken cup"), ("/bus.jpg", "crash"), ("/bus.jpg", "the absent cup"),
        ("/bus.jpg", "the ball"),
    )  # fmt: skip
    asked["tasks"].append({"id": 10, "data": {"text": "no image"}})
    asked["tasks"].append({"id": 11})
    results = client.post("/predict", json=asked).json()["results"]
    assert [len(masks(result)) for result in results] == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    reasons = {trace["task"]: trace["reason"] for trace in client.get("/traces").json()["traces"]}
    assert [reasons[index] for index in range(1, 12)] == [
        None, "image", "image", "image", "no_instruction", "reasoner_failed", "internal", "absent", None,
        "image", "image",
    ]  # fmt: skip
    for task in (2, 3, 4, 5, 6, 7, 8, 10, 11):
        assert f"task {task}: empty, " in caplog.text
    assert "404" in caplog.text
    assert "RSVP_IMAGE_MAX_PIXELS" in caplog.text


def test_only_what_is_settled_has_the_version_that_label_studio_takes_for_done(
    client: TestClient, images: Server
) -> None:
    """Label Studio never asks again for a task that has a prediction of the version it was told."""
    tasks = (("/bus.jpg", "the cup"), ("/bus.jpg", "the absent cup"), ("/missing.png", "the cup"))
    results = client.post("/predict", json=batch(images, *tasks)).json()["results"]
    version = client.get("/versions").json()["versions"][0]
    assert [result["model_version"] == version for result in results] == [True, True, False]


def test_a_config_without_mask_tag_empties_the_batch_with_the_reason(client: TestClient, images: Server) -> None:
    asked = batch(images, ("/bus.jpg", "the cup"), ("/bus.jpg", "the ball"), label_config="<View/>")
    results = client.post("/predict", json=asked).json()["results"]
    assert [result["result"] for result in results] == [[], []]
    assert {trace["reason"] for trace in client.get("/traces").json()["traces"]} == {"label_config"}


def test_what_does_not_fit_into_the_time_is_empty_with_the_reason(images: Server, reasoner: FakeReasoner) -> None:
    reasoner.gate.clear()
    with running(engine_of(images, fake_rsvp(reasoner)), predict_timeout_s=0.4) as client:
        opener = threading.Timer(0.6, reasoner.gate.set)
        opener.start()
        tasks = (("/bus.jpg", "the cup"), ("/bus.jpg", "the ball"))
        results = client.post("/predict", json=batch(images, *tasks)).json()["results"]
        opener.join()
        assert [result["result"] for result in results] == [[], []]
        assert {trace["reason"] for trace in client.get("/traces").json()["traces"]} == {"deadline"}
        assert len(reasoner.asked) == 1  # the other one waits for the models in vain


def test_health_answers_while_a_prediction_runs(client: TestClient, images: Server, reasoner: FakeReasoner) -> None:
    reasoner.gate.clear()
    with ThreadPoolExecutor() as pool:
        running_one = pool.submit(client.post, "/predict", json=batch(images, ("/bus.jpg", "the cup")))
        assert reasoner.entered.wait(20)
        assert client.get("/health").json()["status"] == "UP"
        assert client.post("/setup", json=captured("setup")).status_code == 200
        assert not running_one.done()
        reasoner.gate.set()
        assert len(masks(running_one.result(20).json()["results"][0])) == 1


def test_the_same_task_asked_twice_at_once_is_computed_once(
    client: TestClient, images: Server, reasoner: FakeReasoner
) -> None:
    reasoner.gate.clear()
    body = batch(images, ("/bus.jpg", "the cup"))
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(client.post, "/predict", json=body) for _ in range(2)]
        assert reasoner.entered.wait(20)
        time.sleep(0.2)  # lets the second request join the first; a later one would find the kept answer
        reasoner.gate.set()
        first, second = (future.result(20).json()["results"][0] for future in both)
    assert len(reasoner.asked) == 1
    assert masks(first)[0]["value"] == masks(second)[0]["value"]
    assert masks(first)[0]["id"] != masks(second)[0]["id"]


def test_an_answer_is_kept_for_a_while_but_a_failure_is_not(
    client: TestClient, images: Server, reasoner: FakeReasoner
) -> None:
    for instruction, calls in (("the cup", 1), ("the broken cup", 2)):
        reasoner.asked.clear()
        for _ in range(2):
            client.post("/predict", json=batch(images, ("/bus.jpg", instruction)))
        assert len(reasoner.asked) == calls


@pytest.mark.parametrize(
    ("instruction", "label"),
    [
        ("the Ball", "Ball"),
        ("the ball", "Ball"),
        ("the two balls", "Ball"),
        ("the cup", "Cup"),
        ("the ball cup", "Cup"),
    ],
)
def test_the_label_is_the_one_that_the_object_names(
    client: TestClient, images: Server, instruction: str, label: str
) -> None:
    (result,) = client.post("/predict", json=batch(images, ("/bus.jpg", instruction))).json()["results"]
    assert masks(result)[0]["value"]["brushlabels"] == [label]
    assert client.get("/traces").json()["traces"][0]["notes"] == []


def test_an_object_without_a_label_gets_the_first_and_a_note(client: TestClient, images: Server) -> None:
    (result,) = client.post("/predict", json=batch(images, ("/bus.jpg", "the spoon"))).json()["results"]
    assert masks(result)[0]["value"]["brushlabels"] == ["Cup"]
    (note,) = client.get("/traces").json()["traces"][0]["notes"]
    assert "spoon" in note


def test_a_default_instruction_serves_tasks_that_have_none(images: Server, reasoner: FakeReasoner) -> None:
    with running(engine_of(images, fake_rsvp(reasoner)), default_instruction="the ball") as client:
        client.post("/setup", json={**captured("setup"), "project": "8.1", "extra_params": {"instruction": "the cup"}})
        for project in ("7.1", "8.1"):
            client.post("/predict", json=batch(images, ("/bus.jpg", None), project=project))
    assert [query.instruction for query in reasoner.asked] == ["the ball", "the cup"]


def test_traces_are_found_by_the_id_that_the_region_carries(images: Server, tmp_path: Path) -> None:
    with running(engine_of(images, fake_rsvp(), tmp_path)) as client:
        (result,) = client.post("/predict", json=batch(images, ("/bus.jpg", "the cup"))).json()["results"]
        trace_id = masks(result)[0]["meta"]["rsvp"]["trace_id"]
        trace = client.get(f"/traces/{trace_id}").json()
        assert (trace["task"], trace["proposals"][0]["object"], trace["crops_xyxy"]) == (1, "cup", [[27, 22, 63, 50]])
        assert set(trace["timings_s"]) == {"fetch", "mark", "reason", "segment", "paste"}
        assert client.get("/traces/unknown").status_code == 404
    assert json.loads((tmp_path / f"{trace_id}.json").read_text()) == trace
    with Image.open(tmp_path / f"{trace_id}.marked.jpg") as picture:
        assert picture.size == SIZE_PX


# --- interactive -------------------------------------------------------------------------------------------------


def test_an_empty_context_is_answered_with_nothing_and_at_once(client: TestClient, reasoner: FakeReasoner) -> None:
    reply = client.post("/predict", json=captured("predict_interactive_empty_context"))
    assert reply.json() == {"results": [{"result": []}]}
    assert reasoner.asked == []


def test_the_prompt_field_is_the_instruction(client: TestClient, images: Server, reasoner: FakeReasoner) -> None:
    body = on(images, captured("predict_interactive_prompt"))
    body["params"]["context"]["result"][0]["value"]["text"] = ["the zebra on the left"]
    (result,) = client.post("/predict", json=body).json()["results"]
    assert [query.instruction for query in reasoner.asked] == ["the zebra on the left"]
    assert masks(result)[0]["value"]["brushlabels"] == ["Zebra"]
    assert masks(result)[0]["origin"] == "prediction"


def clicked(*points: tuple[float, float, bool], label: str = "Cup") -> dict[str, Any]:
    """A context of smart keypoints: (x %, y %, positive) each."""
    return {
        "result": [
            {
                "type": "keypointlabels", "from_name": "clicks", "to_name": "image", "is_positive": positive,
                "original_width": SIZE_PX[0], "original_height": SIZE_PX[1], "image_rotation": 0, "origin": "manual",
                "value": {"x": x, "y": y, "width": 0.2, "labels": [label], "keypointlabels": [label]},
            }
            for x, y, positive in points
        ]
    }  # fmt: skip


def typed(text: str) -> dict[str, Any]:
    return {"result": [{"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": [text]}}]}


def messages(result: dict[str, Any]) -> list[str]:
    return [region["value"]["text"][0] for region in result["result"] if region["from_name"] == "message"]


@pytest.mark.parametrize(
    ("name", "prompt", "reasoning"),
    [
        (
            "predict_interactive_keypoints",
            Prompt(Box(0, 0, *SIZE_PX), None, (Click(61.15, 43.70), Click(41.69, 28.18, positive=False))),
            "Segmented from 2 clicks.",
        ),
        (
            "predict_interactive_rectangle",
            Prompt(Box(45, 30, 79, 68), box=Box(48, 33, 76, 65)),
            "Segmented from a box.",
        ),
    ],
)
def test_clicks_and_boxes_are_segmented_without_the_reasoner(
    images: Server, reasoner: FakeReasoner, name: str, prompt: Prompt, reasoning: str
) -> None:
    rsvp = RSVP(reasoner, segmenter := FakeSegmenter())
    with running(engine_of(images, rsvp)) as client:
        (result,) = client.post("/predict", json=on(images, captured(name))).json()["results"]
        (trace,) = client.get("/traces").json()["traces"]
    assert reasoner.asked == []
    (asked,) = segmenter.prompts
    assert (asked.crop, asked.text, asked.box) == (prompt.crop, None, prompt.box)
    for found, expected in zip(asked.clicks, prompt.clicks, strict=True):
        assert (found.x_px, found.y_px) == pytest.approx((expected.x_px, expected.y_px), abs=0.01)
        assert found.positive == expected.positive
    mask, text = result["result"]
    assert (mask["from_name"], mask["origin"], mask["value"]["brushlabels"]) == ("brush", "prediction", ["Zebra"])
    assert (mask["original_width"], mask["original_height"], mask["score"]) == (*SIZE_PX, 0.75)
    assert rle.decode(mask["value"]["rle"], SIZE_PX[1], SIZE_PX[0]).any()
    assert (text["id"], text["from_name"], text["value"]) == (mask["id"], "reasoning", {"text": [reasoning]})
    assert mask["meta"]["rsvp"]["trace_id"] == trace["id"]
    assert (trace["raw_texts"], set(trace["timings_s"])) == ([], {"fetch", "segment", "paste"})
    assert trace["notes"] == ["Label Studio shows the image at 640 x 427, fetched it is 90 x 72"]


def test_a_click_refines_the_last_answer_on_the_task(images: Server, reasoner: FakeReasoner) -> None:
    """Label Studio sends no text with a click: the text typed last on the task counts, then the task's own."""
    rsvp = RSVP(reasoner, segmenter := FakeSegmenter())
    task = ("/bus.jpg", "the ball")
    on_it, beside_it = (45.0, 50.0, True), (2.0, 2.0, True)
    with running(engine_of(images, rsvp)) as client:

        def ask(context: dict[str, Any] | None) -> dict[str, Any]:
            reply = client.post("/predict", json=batch(images, task, params={"context": context}))
            (result,) = reply.json()["results"]
            assert isinstance(result, dict)
            return result

        ask(None)
        crop = segmenter.prompts[-1].crop
        (mask,) = masks(ask(clicked(on_it, label="Ball")))
        assert segmenter.prompts[-1] == Prompt(crop, "ball", (Click(40.5, 36.0),))
        assert (mask["value"]["brushlabels"], mask["meta"]["text"]) == (["Ball"], ["It is the ball."])
        assert mask["meta"]["rsvp"]["instruction"] == "the ball"
        ask(typed("the cup"))
        (mask,) = masks(ask(clicked(on_it, (2.0, 2.0, False))))
        assert segmenter.prompts[-1] == Prompt(crop, "cup", (Click(40.5, 36.0),))
        assert mask["meta"]["text"] == ["It is the cup."]
        for context in (clicked(beside_it), clicked(on_it, beside_it), clicked(on_it, label="Other")):
            (mask,) = masks(ask(context))  # beside the remembered crop, or another label than the remembered object's
            assert (segmenter.prompts[-1].crop, segmenter.prompts[-1].text) == (Box(0, 0, *SIZE_PX), None)
        assert mask["value"]["brushlabels"] == ["Other"]
        ask({"result": typed("the spoon")["result"] + clicked(on_it)["result"]})
        assert segmenter.prompts[-1].text is None
    assert images.paths().count("/bus.jpg") == 3  # once for each instruction, once for all clicks
    assert [query.instruction for query in reasoner.asked] == ["the ball", "the cup"]


def test_a_click_needs_no_instruction(images: Server, client: TestClient, reasoner: FakeReasoner) -> None:
    context = {"context": clicked((50.0, 50.0, True), label="Ball")}
    (result,) = client.post("/predict", json=batch(images, ("/bus.jpg", None), params=context)).json()["results"]
    assert masks(result)[0]["value"]["brushlabels"] == ["Ball"]
    assert messages(result) == ["Ball 0.75"]
    assert reasoner.asked == []


@pytest.mark.parametrize(
    ("path", "context", "message"),
    [
        ("/bus.jpg", clicked((50.0, 50.0, False)), "Nothing segmented: only negative clicks"),
        ("/bus.jpg", clicked((150.0, 50.0, True)), "Nothing segmented: no click or rectangle can be used"),
        ("/missing.png", clicked((50.0, 50.0, True)), "Nothing segmented: "),
        ("/bus.jpg", typed("the absent cup"), "Nothing segmented: It is the absent cup."),
        ("/bus.jpg", typed("the broken cup"), "Nothing segmented: the reasoner cannot be reached"),
        ("/bus.jpg", typed("the ball"), "ball 0.75"),
    ],
)
def test_the_message_field_says_what_an_interactive_call_came_to(
    images: Server, client: TestClient, path: str, context: dict[str, Any], message: str
) -> None:
    """Label Studio shows neither errors nor empty answers to the annotator."""
    (result,) = client.post("/predict", json=batch(images, (path, None), params={"context": context})).json()["results"]
    assert len(messages(result)) == 1
    assert messages(result)[0].startswith(message)
    (plain,) = client.post("/predict", json=batch(images, (path, "the cup"))).json()["results"]
    assert messages(plain) == []


def test_an_edit_of_another_field_brings_no_suggestion_back(client: TestClient, reasoner: FakeReasoner) -> None:
    body = captured("predict_interactive_prompt")
    body["params"]["context"]["result"][0]["from_name"] = "notes"
    assert client.post("/predict", json=body).json() == {"results": [{"result": []}]}
    assert reasoner.asked == []


# --- webhook, auth, bad requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("webhook_start_training", "START_TRAINING"),
        ("webhook_annotation_created", "ANNOTATION_CREATED"),
        ("webhook_annotations_deleted", "ANNOTATIONS_DELETED"),
    ],
)
def test_events_are_acknowledged_and_logged_by_action(
    client: TestClient, caplog: pytest.LogCaptureFixture, name: str, action: str
) -> None:
    caplog.set_level(logging.INFO, "rsvp_backend")
    reply = client.post("/webhook", json=captured(name))
    assert (reply.status_code, reply.json()["action"]) == (200, action)
    assert reply.json()["detail"] == "noted" or "set RSVP_VERSIONS" in reply.json()["detail"]
    assert f"webhook '{action}': project 17" in caplog.text
    assert "label_config" not in caplog.text
    assert captured(name)["project"]["token"] not in caplog.text


def test_basic_auth(images: Server) -> None:
    account = {"basic_auth_user": "me", "basic_auth_password": "pässword:1"}
    with running(engine_of(images, fake_rsvp()), **account) as client:
        right = ("me", "pässword:1".encode())
        assert client.post("/setup", json=captured("setup"), auth=right).status_code == 200
        assert client.get("/health", auth=right).status_code == 200
        for wrong in (("me", "password"), ("you", "x"), ("", "")):
            assert client.post("/setup", json=captured("setup"), auth=wrong).status_code == 401
            assert client.get("/health", auth=wrong).status_code == 401
        refused = client.post("/predict", json=batch(images, ("/bus.jpg", "the cup")))
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Basic")
        assert client.post("/setup", headers={"Authorization": "Basic ???"}, json={}).status_code == 401
        assert client.get("/traces").status_code == 401
        assert client.post("/webhook", json=captured("webhook_start_training")).status_code == 401
        # Label Studio sends no credentials with these, and probes have none.
        assert client.post("/webhook", json=captured("webhook_annotation_created")).status_code == 200
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("body", ["", "[]", '{"tasks": 1}', '{"tasks": ["a"]}', "{"])
def test_a_body_that_is_none_is_refused(client: TestClient, body: str) -> None:
    assert client.post("/predict", content=body).status_code == 422


# --- the demo preset ---------------------------------------------------------------------------------------------


def test_the_demo_preset_segments_a_scene(images: Server) -> None:
    """The weights that ship, loaded as a user's server loads them: valid answers, and most objects found."""
    settings = Settings(label_studio_url=images.url)
    asked, truths = [], []
    for seed in range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + 6):
        scene = make_scene(seed, "easy")
        question = next(question for question in scene.questions if question.kind == "name" and question.present)
        data = png(scene.image)
        images.routes[f"/data/upload/{seed}.png"] = lambda _, data=data: (200, {}, data)
        asked.append({"id": seed, "data": {"image": f"/data/upload/{seed}.png", "instruction": question.instruction}})
        truths.append(question.mask)
    with TestClient(create_app(settings, make_engine(settings))) as client:
        body = {"tasks": asked, "label_config": default_label_config(), "project": "1.1", "params": {"context": None}}
        results = client.post("/predict", json=body).json()["results"]
        assert "invalid_answer" not in {trace["reason"] for trace in client.get("/traces").json()["traces"]}
    hits = 0
    for result, truth in zip(results, truths, strict=True):
        found = np.zeros_like(truth)
        for region in masks(result):
            found |= rle.decode(region["value"]["rle"], *truth.shape)
        hits += bool((found & truth).sum() > 0.5 * (found | truth).sum())
    assert hits >= 4


def test_the_demo_preset_answers_a_click(images: Server) -> None:
    """The weights that ship: a click on the object of an instruction gives its mask again, without stage 1."""
    settings = Settings(label_studio_url=images.url)
    scene = make_scene(EVALUATION_SEEDS_FROM, "easy")
    question = next(question for question in scene.questions if question.kind == "name" and question.present)
    rows, columns = np.nonzero(question.mask)
    height_px, width_px = question.mask.shape
    x, y = 100 * (columns.mean() + 0.5) / width_px, 100 * (rows.mean() + 0.5) / height_px
    data = png(scene.image)
    images.routes["/data/upload/1.png"] = lambda _: (200, {}, data)
    task = {"id": 1, "data": {"image": "/data/upload/1.png", "instruction": question.instruction}}
    body = {"tasks": [task], "label_config": default_label_config(), "project": "1.1"}
    with TestClient(create_app(settings, make_engine(settings))) as client:
        client.post("/predict", json=body)
        click = {"context": clicked((float(x), float(y), True), label="Object")}
        (result,) = client.post("/predict", json={**body, "params": click}).json()["results"]
        trace, first = client.get("/traces").json()["traces"]
    (mask,) = masks(result)
    assert (mask["original_width"], mask["original_height"]) == (width_px, height_px)
    assert rle.decode(mask["value"]["rle"], height_px, width_px).any()
    assert (trace["raw_texts"], trace["crops_xyxy"]) == ([], first["crops_xyxy"])
