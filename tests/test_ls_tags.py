"""Labeling configs: what is found, what is said when something is missing, and which label a text gets."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface

from rsvp_backend.errors import LabelConfigError
from rsvp_backend.labelstudio.tags import (
    MASK_TAGS,
    Kind,
    MaskLabel,
    default_label_config,
    match_label,
    parse_label_config,
)

DATA = Path(__file__).parent / "data" / "label_studio"


def view(inside: str) -> str:
    return f"<View>{inside}</View>"


BRUSH = '<BrushLabels name="brush" toName="image"><Label value="Key"/></BrushLabels>'
IMAGE = '<Image name="image" value="$image"/>'


def test_the_shipped_config_is_valid_for_label_studio_and_complete_for_us() -> None:
    xml = default_label_config(["Key", 'Cup & "saucer"'])
    LabelInterface(xml).validate()
    config = parse_label_config(xml)
    assert (config.mask_name, config.image_name, config.image_field) == ("mask", "image", "image")
    assert config.label_values == ("Key", 'Cup & "saucer"')
    assert (config.reasoning_name, config.prompt_name, config.instruction_field) == (
        "reasoning",
        "prompt",
        "instruction",
    )


def test_the_shipped_smart_tools_repeat_the_masks_labels() -> None:
    labels = ["Key", 'Cup & "saucer"']
    root = ET.fromstring(default_label_config(labels))
    for tool in ("KeyPointLabels", "RectangleLabels"):
        (tag,) = root.iter(tool)
        assert (tag.get("smart"), tag.get("smartOnly"), tag.get("toName")) == ("true", "true", "image")
        assert [(label.get("value"), label.get("smart")) for label in tag] == [(label, "true") for label in labels]
    (brush,) = root.iter("BrushLabels")
    assert brush.get("smart") == "false"
    message = next(tag for tag in root.iter("TextArea") if tag.get("name") == "message")
    assert message.get("smart") == "false"  # else writing into it would call the backend
    assert parse_label_config(default_label_config(labels)).message_name == "message"


def test_smart_tools_before_the_mask_tag_change_nothing() -> None:
    smart = '<KeyPointLabels name="k" toName="image" smart="true"><Label value="Point" smart="true"/></KeyPointLabels>'
    message = '<TextArea name="Message" toName="image" value="$note"/>'
    config = parse_label_config(view(IMAGE + smart + message + BRUSH))
    assert (config.mask_name, config.label_values, config.message_name) == ("brush", ("Key",), "Message")
    assert config.prompt_name is None


def test_the_shipped_prompt_lies_below_the_image_and_requires_no_field() -> None:
    tags = list(ET.fromstring(default_label_config()))
    names = [tag.get("name") for tag in tags]
    assert names.index("prompt") > names.index("image")
    prompt = tags[names.index("prompt")]
    # Label Studio refuses tasks that lack the field of a named tag's `value`.
    assert prompt.get("value") is None
    assert prompt.get("maxLength") is None
    reasoning = tags[names.index("reasoning")]
    assert (reasoning.get("perRegion"), reasoning.get("displayMode"), reasoning.get("rows")) == (
        "true",
        "region-list",
        "3",
    )


def test_the_shipped_config_needs_a_label() -> None:
    with pytest.raises(ValueError, match="labels is empty"):
        default_label_config([])


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1), min_size=1))
def test_any_label_text_survives_the_shipped_config(labels: list[str]) -> None:
    assert parse_label_config(default_label_config(labels)).label_values == tuple(labels)


def test_captured_configs_are_understood() -> None:
    batch = json.loads((DATA / "predict_batch.json").read_text())["body"]["label_config"]
    config = parse_label_config(batch)
    assert config.label_values == ("Zebra", "Other")
    assert (config.mask_name, config.reasoning_name, config.instruction_field) == ("brush", "reasoning", "instruction")
    assert config.prompt_name is None  # its task-level TextArea "answer" is for notes
    prompt = json.loads((DATA / "predict_interactive_prompt.json").read_text())["body"]["label_config"]
    assert parse_label_config(prompt).prompt_name == "prompt"
    assert parse_label_config(prompt).instruction_field == "instruction"


def test_aliases_come_from_alias_and_predicted_values() -> None:
    brush = (
        '<BrushLabels name="b" toName="image"><Label value="Key" alias="k" predicted_values="key, door key,k"/>'
        '<Label value="Cup"/></BrushLabels>'
    )
    key, cup = parse_label_config(view(IMAGE + brush)).labels
    assert (key.value, key.aliases, key.output) == ("Key", ("k", "key", "door key"), "k")
    assert (cup.value, cup.aliases, cup.output) == ("Cup", (), "Cup")


def test_a_prompt_is_found_by_its_field_where_its_name_says_nothing() -> None:
    area = '<TextArea name="notes" toName="image"/><TextArea name="ask" toName="image" value="$question"/>'
    config = parse_label_config(view(IMAGE + BRUSH + area + '<Header value="$title"/>'))
    assert (config.prompt_name, config.instruction_field) == ("ask", "question")


def test_tags_of_another_image_are_left_alone() -> None:
    second = '<Image name="other" value="$other"/><TextArea name="why" toName="other" perRegion="true"/>'
    config = parse_label_config(view(second + IMAGE + BRUSH))
    assert (config.image_name, config.reasoning_name) == ("image", None)


@pytest.mark.parametrize("tag", ["EllipseLabels", "KeyPointLabels", "Brush"])
def test_other_mask_tags_are_named_with_what_to_add(tag: str) -> None:
    xml = view(f'{IMAGE}<{tag} name="m" toName="image"><Label value="A"/></{tag}>')
    with pytest.raises(LabelConfigError, match=rf'only <{tag}>.*Add inside <View>: <BrushLabels name="mask"'):
        parse_label_config(xml)


@pytest.mark.parametrize("kind", list(MASK_TAGS))
def test_masks_go_into_the_tag_that_is_there(kind: Kind) -> None:
    label, smart = '<Label value="A"/>', 'smart="true" smartOnly="true"'
    asking = f'<RectangleLabels name="boxes" toName="image" {smart}>{label}</RectangleLabels>'
    mask = f'<{MASK_TAGS[kind]} name="m" toName="image">{label}</{MASK_TAGS[kind]}>'
    for inside in (asking + mask, mask + asking):
        config = parse_label_config(view(IMAGE + inside))
        assert (config.kind, config.mask_name, config.tolerance_px) == (kind, "m", 1.0)
    with pytest.raises(LabelConfigError, match="only <RectangleLabels>, which masks are not put into"):
        parse_label_config(view(IMAGE + asking))


def test_of_several_mask_tags_the_most_exact_is_filled() -> None:
    tags = (f'<{tag} name="{tag}" toName="image"><Label value="A"/></{tag}>' for tag in reversed(MASK_TAGS.values()))
    assert parse_label_config(view(IMAGE + "".join(tags))).mask_name == "BrushLabels"


def test_a_polygons_tolerance_is_its_tags() -> None:
    tag = '<PolygonLabels name="m" toName="image" tolerance="{}"><Label value="A"/></PolygonLabels>'
    assert parse_label_config(view(IMAGE + tag.format("2.5"))).tolerance_px == 2.5
    for wrong in ("-1", "nan", "wide", "101"):
        with pytest.raises(LabelConfigError, match=f'tolerance="{wrong}": pixels, 0 to 100'):
            parse_label_config(view(IMAGE + tag.format(wrong)))


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (view(IMAGE), r"no <BrushLabels>.*seen: none.*Add inside <View>: <BrushLabels"),
        (view(BRUSH), r'no <Image> has that name. Add inside <View>: <Image name="image"'),
        (view(IMAGE + '<BrushLabels name="b" toName="image"/>'), "add at least one"),
        (view('<Image name="image" valueList="$pages"/>' + BRUSH), "a task field is expected"),
        ("<View>", "not valid XML"),
        ("", "not valid XML"),
        ("<View/>" + " " * 1_000_001, "characters"),
    ],
    ids=["no-mask", "no-image", "no-label", "no-field", "broken", "empty", "huge"],
)
def test_what_is_missing_is_said(xml: str, message: str) -> None:
    with pytest.raises(LabelConfigError, match=message):
        parse_label_config(xml)


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE a [<!ENTITY x "y">]>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    ],
)
def test_entities_and_dtds_are_refused(doctype: str) -> None:
    with pytest.raises(LabelConfigError, match="DOCTYPE"):
        parse_label_config(doctype + view(IMAGE + BRUSH))


def test_undeclared_entities_are_refused() -> None:
    with pytest.raises(LabelConfigError, match="not valid XML"):
        parse_label_config(view("&x;" + IMAGE + BRUSH))


KEY, CUP, LOW = MaskLabel("Door key", ("cup", "opener")), MaskLabel("Cup"), MaskLabel("cup")


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("Cup", (KEY, CUP), CUP),  # exact before normalised
        ("cup", (KEY, LOW), LOW),  # exact before alias
        ("cup", (CUP, KEY), KEY),  # alias before normalised
        ("the door-key", (CUP, KEY), KEY),
        ("DOOR_KEYS.", (CUP, KEY), KEY),
        ("Opener", (CUP, KEY), KEY),
        ("teapot", (CUP, KEY), None),
        ("", (CUP, KEY), None),
        (None, (CUP, KEY), None),
        ("teapot", (CUP,), CUP),
        (None, (CUP,), CUP),
        ("x", (), None),
    ],
)
def test_labels_are_matched_in_the_documented_order(
    text: str | None, labels: tuple[MaskLabel, ...], expected: MaskLabel | None
) -> None:
    assert match_label(text, labels) is expected
