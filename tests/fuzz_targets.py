"""What hostile inputs are given to. A target fails where anything but its documented errors comes of an input."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fake_models import fake_rsvp
from fastapi.testclient import TestClient
from fuzz_inputs import (
    ADDRESSES,
    ANSWERS,
    CONFIG,
    DEEP,
    ODD_TEXTS,
    RLES,
    SCALARS,
    SIZE_PX,
    VALUES,
    XML,
    bodies,
    damage,
    holes,
    pictures,
)
from hypothesis import strategies as st

from rsvp_backend.engine import Engine
from rsvp_backend.errors import AnswerError, ImageError, LabelConfigError, LabelStudioError, RleError
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.annotations import predictions_of, regions_of
from rsvp_backend.labelstudio.auth import TokenAuth
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.pixels import decode_image
from rsvp_backend.labelstudio.shapes import KINDS, ShapeError, read_mask
from rsvp_backend.labelstudio.tags import match_label, parse_label_config
from rsvp_backend.reasoner.parsing import parse
from rsvp_backend.security.bodies import BodyError, read_object
from rsvp_backend.security.masking import Mask
from rsvp_backend.server import create_app
from rsvp_backend.serving.body import read_body
from rsvp_backend.settings import Settings
from rsvp_backend.types import Marks

MAX_PIXELS = 16_000_000
MAX_BYTES = 4 * 2**20
CAP_BYTES = 4 * MAX_PIXELS
"""What the largest picture that is allowed takes: the largest of the limits below."""
SECRET = "a-secret-of-the-settings-0123"
MARKS = (Marks("bands", 9, 9), Marks("cells", 5, 7))
PARSED = parse_label_config(CONFIG)
Run = Callable[[Any], None]


@dataclass(frozen=True)
class Target:
    """``share`` of all inputs go to it. ``opened`` gives what is called with each input."""

    name: str
    share: float
    inputs: st.SearchStrategy[Any]
    opened: Callable[[], AbstractContextManager[Run]]


def plain(run: Run) -> Callable[[], AbstractContextManager[Run]]:
    @contextmanager
    def opened() -> Iterator[Run]:
        yield run

    return opened


def decode_rle(value: Any) -> None:
    with suppress(RleError):
        assert rle.decode(value, SIZE_PX[1], SIZE_PX[0]).shape == (SIZE_PX[1], SIZE_PX[0])


def read_region(given: tuple[str, dict[str, Any]]) -> None:
    with suppress(ShapeError, RleError):
        assert read_mask(*given, SIZE_PX[1], SIZE_PX[0]).shape == (SIZE_PX[1], SIZE_PX[0])


def read_annotations(results: Any) -> None:
    for region in regions_of(results, PARSED).values():
        read_region((region.kind, dict(region.value)))
    predictions_of({"predictions": [{"id": 1, "result": results}]}, PARSED)


def read_config(xml: str) -> None:
    with suppress(LabelConfigError):
        config = parse_label_config(xml)
        assert config.labels
        match_label("a red cup", config.labels)


def read_answer(given: tuple[str, str, Marks]) -> None:
    text, instruction, marks = given
    with suppress(AnswerError):
        for proposal in parse(text, marks, ("Cup", "Ball"), instruction):
            assert proposal.object.isprintable()


def read_picture(data: bytes) -> None:
    with suppress(ImageError):
        picture = decode_image(data, MAX_PIXELS)
        assert picture.mode == "RGB"
        assert picture.width * picture.height <= MAX_PIXELS


def read_raw_body(raw: bytes) -> None:
    with suppress(BodyError):
        body = read_body(raw)
        json.dumps([list(body.tasks), body.context], allow_nan=False).encode()
    with suppress(BodyError):
        json.dumps(read_object(raw), allow_nan=False)


def read_token(token: str) -> None:
    with suppress(LabelStudioError):
        TokenAuth("http://localhost:8080", token)


MASK = Mask([SECRET])


def log_text(text: str) -> None:
    assert SECRET not in MASK(f"{text}{SECRET}")


@contextmanager
def fetching() -> Iterator[Run]:
    """No address of an input is reached: of other hosts none is allowed, and nobody listens at Label Studio's."""
    fetcher = ImageFetcher("http://127.0.0.1:1", limits=ImageLimits(MAX_BYTES, MAX_PIXELS, 5.0), hosts=())

    def fetch(uri: str) -> None:
        with suppress(ImageError):
            fetcher.fetch(uri, task_id=1)

    yield fetch


@contextmanager
def asking() -> Iterator[Run]:
    """The server's routes, as Label Studio and browsers call them."""
    settings = Settings(max_body_bytes=MAX_BYTES, backlog_tasks=0, basic_auth_user="me", basic_auth_password="password")
    fetcher = ImageFetcher(None, limits=ImageLimits(MAX_BYTES, MAX_PIXELS, 5.0))
    with TestClient(create_app(settings, Engine(fake_rsvp, fetcher)), raise_server_exceptions=True) as client:
        asked = 0

        def ask(given: tuple[str, bytes]) -> None:
            nonlocal asked
            path, body = given
            reply = client.post(
                path, content=body, headers={"Content-Type": "application/json"}, auth=("me", "password")
            )
            assert reply.status_code < 500, reply.text[:300]
            asked += 1
            if asked % 50 == 0:
                assert client.get("/traces", auth=("me", "password")).status_code == 200

        yield ask


def _data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


PREDICTS = (
    "predict_batch",
    "predict_interactive_keypoints",
    "predict_interactive_prompt",
    "predict_interactive_rectangle",
)
EVENTS = ("webhook_annotation_created", "webhook_annotations_deleted", "webhook_start_training")
TASK = {
    "id": 1,
    "data": {"image": _data_url(pictures()[0]), "instruction": "the cup"},
    "annotations": [],
    "predictions": [],
}
ASKED = {"tasks": [TASK], "label_config": CONFIG, "project": "1.1", "params": {"context": None}}
HINT = {
    "type": "keypointlabels", "from_name": "clicks", "to_name": "image", "original_width": 40, "original_height": 30,
    "image_rotation": 0, "is_positive": True, "value": {"x": 50, "y": 50, "width": 1, "keypointlabels": ["Cup"]},
}  # fmt: skip
BOX = {**HINT, "type": "rectanglelabels", "from_name": "boxes",
       "value": {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["Cup"]}}  # fmt: skip
TYPED = {"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": ["the ball"]}}
CLICKED = {**ASKED, "params": {"context": {"result": [HINT, BOX, TYPED]}}}
FILLERS = VALUES | XML | ADDRESSES | st.deferred(lambda: damage(pictures)).map(_data_url)


def _sent(body: Any) -> bytes:
    return json.dumps(body).encode()


def _recorded(*names: str) -> st.SearchStrategy[bytes]:
    whole = [holes(json.loads(body), FILLERS).map(_sent) for body in bodies(*names)]
    return st.one_of(*whole) | damage(lambda: bodies(*names))


def _requests(path: str, inputs: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    return st.tuples(st.just(path), inputs)


PREDICT_BODIES = (
    holes(ASKED, FILLERS).map(_sent) | holes(CLICKED, FILLERS).map(_sent) | damage(lambda: [_sent(CLICKED)])
)
RAW = st.binary(max_size=100) | DEEP.map(str.encode) | VALUES.map(_sent)
REGION_VALUES = st.one_of(
    st.fixed_dictionaries({"format": st.just("rle") | SCALARS, "rle": RLES}),
    st.fixed_dictionaries({"imageDataURL": damage(pictures).map(_data_url) | ADDRESSES | SCALARS}),
    st.fixed_dictionaries({"points": st.lists(st.lists(SCALARS, max_size=3), max_size=6) | SCALARS}),
    st.dictionaries(st.sampled_from(["x", "y", "width", "height", "rotation", "radiusX", "radiusY"]), SCALARS),
)
REGIONS = st.lists(
    st.fixed_dictionaries(
        {"id": SCALARS, "type": st.sampled_from(KINDS) | SCALARS, "value": REGION_VALUES | VALUES},
        optional={"meta": VALUES, "original_width": SCALARS, "original_height": SCALARS, "from_name": SCALARS},
    )
    | VALUES,
    max_size=4,
)
TARGETS = (
    Target("rle", 0.14, RLES, plain(decode_rle)),
    Target("masks", 0.08, st.tuples(st.sampled_from([*KINDS, "brushlabels", "x"]), REGION_VALUES), plain(read_region)),
    Target("annotations", 0.06, REGIONS | VALUES, plain(read_annotations)),
    Target("label_config", 0.12, XML, plain(read_config)),
    Target(
        "answers",
        0.14,
        st.tuples(ANSWERS, ANSWERS.map(lambda text: text[:4000]), st.sampled_from(MARKS)),
        plain(read_answer),
    ),
    Target("images", 0.14, damage(pictures) | st.binary(max_size=200), plain(read_picture)),
    Target("addresses", 0.05, ADDRESSES, fetching),
    Target("bodies", 0.10, PREDICT_BODIES | RAW | _recorded(*PREDICTS), plain(read_raw_body)),
    Target("predict", 0.06, _requests("/predict", PREDICT_BODIES | RAW), asking),
    Target("webhook", 0.05, _requests("/webhook", _recorded(*EVENTS) | RAW), asking),
    Target("setup", 0.02, _requests("/setup", _recorded("setup") | RAW), asking),
    Target("jobs", 0.01, _requests("/jobs", holes({"project": 1}, VALUES).map(_sent) | RAW), asking),
    Target("logs", 0.02, st.text() | ODD_TEXTS | ADDRESSES | st.builds(repr, VALUES), plain(log_text)),
    Target(
        "tokens", 0.01, st.text() | ODD_TEXTS | st.builds(lambda part: f"e30.{part}.x", st.text()), plain(read_token)
    ),
)
