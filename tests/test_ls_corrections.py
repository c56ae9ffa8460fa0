"""Annotations as Label Studio serves them -> corrections, over HTTP."""

import base64
import copy
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
from ls_http import Reply, Seen, json_reply, serving
from PIL import Image

from rsvp_backend.errors import ImageError, LabelConfigError, LabelStudioError
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.corrections import Reading, Reason, read_corrections
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.types import Box, Instance, Outcome, Regions, Trace

DATA = Path(__file__).parent / "data" / "label_studio"
XML = default_label_config(["Key", "Cup"])
CONFIG = parse_label_config(XML)
WIDTH_PX, HEIGHT_PX = 60, 40
CROP = Box(4, 2, 30, 24)
EARLY, BEGUN, LATE = (f"2026-11-22T10:00:{second:02}.5Z" for second in (10, 20, 30))
Dict = dict[str, Any]


def area(left: int, top: int, right: int, bottom: int) -> Any:
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def instance(mask: Any, name: str = "door key", label: str | None = "Key", box: Box = CROP) -> Instance:
    return Instance(mask, name, 0.8, f"The {name} opens it. " * 20, box, Regions(rows=(1,), columns=(2,)), label)


def predicted(*instances: Instance, number: int = 7, created_at: str = EARLY) -> Dict:
    made = prediction(Outcome(instances, Trace("what opens the door")), CONFIG, "rsvp-1")
    return made | {"id": number, "created_at": created_at}


def annotation(results: list[Dict], number: int = 1, person: int = 1, **changed: object) -> Dict:
    return {
        "id": number, "result": copy.deepcopy(results), "completed_by": {"id": person, "email": "a@example.com"},
        "was_cancelled": False, "ground_truth": False, "created_at": BEGUN, "updated_at": BEGUN, "import_id": None,
        "updated_by": person, "parent_prediction": None,
    } | changed  # fmt: skip


def drawn(kind: str, value: Dict, label: str | None = "Cup", identity: str = "drawn", **changed: object) -> Dict:
    labels = {} if label is None else {kind: [label]}
    return {
        "id": identity, "type": kind, "from_name": "shapes", "to_name": "image", "origin": "manual",
        "original_width": WIDTH_PX, "original_height": HEIGHT_PX, "image_rotation": 0, "value": value | labels,
    } | changed  # fmt: skip


def brushed(mask: Any, label: str | None = "Cup", identity: str = "drawn", **changed: object) -> Dict:
    return drawn("brushlabels", {"format": "rle", "rle": rle.encode(mask)}, label, identity, **changed)


def boxed(left: int, top: int, right: int, bottom: int, **changed: object) -> Dict:
    value = {
        "x": left / WIDTH_PX * 100, "y": top / HEIGHT_PX * 100, "rotation": 0,
        "width": (right - left) / WIDTH_PX * 100, "height": (bottom - top) / HEIGHT_PX * 100,
    }  # fmt: skip
    return drawn("rectanglelabels", value, **changed)  # type: ignore[arg-type]


def photo(width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX, orientation: int = 1) -> str:
    image = Image.new("RGB", (width_px, height_px), "navy")
    exif = image.getexif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def task(annotations: list[Dict], predictions: list[Dict] | None = None, number: int = 5, **data: object) -> Dict:
    return {
        "id": number, "annotations": annotations, "predictions": predictions or [], "drafts": [],
        "data": {"image": photo(), "instruction": "what opens the door"} | data,
        "total_annotations": sum(not one["was_cancelled"] for one in annotations),
        "cancelled_annotations": sum(one["was_cancelled"] for one in annotations),
    }  # fmt: skip


class Studio:
    """One project; its task list answers the filters that are asked, as the data manager does."""

    def __init__(self, tasks: list[Dict], xml: str = XML) -> None:
        self.tasks, self.xml, self.queries = tasks, xml, list[Dict]()

    def project(self, request: Seen) -> Reply:
        return json_reply({"id": 3, "label_config": self.xml})

    def list(self, request: Seen) -> Reply:
        query = parse_qs(request.path.partition("?")[2])
        assert query["project"] == ["3"]
        assert (query["fields"], query["resolve_uri"]) == (["all"], ["false"])
        asked = json.loads(query["query"][0])
        self.queries.append(asked)
        found = sorted(self.tasks, key=lambda one: int(one["id"]))
        assert asked["filters"]["conjunction"] == "and"
        for item in asked["filters"]["items"]:
            found = [one for one in found if self._fits(one, item)]
        page = found[: int(query["page_size"][0])]
        return json_reply({"tasks": page, "total": len(found)})

    @staticmethod
    def _fits(one: Dict, item: Dict) -> bool:
        seen, wanted = one[item["filter"].removeprefix("filter:tasks:")], item["value"]
        return bool({"greater": seen > wanted, "equal": seen == wanted}[item["operator"]])


@pytest.fixture
def read() -> Iterator[Any]:
    """Reads tasks through the API: (corrections, reading)."""
    with serving() as server, LabelStudioClient(server.url, "x" * 40) as client:

        def read_tasks(*tasks: Dict, xml: str = XML, **options: Any) -> tuple[list[Correction], Reading]:
            studio, reading = Studio(list(tasks), xml), Reading()
            server.routes |= {"/api/projects/3/": studio.project, "/api/tasks": studio.list}
            fetcher = ImageFetcher(server.url, client.auth)
            return list(read_corrections(client, 3, fetcher, 0.2, reading, **options)), reading

        yield read_tasks


def test_untouched_edited_and_deleted_regions_of_a_prediction(read: Any) -> None:
    key, fork, cup = area(6, 4, 20, 14), area(8, 15, 20, 20), area(40, 5, 50, 15)
    shown = predicted(instance(key), instance(fork, "garden fork"), instance(cup, "mug", "Cup", box=Box(35, 0, 60, 20)))
    results = copy.deepcopy(shown["result"])
    edited = area(8, 15, 22, 22)
    results[2] |= {"value": brushed(edited, "Key")["value"], "origin": "prediction-changed"}
    results[3] |= {"value": {"text": ["A fork, not a key."]}, "origin": "prediction-changed"}
    found, reading = read(task([annotation(results[:4], parent_prediction=7)], [shown]))
    confirmed, corrected, refused = found
    assert [one.origin for one in found] == [Origin.CONFIRMED, Origin.CORRECTED, Origin.REFUSED]
    assert [one.text for one in found] == ["door key", "garden fork", "mug"]
    assert [one.label for one in found] == ["Key", "Key", "Cup"]
    assert [one.crop for one in found] == [CROP, CROP, Box(35, 0, 60, 20)]
    assert {(one.task, one.annotator) for one in found} == {(5, 1)}
    assert np.array_equal(confirmed.mask, key)
    assert np.array_equal(corrected.mask, edited)
    assert refused.mask.shape == (HEIGHT_PX, WIDTH_PX)
    assert not refused.mask.any()
    assert len(confirmed.reasoning) > 200  # the reasoner's full text, not the short one of the TextArea
    assert corrected.reasoning == "A fork, not a key."
    assert confirmed.load_image().size == (WIDTH_PX, HEIGHT_PX)
    assert (reading.tasks, reading.left_out) == (1, Counter())
    assert reading.corrections == Counter({Origin.CONFIRMED: 1, Origin.CORRECTED: 1, Origin.REFUSED: 1})


def test_keys_are_stable_and_of_the_content(read: Any) -> None:
    shown = predicted(instance(area(6, 4, 20, 14)))
    submitted = task([annotation(shown["result"], parent_prediction=7)], [shown])
    ((first,), _), ((second,), _) = read(submitted), read(submitted)
    assert first.key == second.key
    assert len(first.key) == 64
    changed = copy.deepcopy(submitted)
    changed["annotations"][0]["result"][0]["value"]["rle"] = rle.encode(area(6, 4, 20, 13))
    ((edited,), _) = read(changed)
    ((elsewhere,), _) = read(submitted | {"id": 6})
    assert len({first.key, edited.key, elsewhere.key}) == 3


def test_a_mask_beyond_its_crop_widens_it(read: Any) -> None:
    shown = predicted(instance(area(6, 4, 20, 14)))
    results = copy.deepcopy(shown["result"])
    results[0]["value"]["rle"] = rle.encode(area(6, 4, 36, 14))
    ((found,), _) = read(task([annotation(results, parent_prediction=7)], [shown]))
    assert found.crop == Box(3, 2, 39, 24)  # the crop, and the mask padded by 10 % of its size on each side


@pytest.mark.parametrize("parent", [7, None])
def test_an_empty_submit_refuses_the_whole_prediction(read: Any, parent: int | None) -> None:
    shown = predicted(instance(area(6, 4, 20, 14)), instance(area(22, 4, 28, 14), "ring"))
    later = predicted(instance(area(0, 0, 9, 9), "later guess"), number=9, created_at=LATE)
    found, reading = read(task([annotation([], parent_prediction=parent)], [shown, later]))
    assert [(one.origin, one.text) for one in found] == [(Origin.REFUSED, "door key"), (Origin.REFUSED, "ring")]
    assert reading.left_out == Counter()
    found, reading = read(task([annotation([])]))
    assert (found, reading.left_out) == ([], {Reason.EMPTY: 1})


def test_the_prediction_that_was_begun_with_is_found_by_its_regions(read: Any) -> None:
    older = predicted(instance(area(6, 4, 20, 14)), instance(area(22, 4, 28, 14), "ring"))
    newer = predicted(instance(area(6, 4, 20, 14), "lamp"), number=8, created_at="2026-11-22T10:00:15Z")
    found, _ = read(task([annotation(older["result"][:2])], [newer, older]))
    assert [(one.origin, one.text) for one in found] == [(Origin.CONFIRMED, "door key"), (Origin.REFUSED, "ring")]
    gone = annotation(older["result"][:2], parent_prediction=99)  # deleted meanwhile
    assert [one.text for one in read(task([gone], [newer, older]))[0]] == ["door key", "ring"]
    # What was drawn without any region of a prediction says nothing about the prediction.
    found, _ = read(task([annotation([brushed(area(40, 30, 50, 35))])], [newer, older]))
    assert [(one.origin, one.text) for one in found] == [(Origin.DRAWN, "Cup")]


def test_an_erased_mask_is_a_refusal(read: Any) -> None:
    shown = predicted(instance(area(6, 4, 20, 14)))
    results = copy.deepcopy(shown["result"])
    results[0] |= {"value": brushed(area(0, 0, 0, 0), "Key")["value"], "origin": "prediction-changed"}
    ((found,), reading) = read(task([annotation(results, parent_prediction=7)], [shown]))
    assert (found.origin, found.text, found.crop, found.mask.any()) == (Origin.REFUSED, "door key", CROP, False)
    results[0] |= {"origin": "manual", "id": "other", "meta": {}}
    found, reading = read(task([annotation(results[:1])]))
    assert (found, reading.left_out) == ([], {Reason.EMPTY_MASK: 1})


def test_a_prediction_that_was_drawn_again_is_not_refused(read: Any) -> None:
    shown = predicted(instance(area(6, 4, 12, 10)))
    again = annotation([brushed(area(10, 8, 28, 20), "Key")], parent_prediction=7)
    ((found,), reading) = read(task([again], [shown]))
    assert (found.origin, found.text, found.label, found.crop) == (Origin.DRAWN, "door key", "Key", CROP)
    assert reading.left_out == {Reason.REDRAWN: 1}
    # Elsewhere it is another find, and the crop holds nothing of that name.
    far = annotation([brushed(area(40, 25, 58, 38), "Key")], parent_prediction=7)
    found, _ = read(task([far], [shown]))
    assert [(one.origin, one.text) for one in found] == [(Origin.DRAWN, "Key"), (Origin.REFUSED, "door key")]
    # A region that cannot be read may be it.
    broken = annotation([drawn("brushlabels", {"format": "rle", "rle": [1, 2]}, "Key")], parent_prediction=7)
    found, reading = read(task([broken], [shown]))
    assert (found, reading.left_out) == ([], {Reason.DAMAGED: 1, Reason.REDRAWN: 1})


def test_another_label_is_another_object(read: Any) -> None:
    shown = predicted(instance(area(6, 4, 20, 14)))
    results = copy.deepcopy(shown["result"])
    results[0]["value"]["brushlabels"] = ["Cup"]
    for predictions in ([shown], []):  # an accepted suggestion is in no stored prediction
        ((found,), _) = read(task([annotation(results)], predictions))
        assert (found.origin, found.text, found.label, found.crop) == (Origin.CORRECTED, "Cup", "Cup", CROP)
    unsure = predicted(instance(area(6, 4, 20, 14), "spanner", None))
    results = copy.deepcopy(unsure["result"])
    results[0]["value"]["brushlabels"] = ["Cup"]
    ((found,), _) = read(task([annotation(results, parent_prediction=7)], [unsure]))
    assert (found.text, found.label) == ("spanner", "Cup")  # the label was a mere guess


def test_regions_drawn_in_every_way(read: Any) -> None:
    triangle = [[x / WIDTH_PX * 100, y / HEIGHT_PX * 100] for x, y in [(10, 10), (30, 10), (10, 30)]]
    alpha = area(31, 1, 40, 9).astype(np.uint8) * 255
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([np.zeros_like(alpha)] * 3 + [alpha])).save(buffer, "PNG")
    png = {"imageDataURL": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}
    results = [
        drawn("polygonlabels", {"points": triangle, "closed": True}, identity="a"),
        boxed(2, 3, 12, 9, identity="b"),
        drawn("bitmasklabels", png, identity="c"),
        drawn("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10}, identity="d"),
        drawn("brush", {"format": "rle", "rle": rle.encode(area(50, 30, 60, 40))}, None, identity="e"),
        drawn("labels", {"format": "rle", "rle": [], "labels": ["Cup"]}, None, identity="e"),
    ]
    found, reading = read(task([annotation(results)]))
    assert [one.text for one in found] == ["Cup"] * 5
    assert {one.origin for one in found} == {Origin.DRAWN}
    polygon, box, bitmask, ellipse, brush = (one.mask for one in found)
    assert polygon.sum() == pytest.approx(200, abs=20)
    assert np.array_equal(box, area(2, 3, 12, 9))
    assert np.array_equal(bitmask, area(31, 1, 40, 9))
    assert ellipse.sum() == pytest.approx(3.14 * 6 * 4, abs=6)
    assert np.array_equal(brush, area(50, 30, 60, 40))
    assert found[1].crop == Box(1, 2, 13, 10)
    assert reading.left_out == Counter()


def test_what_is_no_area_is_no_correction(read: Any) -> None:
    words = {"id": "t", "type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": ["a cup"]}}
    hint = boxed(2, 3, 12, 9, identity="hint", from_name="boxes")
    found, reading = read(task([annotation([words, hint])]))
    assert (found, reading.left_out) == ([], {Reason.PROMPT: 1})


def test_which_annotations_count(read: Any) -> None:
    def one(number: int, person: int, left: int, **changed: object) -> Dict:
        return annotation([boxed(left, 0, left + 5, 5)], number, person, **changed)

    def lefts(found: list[Correction]) -> list[int]:
        return [int(np.flatnonzero(one.mask.any(axis=0))[0]) for one in found]

    found, reading = read(task([one(1, 1, 0, updated_at=LATE), one(2, 1, 10), one(3, 2, 20)]))
    assert (lefts(found), reading.left_out) == ([0, 20], {Reason.SUPERSEDED: 1})
    found, reading = read(task([one(1, 1, 0), one(2, 1, 10, was_cancelled=True), one(3, 2, 20, ground_truth=True)]))
    assert (lefts(found), reading.left_out) == ([20], {Reason.SKIPPED: 1, Reason.NOT_GROUND_TRUTH: 1})
    tasks = task([one(1, 1, 0, updated_by=None, ground_truth=True), one(2, 2, 20)])
    found, reading = read(tasks)
    assert (lefts(found), reading.left_out) == ([20], {Reason.IMPORTED: 1})
    found, reading = read(tasks, include_imported=True)
    assert (lefts(found), reading.left_out) == ([0, 20], Counter())
    bulk = task([one(1, 1, 0, updated_by=None, parent_prediction=7)])
    found, reading = read(bulk, include_imported=True)
    assert (found, reading.left_out) == ([], {Reason.IMPORTED: 1})
    nobody = [one(1, 1, 0, completed_by=None), one(2, 1, 10, completed_by=None)]
    found, _ = read(task(nobody))
    assert (lefts(found), found[0].annotator) == ([0, 10], None)


def test_tasks_are_read_page_by_page_and_counted(read: Any) -> None:
    tasks = [task([annotation([boxed(0, 0, 5, 5)])], number=number) for number in (9, 2, 4, 11, 30)]
    skipped = [task([annotation([], was_cancelled=True)], number=number) for number in range(100, 107)]
    found, reading = read(*tasks, *skipped, task([], number=1), page_size=2)
    assert [one.task for one in found] == [2, 4, 9, 11, 30]
    assert (reading.tasks, reading.left_out) == (12, {Reason.SKIPPED: 7})
    assert str(reading).splitlines() == [
        "5 corrections of 12 tasks (5 drawn)",
        "left out 7, skipped (tasks 100, 101, 102, 103, 104)",
    ]


def test_sizes_that_disagree_are_checked_on_the_image(read: Any) -> None:
    def sized(width_px: int | None, height_px: int | None) -> Dict:
        return boxed(0, 0, 30, 20, identity=f"{width_px}", original_width=width_px, original_height=height_px)

    upright = photo(HEIGHT_PX, WIDTH_PX, orientation=6)  # stored as 40 x 60, shown as 60 x 40
    results = [sized(WIDTH_PX, HEIGHT_PX), sized(HEIGHT_PX, WIDTH_PX), sized(30, 20), sized(None, None)]
    found, reading = read(task([annotation(results)], image=upright))
    assert [one.mask.sum() for one in found] == [600, 600]
    assert found[0].load_image().size == (WIDTH_PX, HEIGHT_PX)
    assert reading.left_out == {Reason.SWAPPED_SIZE: 1, Reason.OTHER_SIZE: 1}
    # A browser's own statement is believed until the image is loaded.
    ((found,), _) = read(task([annotation([sized(HEIGHT_PX, WIDTH_PX)])], image=upright))
    with pytest.raises(ImageError, match="task 5: the image is 60 x 40, its annotation was made on 40 x 60"):
        found.load_image()
    imported = task([annotation([sized(HEIGHT_PX, WIDTH_PX)], updated_by=None)], image=upright)
    found, reading = read(imported, include_imported=True)
    assert (found, reading.left_out) == ([], {Reason.SWAPPED_SIZE: 1})
    _, reading = read(task([annotation([sized(100_000, 100_000)])]))
    assert reading.left_out == {Reason.OTHER_SIZE: 1}


def test_images_are_fetched_only_when_loaded(read: Any) -> None:
    shown = predicted(instance(area(6, 4, 20, 14)))
    (found, _) = read(
        task([annotation(shown["result"], parent_prediction=7)], [shown], image="/data/upload/3/gone.png")
    )
    with pytest.raises(ImageError, match=r"gone\.png answered 404"):
        found[0].load_image()
    doubtful = [boxed(0, 0, 5, 5, identity=f"{width}", original_width=width) for width in (50, 60)]
    _, reading = read(task([annotation(doubtful)], image="/data/upload/3/gone.png"))
    assert reading.left_out == {Reason.NO_IMAGE: 2}
    assert "gone.png answered 404" in str(reading)
    _, reading = read(task([annotation([boxed(0, 0, 5, 5)])], image=None))
    assert reading.left_out == {Reason.NO_IMAGE: 1}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"value": {"format": "rle", "rle": [0, 0, 0, 1, 0, 0, 0], "brushlabels": ["Cup"]}}, Reason.DAMAGED),
        ({"value": None}, Reason.DAMAGED),
        ({"id": 4}, Reason.DAMAGED),
        ({"image_rotation": 90}, Reason.TURNED),
        ({"to_name": "other"}, Reason.OTHER_IMAGE),
        ({"value": {"format": "rle", "rle": rle.encode(area(1, 1, 5, 5))}}, Reason.NO_TEXT),
    ],
)
def test_unusable_regions_are_left_out_with_their_reason(read: Any, changed: Dict, reason: Reason) -> None:
    good = boxed(0, 0, 5, 5, identity="good")
    found, reading = read(task([annotation([brushed(area(1, 1, 5, 5)) | changed, good])]))
    assert [one.text for one in found] == ["Cup"]
    assert reading.left_out == {reason: 1}
    assert reading.tasks_left_out == {reason: [5]}


@pytest.mark.parametrize("box", [None, [0, 0, 0, 0], [1, 2, 3], ["a", 0, 5, 5], [9, 9, 5, 5], [70, 0, 80, 9]])
def test_a_record_without_a_usable_box_gives_the_masks_own(read: Any, box: object) -> None:
    shown = predicted(instance(area(10, 10, 20, 20)))
    shown["result"][0]["meta"]["rsvp"]["box_xyxy"] = box
    for results in (shown["result"], []):
        ((found,), _) = read(task([annotation(results, parent_prediction=7)], [shown]))
        assert (found.text, found.crop) == ("door key", Box(9, 9, 21, 21))


def test_aliases_are_read_as_their_labels(read: Any) -> None:
    xml = XML.replace('<Label value="Cup"/>', '<Label value="Cup" alias="c1"/>')
    ((found,), _) = read(task([annotation([brushed(area(1, 1, 5, 5), "c1")])]), xml=xml)
    assert (found.text, found.label) == ("Cup", "Cup")


def test_a_task_as_the_real_server_sent_it(read: Any) -> None:
    captured = json.loads((DATA / "api_task_with_predictions_and_annotations.json").read_text())["response"]
    xml = json.loads((DATA / "webhook_annotation_created.json").read_text())["body"]["project"]["label_config"]
    (right, left), reading = read(captured, xml=xml)
    assert (right.origin, left.origin) == (Origin.CORRECTED, Origin.CONFIRMED)
    assert (right.text, right.task, right.annotator) == ("Zebra", 60, 1)
    assert right.reasoning.startswith("PERREGION: The zebra on the right")
    assert left.reasoning == "Second, smaller zebra in the foreground."  # from the prediction: the editor dropped it
    before = rle.decode(captured["predictions"][0]["result"][0]["value"]["rle"], 427, 640)
    both = (right.mask & before).sum() / (right.mask | before).sum()
    assert 0.9 < both < 1.0
    assert reading.left_out == Counter()
    without = copy.deepcopy(captured)
    without["annotations"][0]["result"] = without["annotations"][0]["result"][:3]
    found, _ = read(without, xml=xml)
    assert [one.origin for one in found] == [Origin.CORRECTED, Origin.REFUSED]


def test_projects_that_cannot_be_read(read: Any) -> None:
    with pytest.raises(LabelConfigError, match="BrushLabels"):
        read(xml="<View/>")
    with serving() as server:
        server.routes["/api/projects/3/"] = lambda _: json_reply({"detail": "No Project matches the given query."}, 404)
        with (
            LabelStudioClient(server.url, "x" * 40) as client,
            pytest.raises(LabelStudioError, match="404: No Project matches"),
        ):
            list(read_corrections(client, 3, ImageFetcher(server.url), 0.2))
