"""Label Studio's labeling config: which tags the backend reads and fills, and which label a mask gets."""

from __future__ import annotations

import math
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn
from xml.sax.saxutils import quoteattr

from rsvp_backend.errors import LabelConfigError

Kind = Literal["brush", "bitmask", "polygon", "rectangle"]

MASK_TAGS: Mapping[Kind, str] = MappingProxyType(
    {"brush": "BrushLabels", "bitmask": "BitmaskLabels", "polygon": "PolygonLabels", "rectangle": "RectangleLabels"}
)
"""The tags that masks are put into; where a config has several, the first of these."""

MOST_TOLERANCE_PX = 100.0
_MAX_CHARS = 1_000_000
_OTHER_MASK_TAGS = ("EllipseLabels", "KeyPointLabels", "RectangleLabels", "Brush", "Bitmask", "Polygon", "Rectangle")
_FIELD = re.compile(r"\$(\w+)")
_PROMPT_NAME = re.compile(r"prompt|instruction|query", re.IGNORECASE)
_MESSAGE_NAME = re.compile(r"message", re.IGNORECASE)

_ROW = "display: flex; align-items: baseline; gap: 8px"
MASK_SNIPPET = '<BrushLabels name="mask" toName="image"><Label value="Object"/></BrushLabels>'
IMAGE_SNIPPET = '<Image name="image" value="$image"/>'


@dataclass(frozen=True, slots=True)
class MaskLabel:
    """A label of the mask tag. ``aliases``: its ``alias`` and ``predicted_values`` attributes."""

    value: str
    aliases: tuple[str, ...] = ()
    alias: str | None = None

    @property
    def output(self) -> str:
        """The name that results carry: Label Studio stores the alias where there is one."""
        return self.alias or self.value


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What the backend needs of a labeling config; names are the tags' ``name`` attributes, fields are task data keys.

    ``reasoning_name``: TextArea with ``perRegion="true"``. ``prompt_name``: TextArea of the whole task that takes an
    instruction. ``instruction_field``: the field that a Header, Text or the prompt shows. ``message_name``: TextArea of
    the whole task that tells the annotator what an interactive call came to. ``kind``: of the mask tag.
    ``tolerance_px``: how far a polygon may be from the mask's edge, the mask tag's ``tolerance``.

    Tags that are only drawn with (smart KeyPointLabels and RectangleLabels) need no name here: see `hints`.
    """

    mask_name: str
    image_name: str
    image_field: str
    labels: tuple[MaskLabel, ...]
    reasoning_name: str | None = None
    prompt_name: str | None = None
    instruction_field: str | None = None
    message_name: str | None = None
    kind: Kind = "brush"
    tolerance_px: float = 1.0

    @property
    def label_values(self) -> tuple[str, ...]:
        return tuple(label.value for label in self.labels)


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise LabelConfigError("the labeling config has a DOCTYPE: remove it, entities and DTDs are refused")


def parse_label_config(xml: str) -> LabelConfig:
    """Read the tags of a labeling config. Raises `LabelConfigError` that says what to add or to change."""
    root = _parse_xml(xml)
    kind, mask = _mask_tag(root)
    image_name, image_field = _image_of(mask, root)
    labels = tuple(_label(tag) for tag in mask.iter("Label") if tag.get("value"))
    if not labels:
        raise LabelConfigError(f'<{mask.tag} name="{mask.get("name")}"> has no <Label value="...">: add at least one')
    areas = [tag for tag in root.iter("TextArea") if image_name in _targets(tag) and tag.get("name")]
    reasoning = next((tag for tag in areas if _true(tag, "perRegion")), None)
    of_task = [tag for tag in areas if not _true(tag, "perRegion")]
    message = next((tag for tag in of_task if _MESSAGE_NAME.search(tag.attrib["name"])), None)
    prompt = _prompt_tag([tag for tag in of_task if tag is not message])
    return LabelConfig(
        mask_name=mask.attrib["name"],
        image_name=image_name,
        image_field=image_field,
        labels=labels,
        reasoning_name=None if reasoning is None else reasoning.get("name"),
        prompt_name=None if prompt is None else prompt.get("name"),
        instruction_field=_instruction_field(root, prompt),
        message_name=None if message is None else message.get("name"),
        kind=kind,
        tolerance_px=_tolerance(mask),
    )


def match_label(text: str | None, labels: Sequence[MaskLabel]) -> MaskLabel | None:
    """The label that ``text`` names; the first rule that fits, in this order, else None.

    1. exact: equals a label's value. 2. alias: equals one of a label's aliases. 3. normalised: equal to a value or an
    alias without regard to case, punctuation, leading articles and a plural s. 4. only label: there is just one.
    """
    if text is not None:
        for label in labels:
            if text == label.value:
                return label
        for label in labels:
            if text in label.aliases:
                return label
        wanted = _normalised(text)
        for label in labels:
            if wanted and wanted in {_normalised(name) for name in (label.value, *label.aliases)}:
                return label
    return labels[0] if len(labels) == 1 else None


def default_label_config(labels: Sequence[str] = ("Object",), kind: Kind = "brush") -> str:
    """The labeling config that this package ships: instruction, image, masks, smart tools, prompt, reasoning.

    The prompt is below the image (above it the brush slider covers its button) and not bound to ``$instruction``
    (Label Studio would then refuse tasks that lack the field, such as plain image uploads). The smart tools repeat the
    masks' labels, so that a mask made from a click gets the label that was clicked with; there is no smart brush, whose
    strokes are no hints.
    """
    if not labels:
        raise ValueError("labels is empty: at least one label name is expected")
    rows = "\n".join(f"      <Label value={quoteattr(label)}/>" for label in labels)
    smart = rows.replace("/>", ' smart="true"/>')
    sharp = ' smoothing="false"' if kind == "bitmask" else ""
    tolerance = ' tolerance="1"' if kind == "polygon" else ""
    return f"""<View>
  <Header value="$instruction"/>
  <Image name="image" value="$image" zoom="true" zoomControl="true"{sharp}/>
  <View style="{_ROW}">
    <Header value="Mask" size="6"/>
    <{MASK_TAGS[kind]} name="mask" toName="image" smart="false"{tolerance}>
{rows}
    </{MASK_TAGS[kind]}>
  </View>
  <View style="{_ROW}">
    <Header value="Click" size="6"/>
    <KeyPointLabels name="clicks" toName="image" smart="true" smartOnly="true">
{smart}
    </KeyPointLabels>
  </View>
  <View style="{_ROW}">
    <Header value="Box" size="6"/>
    <RectangleLabels name="boxes" toName="image" smart="true" smartOnly="true">
{smart}
    </RectangleLabels>
  </View>
  <TextArea name="prompt" toName="image" rows="2" editable="true" maxSubmissions="1" showSubmitButton="true"
            placeholder="another instruction (with Auto-Annotation on): what to segment"/>
  <TextArea name="message" toName="image" rows="2" smart="false" maxSubmissions="1"
            placeholder="here the backend says what it found, or why nothing"/>
  <TextArea name="reasoning" toName="image" perRegion="true" displayMode="region-list" editable="true" rows="3"
            maxSubmissions="1" placeholder="why this region"/>
</View>
"""


def _parse_xml(xml: str) -> ET.Element:
    if len(xml) > _MAX_CHARS:
        raise LabelConfigError(f"the labeling config has {len(xml)} characters: at most {_MAX_CHARS} are expected")
    try:
        return ET.fromstring(xml, parser=ET.XMLParser(target=_NoDoctype()))
    except (ET.ParseError, ValueError) as error:
        raise LabelConfigError(f"the labeling config is not valid XML: {error}") from None


def _mask_tag(root: ET.Element) -> tuple[Kind, ET.Element]:
    """Rectangles that are only drawn to ask the model are none."""
    for kind, name in MASK_TAGS.items():
        for tag in root.iter(name):
            if tag.get("name") and tag.get("toName") and not (kind == "rectangle" and _true(tag, "smartOnly")):
                return kind, tag
    others = [name for name in _OTHER_MASK_TAGS if root.find(f".//{name}") is not None]
    seen = f"only {', '.join(f'<{name}>' for name in others)}, which masks are not put into" if others else "none"
    expected = ", ".join(f"<{name}>" for name in MASK_TAGS.values())
    raise LabelConfigError(
        f"the labeling config has no {expected.replace(', <Rect', ' or <Rect')} with name and toName for the masks "
        f"(seen: {seen}). Add inside <View>: {MASK_SNIPPET}"
    )


def _tolerance(mask: ET.Element) -> float:
    given = mask.get("tolerance", "1")
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not 0 <= number <= MOST_TOLERANCE_PX:
        raise LabelConfigError(
            f'<{mask.tag} name="{mask.get("name")}"> has tolerance="{given:.30}": pixels, 0 to {MOST_TOLERANCE_PX:g}, '
            "are expected"
        )
    return number


def _image_of(mask: ET.Element, root: ET.Element) -> tuple[str, str]:
    """Name and data field of the image that the mask tag points to."""
    targets = _targets(mask)
    for tag in root.iter("Image"):
        if tag.get("name") in targets:
            field = _field(tag)
            if field is None:
                raise LabelConfigError(
                    f'<Image name="{tag.get("name")}"> has value={tag.get("value")!r}: a task field is expected, '
                    f"for example {IMAGE_SNIPPET}"
                )
            return tag.attrib["name"], field
    raise LabelConfigError(
        f'<{mask.tag} name="{mask.get("name")}"> has toName="{mask.get("toName")}", but no <Image> has that name. '
        f"Add inside <View>: {IMAGE_SNIPPET}"
    )


def _label(tag: ET.Element) -> MaskLabel:
    alias = tag.get("alias") or None
    predicted = (name.strip() for name in tag.get("predicted_values", "").split(","))
    aliases = tuple(dict.fromkeys(name for name in (alias, *predicted) if name))
    return MaskLabel(tag.attrib["value"], aliases, alias)


def _prompt_tag(areas: list[ET.Element]) -> ET.Element | None:
    """By name (prompt, instruction, query), else the one bound to a field; a mere notes field is never the prompt."""
    named = [tag for tag in areas if _PROMPT_NAME.search(tag.attrib["name"])]
    bound = [tag for tag in areas if _field(tag)]
    return next(iter(named + bound), None)


def _instruction_field(root: ET.Element, prompt: ET.Element | None) -> str | None:
    """``instruction`` if anything shows it, else the prompt's field, else the first field in a Header or Text."""
    shown = [_field(tag) for tag in root.iter() if tag.tag in ("Header", "Text")]
    bound = [field for field in ([] if prompt is None else [_field(prompt)]) + shown if field]
    return "instruction" if "instruction" in bound else next(iter(bound), None)


def _field(tag: ET.Element) -> str | None:
    found = _FIELD.search(tag.get("value", ""))
    return found.group(1) if found else None


def _targets(tag: ET.Element) -> set[str]:
    return {name.strip() for name in tag.get("toName", "").split(",") if name.strip()}


def _true(tag: ET.Element, attribute: str) -> bool:
    return tag.get(attribute, "").strip().lower() == "true"


def _normalised(text: str) -> str:
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("_", " "))
    if words and words[0] in ("a", "an", "the"):
        words = words[1:]
    joined = " ".join(words)
    return joined[:-1] if len(joined) > 3 and joined.endswith("s") and not joined.endswith("ss") else joined
