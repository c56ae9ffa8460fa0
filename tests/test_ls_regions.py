"""Predictions as Label Studio expects them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

from rsvp_backend.labelstudio.regions import SHORT_REASON_CHARS, prediction, short_reason
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.types import Box, EmptyReason, Instance, Outcome, Regions, Trace

XML = default_label_config(["Key", "Cup"])
CONFIG = parse_label_config(XML)


def instance(**changed: object) -> Instance:
    mask = np.zeros((41, 63), dtype=np.bool_)
    mask[5:20, 7:33] = True
    fields: dict[str, object] = {
        "mask": mask, "object": "door key", "score": 0.876543, "reasoning": "A key opens doors.",
        "box": Box(0, 0, 40, 30), "regions": Regions(rows=(1, 2), columns=(3,)), "label": "Key",
    }  # fmt: skip
    return Instance(**(fields | changed))  # type: ignore[arg-type]


def outcome(*instances: Instance) -> Outcome:
    return Outcome(instances, Trace("what opens the door"))


def test_a_prediction_passes_label_studios_own_validation_and_is_plain_json() -> None:
    odd = instance(
        score=np.float32(0.5),
        regions=Regions(cells=(np.int64(4),)),  # type: ignore[arg-type]
        box=Box(np.int64(1), 2, np.int64(3), 4),  # type: ignore[arg-type]
    )
    made = prediction(outcome(instance(), odd), CONFIG, "rsvp-1", "t-9")
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    interface = LabelInterface(XML)
    assert interface.validate_prediction({"result": made["result"], "score": made["score"]}, return_errors=True) == []


def test_the_fields_of_a_region() -> None:
    given_instance = instance()
    made = prediction(outcome(given_instance), CONFIG, "rsvp-1", "t-9")
    mask, text = made["result"]
    assert mask["id"] == text["id"]
    assert (mask["from_name"], mask["to_name"], mask["type"]) == ("mask", "image", "brushlabels")
    assert (mask["original_width"], mask["original_height"], mask["image_rotation"]) == (63, 41, 0)
    assert (mask["origin"], mask["score"]) == ("prediction", 0.8765)
    assert (mask["value"]["format"], mask["value"]["brushlabels"]) == ("rle", ["Key"])
    alpha = decode_rle(mask["value"]["rle"]).reshape(41, 63, 4)[:, :, 3]
    assert np.array_equal(alpha, given_instance.mask * np.uint8(255))
    assert mask["meta"] == {
        "text": ["A key opens doors."],
        "rsvp": {
            "object": "door key", "label": "Key", "label_matched": True, "instruction": "what opens the door",
            "reasoning": "A key opens doors.", "regions": {"rows": [1, 2], "columns": [3], "cells": []},
            "box_xyxy": [0, 0, 40, 30], "score": 0.8765, "model_version": "rsvp-1", "trace_id": "t-9",
        },
    }  # fmt: skip
    assert (text["from_name"], text["type"], text["value"]) == (
        "reasoning",
        "textarea",
        {"text": ["A key opens doors."]},
    )
    assert "rle" not in text["value"]


def test_ids_are_new_on_every_call_and_differ_by_instance() -> None:
    made = [prediction(outcome(instance(), instance()), CONFIG, "v")["result"] for _ in range(2)]
    assert len({result["id"] for results in made for result in results}) == 4


def test_without_a_reasoning_tag_there_is_only_the_mask() -> None:
    xml = '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"><Label value="A"/></BrushLabels></View>'
    (mask,) = prediction(outcome(instance()), parse_label_config(xml), "v")["result"]
    assert (mask["type"], mask["value"]["brushlabels"]) == ("brushlabels", ["A"])
    assert mask["meta"]["text"] == ["A key opens doors."]


def test_an_empty_outcome_is_an_empty_result_with_the_lowest_score() -> None:
    empty = Outcome.empty(EmptyReason.ABSENT, "no key here", Trace("x"))
    assert prediction(empty, CONFIG, "v") == {"result": [], "score": 0.0, "model_version": "v"}


def test_the_prediction_scores_as_its_weakest_mask() -> None:
    assert prediction(outcome(instance(score=0.9), instance(score=0.25)), CONFIG, "v")["score"] == 0.25


@pytest.mark.parametrize(("score", "shown"), [(float("nan"), 0.0), (float("inf"), 0.0), (1.7, 1.0), (-0.1, 0.0)])
def test_scores_are_always_numbers_from_zero_to_one(score: float, shown: float) -> None:
    assert prediction(outcome(instance(score=score)), CONFIG, "v")["score"] == shown


@pytest.mark.parametrize(
    ("label", "name", "expected", "matched"),
    [("Cup", "key", "Cup", True), (None, "the keys", "Key", True), ("Teapot", "pot", "Key", False)],
)
def test_labels_come_from_the_reasoner_then_from_the_object(
    label: str | None, name: str, expected: str, matched: bool
) -> None:
    mask, text = prediction(outcome(instance(label=label, object=name)), CONFIG, "v")["result"]
    assert mask["value"]["brushlabels"] == [expected]
    assert mask["meta"]["rsvp"]["label_matched"] is matched
    assert text["value"]["text"][0].startswith("(label unsure)") is not matched


@given(st.text(max_size=900), st.text(max_size=300))
def test_short_reasons_are_short_and_never_empty(reasoning: str, name: str) -> None:
    short = short_reason(instance(reasoning=reasoning, object=name))
    assert 0 < len(short) <= SHORT_REASON_CHARS


def test_texts_without_spaces_are_cut_by_characters() -> None:
    short = short_reason(instance(reasoning="a " + "é" * 400))
    assert len(short) == SHORT_REASON_CHARS
    assert short.startswith("a ééé")


def test_long_reasons_are_cut_between_words_and_kept_in_the_record() -> None:
    long = "because " * 100
    mask, text = prediction(outcome(instance(reasoning=long)), CONFIG, "v")["result"]
    assert text["value"]["text"][0].endswith("because …")
    assert mask["meta"]["rsvp"]["reasoning"] == long
