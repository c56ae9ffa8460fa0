"""The order in which a task's instruction is looked for."""

import json
from pathlib import Path
from typing import Any

import pytest

from rsvp_backend.errors import InstructionError
from rsvp_backend.labelstudio.instructions import find_instruction, prompt_text
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config

DATA = Path(__file__).parent / "data" / "label_studio"
CONFIG = parse_label_config(default_label_config())
TITLED = parse_label_config(default_label_config().replace("$instruction", "$question"))


def body(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text())["body"]


def context(*texts: object, name: str = "prompt") -> dict[str, Any]:
    return {"result": [{"from_name": name, "type": "textarea", "value": {"text": list(texts)}}]}


def task(**data: object) -> dict[str, Any]:
    return {"id": 7, "data": data}


def test_the_prompt_wins_over_all() -> None:
    found = find_instruction(task(instruction="a"), CONFIG, context(" from the prompt "), field="b", default="c")
    assert found == "from the prompt"


def test_the_newest_text_of_the_prompt_counts() -> None:
    assert prompt_text(context("first", "second", "  "), CONFIG) == "second"
    assert prompt_text({"result": context("a")["result"] + context("b")["result"]}, CONFIG) == "b"


def test_other_text_controls_of_the_context_are_not_the_prompt() -> None:
    assert prompt_text(context("my notes", name="answer"), CONFIG) is None
    assert find_instruction(task(instruction="a"), CONFIG, context("my notes", name="answer")) == "a"


@pytest.mark.parametrize(
    "odd",
    [None, {}, {"result": None}, {"result": ["x", {"from_name": "prompt"}, {"from_name": "prompt", "value": 3}]}, []],
)
def test_empty_and_odd_contexts_fall_through(odd: Any) -> None:
    assert find_instruction(task(instruction="a"), CONFIG, odd) == "a"


def test_a_named_field_replaces_the_others() -> None:
    assert find_instruction(task(instruction="a", query="q"), CONFIG, field="query") == "q"
    with pytest.raises(InstructionError, match=r"data\.query"):
        find_instruction(task(instruction="a"), CONFIG, field="query")


def test_the_shown_field_comes_before_the_usual_one() -> None:
    assert find_instruction(task(instruction="a", question="q"), TITLED) == "q"
    assert find_instruction(task(instruction="a", question=" "), TITLED) == "a"


def test_the_default_comes_last() -> None:
    assert find_instruction(task(instruction=""), CONFIG, default="d") == "d"
    assert find_instruction({"id": 1}, CONFIG, default="d") == "d"


def test_the_error_names_what_was_looked_at() -> None:
    with pytest.raises(InstructionError) as caught:
        find_instruction(task(image="/x.png", question=5), TITLED)
    for part in ("task 7", "'prompt'", "data.question", "data.instruction", "image, question", "default"):
        assert part in str(caught.value)


def test_captured_requests() -> None:
    prompted = body("predict_interactive_prompt")
    config = parse_label_config(prompted["label_config"])
    assert prompt_text(prompted["params"]["context"], config) == "the zebra facing right"
    empty = body("predict_interactive_empty_context")
    assert prompt_text(empty["params"]["context"], config) is None
    clicked = body("predict_interactive_keypoints")
    assert prompt_text(clicked["params"]["context"], parse_label_config(clicked["label_config"])) is None
    batch = body("predict_batch")
    config = parse_label_config(batch["label_config"])
    found = [find_instruction(one, config, batch["params"]["context"], default="-") for one in batch["tasks"]]
    assert found == ["-", "Segment every zebra that faces right.", "Segment the leftmost bus."]
