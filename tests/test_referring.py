"""Readers of referring expressions: what they give, what they refuse, and what they count and leave out."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco
from refer_folders import (
    HEIGHT,
    WIDTH,
    box_mask,
    image_row,
    packed,
    polygon,
    write_annotations,
    write_coco,
    write_refer,
)

from rsvp_backend.training.coco_data import read_coco, split_of
from rsvp_backend.training.coco_masks import CocoMask, decode, is_segmentation
from rsvp_backend.training.pretrain_batches import shown
from rsvp_backend.training.pretrain_data import Joined, read_data
from rsvp_backend.training.refer_data import read_refer
from rsvp_backend.training.refer_pickle import load_plain
from rsvp_backend.training.referring import DataError, FileImage, SampleError
from rsvp_backend.training.scene_data import scenes

SPLITS = {"train": [1, 2, 3], "val": [4], "testA": [5], "testB": [6]}


@st.composite
def masks(draw: st.DrawFn) -> Any:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    share, seed = draw(st.floats(0, 1)), draw(st.integers(0, 2**32 - 1))
    noise = np.random.default_rng(seed).random((height, width))
    return noise < share if draw(st.booleans()) else np.sort(noise, axis=0) < share


# Masks


@given(masks())
def test_run_lengths_are_read_as_cocos_own_code_reads_them(mask: Any) -> None:
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *([0] if flat[0] else []), *edges, flat.size]).tolist()
    for value in (runs["counts"], runs["counts"].decode(), counts):
        found = decode({"size": list(mask.shape), "counts": value}, *mask.shape)
        assert found.dtype == np.bool_
        assert np.array_equal(found, mask)


@given(st.binary(max_size=40))
def test_any_packed_string_is_a_mask_or_an_error(data: bytes) -> None:
    with contextlib.suppress(SampleError):
        assert decode({"size": [5, 7], "counts": data}, 5, 7).shape == (5, 7)


@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 45)), min_size=3, max_size=8))
def test_polygons_are_filled_as_cocos_own_code_fills_them(points: list[tuple[float, float]]) -> None:
    flat = [number for point in points for number in point]
    wanted = coco.decode(coco.merge(coco.frPyObjects([flat], 40, 30)))
    assert np.array_equal(decode([flat], 40, 30), wanted.astype(bool))


def test_a_box_of_whole_pixels_is_exact_and_parts_are_joined() -> None:
    outline, red, blue = polygon(3, "red"), box_mask(3, "red"), box_mask(3, "blue")
    assert np.array_equal(decode(outline, HEIGHT, WIDTH), red)
    both = CocoMask((outline, packed(blue)), HEIGHT, WIDTH)
    assert np.array_equal(both.decode(), red | blue)
    assert np.array_equal(decode([packed(red), packed(blue)], HEIGHT, WIDTH), red | blue)
    assert np.array_equal(decode([*outline, *polygon(3, "blue")], HEIGHT, WIDTH), red | blue)


@pytest.mark.parametrize(
    ("segmentation", "seen"),
    [
        ([[1, 2, 3, 4]], "three or more x, y pairs"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three or more x, y pairs"),
        ([[1, 2, "3", 4, 5, 6]], "three or more x, y pairs"),
        ([[1, 2, float("nan"), 4, 5, 6]], "far beyond"),
        ([[1, 2, 1e12, 4, 5, 6]], "far beyond"),
        ({"size": [5, 8], "counts": [40]}, "are for"),
        ({"counts": [35]}, "are for"),
        ({"size": [5, 7], "counts": [30]}, "add up to 30"),
        ({"size": [5, 7], "counts": [40, -5]}, "0 or more"),
        ({"size": [5, 7], "counts": [1.5, 33.5]}, "0 or more"),
        ({"size": [5, 7], "counts": "S"}, "cut off"),
        ({"size": [5, 7], "counts": "é"}, "add up to"),
        ({"size": [5, 7], "counts": " "}, "damaged"),
        ({"size": [5, 7], "counts": "oooooooooo"}, "damaged"),
        ([], "polygons or run lengths"),
        (None, "polygons or run lengths"),
        ("text", "polygons or run lengths"),
    ],
)
def test_damaged_outlines_are_refused(segmentation: Any, seen: str) -> None:
    with pytest.raises(SampleError, match=seen):
        decode(segmentation, 5, 7)


def test_the_form_of_an_outline_is_seen_without_decoding() -> None:
    assert is_segmentation([[1, 2, 3, 4, 5, 6]])
    assert is_segmentation({"counts": "", "size": [1, 1]})
    assert not any(is_segmentation(value) for value in ([], {}, None, 3, "abc", [1, 2]))


# Pickles


class Harmful:
    """Unpickled by `pickle.load` it makes a folder."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [os.mkdir, os.system, eval, exec])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, call: Callable[..., Any], protocol: int) -> None:
    mark = tmp_path / "mark"
    text = {os.mkdir: str(mark), os.system: f"mkdir {mark}"}.get(call, f"__import__('os').mkdir({str(mark)!r})")
    file = tmp_path / "refs(unc).p"
    data = [{"ref_id": 1, "sentences": Harmful(call, text)}]
    file.write_bytes(pickle.dumps(data, protocol))
    with pytest.raises(DataError, match=r"names \w+\.\w+, which would be run: it is refused"):
        load_plain(file)
    assert not mark.exists()
    pickle.loads(file.read_bytes())  # it is harmful indeed
    assert mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'mkdir mark'\ntR.",  # GLOBAL, REDUCE
        b"(S'mkdir mark'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'mkdir mark'\no.",  # OBJ
        b"\x80\x02cbuiltins\nobject\n)\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0amkdir mark\x85R.",  # STACK_GLOBAL
        b"ccollections\nOrderedDict\n)R.",
        b"cnumpy.core.multiarray\nscalar\n.",
    ],
)
def test_every_way_to_name_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.p").write_bytes(code)
    with pytest.raises(DataError, match="it is refused"):
        load_plain(tmp_path / "bad.p")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_whatever_the_protocol(tmp_path: Path, protocol: int) -> None:
    value = [
        {"id": 2**70, "sent": "die Äpfel", "split": "train", "score": 0.5, "none": None, "yes": True, "t": (1, (2,))}
    ]
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol))
    assert load_plain(tmp_path / "p") == value


def test_texts_of_python_2_are_read(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsS'id'\np4\nL12L\nsa.")
    assert load_plain(tmp_path / "p") == [{"sent": "café", "id": 12}]


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"\x80\x02]q\x00(}q\x01", b"P1\n.", b"\x80\x04\x82\x01.", b"\x00" * 9]
)
def test_damaged_pickles_are_one_clear_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(DataError, match="no readable pickle"):
        load_plain(tmp_path / "p")


# REFER


def test_a_refer_folder_gives_a_sample_per_sentence(tmp_path: Path) -> None:
    found = read_refer(write_refer(tmp_path, SPLITS), "refcoco")
    assert {split: len(samples) for split, samples in found.splits.items()} == {
        "train": 12, "val": 4, "testA": 4, "testB": 4,
    }  # fmt: skip
    assert found.texts == {"red box", "blue box", "box on the left", "box on the right"}
    assert not found.left_out
    red, left, blue, _ = found.splits["val"]
    assert (red.text, left.text, blue.text) == ("red box", "box on the left", "blue box")
    assert red.region == left.region != blue.region
    assert red.image_id == blue.image_id == "coco:COCO_train2014_000000000004.jpg"
    assert np.array_equal(red.mask.decode(), box_mask(4, "red"))
    assert np.array_equal(blue.mask.decode(), box_mask(4, "blue"))
    assert [np.array_equal(other.decode(), box_mask(4, "blue")) for other in red.others] == [True]
    assert red.image.load().size == (WIDTH, HEIGHT)


def test_other_divisions_and_other_places_of_images(tmp_path: Path) -> None:
    write_refer(tmp_path, {"train": [1], "val": [2]}, "refcocog", "google")
    (tmp_path / "images" / "mscoco" / "images" / "train2014").rename(tmp_path / "train2014")
    assert len(read_refer(tmp_path, "refcocog", "google").splits["train"]) == 4
    assert read_data([f"refcocog/google:{tmp_path}"]).train[0].text == "red box"
    with pytest.raises(DataError, match=r"refs\(umd\)\.p does not exist, there are refs\(google\)\.p"):
        read_refer(tmp_path, "refcocog")


def test_broken_refs_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    write_refer(tmp_path, SPLITS)
    (tmp_path / "images/mscoco/images/train2014/COCO_train2014_000000000001.jpg").unlink()
    file = tmp_path / "refcoco" / "refs(unc).p"
    refs = pickle.loads(file.read_bytes())
    by_annotation = {ref["ann_id"]: ref for ref in refs}
    by_annotation[4]["ann_id"] = 999
    by_annotation[5]["sentences"] = [{"sent": " "}, {"sent": "blue one"}, None]
    by_annotation[6]["image_id"] = [1]
    refs += ["text", {}]
    file.write_bytes(pickle.dumps(refs))
    path = tmp_path / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    instances["annotations"][-1]["segmentation"] = "gone"
    instances["images"].append({"id": 99, "file_name": "../../etc/passwd", "width": 3, "height": 3})
    path.write_text(json.dumps(instances))
    found = read_refer(tmp_path, "refcoco")
    assert found.left_out == {
        "images missing": 1, "images without usable name": 1, "objects on unusable images": 2,
        "objects without annotation": 1, "objects with damaged outlines": 1, "objects without ids or split": 3,
        "empty sentences": 2,
    }  # fmt: skip
    assert [sample.text for sample in found.splits["train"]] == ["blue one", "blue box", "box on the right"]
    assert "images missing" in found.summary()


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (lambda root: (root / "refcoco" / "refs(unc).p").unlink(), "there is no refs"),
        (lambda root: (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps({"a": 1})), "holds a dict"),
        (lambda root: (root / "refcoco" / "instances.json").unlink(), "cannot be read: No such file"),
        (lambda root: (root / "refcoco" / "instances.json").write_text("{"), "is not JSON"),
        (lambda root: (root / "refcoco" / "instances.json").write_text("[]"), "holds a list"),
        (lambda root: (root / "refcoco" / "instances.json").write_text("{}"), "no list 'images'"),
        (lambda root: (root / "images").rename(root / "pictures"), "has no images"),
        (
            lambda root: [file.unlink() for file in (root / "images").rglob("*.jpg")],
            "gives no sample at all; left out: 6 images missing, 12 objects on unusable images",
        ),
    ],
)
def test_a_broken_refer_folder_is_one_clear_error(tmp_path: Path, spoil: Callable[[Path], Any], seen: str) -> None:
    write_refer(tmp_path, SPLITS)
    spoil(tmp_path)
    with pytest.raises(DataError, match=seen):
        read_refer(tmp_path, "refcoco")


# COCO


def test_a_coco_folder_asks_for_categories(tmp_path: Path) -> None:
    found = read_coco(write_coco(tmp_path, {"train": [1, 2], "val": [3]}))
    assert {split: len(samples) for split, samples in found.splits.items()} == {"train": 4, "val": 2}
    red, blue = found.splits["val"]
    assert (red.text, blue.text) == ("red box", "blue box")
    assert np.array_equal(red.mask.decode(), box_mask(3, "red"))
    assert np.array_equal(blue.mask.decode(), box_mask(3, "blue"))
    assert np.array_equal(red.others[0].decode(), box_mask(3, "blue"))
    assert red.image.load().size == (WIDTH, HEIGHT)


def test_a_category_means_all_of_its_kind_and_a_sentence_its_own_object(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": [1]})
    outlines = [polygon(1, "red"), packed(box_mask(1, "blue"))]
    rows: list[dict[str, Any]] = [
        {"id": n, "image_id": 1, "category_id": 1, "segmentation": outline} for n, outline in enumerate(outlines)
    ]
    rows += [
        {"id": 7, "image_id": 1, "segmentation": outlines[0], "sentences": ["the left one", {"sent": "the red one"}]},
        {"id": 8, "image_id": 1, "segmentation": outlines[1], "caption": " the right one ", "category_id": 1},
    ]
    data = {"images": [image_row(1, f"{1:012}.jpg")], "annotations": rows, "categories": [{"id": 1, "name": "box"}]}
    write_annotations(tmp_path, "train", data)
    found = {sample.text: sample for sample in read_coco(tmp_path).splits["train"]}
    red, blue = box_mask(1, "red"), box_mask(1, "blue")
    wanted = {"box": red | blue, "the left one": red, "the red one": red, "the right one": blue}
    assert found.keys() == wanted.keys()
    for text, mask in wanted.items():
        assert np.array_equal(found[text].mask.decode(), mask), text
    assert found["the left one"].region == found["the red one"].region
    assert len(found["the left one"].others) == 2


def test_the_same_annotations_in_two_files_are_taken_once(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": [1, 2]})
    file = tmp_path / "annotations" / "instances_train2017.json"
    (file.parent / "keypoints_train2017.json").write_bytes(file.read_bytes())
    assert len(read_coco(tmp_path).splits["train"]) == 4


def test_broken_annotations_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": [1, 2]})
    file = tmp_path / "annotations" / "instances_train2017.json"
    data = json.loads(file.read_text())
    data["images"] += [image_row(9, "gone.jpg"), {"id": 10, "file_name": "/etc/passwd"}, image_row([1], "x.jpg"), "?"]
    data["annotations"] += [
        {"id": 90, "image_id": 9, "category_id": 1, "segmentation": polygon(1, "red")},
        {"id": 91, "image_id": 1, "category_id": 5, "segmentation": polygon(1, "red")},
        {"id": 92, "image_id": 1, "category_id": 1},
        {"id": 93, "image_id": {}, "category_id": 1},
        None,
    ]
    file.write_text(json.dumps(data))
    found = read_coco(tmp_path)
    assert len(found.splits["train"]) == 4
    assert found.left_out == {
        "images missing": 1, "images without size": 1, "annotations on unusable images": 2,
        "annotations without text": 1, "annotations without usable outline": 1,
    }  # fmt: skip


def test_a_coco_folder_without_annotations_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations has no \*\.json"):
        read_coco(tmp_path)


def test_splits_are_told_by_file_names() -> None:
    names = ["instances_train2017", "instances_val2017", "Validation", "image_info_test-dev2017", "labels"]
    assert [split_of(name) for name in names] == ["train", "val", "val", "test", "train"]


# Images


def test_images_that_do_not_fit_are_told(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": [1]})
    path = tmp_path / "train2017" / f"{1:012}.jpg"
    with pytest.raises(SampleError, match=r"is 64 x 48 px, its annotations are for 64 x 50"):
        FileImage(path, 64, 50).load()
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SampleError, match="cannot be read as an image"):
        FileImage(path, 64, 48).load()
    with pytest.raises(SampleError, match="cannot be read as an image"):
        FileImage(tmp_path / "gone.jpg", 64, 48).load()


# Scenes, and several data sets together


def test_scenes_ask_for_two_objects_and_for_one_that_is_not_there() -> None:
    found = scenes("easy")
    train, val = found.splits["train"], found.splits["val"]
    assert len(train) == 300_000
    first, second, absent = train[0], train[1], train[2]
    assert first.image_id == second.image_id == absent.image_id != train[3].image_id
    assert first.mask.decode().any()
    assert not (first.mask.decode() & second.mask.decode()).any()
    assert absent.absent
    assert not absent.mask.decode().any()
    assert absent.others
    assert {first.text, second.text, absent.text} <= found.texts
    assert val[0].image_id != first.image_id
    assert train[-1] == train[len(train) - 1]
    assert [sample.text for sample in train[:3]] == [first.text, second.text, absent.text]


def test_joined_sequences_are_one() -> None:
    parts: list[Any] = [("a", "b"), (), ("c",), ("d", "e")]
    joined = Joined(parts)
    assert len(joined) == 5
    assert [joined[n] for n in range(-5, 5)] == [*"abcde", *"abcde"]
    assert joined[1:4] == ["b", "c", "d"]
    with pytest.raises(IndexError):
        joined[5]
    assert len(Joined([])) == 0


def test_held_out_images_of_one_set_are_not_trained_on_in_another(tmp_path: Path) -> None:
    """refCOCO's testA images are refCOCOg's training images."""
    write_refer(tmp_path, SPLITS)
    write_refer(tmp_path, {"train": [4, 5, 7], "val": [8]}, "refcocog", "umd")
    data = read_data([f"refcoco:{tmp_path}", f"refcocog:{tmp_path}"])
    images = {sample.image_id[-5] for sample in data.train}
    assert images == {"1", "2", "3", "7"}
    assert data.left_out == {"training samples on images of other splits": 8}
    assert {sample.image_id[-5] for sample in data.held_out} == {"4", "8"}
    assert {sample.image_id[-5] for sample in read_data([f"refcoco:{tmp_path}"], "testA").held_out} == {"5"}


def test_a_set_of_training_samples_only_is_divided_by_images(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": list(range(30))})
    data = read_data([f"coco:{tmp_path}"])
    train, held = ({sample.image_id for sample in side} for side in (data.train, data.held_out))
    assert (len(train), len(held)) == (28, 2)
    assert not train & held
    again = read_data([f"coco:{tmp_path}", "scenes:crowded"])
    assert {sample.image_id for sample in again.held_out} > held
    assert data.digest != again.digest
    assert data.digest == read_data([f"coco:{tmp_path}"]).digest


def test_what_was_read_is_told_by_the_digest_wherever_it_lies(tmp_path: Path) -> None:
    here, there = (write_coco(tmp_path / name, {"train": [1, 2], "val": [3]}) for name in ("here", "there"))
    assert read_data([f"coco:{here}"]).digest == read_data([f"coco:{there}"]).digest
    other = write_coco(tmp_path / "other", {"train": [1, 4], "val": [3]})
    assert read_data([f"coco:{here}"]).digest != read_data([f"coco:{other}"]).digest


@pytest.mark.parametrize("spec", ["", "refcoco", "refcoco:", "coco", "cocos:/x", "scenes:hard", "scenes/easy", "x:/x"])
def test_unknown_data_is_refused_with_the_known_forms(spec: str) -> None:
    with pytest.raises(DataError, match=r"refcoco:ROOT.*scenes\[:LEVEL\] is expected"):
        read_data([spec])


@pytest.mark.parametrize(
    ("splits", "held_out", "seen"),
    [
        ({"train": [1], "val": [2]}, "testC", r"has no split 'testC': train, val are there"),
        ({"train": [1], "val": [2]}, "train", "the held-out split is 'train'"),
        ({"val": [1], "test": [2]}, "val", "has no split 'train'"),
        ({"train": [1]}, "val", "has one image"),
    ],
)
def test_wrong_splits_are_one_clear_error(
    tmp_path: Path, splits: dict[str, list[int]], held_out: str, seen: str
) -> None:
    write_coco(tmp_path, splits)
    with pytest.raises(DataError, match=seen):
        read_data([f"coco:{tmp_path}"], held_out)


# What the model is shown


def test_a_sample_is_shown_whole_or_in_the_crop_that_stage_1_would_give(tmp_path: Path) -> None:
    red = read_refer(write_refer(tmp_path, SPLITS), "refcoco").splits["val"][0]
    whole = shown(red, "whole")
    assert whole.crop.xyxy == (0, 0, WIDTH, HEIGHT)
    crop = shown(red, "crop")
    assert crop.crop.area_px < WIDTH * HEIGHT
    left, top, right, bottom = crop.crop.xyxy
    assert crop.mask[top:bottom, left:right].sum() == crop.mask.sum() > 0
    assert whole.key != crop.key


def test_texts_are_also_asked_where_they_mean_nothing(tmp_path: Path) -> None:
    """A crop is not always around what the text means, or the text would not have to be read."""
    red = read_refer(write_refer(tmp_path, SPLITS), "refcoco").splits["val"][0]
    rng = np.random.default_rng(0)
    empty = 0
    for _ in range(200):
        correction = shown(red, "crop", rng)
        left, top, right, bottom = correction.crop.xyxy
        empty += not correction.mask[top:bottom, left:right].any()
    assert 30 <= empty <= 90
    absent = scenes("easy").splits["train"][2]
    assert shown(absent, "crop").crop.area_px < shown(absent, "whole").crop.area_px


def test_an_empty_mask_is_no_sample(tmp_path: Path) -> None:
    write_refer(tmp_path, SPLITS)
    path = tmp_path / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    for annotation in instances["annotations"]:
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    path.write_text(json.dumps(instances))
    with pytest.raises(SampleError, match="refcoco:2: its mask is empty"):
        shown(read_refer(tmp_path, "refcoco").splits["train"][0], "whole")
