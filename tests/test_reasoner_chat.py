"""chat.py and endpoint.py against an endpoint that misbehaves on order."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, Step, breaks_off, hangs, refuses, reply, says, trickles_at
from fake_models import FakeSegmenter
from PIL import Image

from rsvp_backend.errors import AnswerError, DeadlineError, ReasonerError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.reasoner import endpoint
from rsvp_backend.reasoner.chat import ChatConfig, ChatReasoner, Features
from rsvp_backend.reasoner.endpoint import EndpointConfig
from rsvp_backend.reasoner.schema import answer_schema
from rsvp_backend.reasoner.usage import Budget, Prices, Usage
from rsvp_backend.types import Answer, Deadline, Marks, Query

MARKS = Marks("bands", 9, 9)
CUP = json.dumps(
    {"proposals": [{"object": "cup", "present": True, "rows": [2], "columns": [3], "reasoning": "It holds tea."}]}
)
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)


def reasoner_at(base_url: str, **options: Any) -> ChatReasoner:
    where = EndpointConfig(base_url, KEY, timeout_s=options.pop("timeout_s", 10.0), retries=options.pop("retries", 2))
    return ChatReasoner(ChatConfig("some/model", where, **options))


def ask(
    *steps: Step, deadline: Deadline | None = None, query: Query | None = None, **options: Any
) -> tuple[Answer, FakeEndpoint, ChatReasoner]:
    fake = FakeEndpoint(*steps)
    image = Image.new("RGB", (64, 48), "navy")
    with fake.running() as base_url:
        reasoner = reasoner_at(base_url, **options)
        answer = reasoner.propose(image, query or Query("the cup"), MARKS, deadline)
    return answer, fake, reasoner


def test_a_good_answer_and_the_request_behind_it() -> None:
    query = Query("the cup", ("Mug", "Plate"))
    answer, fake, reasoner = ask(says(CUP), query=query, image_format="png")
    assert [p.object for p in answer.proposals] == ["cup"]
    assert answer.raw_texts == (CUP,)
    assert reasoner.usage == Usage({"answered": 1}, 100, 20)
    (body,) = fake.bodies
    assert body["model"] == "some/model"
    assert body["temperature"] == 0
    form = body["response_format"]["json_schema"]
    assert form == {"name": "answer", "strict": True, "schema": answer_schema(MARKS, query.labels)}
    image, text = body["messages"][0]["content"]
    assert '"the cup"' in text["text"]
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (0, 0, 128)
    assert fake.headers[0]["authorization"] == f"Bearer {KEY}"
    assert fake.headers[0]["accept-encoding"] == "identity"


def test_jpeg_is_the_default() -> None:
    _, fake, _ = ask(says(CUP))
    assert fake.bodies[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")


@pytest.mark.parametrize("text", [f"Here you are: {CUP} Anything else?", f"```json\n{CUP}\n```"])
def test_prose_and_fences_cost_no_repair(text: str) -> None:
    answer, fake, _ = ask(says(text))
    assert answer.proposals[0].object == "cup"
    assert len(fake.bodies) == 1


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_is_kept_in_the_raw_text(field: str) -> None:
    answer, _, _ = ask(says(CUP, **{field: "a cup, surely"}))
    assert answer.raw_texts == (f"<think>a cup, surely</think>\n{CUP}",)


def test_a_broken_answer_is_repaired_once_with_its_error_shown() -> None:
    answer, fake, reasoner = ask(says(CUP[:-5]), says(CUP))
    assert answer.proposals[0].object == "cup"
    assert answer.raw_texts == (CUP[:-5], CUP)
    first, second, third = fake.bodies[1]["messages"]
    assert first == fake.bodies[0]["messages"][0]
    assert second == {"role": "assistant", "content": CUP[:-5]}
    assert "the JSON is broken" in third["content"]
    assert reasoner.usage.answers == 2


def test_two_bad_answers_give_an_answer_error_with_both() -> None:
    with pytest.raises(AnswerError, match=r"no JSON object.*after the repair try.*rows holds 99") as caught:
        ask(says(None, refusal="I cannot help with that."), says(CUP.replace("[2]", "[99]")))
    assert caught.value.raw_texts == ("I cannot help with that.", CUP.replace("[2]", "[99]"))


def test_a_failed_repair_call_keeps_the_first_answer() -> None:
    with pytest.raises(AnswerError, match=r"no JSON object.*no repair: .*answers 401") as caught:
        ask(says("a cup"), refuses(401, "who are you?"))
    assert caught.value.raw_texts == ("a cup",)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_failures_that_may_pass_are_tried_again(status: int) -> None:
    answer, fake, _ = ask(refuses(status, "busy"), refuses(status, "busy", retry_after="0.02"), says(CUP))
    assert answer.proposals[0].object == "cup"
    assert len(fake.bodies) == 3


def test_a_connection_that_breaks_off_is_tried_again() -> None:
    answer, fake, _ = ask(breaks_off, says(CUP))
    assert answer.proposals[0].object == "cup"
    assert len(fake.bodies) == 2


def test_tries_are_counted() -> None:
    fake = FakeEndpoint(refuses(429, "slow down"))
    with fake.running() as base_url, pytest.raises(ReasonerError, match=r"answers 429: .*slow down.*tried 3 times"):
        reasoner_at(base_url).propose(Image.new("RGB", (8, 8)), Query("cup"), MARKS, None)
    assert len(fake.bodies) == 3


def test_a_wait_beyond_the_deadline_is_not_waited_for() -> None:
    with pytest.raises(ReasonerError, match=r"answers 429.*no time is left to wait 600"):
        ask(refuses(429, "later", retry_after="600"), deadline=Deadline.after(20))


def test_a_hang_ends_at_the_deadline_or_at_the_timeout() -> None:
    fake = FakeEndpoint(hangs)
    image = Image.new("RGB", (8, 8))
    with fake.running() as base_url:
        with pytest.raises(DeadlineError, match="was over before"):
            reasoner_at(base_url).propose(image, Query("cup"), MARKS, Deadline.after(0.3))
        with pytest.raises(ReasonerError, match=r"no answer within 0\.2 s: raise"):
            reasoner_at(base_url, timeout_s=0.2).propose(image, Query("cup"), MARKS, None)
    assert len(fake.bodies) == 2


def test_a_trickle_ends_at_the_deadline() -> None:
    with pytest.raises(DeadlineError):
        ask(trickles_at(200), deadline=Deadline.after(0.4))


def test_nothing_is_sent_after_the_deadline() -> None:
    fake = FakeEndpoint(says(CUP))
    with fake.running() as base_url, pytest.raises(DeadlineError):
        reasoner_at(base_url).propose(Image.new("RGB", (8, 8)), Query("cup"), MARKS, Deadline.after(-1))
    assert fake.bodies == []


def test_a_refused_response_format_is_left_out_step_by_step_and_remembered() -> None:
    def picky(handler: Any, body: dict[str, Any]) -> None:
        refused = refuses(400, "response_format is not supported") if "response_format" in body else says(CUP)
        refused(handler, body)

    fake = FakeEndpoint(picky)
    with fake.running() as base_url:
        reasoner = reasoner_at(base_url)
        for _ in range(2):
            answer = reasoner.propose(Image.new("RGB", (8, 8)), Query("cup"), MARKS, None)
            assert answer.proposals[0].object == "cup"
    formats = [body.get("response_format", {}).get("type") for body in fake.bodies]
    assert formats == ["json_schema", "json_object", None, None]


def test_refused_temperature_and_token_limit_leave_the_schema_alone() -> None:
    _, fake, reasoner = ask(
        refuses(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        refuses(400, "'temperature' does not support 0 with this model."),
        says(CUP),
    )
    assert reasoner.features == Features("json_schema", temperature=False, token_limit="max_completion_tokens")
    assert fake.bodies[-1]["max_completion_tokens"] == 2048
    assert not {"temperature", "max_tokens"} & fake.bodies[-1].keys()


def test_refused_image_detail_is_left_out() -> None:
    _, fake, reasoner = ask(refuses(400, "Unknown parameter: 'messages[0].content[0].image_url.detail'"), says(CUP))
    details = [body["messages"][0]["content"][0]["image_url"].get("detail") for body in fake.bodies]
    assert details == ["high", None]
    assert reasoner.features == Features(detail=False)


def takes_images_up_to(longest_px: int, refusal: Step, seen_px: list[int]) -> Step:
    def step(handler: Any, body: dict[str, Any]) -> None:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        seen_px.append(max(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size))
        (says(CUP) if seen_px[-1] <= longest_px else refusal)(handler, body)

    return step


@pytest.mark.parametrize(
    "refusal",
    [
        refuses(400, "Image dimensions exceed max allowed size: 600 pixels"),
        reply(413, b"<html>Request Entity Too Large</html>", content_type="text/html"),
    ],
)
def test_a_refused_image_is_halved_until_it_is_taken_and_the_size_remembered(refusal: Step) -> None:
    seen_px: list[int] = []
    fake = FakeEndpoint(takes_images_up_to(600, refusal, seen_px))
    with fake.running() as base_url:
        reasoner = reasoner_at(base_url, image_px=2000)
        assert reasoner.max_side_px == 2000
        for _ in range(2):
            reasoner.propose(Image.new("RGB", (1000, 2000)), Query("cup"), MARKS, None)
    assert seen_px == [2000, 1000, 500, 500]
    assert reasoner.max_side_px == 500  # the next images are shrunk before they are marked
    assert reasoner.features.response_format == "json_schema"


def test_the_pipeline_marks_images_at_the_size_that_is_sent() -> None:
    fake = FakeEndpoint(says(CUP))
    with fake.running() as base_url:
        outcome = RSVP(reasoner_at(base_url), FakeSegmenter())(Image.new("RGB", (3000, 2000)), "the cup")
    url = fake.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (1024, 683)
    assert outcome.instances[0].mask.shape == (2000, 3000)


def test_no_more_calls_at_a_time_than_allowed() -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def slow(handler: Any, body: dict[str, Any]) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        says(CUP)(handler, body)

    with FakeEndpoint(slow).running() as base_url, ThreadPoolExecutor(8) as threads:
        reasoner = ChatReasoner(ChatConfig("m", EndpointConfig(base_url, concurrency=2)))
        image = Image.new("RGB", (8, 8))
        answers = threads.map(lambda n: reasoner.propose(image, Query(f"cup {n}"), MARKS, None), range(8))
        assert len(list(answers)) == 8
    assert most == 2


def test_waiting_for_a_free_slot_ends_at_the_deadline_or_the_timeout() -> None:
    fake = FakeEndpoint(hangs)
    image = Image.new("RGB", (8, 8))
    with fake.running() as base_url, ThreadPoolExecutor(1) as thread:
        reasoner = ChatReasoner(ChatConfig("m", EndpointConfig(base_url, timeout_s=1.5, concurrency=1)))
        first = thread.submit(reasoner.propose, image, Query("cup"), MARKS, None)
        while not fake.bodies:
            time.sleep(0.01)
        with pytest.raises(DeadlineError):
            reasoner.propose(image, Query("cup"), MARKS, Deadline.after(0.1))
        assert len(fake.bodies) == 1
        with pytest.raises(ReasonerError, match="no answer within"):
            first.result()


@pytest.mark.parametrize(
    ("header", "expected_s"),
    [
        ("2", 2.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("nan", None), ("", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    ],
)  # fmt: skip
def test_every_form_of_retry_after(header: str, expected_s: float | None) -> None:
    assert endpoint.retry_after_s({"retry-after": header}) == expected_s


def test_retry_after_as_a_date_to_come() -> None:
    wait_s = endpoint.retry_after_s({"retry-after": format_datetime(datetime.now(UTC) + timedelta(minutes=5))})
    assert wait_s is not None
    assert 200 < wait_s <= 300


def test_a_spent_budget_stops_the_call_before_it_is_sent() -> None:
    fake = FakeEndpoint(says(CUP))
    image = Image.new("RGB", (8, 8))
    with fake.running() as base_url:
        reasoner = reasoner_at(base_url, prices=Prices(1000.0, 5000.0), budget=Budget(cost_per_hour=0.2))
        reasoner.propose(image, Query("cup"), MARKS, None)
        assert reasoner.usage.cost == pytest.approx(0.2)  # 100 tokens in, 20 out
        with pytest.raises(ReasonerError, match=r"0\.2 per hour \(RSVP_REASONER_BUDGET_PER_HOUR\).*in 3\d{3} s"):
            reasoner.propose(image, Query("plate"), MARKS, None)
    assert len(fake.bodies) == 1


def test_user_and_password_in_the_address_are_not_shown() -> None:
    with pytest.raises(ReasonerError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached") as caught:
        reasoner_at("http://me:hidden@127.0.0.1:9/v1", retries=0).propose(
            Image.new("RGB", (8, 8)), Query("cup"), MARKS, None
        )
    assert "hidden" not in str(caught.value)


def test_a_request_refused_in_every_form_is_an_error_and_not_remembered() -> None:
    fake = FakeEndpoint(refuses(422, "the image is too large"))
    with fake.running() as base_url:
        reasoner = reasoner_at(base_url)
        with pytest.raises(ReasonerError, match=r"refuses the request: .*image is too large"):
            reasoner.propose(Image.new("RGB", (8, 8)), Query("cup"), MARKS, None)
    assert len(fake.bodies) == 3
    assert reasoner.features == Features()


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (refuses(401, f"Incorrect API key: {KEY}"), r"answers 401: .*\*\*\*.*check the API key"),
        (refuses(404, "no such model"), "answers 404: .*no such model.*check base URL and model name"),
        (reply(200, b"<html>hello</html>", content_type="text/html"), "no JSON object but 18 bytes of text/html"),
        (reply(200, b'{"detail": "hm"}'), "no chat completion but an object of: detail"),
        (reply(200, b'{"choices": []}'), "no chat completion"),
        (reply(200, b"[" * 100_000), "no JSON object"),
        (reply(200, b'{"a": "' + b"x" * 10_000_000 + b'"}'), "more than 2097152 bytes"),
        (says([{"type": "text", "text": "x"}]), "no chat completion"),  # type: ignore[arg-type]
    ],
)
def test_final_failures_say_what_to_change(step: Step, problem: str) -> None:
    with pytest.raises(ReasonerError, match=problem) as caught:
        ask(step)
    assert KEY not in str(caught.value)


def test_an_endpoint_that_is_not_there() -> None:
    with FakeEndpoint().running() as base_url:
        pass
    with pytest.raises(ReasonerError, match=r"cannot be reached.*tried 2 times"):
        reasoner_at(base_url, retries=1).propose(Image.new("RGB", (8, 8)), Query("cup"), MARKS, None)


def test_neither_key_nor_image_is_logged_or_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="rsvp_backend")
    _, fake, reasoner = ask(refuses(500, f"busy {KEY}"), refuses(400, KEY), says("no"), says(CUP))
    shown = caplog.text + repr(reasoner.config) + reasoner.version
    assert "asking for a repair" in shown
    assert KEY not in shown
    assert fake.bodies[0]["messages"][0]["content"][0]["image_url"]["url"][-60:] not in shown


def test_the_version_follows_model_endpoint_and_prompt() -> None:
    configs = [
        ChatConfig("m"),
        ChatConfig("n"),
        ChatConfig("m", EndpointConfig("http://other/v1")),
        ChatConfig("m", prompt="demo"),
        ChatConfig("m", image_format="png"),
        ChatConfig("m", max_tokens=99),
        ChatConfig("m", image_px=512),
    ]
    assert len({ChatReasoner(config).version for config in configs}) == len(configs)
    assert ChatReasoner(configs[0]).version == ChatReasoner(ChatConfig("m")).version
    assert ChatReasoner(ChatConfig("org/m")).version.startswith("m-")
