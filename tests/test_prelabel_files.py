"""Runs over files with the demo's models: folders, tables, what is written, and going on after a kill."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rsvp_backend import cli, presets
from rsvp_backend.errors import ImageError, SettingsError
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel.coco import bounding_box, packed_runs
from rsvp_backend.prelabel.looking import look_many
from rsvp_backend.prelabel.results import safe_name
from rsvp_backend.prelabel.sources import Source
from rsvp_backend.prelabel.steps import Asked, Common, Seen, Work, answered, ask, cut
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, Scene, make_scene
from rsvp_backend.settings import Settings
from rsvp_backend.types import BoolMask

SCENES = [make_scene(EVALUATION_SEEDS_FROM + number, "easy", 480) for number in range(3)]


@pytest.fixture(scope="module")
def rsvp() -> Iterator[RSVP]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield presets.build(Settings())
    torch.set_num_threads(before)


@pytest.fixture
def built(rsvp: RSVP, monkeypatch: pytest.MonkeyPatch) -> RSVP:
    monkeypatch.setattr(presets, "build", lambda _: rsvp)
    return rsvp


def questions(scene: Scene) -> list[str]:
    return [question.instruction for question in scene.questions]


def pictures(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number, scene in enumerate(SCENES):
        scene.image.save(folder / f"{number}.png")
    return folder


def rows() -> list[dict[str, str]]:
    return [
        {"image": f"{n}.png", "instruction": text} for n, scene in enumerate(SCENES) for text in questions(scene)[:2]
    ]


def command(capsys: pytest.CaptureFixture[str], *more: object) -> tuple[int, dict[str, Any], str]:
    status = cli.main(["prelabel", "--json", *map(str, more)])
    printed = capsys.readouterr()
    return status, json.loads(printed.out.splitlines()[-1]) if printed.out else {}, printed.err


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[1:]]


def test_batches_answer_as_the_pipeline_does(rsvp: RSVP) -> None:
    common = Common(parse_label_config(default_label_config(["Object"])))
    asked: list[Asked] = []
    for number, row in enumerate(rows()):
        one = ask(Work(str(number), {"data": row}), common, lambda question: SCENES[int(question.uri[0])].image)
        assert isinstance(one, Asked)
        asked.append(one)
    seen = look_many(rsvp, asked)
    batch = cut(rsvp, [one for one in seen if isinstance(one, Seen)])
    found = {one.work.key: one for one in (*batch, *(one for one in seen if not isinstance(one, Seen)))}
    assert len(found) == len(asked)
    for one in asked:
        alone = answered(one, rsvp(one.image, one.question.instruction, ("Object",))).outcome
        together = found[one.work.key].outcome
        assert together.reason == alone.reason
        assert [i.object for i in together.instances] == [i.object for i in alone.instances]
        for first, second in zip(together.instances, alone.instances, strict=True):
            assert np.mean(first.mask != second.mask) < 1e-3


@pytest.mark.usefixtures("built")
def test_a_folder_becomes_label_studios_file_coco_and_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = pictures(tmp_path / "images"), tmp_path / "out"
    (images / "notes.txt").write_text("no image")
    (images / "broken.png").write_text("no image either")
    instruction = questions(SCENES[0])[0]
    status, report, _ = command(capsys, "--images", images, "--instruction", instruction, "--out", out,
                                "--image-prefix", "/data/local-files/?d=p/")  # fmt: skip
    assert (status, report["new"], report["failed"]) == (1, 3, 1)
    assert report["first_failures"][0]["reason"] == "image"
    tasks = json.loads((out / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d=p/{n}.png" for n in range(3)]
    data = COCO(out / "coco.json")
    assert [data.imgs[n]["file_name"] for n in (1, 2, 3)] == ["0.png", "1.png", "2.png"]
    regions = [one for one in tasks[0]["predictions"][0]["result"] if one["type"] == "brushlabels"]
    assert regions
    for region, annotation in zip(regions, data.imgToAnns[1], strict=True):
        mask = rle.decode(region["value"]["rle"], *SCENES[0].masks[0].shape)
        assert np.array_equal(data.annToMask(annotation).astype(bool), mask)
        png = np.asarray(Image.open(out / annotation["attributes"]["mask"]))
        assert np.array_equal(png == 255, mask)
        assert annotation["area"] == mask.sum()
        assert data.cats[annotation["category_id"]]["name"] == "Object"
    assert {path.name for path in out.iterdir()} == {"results.jsonl", "tasks.json", "coco.json", "masks", ".lock"}


@pytest.mark.usefixtures("built")
def test_it_goes_on_where_it_was_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = pictures(tmp_path), tmp_path / "out"
    file = folder / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows(), rows()[0]]))
    status, report, _ = command(capsys, "--tasks", file, "--out", out, "--limit", 4)
    assert (status, report["new"]) == (0, 4)
    assert len(json.loads((out / "tasks.json").read_text())) == 4
    whole = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(whole[:-100])
    status, report, _ = command(capsys, "--tasks", file, "--out", out)
    assert (status, report["new"]) == (0, 3)
    keys = [record["key"] for record in results(out)]
    assert len(keys) == len(set(keys)) == 6
    assert [task["data"] for task in json.loads((out / "tasks.json").read_text())] == rows()
    before = (out / "tasks.json").read_bytes()
    status, report, _ = command(capsys, "--tasks", file, "--out", out)
    assert (status, report["tasks"]) == (0, 0)
    assert (out / "tasks.json").read_bytes() == before
    status, _, complaint = command(capsys, "--tasks", file, "--out", out, "--labels", "A,B")
    assert status == 1
    assert "holds results with labels" in complaint


@pytest.mark.usefixtures("built")
def test_failed_ones_are_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = pictures(tmp_path), tmp_path / "out"
    gone = {"image": "later.png", "instruction": "x"}
    (folder / "tasks.json").write_text(json.dumps([{"data": row} for row in [*rows()[:2], gone]]))
    assert command(capsys, "--tasks", folder / "tasks.json", "--out", out)[0] == 1
    SCENES[0].image.save(folder / "later.png")
    status, report, _ = command(capsys, "--tasks", folder / "tasks.json", "--out", out, "--retry-failed")
    assert (status, report["new"]) == (0, 1)
    assert len(json.loads((out / "tasks.json").read_text())) == 3


@pytest.mark.usefixtures("built")
def test_tables_of_other_countries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = pictures(tmp_path), tmp_path / "out"
    with (folder / "tasks.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        table = csv.writer(stream, delimiter=";")
        table.writerows([["image", "note"], ["0.png", "=1+1; the\nsecond line"], ["1.png", "Größe"]])
    status, report, _ = command(capsys, "--tasks", folder / "tasks.csv", "--instruction", questions(SCENES[0])[0],
                                "--out", out)  # fmt: skip
    assert (status, report["new"]) == (0, 2)
    notes = [task["data"]["note"] for task in json.loads((out / "tasks.json").read_text())]
    assert notes == ["=1+1; the\nsecond line", "Größe"]


def test_local_images_stay_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "tasks.jsonl").write_text("")
    source = Source.file(folder / "tasks.jsonl", None)
    assert source.local("sub/a.png") == folder / "sub" / "a.png"
    assert source.local(str(folder / "a.png")) == folder / "a.png"
    assert source.local("https://example.com/a.png") is None
    assert source.local("/etc/passwd") is None  # a path on Label Studio, never a file
    for uri in ("../secret.png", "link.png", "sub/../../secret.png", "a\0.png"):
        with pytest.raises(ImageError):
            source.local(uri)
    assert Source.file(folder / "tasks.jsonl", tmp_path).local("secret.png") == tmp_path / "secret.png"


@given(uri=st.text(max_size=200), key=st.text(min_size=1, max_size=20))
def test_mask_names_stay_where_they_are_put(uri: str, key: str) -> None:
    name = safe_name(uri, key)
    assert os.path.basename(name) == name
    assert name.isascii()
    assert not name.startswith((".", "-", "="))
    assert len(name) < 100


@given(mask=arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_runs_equal_pycocotools(mask: BoolMask) -> None:
    ours, theirs = packed_runs(mask), coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours == {"size": list(theirs["size"]), "counts": theirs["counts"].decode()}
    assert bounding_box(mask) == coco_mask.toBbox(theirs).astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "image,instruction\na,b,c\n", "more fields"),
        ("a.jsonl", '{"image": 1}\n{"ima', "cannot be read"),
        ("a.json", "[1, 2]", "task 1 is 1"),
        ("a.json", "{", "cannot be read"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | bytes, said: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError, match=said):
        list(Source.file(tmp_path / name, None).works())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--images", "nowhere", "--instruction", "x", "--out", "o"], "--images is 'nowhere'"),
        (["--images", ".", "--out", "o"], "--instruction is empty"),
        (["--images", ".", "--instruction", "x"], "--out is not given"),
        (["--tasks", "nowhere.csv", "--out", "o"], "--tasks is 'nowhere.csv'"),
        (["--images", ".", "--instruction", "x", "--out", "o", "--labels", ","], "--labels is ','"),
        (["--images", ".", "--instruction", "x", "--out", "o", "--label-config", "no.xml"], "--label-config no.xml"),
    ],
)
def test_bad_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: Sequence[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, complaint = command(capsys, *more)
    assert status == 2
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())
