"""Runs over samples: scores by hand, records that survive a kill, problems that stop nothing, summary and page."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from evaluation_folders import (
    FOUND_PX,
    FOUND_XYXY,
    box_mask,
    picture,
    sample,
    write_clevr_ref,
    write_gqa,
    write_reasonseg,
    write_seginw,
)
from fake_models import FakeReasoner, fake_rsvp

from rsvp_backend.evaluation import datasets
from rsvp_backend.evaluation.metrics import CONVENTIONS
from rsvp_backend.evaluation.page import page, worst
from rsvp_backend.evaluation.records import Record, Store
from rsvp_backend.evaluation.running import run, score
from rsvp_backend.evaluation.samples import EvaluationSet, Problems, Sample, limited
from rsvp_backend.evaluation.scene_set import scene_set
from rsvp_backend.evaluation.summary import Run, summarise
from rsvp_backend.evaluation.tables import markdown, sample_rows
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import make_scene
from rsvp_backend.training.referring import DataError
from rsvp_backend.types import Marks

IDENTITY = {"dataset": "reasonseg", "split": "val", "version": "fake", "instances": "proposals"}


def run_all(rsvp: RSVP, data: EvaluationSet, folder: Path, problems: Problems | None = None, **options: Any) -> Run:
    store, told = Store(folder, {**IDENTITY, "dataset": data.name}), problems if problems is not None else Problems()
    run(rsvp, data.samples, store, told, **options)
    records = [store.records[sample.id] for sample in data.samples if sample.id in store.records]
    return Run(data, records, "fake", tuple(told))


def asked(rsvp: RSVP) -> list[str]:
    assert isinstance(rsvp.reasoner, FakeReasoner)
    return [query.instruction for query in rsvp.reasoner.asked]


def test_reasonseg_by_hand(tmp_path: Path) -> None:
    """IoUs of 1, 1/2, 0 and, where nothing is there and nothing is found, 1."""
    data = datasets.read("reasonseg", write_reasonseg(tmp_path), "val", Problems())
    done = run_all(fake_rsvp(), data, tmp_path / "out")
    assert [record.overlap.iou for record in done.records] == [1.0, 0.5, 0.0, 1.0]
    assert [(record.truth_px, record.found_px) for record in done.records] == [
        (FOUND_PX, FOUND_PX), (FOUND_PX // 2, FOUND_PX), (100, 0), (0, 0),
    ]  # fmt: skip
    found = summarise(done, CONVENTIONS["lisa"])
    assert (found["n"], found["partial"], found["giou"], found["miou"]) == (4, False, 0.625, 0.625)
    assert found["ciou"] == round((648 + 324) / (648 + 648 + 100), 6)
    assert found["precision_at"] == {"0.5": 0.75, "0.6": 0.5, "0.7": 0.5, "0.8": 0.5, "0.9": 0.5}
    assert summarise(done, CONVENTIONS["seg-zero"])["giou"] == 0.375
    by_length = found["by_group"]["length"]
    assert {name: (group["n"], group["giou"]) for name, group in by_length.items()} == {
        "long": (2, 0.25), "short": (2, 1.0),
    }  # fmt: skip
    stages = found["diagnosis"]
    assert (stages["right"], stages["both"], stages["empty_output"]) == (0.75, 0.25, 0.25)
    assert (stages["absent_recall"], stages["absent_false_alarm"]) == (1.0, round(1 / 3, 6))


def test_boxes_by_hand(tmp_path: Path) -> None:
    """CLEVR-Ref+: exact, half of the pixels but a third of the box, and rightly nothing. GQA: exact, and elsewhere."""
    data = datasets.read("clevr-ref", write_clevr_ref(tmp_path / "clevr"), "val", Problems())
    done = run_all(fake_rsvp(), data, tmp_path / "a")
    around_both = (70 - 27) * (80 - 27)
    assert [record.box_iou for record in done.records] == [1.0, pytest.approx(FOUND_PX / around_both), None]
    found = summarise(done, CONVENTIONS["exact"])
    assert (found["box_accuracy"], found["box_miou"]) == (0.5, round((1 + FOUND_PX / around_both) / 2, 6))
    assert found["giou"] == round((1 + 648 / 848 + 1) / 3, 6)
    data = datasets.read("gqa", write_gqa(tmp_path / "gqa"), "val", Problems())
    found = summarise(run_all(fake_rsvp(), data, tmp_path / "b"), CONVENTIONS["exact"])
    assert (found["box_accuracy"], found["box_miou"]) == (0.5, 0.5)
    assert "giou" not in found  # boxes are no outlines
    assert found["diagnosis"]["false_localization"] == 0.5


def test_seginw_by_hand(tmp_path: Path) -> None:
    """Cows: see test_evaluation_ap. Phones: exact, and nothing is found of what is not there."""
    data = datasets.read("seginw", write_seginw(tmp_path), "valid", Problems())
    found = summarise(run_all(fake_rsvp(), data, tmp_path / "out"), CONVENTIONS["lisa"])
    cows = (1 + 9 * 51 / 101) / 10
    assert found["ap_by_set"] == {"Cows": round(cows, 6), "Phones": 1.0}
    assert (found["ap"], found["ap50"], found["sets"]) == (round((cows + 1) / 2, 6), 1.0, 2)
    assert found["partial_because"] == ["2 of 25 sets"]
    table = markdown(found, "seginw")
    assert f"| Cows | {100 * cows:.1f} |" in table
    assert "| RSVP (published) |  | 49.7 |" in table


def test_parts_of_a_mask_as_instances(tmp_path: Path) -> None:
    one = sample(picture(tmp_path / "x.png"), "the cup", box_mask(FOUND_XYXY))
    whole, parts = (score(fake_rsvp(), one, split_masks=flag) for flag in (False, True))
    assert [(found.score, found.object) for found in whole.instances] == [(0.75, "cup")]
    assert len(parts.instances) == 1  # it is of one piece


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    data = datasets.read("reasonseg", write_reasonseg(tmp_path), "val", Problems())
    first = run_all(fake_rsvp(), limited(data, 2, seed=0), tmp_path / "out")
    path = tmp_path / "out" / "samples.jsonl"
    with path.open("ab") as stream:
        stream.write(b'{"id": "cut o')  # as a kill leaves it
    rsvp, ticks = fake_rsvp(), list[int]()
    second = run_all(rsvp, data, tmp_path / "out", progress=lambda: ticks.append(1))
    earlier = {record.instruction for record in first.records}
    assert len(earlier) == 2
    assert set(asked(rsvp)) == {sample.instruction for sample in data.samples} - earlier
    assert (len(second.records), len(ticks)) == (4, 4)
    assert len(path.read_text().splitlines()) == 5
    rsvp = fake_rsvp()
    assert run_all(rsvp, data, tmp_path / "out").records == second.records
    assert not asked(rsvp)


def test_records_come_back_whole(tmp_path: Path) -> None:
    one = sample(picture(tmp_path / "x.png"), "the cup", box_mask((0, 0, 9, 9)), object="dog")
    record = score(fake_rsvp(), replace(one, groups={"kind": "name"}))
    assert Record.from_dict(json.loads(record.to_line())) == record


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"evaluation": {"version": "other"}}\n', "holds results with dataset None, this is 'reasonseg'"),
        ("not json\n", "is no file of an evaluation"),
        ('["x"]\n', "is no file of an evaluation"),
        (json.dumps({"evaluation": IDENTITY}) + "\n{}\n", "line 2 is no record"),
        (json.dumps({"evaluation": {**IDENTITY, "version": "v1"}}) + "\n", "with version 'v1', this is 'fake'"),
    ],
)
def test_records_of_something_else_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "samples.jsonl").write_text(content)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        Store(tmp_path, IDENTITY)
    assert "--fresh" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Store.fresh(tmp_path, IDENTITY).records == {}
    assert (tmp_path / "samples-1.jsonl").read_text() == content


def test_an_empty_file_of_records_is_begun(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").touch()
    assert Store(tmp_path, IDENTITY).records == {}
    assert Store(tmp_path, IDENTITY).records == {}


def test_what_cannot_be_run_is_told_counted_and_tried_again(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png")
    texts = ["the cup", "the broken one", "the dog"]
    samples = [sample(path, text, box_mask(FOUND_XYXY), name=f"s{n}") for n, text in enumerate(texts)]
    missing = sample(tmp_path / "gone.png", "the cat", box_mask(), name="s3")
    data, problems = EvaluationSet("reasonseg", "val", (*samples, missing)), Problems()
    done = run_all(fake_rsvp(), data, tmp_path / "out", problems)
    assert list(problems) == [
        "s1: reasoner_failed: the reasoner cannot be reached",
        f"s3: {tmp_path}/gone.png cannot be read as an image: No such file or directory",
    ]
    summary = summarise(done, CONVENTIONS["lisa"])
    assert (summary["n"], summary["giou"], summary["partial"]) == (2, 1.0, True)
    assert summary["partial_because"] == [
        "2 of 4 samples have a result", "2 files, entries or samples could not be used",
    ]  # fmt: skip
    assert "**Partial result:** 2 of 4 samples have a result;" in markdown(summary, "reasonseg")
    rsvp = fake_rsvp()
    run_all(rsvp, data, tmp_path / "out")
    assert asked(rsvp) == ["the broken one"]
    with pytest.raises(DataError, match=r"s1: reasoner_failed: .* \(--strict\)"):
        run_all(fake_rsvp(), data, tmp_path / "strict", Problems(strict=True))


def test_several_at_a_time_give_the_same(tmp_path: Path) -> None:
    data = datasets.read("reasonseg", write_reasonseg(tmp_path), "val", Problems())
    one, many = (run_all(fake_rsvp(), data, tmp_path / str(n), workers=n) for n in (1, 3))
    assert [replace(r, seconds=0.0) for r in many.records] == [replace(r, seconds=0.0) for r in one.records]


def test_a_programming_error_is_none_of_the_samples(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png")
    data = EvaluationSet("reasonseg", "val", (sample(path, "the crash", box_mask()),))
    for workers in (1, 2):
        with pytest.raises(RuntimeError, match="a bug"):
            run_all(fake_rsvp(), data, tmp_path / str(workers), workers=workers)


def test_limits_and_interruptions_make_a_result_partial(tmp_path: Path) -> None:
    data = datasets.read("reasonseg", write_reasonseg(tmp_path), "val", Problems())
    done = run_all(fake_rsvp(), limited(data, 3, seed=0), tmp_path / "out")
    assert done.partial() == ["limited to 3 of 4 samples"]
    assert replace(done, interrupted=True, records=done.records[:1]).partial() == [
        "limited to 3 of 4 samples", "interrupted", "1 of 3 samples have a result",
    ]  # fmt: skip


def test_the_table_stands_beside_the_papers(tmp_path: Path) -> None:
    data = datasets.read("reasonseg", write_reasonseg(tmp_path, "test"), "test", Problems())
    done = run_all(fake_rsvp(), data, tmp_path / "out")
    lines = markdown(summarise(done, CONVENTIONS["lisa"]), "reasonseg").splitlines()
    (own,) = (line for line in lines if line.startswith("| this run |"))
    assert own.startswith("| this run | 4 | 62.5 (")
    published = [line for line in lines if line.startswith("| RSVP, GPT-4o")]
    assert [re.findall(r"\d\d\.\d", line) for line in published] == [
        ["60.3", "60.0"], ["61.9", "62.5"], ["55.4", "50.4"],
    ]  # fmt: skip
    (empty,) = (line for line in lines if line.startswith("| signature: empty output"))
    assert empty == "| signature: empty output | 25.0 | 50.0 | 0.0 |"


def test_samples_as_rows(tmp_path: Path) -> None:
    data = datasets.read("reasonseg", write_reasonseg(tmp_path), "val", Problems())
    rows = list(csv.DictReader(io.StringIO(sample_rows(run_all(fake_rsvp(), data, tmp_path / "out").records))))
    signatures = ("false_localization", "incomplete_regions", "suboptimal_mask", "empty_output")
    assert [[row[name] for name in signatures] for row in rows] == [
        ["0"] * 4,
        ["0"] * 4,
        ["0", "0", "0", "1"],
        ["0"] * 4,
    ]
    assert [(row["id"], row["iou"], row["wrong"]) for row in rows] == [
        ("a", "1.0", ""), ("b", "0.5", ""), ("c", "0.0", "both"), ("d", "1.0", ""),
    ]  # fmt: skip
    assert rows[2]["why"].startswith("stage 1 said that it is not there")


class Links(HTMLParser):
    """All that a page would fetch, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched, self.tags, self.shown = list[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


def test_the_page_shows_the_worst_and_fetches_nothing(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png")
    texts = {"the cup": FOUND_XYXY, "the <script>alert(1)</script>": (0, 0, 30, 30), "the absent & lost": (0, 0, 9, 9)}
    samples = tuple(sample(path, text, box_mask(box), name=f"s{n}") for n, (text, box) in enumerate(texts.items()))
    done = run_all(fake_rsvp(), EvaluationSet("reasonseg", "val", samples), tmp_path / "out")
    assert [record.id for record in worst(done.records, 9)] == ["s2", "s1"]
    assert [record.id for record in worst(done.records, 1)] == ["s2"]
    text = page(done, summarise(done, CONVENTIONS["lisa"]), Marks(), 9)
    read = Links(text)
    assert all(link.startswith("data:") for link in read.fetched)
    assert "script" not in read.tags
    assert len([link for link in read.fetched if link.startswith("data:image/webp;base64,")]) == 3 + 2
    shown = "".join(read.shown)
    assert "the <script>alert(1)</script>" in shown
    assert "the absent & lost" in shown
    assert "2 of 3 samples went wrong; the 2 worst are shown." in shown
    assert "stage 1 said that it is not there" in shown
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text


def test_a_page_of_boxes_and_one_without_anything_wrong(tmp_path: Path) -> None:
    data = datasets.read("gqa", write_gqa(tmp_path), "val", Problems())
    done = run_all(fake_rsvp(), data, tmp_path / "out")
    summary = summarise(done, CONVENTIONS["exact"])
    assert "Which animal sits there?" in page(done, summary, Marks("cells"), 5)
    right = replace(done, records=done.records[:1])
    assert "No sample went wrong." in page(right, summarise(right, CONVENTIONS["exact"]), Marks(), 5)


def test_a_picture_that_went_away_leaves_the_page_without_it(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png")
    data = EvaluationSet("reasonseg", "val", (sample(path, "the absent", box_mask(FOUND_XYXY)),))
    done = run_all(fake_rsvp(), data, tmp_path / "out")
    path.unlink()
    assert "<article>" not in page(done, summarise(done, CONVENTIONS["exact"]), Marks(), 5)


def test_scenes_are_a_set_with_known_objects() -> None:
    data, scene = scene_set("easy", [10_000_000]), make_scene(10_000_000, "easy")
    assert [one.instruction for one in data.samples] == [question.instruction for question in scene.questions]
    for one, question in zip(data.samples, scene.questions, strict=True):
        width, height = one.image.load().size
        assert (one.truth.read(width, height).mask == question.mask).all()
        assert one.object == (question.objects[0] if question.present else None)
    first: Sample = data.samples[0]
    with pytest.raises(DataError, match="not 5 x 5"):
        first.truth.read(5, 5)
