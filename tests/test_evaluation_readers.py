"""Readers of public data sets on hand-made copies of their formats: what is asked, what is true, and what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_folders import (
    FOUND_XYXY,
    SIDE,
    box_mask,
    corners,
    picture,
    reasonseg_json,
    write_clevr_ref,
    write_gqa,
    write_json,
    write_reasonseg,
    write_seginw,
)
from PIL import Image
from refer_folders import box_mask as refer_mask
from refer_folders import packed, polygon, write_annotations, write_coco, write_refer

from rsvp_backend.evaluation import datasets
from rsvp_backend.evaluation.refcoco import in_split
from rsvp_backend.evaluation.samples import EvaluationSet, Picture, Problems, Sample, Truth, limited
from rsvp_backend.evaluation.seginw import SETS, phrase
from rsvp_backend.training.referring import DataError, SampleError


def truth_of(sample: Sample) -> Truth:
    return sample.truth.read(*sample.image.load().size)


def by_text(data: EvaluationSet) -> dict[str, Sample]:
    return {sample.instruction: sample for sample in data.samples}


def test_reasonseg_asks_the_first_text_and_tells_long_from_short(tmp_path: Path) -> None:
    problems = Problems()
    data = datasets.read("reasonseg", write_reasonseg(tmp_path), "val", problems)
    assert [sample.instruction for sample in data.samples] == [
        "the cup", "the thing to drink from", "the absent dog", "the absent cat",
    ]  # fmt: skip
    assert [sample.groups["length"] for sample in data.samples] == ["short", "long", "long", "short"]
    assert [sample.id for sample in data.samples] == ["a", "b", "c", "d"]
    assert np.array_equal(truth_of(data.samples[0]).mask, box_mask(FOUND_XYXY))
    assert np.array_equal(truth_of(data.samples[2]).mask, box_mask((0, 0, 10, 10)))  # without the deprecated flag
    assert not truth_of(data.samples[3]).present
    assert not list(problems)


def test_reasonseg_draws_large_polygons_first_and_ignores_what_is_to_be_ignored(tmp_path: Path) -> None:
    """A small target in a large ignored part in a target that is larger still, whatever the order in the file."""
    data = reasonseg_json(["x"], True, target=[(40, 40, 44, 44), (10, 10, 70, 70)], Ignored=[(20, 20, 60, 60)])
    write_json(tmp_path / "ReasonSeg" / "test" / "x.json", data)
    picture(tmp_path / "ReasonSeg" / "test" / "x.jpg")
    truth = truth_of(datasets.read("reasonseg", tmp_path, "test", Problems()).samples[0])
    ignored = box_mask((20, 20, 60, 60)) & ~box_mask((40, 40, 44, 44))
    assert truth.ignore is not None
    assert np.array_equal(truth.ignore, ignored)
    assert np.array_equal(truth.mask, box_mask((10, 10, 70, 70)) & ~ignored)
    assert int(truth.mask.sum()) == 3600 - 1600 + 16


def test_reasonseg_in_the_old_encoding_and_with_fractions(tmp_path: Path) -> None:
    shape = {"label": "target", "points": [[2.9, 3.9], [8.1, 3.2], [8.7, 5.9], [2.1, 5.0]]}
    text = json.dumps({"text": ["café noir"], "is_sentence": False, "shapes": [shape]}, ensure_ascii=False)
    picture(tmp_path / "val" / "x.jpg")
    (tmp_path / "val" / "x.json").write_bytes(text.encode("cp1252"))
    sample = datasets.read("reasonseg", tmp_path, "val", Problems()).samples[0]
    assert sample.instruction == "café noir"
    assert np.array_equal(truth_of(sample).mask, box_mask((2, 3, 9, 6)))  # points are cut to whole pixels


def test_reasonseg_looks_at_photographs_upright(tmp_path: Path) -> None:
    """As OpenCV reads them, on whose pixels the polygons were drawn."""
    write_json(tmp_path / "val" / "x.json", reasonseg_json(["x"], False, target=[(0, 0, 5, 5)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "val" / "x.jpg", exif=exif)
    sample = datasets.read("reasonseg", tmp_path, "val", Problems()).samples[0]
    assert sample.image.load().size == (20, 40)
    assert truth_of(sample).mask.shape == (40, 20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: "{", "b.json is not JSON: Expecting property name"),
        (lambda d: "[]", "b.json holds a list: an object {...} is expected"),
        (lambda d: {**d, "text": []}, "b.json: text is []: a list of instructions is expected"),
        (lambda d: {**d, "text": "the cup"}, "b.json: text is 'the cup': a list of instructions is expected"),
        (lambda d: {**d, "is_sentence": None}, "b.json: is_sentence is None: true or false is expected"),
        (lambda d: {**d, "shapes": {}}, "b.json: shapes is {}: a list of polygons is expected"),
        (lambda d: {**d, "shapes": [{"points": []}]}, "b.json: shapes[0].label is None: a text is expected"),
        (lambda d: {**d, "shapes": [{"label": "target", "points": [[1, "x"]]}]}, "b.json: shapes[0].points is"),
        (lambda d: {**d, "shapes": [{"label": "target", "points": []}]}, "b.json: shapes[0].points is []"),
        (lambda d: {**d, "shapes": [{"label": "target", "points": [[1, 1e12]]}]}, "b.json: shapes[0].points is"),
    ],
)
def test_reasonseg_tells_what_is_wrong_with_a_file_and_goes_on(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    path = write_reasonseg(tmp_path) / "val" / "b.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    problems = Problems()
    assert len(datasets.read("reasonseg", tmp_path, "val", problems).samples) == 3
    (line,) = problems
    assert line.startswith(f"{tmp_path}/val/{said}")
    with pytest.raises(DataError, match=r"b\.json.*\(--strict\)"):
        datasets.read("reasonseg", tmp_path, "val", Problems(strict=True))


def test_reasonseg_with_files_that_are_not_there(tmp_path: Path) -> None:
    root, problems = write_reasonseg(tmp_path), Problems()
    (root / "val" / "a.jpg").unlink()
    (root / "val" / "b.json").unlink()
    data = datasets.read("reasonseg", root, "val", problems)
    assert list(problems) == [f"{root}/val/b.jpg has no b.json beside it"]
    with pytest.raises(SampleError, match=r"val/a\.jpg cannot be read as an image: No such file"):
        data.samples[0].image.load()
    (root / "val" / "c.jpg").write_bytes(b"\xff\xd8 cut off")
    with pytest.raises(SampleError, match=r"val/c\.jpg cannot be read as an image"):
        data.samples[1].image.load()


def test_points_far_beyond_the_image_are_not_drawn(tmp_path: Path) -> None:
    shape = {"label": "target", "points": [[0, 0], [2**30, 0], [0, 2**30]]}
    write_json(tmp_path / "val" / "x.json", {"text": ["x"], "is_sentence": True, "shapes": [shape]})
    picture(tmp_path / "val" / "x.jpg")
    sample = datasets.read("reasonseg", tmp_path, "val", Problems()).samples[0]
    with pytest.raises(SampleError, match=r"x\.json: shapes: points reach far beyond the image of 90 x 90 px"):
        truth_of(sample)


def test_refcoco_asks_every_sentence_in_lower_case(tmp_path: Path) -> None:
    root, problems = write_refer(tmp_path, {"train": [1], "val": [2, 3], "testA": [4], "testB": [5]}), Problems()
    data = datasets.read("refcoco", root, "val", problems)
    assert (data.name, len(data.samples), len({sample.id for sample in data.samples})) == ("refcoco (unc)", 8, 8)
    assert [sample.instruction for sample in data.samples[:2]] == ["red box", "box on the left"]
    assert np.array_equal(truth_of(data.samples[0]).mask, refer_mask(2, "red"))
    assert np.array_equal(truth_of(data.samples[2]).mask, refer_mask(2, "blue"))
    assert len({sample.image_id for sample in data.samples}) == 2
    for split, count in (("testA", 4), ("testB", 4), ("test", 8)):
        assert len(datasets.read("refcoco", root, split, problems).samples) == count
    assert not list(problems)


def test_refer_splits_by_letter() -> None:
    assert [in_split(known, "testA") for known in ("testA", "testB", "testAB", "train", "val")] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert in_split("test", "test")
    assert not in_split("val", "test")


def test_refcocog_by_another_hand(tmp_path: Path) -> None:
    root = write_refer(tmp_path, {"val": [1]}, name="refcocog", by="google")
    assert datasets.read("refcocog", root, "val", Problems(), split_by="google").name == "refcocog (google)"
    with pytest.raises(DataError, match=r"refs\(umd\)\.p does not exist, there are refs\(google\)\.p"):
        datasets.read("refcocog", root, "val", Problems())


def test_refcoco_objects_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    root, problems = write_refer(tmp_path, {"val": [1, 2]}), Problems()
    path = root / "refcoco" / "instances.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["segmentation"] = []
    data["annotations"][1]["segmentation"] = {"size": [48, 64], "counts": "damaged!"}
    data["images"][1]["file_name"] = "../../etc/passwd"
    path.write_text(json.dumps(data))
    samples = datasets.read("refcoco", root, "val", problems).samples
    assert len(samples) == 2
    with pytest.raises(SampleError, match=r"instances\.json: annotation 3: segmentation: "):
        truth_of(samples[0])
    assert [line.partition(": ")[2] for line in problems] == [
        f"object 0: ann_id 2 has no usable segmentation in {path}",
        f"object 2: image_id 2 in {path}: file_name is '../../etc/passwd': the name of a file in "
        f"{root}/images/mscoco/images/train2014 is expected",
        f"object 3: image_id 2 in {path}: file_name is '../../etc/passwd': the name of a file in "
        f"{root}/images/mscoco/images/train2014 is expected",
    ]


def test_pictures_of_another_size_than_their_annotations(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"is \(90, 90\) px .* annotations are for \(91, 90\)"):
        Picture(picture(tmp_path / "x.png"), (91, 90)).load()


def test_coco_asks_categories_and_captions(tmp_path: Path) -> None:
    root = write_coco(tmp_path, {"train": [1], "val": [2]})
    data = by_text(datasets.read("coco", root, "val", Problems()))
    assert set(data) == {"red box", "blue box"}
    assert data["red box"].object == "red box"
    assert np.array_equal(truth_of(data["blue box"]).mask, refer_mask(2, "blue"))
    row = {"id": 1, "image_id": 2, "category_id": 1, "segmentation": polygon(2, "red"), "caption": "the left one"}
    crowd = {"id": 2, "image_id": 2, "category_id": 2, "segmentation": packed(refer_mask(2, "blue")), "iscrowd": 1}
    one = {"id": 3, "image_id": 2, "category_id": 2, "segmentation": [[0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0]]}
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    write_annotations(root, "val", {**content, "annotations": [row, crowd, one]})
    data = by_text(datasets.read("coco", root, "val", Problems()))
    assert set(data) == {"the left one", "blue box"}
    truth = truth_of(data["blue box"])
    assert truth.ignore is not None
    assert np.array_equal(truth.ignore, refer_mask(2, "blue"))
    assert truth.mask[:9, :9].all()
    assert int(truth.mask.sum()) == 81


def test_coco_annotations_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    root, problems = write_coco(tmp_path, {"val": [2]}), Problems()
    path = root / "annotations" / "instances_val2017.json"
    data = json.loads(path.read_text())
    data["annotations"] += [
        {"id": 8, "image_id": 99, "category_id": 1, "segmentation": polygon(2, "red")},
        {"id": 9, "image_id": 2, "category_id": 1, "segmentation": 5},
    ]
    path.write_text(json.dumps(data))
    assert len(datasets.read("coco", root, "val", problems).samples) == 2
    assert list(problems) == [
        f"{path}: annotation 8: image_id 99 is not among the usable images",
        f"{path}: annotation 9: segmentation is 5: polygons or run lengths are expected",
    ]


def test_seginw_asks_every_category_in_every_image(tmp_path: Path) -> None:
    problems = Problems()
    data = datasets.read("seginw", write_seginw(tmp_path / "seginw").parent, "valid", problems)
    assert (data.measure, list(data.sets), len(SETS)) == ("instances", ["Cows", "Phones"], 25)
    assert [(s.id, s.instruction, s.groups) for s in data.samples] == [
        ("Cows:0:1", "cow", {"set": "Cows", "there": "yes"}),
        ("Cows:1:1", "cow", {"set": "Cows", "there": "yes"}),
        ("Phones:0:1", "mobile phone", {"set": "Phones", "there": "yes"}),
        ("Phones:0:2", "absent thing", {"set": "Phones", "there": "no"}),
    ]
    assert [truth_of(sample).present for sample in data.samples] == [True, True, True, False]
    assert len(problems) == 23
    assert "the set Airplane-Parts is left out" in next(iter(problems))
    only = datasets.read("seginw", tmp_path, "valid", Problems(strict=True), sets=["Phones"])
    assert list(only.sets) == ["Phones"]


def test_names_are_asked_as_one_would_say_them() -> None:
    assert [phrase(name) for name in ("Fork_handle", "hand-metal", " Big  Cow ")] == [
        "fork handle", "hand metal", "big cow",
    ]  # fmt: skip


def test_clevr_ref_has_outlines_and_boxes(tmp_path: Path) -> None:
    data = by_text(datasets.read("clevr-ref", write_clevr_ref(tmp_path), "val", Problems(strict=True)))
    assert {text: sample.groups["objects"] for text, sample in data.items()} == {
        "the first cube": "one", "all cubes": "several", "the absent ball": "none",
    }  # fmt: skip
    truth = truth_of(data["the first cube"])
    assert np.array_equal(truth.mask, box_mask(FOUND_XYXY))
    assert (truth.boxes, truth.outlined) == ((FOUND_XYXY,), True)
    assert np.array_equal(truth_of(data["all cubes"]).mask, box_mask(FOUND_XYXY, (60, 60, 70, 80)))
    assert not truth_of(data["the absent ball"]).present


def test_clevr_ref_tells_what_is_wrong(tmp_path: Path) -> None:
    root = write_clevr_ref(tmp_path)
    file, scenes = (
        root / name for name in ("refexps/clevr_ref+_val_refexps.json", "scenes/clevr_ref+_val_scenes.json")
    )
    data, problems = json.loads(file.read_text()), Problems()
    data["refexps"][1]["program"][-1]["_output"] = [7]
    data["refexps"][2] = {"image_filename": "x.png"}
    file.write_text(json.dumps(data))
    (left,) = datasets.read("clevr-ref", root, "val", problems).samples
    assert list(problems) == [
        f"{file}: refexps[1]: image_index 0: {scenes} lacks objects 8",
        f"{file}: refexps[2]: refexp is None: a text is expected",
    ]
    with pytest.raises(SampleError, match=r"obj_mask counts 8100 pixels, the image has 10 x 10"):
        left.truth.read(10, 10)


def test_gqa_asks_what_objects_answer(tmp_path: Path) -> None:
    data = by_text(datasets.read("gqa", write_gqa(tmp_path), "val", Problems(strict=True)))
    assert {text: (sample.object, sample.groups["type"]) for text, sample in data.items()} == {
        "What is on the table?": ("cup", "obj"), "Which animal sits there?": ("dog", "rel"),
    }  # fmt: skip
    truth = truth_of(data["What is on the table?"])
    assert np.array_equal(truth.mask, box_mask(FOUND_XYXY))
    assert (truth.boxes, truth.outlined) == ((FOUND_XYXY,), False)


def test_gqa_tells_what_is_wrong(tmp_path: Path) -> None:
    root, problems = write_gqa(tmp_path), Problems()
    file, graphs = root / "questions" / "val_balanced_questions.json", root / "sceneGraphs" / "val_sceneGraphs.json"
    questions = json.loads(file.read_text())
    questions["q2"]["annotations"]["answer"] = {"0": "99"}
    questions["q3"] = {"question": "Who?", "annotations": None}
    file.write_text(json.dumps(questions))
    assert len(datasets.read("gqa", root, "val", problems).samples) == 1
    assert list(problems) == [
        f"{file}: question q2: imageId '7': {graphs} lacks it, or an object of annotations.answer",
        f"{file}: question q3: annotations.answer is None: a dict of objects is expected",
    ]


@pytest.mark.parametrize("name", ["reasonseg", "refcoco", "seginw", "coco", "clevr-ref", "gqa"])
def test_unknown_splits_and_folders_end_in_one_line(tmp_path: Path, name: str) -> None:
    write_reasonseg(tmp_path)
    write_refer(tmp_path, {"val": [1]})
    write_coco(tmp_path, {"val": [1]})
    write_seginw(tmp_path)
    write_clevr_ref(tmp_path)
    write_gqa(tmp_path)
    with pytest.raises(DataError, match="dev") as caught:
        datasets.read(name, tmp_path, "dev", Problems())
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"nowhere is no folder.*\(--data\)"):
        datasets.read(name, tmp_path / "nowhere", "val", Problems())


def test_an_empty_set_is_told(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="reasonseg, split 'val', holds no sample that can be read"):
        datasets.read("reasonseg", tmp_path, "val", Problems())


def test_a_limit_is_the_same_by_seed_and_grows(tmp_path: Path) -> None:
    data = datasets.read("refcoco", write_refer(tmp_path, {"val": list(range(9))}), "val", Problems())
    some, more = limited(data, 5, seed=1), limited(data, 9, seed=1)
    assert (len(some.samples), some.whole) == (5, 36)
    assert {sample.id for sample in some.samples} < {sample.id for sample in more.samples}
    assert some.samples == limited(data, 5, seed=1).samples
    assert some.samples != limited(data, 5, seed=2).samples
    assert limited(data, None, seed=1) is data
    assert limited(data, 99, seed=1).samples == data.samples


def test_a_limit_of_instances_takes_whole_images(tmp_path: Path) -> None:
    data = datasets.read("seginw", write_seginw(tmp_path), "valid", Problems(), sets=["Phones", "Cows"])
    for seed in range(4):
        chosen = limited(data, 1, seed)
        assert len({sample.image_id for sample in chosen.samples}) == 1
        assert len(chosen.samples) == (2 if chosen.samples[0].id.startswith("Phones") else 1)


def test_corners_are_opencvs(tmp_path: Path) -> None:
    """The helper's own promise, on which the hand-computed scores stand."""
    write_json(tmp_path / "val" / "x.json", reasonseg_json(["x"], True, target=[(2, 2, 7, 6)]))
    picture(tmp_path / "val" / "x.jpg")
    truth = truth_of(datasets.read("reasonseg", tmp_path, "val", Problems()).samples[0])
    assert corners((2, 2, 7, 6)) == [[2, 2], [6, 2], [6, 5], [2, 5]]
    assert (int(truth.mask.sum()), truth.mask.shape) == (20, (SIDE, SIDE))
