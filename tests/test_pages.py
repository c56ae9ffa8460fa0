"""The pages of the real application: what they say, what they refuse, and that nothing comes from elsewhere."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_models import fake_rsvp
from fastapi.testclient import TestClient
from PIL import Image

from rsvp_backend.engine import Engine
from rsvp_backend.jobs.service import Jobs
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.pages import layout
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings
from rsvp_backend.traces import TraceLog

PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
EVIL = "<script>alert(1)</script>\"'&\ud800"
SIZE_PX = (90, 72)


class Elements(HTMLParser):
    """Start tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@contextmanager
def running(engine: Engine, **settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(backlog_tasks=0, **settings), engine), headers=PAGE) as client:
        yield client


def engine_of(traces: TraceLog | None = None) -> Engine:
    return Engine(fake_rsvp, ImageFetcher(None), traces)


def added(traces: TraceLog, instruction: str, **about: Any) -> str:
    image = Image.new("RGB", SIZE_PX, "gray")
    outcome = fake_rsvp()(image, instruction)
    known = {"task": 5, "project": "7.1", "size_px": SIZE_PX, "model_version": "rsvp-a", "image": "/data/photo.png"}
    return traces.add(outcome, picture=image, **(known | about))


@pytest.fixture
def traces() -> TraceLog:
    return TraceLog()


@pytest.fixture
def client(traces: TraceLog, tmp_path: Path) -> Iterator[TestClient]:
    account = {"label_studio_url": "http://127.0.0.1:9", "label_studio_token": "0123456789abcdef"}
    with running(engine_of(traces), versions=tmp_path / "versions", **account) as client:
        yield client


@pytest.fixture
def pages(client: TestClient, traces: TraceLog) -> dict[str, str]:
    """Every page by its address, one trace of each kind and a job among them."""
    found, absent = added(traces, "the cup"), added(traces, "absent")
    client.post("/jobs", json={"project": 5})
    addresses = ["/traces", f"/traces/{found}", f"/traces/{absent}", f"/traces/{found}?beside={absent}", "/play",
                 "/jobs", "/jobs/1"]  # fmt: skip
    replies = {address: client.get(address) for address in addresses}
    assert {reply.status_code for reply in replies.values()} == {200}
    return {address: reply.text for address, reply in replies.items()}


# --- all pages ---------------------------------------------------------------------------------------------------


def test_nothing_runs_or_styles_but_our_files(client: TestClient, pages: dict[str, str]) -> None:
    for address, text in pages.items():
        policy = client.get(address).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert policy == layout.POLICY
        assert "unsafe" not in policy
        elements = Elements(text)
        assert not elements.of("style"), address
        for tag, attributes in elements.found:
            assert not any(name == "style" or name.startswith("on") for name in attributes), (address, tag)
        for script in elements.of("script"):
            where = client.get(address).url.join(script["src"] or "")
            assert client.get(where).headers["content-type"].startswith("text/javascript")


def test_nothing_comes_from_elsewhere(client: TestClient, pages: dict[str, str]) -> None:
    texts = pages | {
        name: client.get(f"/pages/{name}").text for name in ("pages.css", "pages.js", "jobs.js", "play.js")
    }
    for address, text in texts.items():
        addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)
        assert set(addresses) <= {"http://www.w3.org"}, address
        assert "@import" not in text


def test_every_local_address_answers(client: TestClient, pages: dict[str, str]) -> None:
    for address, text in pages.items():
        elements = Elements(text)
        linked = [one.get("href") for one in elements.of("a") + elements.of("link")]
        linked += [one.get("src") for one in elements.of("img") if one.get("src")]
        for to in filter(None, linked):
            if not to.startswith(("data:", "#")):
                where = client.get(address).url.join(to)
                assert client.get(where).status_code == 200, (address, to)


def test_pages_have_landmarks_labels_and_a_language(pages: dict[str, str]) -> None:
    for address, text in pages.items():
        elements = Elements(text)
        assert elements.of("html") == [{"lang": "en"}]
        assert (len(elements.of("main")), len(elements.of("h1"))) == (1, 1), address
        assert elements.of("nav")[0]["aria-label"]
        assert any(one.get("aria-current") == "page" for one in elements.of("a")), address
        assert all(one.get("alt") is not None for one in elements.of("img"))
        for tag in ("input", "select", "textarea"):
            for one in elements.of(tag):
                name = one.get("id") or one.get("name") or ""
                assert f'for="{name}"' in text or re.search(rf"<label[^>]*>[^<]*<{tag}[^>]*{name}", text), (
                    address,
                    name,
                )


def test_files_are_kept_by_browsers_only_under_their_digest(client: TestClient) -> None:
    address = f"/{layout.asset('pages.css')}"
    assert "immutable" in client.get(address).headers["cache-control"]
    assert client.get("/pages/pages.css").headers["cache-control"] == "no-cache"
    assert client.get("/pages/pages.js").headers["content-type"].startswith("text/javascript")
    for name in ("layout.py", "..%2fsettings.py", "__init__.py"):
        assert client.get(f"/pages/{name}").status_code == 404


def test_pages_need_the_password(traces: TraceLog) -> None:
    trace_id = added(traces, "the cup")
    with running(engine_of(traces), basic_auth_user="me", basic_auth_password="secret") as client:
        for path in ("/traces", f"/traces/{trace_id}", f"/traces/{trace_id}/overlay", "/play", "/play/samples/1",
                     "/play/images/x", "/play/runs/x", "/jobs", "/pages/pages.css"):  # fmt: skip
            assert client.get(path).status_code == 401
            assert client.get(path, auth=("me", "secret")).status_code in (200, 404)
        for path in (
            f"/traces/{trace_id}/again",
            "/play/runs",
            "/play/images",
            "/versions/promote",
            "/versions/rollback",
        ):
            assert client.post(path, json={}).status_code == 401


# --- traces ------------------------------------------------------------------------------------------------------


def test_programs_get_json_where_browsers_get_pages(client: TestClient, traces: TraceLog) -> None:
    trace_id = added(traces, "the cup")
    for path in ("/traces", f"/traces/{trace_id}"):
        assert client.get(path).headers["content-type"] == "text/html; charset=utf-8"
        assert client.get(path, headers={"Accept": "*/*"}).headers["content-type"] == "application/json"
    assert client.get("/traces", headers={"Accept": "*/*"}, params={"reason": "absent"}).json() == {"traces": []}


def test_an_old_link_leads_to_a_page_too(client: TestClient) -> None:
    reply = client.get(f"/traces/{EVIL[:8]}nope")
    assert reply.status_code == 404
    assert "is unknown: only the newest ones are kept" in reply.text
    assert {"href": "../traces"} in Elements(reply.text).of("a")
    assert EVIL[:8] not in reply.text.partition("<main")[2]
    assert "detail" in client.get("/traces/nope", headers={"Accept": "*/*"}).json()


def test_the_page_tells_first_which_stage_failed(client: TestClient, traces: TraceLog) -> None:
    for instruction, sentence in (
        ("absent", "Stage 1 answered that the object is absent."),
        ("broken", "Stage 1 could not be asked, or did not answer."),
        ("the cup", "Both stages answered: 1 mask with score 0.75."),
    ):
        text = client.get(f"/traces/{added(traces, instruction)}").text
        assert f"<b>{sentence}</b>" in text
        assert text.index(sentence) < text.index("<ol")


def test_the_page_shows_what_each_stage_made(client: TestClient, traces: TraceLog) -> None:
    trace_id = added(traces, "the cup", request="req-1", labels=("Cup", "Ball"))
    text = client.get(f"/traces/{trace_id}").text
    for shown in ("It is the cup.", "rows 4, 5, 6; columns 4, 5, 6", "36 x 28 px at (27, 22)", "rsvp-a", "req-1",
                  "/data/photo.png", "90 x 72 px", "Cup, Ball", f"{trace_id}/marked", f"{trace_id}/overlay",
                  f"{trace_id}/crop-0", "Nothing to compare with"):  # fmt: skip
        assert shown in text, shown
    for name, size in (("marked", SIZE_PX), ("original", SIZE_PX), ("overlay", SIZE_PX), ("crop-0", (36, 28)),
                       ("mask-0", SIZE_PX)):  # fmt: skip
        reply = client.get(f"/traces/{trace_id}/{name}")
        assert reply.headers["content-type"] == f"image/{'png' if name == 'mask-0' else 'jpeg'}"
        assert size_of(reply.content) == size
    for name in ("crop-1", "crop-x", "mask-9", "nothing", "crop--1", "..%2fx"):
        assert client.get(f"/traces/{trace_id}/{name}").status_code == 404


def size_of(file: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(file)) as image:
        return image.size


def test_what_models_and_tasks_say_is_only_text(client: TestClient, traces: TraceLog) -> None:
    trace_id = added(traces, f"the {EVIL}", project=EVIL, task=EVIL, model_version=EVIL, image=EVIL, labels=(EVIL,))
    for address in ("/traces", f"/traces/{trace_id}", f"/traces/{trace_id}?beside={trace_id}"):
        reply = client.get(address)
        assert reply.status_code == 200
        assert "<script>alert" not in reply.text
    assert "&lt;script&gt;alert(1)" in reply.text


def test_the_list_is_narrowed_down_and_paged(client: TestClient, traces: TraceLog) -> None:
    for number in range(60):
        added(traces, f"the cup {number}")
    added(traces, "absent ball", project="8.1", task=9, model_version="rsvp-b")
    first = client.get("/traces").text
    assert (first.count("<tr>"), "61 of 61 traces" in first, "page 1 of 2" in first) == (51, True, True)
    second = client.get("/traces", params={"page": 2}).text
    assert second.count("<tr>") == 12
    assert 'rel="prev"' in second
    for asked in ({"reason": "absent"}, {"reason": "empty"}, {"project": "8"}, {"task": "9"}, {"version": "rsvp-b"}):
        text = client.get("/traces", params=asked).text
        assert "1 of 61 traces" in text
        assert "absent ball" in text
    assert "0 of 61 traces" in client.get("/traces", params={"project": "99"}).text
    assert client.get("/traces", params={"page": 0}).status_code == 422


def test_the_region_carries_the_address_of_its_trace(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", SIZE_PX, "gray").save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    body = {
        "tasks": [{"id": 1, "data": {"image": uri, "instruction": "the cup"}}],
        "label_config": default_label_config(),
    }
    for public_url in (None, "https://rsvp.example/ml"):
        with running(engine_of(TraceLog(tmp_path, public_url=public_url))) as client:
            region = client.post("/predict", json=body).json()["results"][0]["result"][0]
            record = region["meta"]["rsvp"]
            expected = None if public_url is None else f"{public_url}/traces/{record['trace_id']}"
            assert record.get("trace_url") == expected
            assert client.get(f"/traces/{record['trace_id']}/overlay").status_code == 200


# --- jobs --------------------------------------------------------------------------------------------------------


def test_a_running_job_is_drawn(client: TestClient, tmp_path: Path) -> None:
    client.post("/jobs", json={"project": 5})
    jobs = Jobs(tmp_path / "versions-work")
    assert jobs.claim(1)
    with jobs.store.changing() as changes:
        changes.update(1, stage="training", text="loss 0.3", done=30, total=120)
        changes.keep_curve(1, ((1, 0.9, None), (15, 0.5, 0.4), (30, 0.3, 0.6)))
    for path in ("/jobs", "/jobs/1"):
        text = client.get(path).text
        assert '<progress value="30" max="120"' in text
        assert "Loss from 0.900 at step 1 to 0.300 at 30" in text
        assert "IoU on held-out corrections: 0.600 at step 30" in text


def test_other_sites_cannot_change_anything(client: TestClient, traces: TraceLog) -> None:
    paths = (f"/traces/{added(traces, 'the cup')}/again", "/play/runs", "/versions/promote", "/versions/rollback")
    for path in paths:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            assert client.post(path, content="{}", headers={"Content-Type": kind}).status_code == 415
        for site in ("cross-site", "same-site"):
            assert client.post(path, json={}, headers={"Sec-Fetch-Site": site}).status_code == 403
    assert client.post("/play/images", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415


def test_without_versions_nothing_is_promoted(traces: TraceLog) -> None:
    with running(engine_of(traces)) as client:
        assert "Versions of" not in client.get("/jobs").text
        reply = client.post("/versions/promote", json={"of": "vlsm", "version": "x"})
        assert (reply.status_code, "RSVP_VERSIONS" in reply.json()["detail"]) == (409, True)
        assert client.post("/versions/promote", json={"of": "other", "version": "x"}).status_code == 422
        reply = client.post(
            f"/traces/{added(traces, 'the cup')}/again", json={"under": '{"of": "vlsm", "version": null}'}
        )
        assert (reply.status_code, "RSVP_VERSIONS" in reply.json()["detail"]) == (409, True)
        for under in ("x", "{}", '{"of": "sam", "version": null}', "[" * 400):
            reply = client.post(f"/traces/{added(traces, 'the cup')}/again", json={"under": under})
            assert reply.status_code == 422
