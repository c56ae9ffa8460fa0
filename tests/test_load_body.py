"""/predict's body, read task by task: what any JSON reader reads, and only what is needed is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsvp_backend.security.bodies import BodyError, cleaned
from rsvp_backend.serving.body import read_body

DATA = Path(__file__).parent / "data" / "label_studio"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TASKS = st.lists(st.fixed_dictionaries({"id": st.integers()}, optional={"data": VALUES, "annotations": VALUES}))


@given(TASKS, st.text(), st.integers() | st.text(), st.sampled_from([None, 0, 2]), st.booleans())
def test_it_reads_what_the_json_module_writes(
    tasks: list[dict[str, Any]], config: str, project: int | str, indent: int | None, ascii_only: bool
) -> None:
    body = {"project": project, "tasks": tasks, "params": {"context": None}, "label_config": config, "more": [1, {}]}
    read = read_body(json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
    kept = [{name: cleaned(task[name]) for name in ("id", "data") if name in task} for task in tasks]
    assert list(read.tasks) == kept
    assert (read.label_config, read.project, read.context, read.asks) == (
        cleaned(config),
        cleaned(str(project)),
        None,
        True,
    )


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("predict_batch", True),
        ("predict_interactive_prompt", True),
        ("predict_interactive_keypoints", True),
        ("predict_interactive_empty_context", False),
    ],
)
def test_captured_requests(name: str, asks: bool) -> None:
    body = json.loads((DATA / f"{name}.json").read_text())["body"]
    read = read_body(json.dumps(body).encode())
    assert [task["id"] for task in read.tasks] == [task["id"] for task in body["tasks"]]
    assert [task["data"] for task in read.tasks] == [task["data"] for task in body["tasks"]]
    assert (read.context or None) == ((body["params"] or {}).get("context") or None)
    assert read.asks == asks


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"{", b"null", b"{}", b'{"tasks": 1}', b'{"tasks": ["a"]}', b'{"tasks": [{}, 1]}',
        b'{"tasks": [{},]}', b'{"tasks": [{}]', b'{"tasks": [{}] "a": 1}', b'{"tasks": []} x',
        b'{1: 2, "tasks": []}', b'{"tasks" []}',
        b'{"tasks": [], "label_config": 5}', b"\xff\xfe", b'{"tasks": ' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_was_expected(raw: bytes) -> None:
    with pytest.raises(BodyError, match=r"expect|object|text|Expect"):
        read_body(raw)
