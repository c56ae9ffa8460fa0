"""chat.py against a real OpenAI-compatible server: ``transformers serve``, which loads model folders on demand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mllm_folders import demo_reasoner_folder, save_random_mllm
from PIL import Image

from rsvp_backend.errors import AnswerError, ReasonerError
from rsvp_backend.grid import draw_marks
from rsvp_backend.reasoner.base import Message
from rsvp_backend.reasoner.chat import ChatConfig, ChatReasoner
from rsvp_backend.reasoner.endpoint import EndpointConfig
from rsvp_backend.types import Marks, Query

MARKS = Marks("bands", 9, 9)
START_S = 120.0


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a running ``transformers serve``, offline and on CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("hub")
    log_path = home / "serve.log"
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--device", "cpu", "--dtype", "float32"]
    with log_path.open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=log, stderr=log
        )
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log_path)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(30)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log_path: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert server.poll() is None, log_path.read_text()
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"no health within {START_S} s: {log_path.read_text()}")


def picture(size_px: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size_px, "white")
    image.paste("red", (size_px[0] // 3, size_px[1] // 3, size_px[0] // 2, size_px[1] // 2))
    return draw_marks(image, MARKS)


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_random_mllm("qwen2_vl", tmp_path_factory.mktemp("served")))


def test_a_random_model_fails_with_its_texts(base_url: str, random_folder: str) -> None:
    reasoner = ChatReasoner(ChatConfig(random_folder, EndpointConfig(base_url, timeout_s=120), max_tokens=8))
    with pytest.raises(AnswerError) as caught:
        reasoner.propose(picture((56, 56)), Query("the red ball"), MARKS, None)
    assert len(caught.value.raw_texts) == 2
    assert reasoner.usage.answers == 2
    assert 0 < reasoner.usage.completion_tokens <= 16


def test_the_image_reaches_the_model(base_url: str, random_folder: str) -> None:
    prompt_tokens = []
    for side_px in (28, 56):
        config = ChatConfig(random_folder, EndpointConfig(base_url, timeout_s=120), max_tokens=2)
        reasoner = ChatReasoner(config)
        reasoner.complete((Message("user", "what is it?", picture((side_px, side_px))),), {}, None)
        prompt_tokens.append(reasoner.usage.prompt_tokens)
    assert prompt_tokens[1] - prompt_tokens[0] == 2 * 2 - 1 * 1  # Qwen2-VL: one token for every 28 x 28 pixels


def test_the_demo_model_answers(base_url: str) -> None:
    where = EndpointConfig(base_url, timeout_s=120)
    config = ChatConfig(str(demo_reasoner_folder()), where, 128, "png", prompt="demo", canvas_px=(288, 288))
    reasoner = ChatReasoner(config)
    answer = reasoner.propose(picture((288, 288)), Query("the red ball"), MARKS, None)
    assert len(answer.proposals) == 1
    assert len(answer.raw_texts) == 1
    assert reasoner.usage.prompt_tokens > 81  # one token for each of the image's 9 x 9 cells


def test_an_unknown_model_is_an_error(base_url: str) -> None:
    reasoner = ChatReasoner(ChatConfig("no/such-model", EndpointConfig(base_url, timeout_s=60, retries=0)))
    with pytest.raises(ReasonerError):
        reasoner.propose(picture((56, 56)), Query("the red ball"), MARKS, None)
