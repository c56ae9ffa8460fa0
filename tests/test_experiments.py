"""Experiments: the oracle, what is measured of an answer, sweeps that go on, figures, tables and plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_models import FakeReasoner, FakeSegmenter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsvp_backend.errors import ReasonerError
from rsvp_backend.evaluation.samples import Problems, Sample, Truth
from rsvp_backend.experiments.changes import AS_IT_IS, TRANSFORMS, Change, shrink
from rsvp_backend.experiments.figures import difference, summarise
from rsvp_backend.experiments.measuring import Row, measure
from rsvp_backend.experiments.oracle import Known, OracleReasoner, WholeImageReasoner
from rsvp_backend.experiments.plot import PANELS, STYLES, draw
from rsvp_backend.experiments.questions import read_questions, read_scenes
from rsvp_backend.experiments.report import COLUMNS, to_csv, to_dict, to_markdown
from rsvp_backend.experiments.store import FILE, Store
from rsvp_backend.experiments.sweep import run
from rsvp_backend.experiments.variants import Oracles, Pipeline, Plan, Same, Variant
from rsvp_backend.experiments.wordings import FAMILIES, reworded
from rsvp_backend.grid import mask_regions
from rsvp_backend.pipeline import RSVP, PipelineConfig
from rsvp_backend.reasoner.parsing import parse
from rsvp_backend.training.referring import DataError
from rsvp_backend.types import BoolMask, Marks, Query, Regions

BANDS, CELLS = Marks("bands", 6, 6), Marks("cells", 6, 6)
SIZE_PX = (60, 48)


def block(left: int, top: int, right: int, bottom: int, size_px: tuple[int, int] = SIZE_PX) -> BoolMask:
    mask = np.zeros((size_px[1], size_px[0]), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def asked(oracle: OracleReasoner | WholeImageReasoner, marks: Marks, size_px: tuple[int, int] = SIZE_PX) -> Regions:
    answer = oracle.propose(Image.new("RGB", size_px), Query("the cup"), marks, None)
    assert parse(answer.raw_texts[0], marks) == answer.proposals  # the text is an answer of the asked form
    return answer.proposals[0].regions


@pytest.mark.parametrize("marks", [BANDS, CELLS])
def test_the_oracle_names_what_the_true_mask_touches(marks: Marks) -> None:
    mask = block(11, 9, 29, 15)
    oracle = OracleReasoner(Known("q", mask, "red cup"))
    assert asked(oracle, marks) == mask_regions(mask, marks)
    proposal = oracle.propose(Image.new("RGB", SIZE_PX), Query("?"), marks, None).proposals[0]
    assert (proposal.object, proposal.present) == ("red cup", True)


@given(
    st.integers(0, 50), st.integers(0, 40), st.integers(1, 30), st.integers(1, 20),
    st.sampled_from([BANDS, CELLS, Marks("bands", 1, 2), Marks("cells", 2, 1)]), st.integers(0, 9),
)  # fmt: skip
def test_one_region_is_off(left: int, top: int, width: int, height: int, marks: Marks, repeat: int) -> None:
    """One id more, one less, or the only one of its kind moved; nothing that does not exist, and never none."""
    mask = block(left, top, left + width, top + height)
    true = ids(mask_regions(mask, marks))
    found = ids(asked(OracleReasoner(Known("q", mask, "cup"), noise=1.0, repeat=repeat), marks))
    asked_again = ids(asked(OracleReasoner(Known("q", mask, "cup"), noise=1.0, repeat=repeat), marks))
    assert found == asked_again
    more, less = found - true, true - found
    assert len(more) <= 1
    assert len(less) <= 1
    kinds = {kind for kind, _ in true}
    assert {kind for kind, _ in found} == kinds
    if len(more) == len(less) == 1:
        ((kind, moved),) = less
        assert [other for other in true if other[0] == kind] == [(kind, moved)]
    if marks in (BANDS, CELLS) and len(true) < 12:  # there is room to be off
        assert found != true


def ids(regions: Regions) -> set[tuple[str, int]]:
    named = {"rows": regions.rows, "columns": regions.columns, "cells": regions.cells}
    return {(name, one) for name, values in named.items() for one in values}


def test_the_oracle_errs_as_often_as_it_is_told() -> None:
    mask = block(20, 16, 40, 32)
    off = [asked(OracleReasoner(Known(f"q{n}", mask, "cup"), noise=0.3), BANDS) != mask_regions(mask, BANDS)
           for n in range(400)]  # fmt: skip
    assert np.mean(off) == pytest.approx(0.3, abs=0.07)
    assert OracleReasoner(Known("q", mask, "cup"), 0.3).version != OracleReasoner(Known("q", mask, "cup")).version
    with pytest.raises(ValueError, match=r"noise is 1\.5"):
        OracleReasoner(Known("q", mask, "cup"), noise=1.5)


def test_the_oracle_calls_absent_what_is_not_there_whatever_the_noise() -> None:
    oracle = OracleReasoner(Known("q", block(0, 0, 0, 0), "cup"), noise=1.0)
    answer = oracle.propose(Image.new("RGB", SIZE_PX), Query("?"), BANDS, None)
    assert not answer.proposals[0].present


def test_the_oracle_refuses_a_part_of_the_picture() -> None:
    oracle = OracleReasoner(Known("q", block(5, 5, 9, 9), "cup"))
    with pytest.raises(ReasonerError, match="leave zoom off"):
        oracle.propose(Image.new("RGB", (30, 24)), Query("?"), BANDS, None)


@pytest.mark.parametrize("marks", [BANDS, CELLS])
def test_without_stage_1_the_crop_is_the_picture(marks: Marks) -> None:
    outcome = RSVP(WholeImageReasoner(), FakeSegmenter(), PipelineConfig(marks))(Image.new("RGB", SIZE_PX), "a cup")
    assert [box.xyxy for box in outcome.trace.crops] == [(0, 0, *SIZE_PX)]
    assert [instance.object for instance in outcome.instances] == ["a cup"]


@pytest.mark.parametrize("change", [AS_IT_IS, *TRANSFORMS, shrink(30)], ids=lambda change: change.name)
def test_a_mask_goes_there_and_comes_back(change: Change) -> None:
    image = Image.new("RGB", SIZE_PX, "gray")
    image.paste((255, 0, 0), (10, 12, 30, 24))
    mask = block(10, 12, 30, 24)
    shown = change.shown(image)
    there = change.there(mask, shown.size)
    red = np.asarray(shown, dtype=np.int16)[..., 0] - np.asarray(shown, dtype=np.int16)[..., 1] > 60
    assert (there & red).sum() / (there | red).sum() > 0.6  # the mask lies on what it means
    assert np.array_equal(change.back(there, image.size), mask)


@dataclass(frozen=True)
class Drawn:
    """Picture and truth of a sample in memory."""

    mask: BoolMask
    loads: list[int] = field(default_factory=list)

    def load(self) -> Image.Image:
        self.loads.append(1)
        return Image.new("RGB", (self.mask.shape[1], self.mask.shape[0]), "gray")

    def read(self, width_px: int, height_px: int) -> Truth:
        return Truth(self.mask)


def sample(number: int, instruction: str = "the cup", mask: BoolMask | None = None, name: str | None = None) -> Sample:
    drawn = Drawn(block(20, 16, 40, 32) if mask is None else mask)
    return Sample(f"q{number}", f"image{number // 2}", drawn, instruction, drawn, name, {"kind": "name"})


def loaded(pipeline: Pipeline) -> Callable[[], Pipeline]:
    return lambda: pipeline


ORACLE = Pipeline(Oracles(), FakeSegmenter(), PipelineConfig(BANDS, padding=0.0))


def test_what_is_measured_of_an_answer() -> None:
    """The crop is rows 3 and 4 of 8 px, columns 3 and 4 of 10 px; the segmenter finds its left half."""
    variant = Variant("oracle", "x", loaded(ORACLE))
    row = measure(variant, ORACLE, "v", sample(0, name="cup", mask=block(22, 18, 38, 30)), 0)
    assert (row.intersection_px, row.union_px) == (8 * 12, 10 * 16 + 16 * 12 - 8 * 12)
    assert (row.crop_recall, row.regions, row.object_right, row.present, row.said) == (1.0, 4, True, True, True)
    assert row.crop_share == pytest.approx(20 * 16 / (60 * 48))
    assert row.regions_share == pytest.approx(4 / 36)
    absent = measure(variant, ORACLE, "v", sample(1, mask=block(0, 0, 0, 0)), 0)
    assert (absent.crop_recall, absent.crop_share, absent.regions_share, absent.object_right) == (None,) * 4
    assert (absent.iou, absent.said, absent.reason) == (1.0, False, "absent")


def test_cells_name_less_of_the_picture_than_the_bands_around_them() -> None:
    """An L of three cells: the bands' cross product takes in the fourth; the crop is the same."""
    corner = block(10, 8, 20, 24) | block(10, 16, 30, 24)
    rows = {}
    for marks in (BANDS, CELLS):
        pipeline = replace(ORACLE, config=PipelineConfig(marks, padding=0.0))
        rows[marks.kind] = measure(Variant("oracle", "x", loaded(pipeline)), pipeline, "v", sample(0, mask=corner), 0)
    assert rows["cells"].regions_share == pytest.approx(3 / 36)
    assert rows["bands"].regions_share == pytest.approx(4 / 36)
    assert rows["cells"].crop_share == rows["bands"].crop_share


def test_a_mirrored_picture_is_scored_in_the_frame_of_the_original() -> None:
    """The segmenter finds the left half of the mirrored crop: the right half of the original's."""
    mirrored = next(change for change in TRANSFORMS if change.mirrored)
    row = measure(Variant("oracle", "m", loaded(ORACLE), change=mirrored), ORACLE, "v", sample(0), 0)
    right = measure(Variant("oracle", "m", loaded(ORACLE)), ORACLE, "v", sample(0), 0)
    assert (row.intersection_px, row.union_px) == (right.intersection_px, right.union_px)
    assert row.crop_recall == 1.0
    off_centre = sample(0, mask=block(20, 16, 30, 32) | block(30, 16, 40, 24))  # more of it on the left
    assert measure(Variant("o", "m", loaded(ORACLE), change=mirrored), ORACLE, "v", off_centre, 0).intersection_px == 80


def plan_of(reasoner: FakeReasoner, *values: str, name: str = "grid", repeats: int = 1) -> Plan:
    config = PipelineConfig(Marks(), padding=0.0)
    variants = [
        Variant("fake", value, loaded(Pipeline(Same(reasoner), FakeSegmenter(), config)), repeats=repeats)
        for value in values
    ]
    return Plan(name, "marks", values[0], tuple(variants))


def test_a_sweep_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    reasoner, samples = FakeReasoner(), [sample(n) for n in range(5)]
    first = run(plan_of(reasoner, "a"), samples[:3], Store(tmp_path), Problems())
    assert len(reasoner.asked) == 3
    heard = []
    rows = run(plan_of(reasoner, "a", "b"), samples, Store(tmp_path), Problems(),
               tell=lambda variant, done: heard.append((variant.value, done)))  # fmt: skip
    assert len(reasoner.asked) == 3 + 2 + 5
    assert heard == [("a", 3), ("a", 4), ("a", 5), *(("b", n) for n in range(6))]
    assert rows["fake/a"][:3] == first["fake/a"]
    assert [row.question for row in rows["fake/b"]] == [s.id for s in samples]


def test_another_version_is_asked_anew_and_not_mixed_in(tmp_path: Path) -> None:
    run(plan_of(FakeReasoner(version="old"), "a"), [sample(0)], Store(tmp_path), Problems())
    fresh = FakeReasoner(version="new")
    rows = run(plan_of(fresh, "a"), [sample(0)], Store(tmp_path), Problems())["fake/a"]
    assert len(fresh.asked) == 1
    assert len(rows) == 1
    assert len((tmp_path / FILE).read_text().splitlines()) == 2


def test_a_killed_sweep_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    reasoner = FakeReasoner()
    rows = run(plan_of(reasoner, "a"), [sample(n) for n in range(3)], Store(tmp_path), Problems())["fake/a"]
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:-20])  # the kill cut the third line off
    store = Store(tmp_path)
    assert list(store.rows.values()) == rows[:2]
    run(plan_of(reasoner, "a"), [sample(n) for n in range(3)], store, Problems())
    assert len(reasoner.asked) == 4
    assert len(Store(tmp_path).rows) == 3


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"evaluation": {}}\n')
    with pytest.raises(DataError, match="line 1 is no row"):
        Store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="--out"):
        Store(tmp_path / "file" / "below")


def test_two_sweeps_in_one_folder_take_turns(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    with first.alone(), pytest.raises(DataError, match="another sweep is writing it"), second.alone():
        pass
    with second.alone():
        pass


def test_several_questions_at_a_time_give_the_same_rows(tmp_path: Path) -> None:
    samples = [sample(n, f"the cup {n}") for n in range(9)]
    one = run(plan_of(FakeReasoner(), "a", repeats=2), samples, Store(tmp_path / "1"), Problems())["fake/a"]
    four = run(plan_of(FakeReasoner(), "a", repeats=2), samples, Store(tmp_path / "4"), Problems(), threads=4)["fake/a"]
    assert [replace(row, seconds=0) for row in one] == [replace(row, seconds=0) for row in four]
    assert [row.repeat for row in one[:4]] == [0, 1, 0, 1]


def test_a_question_that_cannot_be_asked_is_told_and_tried_again(tmp_path: Path) -> None:
    samples, problems, reasoner = [sample(0), sample(1, "broken")], Problems(), FakeReasoner()
    plan = plan_of(reasoner, "a")
    rows = run(plan, samples, Store(tmp_path), problems)
    assert list(problems) == ["fake/a, q1: reasoner_failed: the reasoner cannot be reached"]
    figures = summarise(plan, rows, len(samples))
    assert (figures[0].asked, figures[0].missing) == (1, 1)
    assert "PARTIAL. fake/a: 1 answers are missing." in to_markdown(plan, figures, {})
    run(plan, samples, Store(tmp_path), Problems())
    assert [query.instruction for query in reasoner.asked] == ["the cup", "broken", "broken"]


def row(value: str, number: int, intersection_px: int, union_px: int, repeat: int = 0, present: bool = True) -> Row:
    return Row(
        f"fake/{value}", f"q{number}", repeat, "v", f"image{number // 2}", "name", "the cup", present,
        said=intersection_px > 0, intersection_px=intersection_px, union_px=union_px,
        crop_recall=1.0 if present else None, crop_share=0.25 if present else None, regions_share=None, regions=4,
        object_right=None, valid=True, zooms=0, characters=10, reason=None, seconds=0.5 + number,
    )  # fmt: skip


def test_figures_by_hand() -> None:
    plan = plan_of(FakeReasoner(), "a", "b")
    rows = {
        "fake/a": [row("a", 0, 50, 100), row("a", 1, 10, 10), row("a", 2, 0, 0, present=False)],
        "fake/b": [row("b", 0, 75, 100), row("b", 1, 5, 10), row("b", 2, 3, 7, present=False)],
    }
    a, b = summarise(plan, rows, 3)
    assert a.measures["giou"].value == pytest.approx(0.75)
    assert a.measures["ciou"].value == pytest.approx(60 / 110)
    assert a.measures["absent_right"].value == 1.0
    assert b.measures["absent_right"].value == 0.0
    assert (a.difference, a.spread, a.best, a.seconds) == (None, None, None, 1.5)
    assert b.difference is not None
    assert b.difference.value == pytest.approx((0.25 - 0.5) / 2)
    assert "object_right" not in a.measures


def test_differences_are_those_of_the_questions_in_common() -> None:
    found = difference([row("b", n, 60 + n, 100) for n in range(40)], [row("a", n, 50 + n, 100) for n in range(30)])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert difference([row("b", 1, 1, 2)], [row("a", 2, 1, 2)]) is None


def test_repeats_have_a_spread_and_a_best() -> None:
    plan = plan_of(FakeReasoner(), "a", repeats=2)
    rows = [row("a", 0, 20, 100), row("a", 0, 60, 100, repeat=1), row("a", 2, 40, 100), row("a", 2, 20, 100, repeat=1)]
    (figures,) = summarise(plan, {"fake/a": rows}, 2)
    assert figures.measures["giou"].value == pytest.approx(0.35)
    assert figures.spread == pytest.approx(np.std([0.3, 0.4], ddof=1))
    assert figures.best == pytest.approx(0.5)
    assert "best of repeats" in to_markdown(plan, [figures], {})


def swept(tmp_path: Path, name: str = "grid") -> tuple[Plan, list[object]]:
    plan = plan_of(FakeReasoner(), "5x5", "9x9", name=name)
    rows = run(plan, [sample(n) for n in range(4)], Store(tmp_path / name), Problems())
    return plan, list(summarise(plan, rows, 4))


def test_the_table_stands_beside_the_papers(tmp_path: Path) -> None:
    plan, figures = swept(tmp_path)
    table = to_markdown(plan, figures, {"data": "scenes easy", "questions": 4})  # type: ignore[arg-type]
    assert "| fake | 9x9 | 0.500 (0.500 to 0.500) | +0.000 (+0.000 to +0.000) |" in table
    assert "| 9x9, GPT-4o, ReasonSeg val | 64.7 | 63.1 |" in table
    assert "cannot be compared" in table
    record = to_dict(plan, figures, {"questions": 4})  # type: ignore[arg-type]
    assert json.loads(json.dumps(record))["variants"][1]["measures"]["giou"]["value"] == 0.5
    read = list(csv.DictReader(io.StringIO(to_csv(figures))))  # type: ignore[arg-type]
    assert [line["value"] for line in read] == ["5x5", "9x9"]
    assert float(read[0]["crop_recall_high"]) == 1.0


@pytest.mark.parametrize("name", sorted(PANELS))
def test_plots_show_every_series(name: str, tmp_path: Path) -> None:
    plan, figures = swept(tmp_path, name)
    draw(plan, figures, [tmp_path / "plot.png", tmp_path / "plot.svg"])  # type: ignore[arg-type]
    assert COLUMNS.keys() == PANELS.keys()
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).reshape(-1, 3)
    colour = [int(STYLES[0][0][n : n + 2], 16) for n in (1, 3, 5)]
    assert (np.abs(pixels.astype(np.int16) - colour).max(axis=1) < 8).sum() > 50
    assert pixels[0].tolist() == [255, 255, 255]  # opaque: readable on a dark page
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")


def test_variants_are_chosen_by_series_value_or_both() -> None:
    plan = plan_of(FakeReasoner(), "5x5", "9x9")
    for pattern in ("9x9", "fake/9x9", "*/9*"):
        assert [variant.value for variant in plan.only([pattern]).variants] == ["9x9"]
    assert len(plan.only(["fake"]).variants) == 2
    with pytest.raises(DataError, match="'7x7' fits none of fake/5x5, fake/9x9"):
        plan.only(["9x9", "7x7"])


def test_scenes_ask_what_counts_in_the_headline() -> None:
    found = read_scenes("easy", range(10_000_000, 10_000_006))
    kinds = {one.groups["kind"] for one in found.samples}
    assert kinds == {"name", "function", "absent"}
    image = found.samples[0].image.load()
    assert found.samples[0].truth.read(*image.size).mask.shape == (image.height, image.width)


def test_instructions_have_other_wordings_that_ask_the_same() -> None:
    wordings = {reworded("where is the red key?", n) for n in range(len(FAMILIES[1]) - 1)}
    assert len(wordings) == len(FAMILIES[1]) - 1
    assert "where is the red key?" not in wordings
    assert all("red key" in wording for wording in wordings)
    assert reworded("I want to cut paper", 0) == "what would you use to cut paper?"
    assert {reworded("find something to cut paper", n) for n in range(8)} >= {"I want to cut paper"}
    with pytest.raises(ValueError, match="no other wordings"):
        reworded("draw me a sheep", 0)


def test_every_instruction_of_scenes_can_be_reworded() -> None:
    for one in read_scenes("easy", range(10_000_000, 10_000_020)).samples:
        assert reworded(one.instruction, 1) != one.instruction


def test_a_variant_asks_in_its_own_words(tmp_path: Path) -> None:
    reasoner = FakeReasoner()
    plan = plan_of(reasoner, "a")
    plan = replace(plan, variants=(replace(plan.variants[0], reword=str.upper),))
    rows = run(plan, [sample(0)], Store(tmp_path), Problems())["fake/a"]
    assert [query.instruction for query in reasoner.asked] == ["THE CUP"] == [row.instruction for row in rows]


def test_robustness_has_mean_and_spread() -> None:
    plan = plan_of(FakeReasoner(), "as-it-is", "blur", "darker", name="robustness")
    values = {"as-it-is": 50, "blur": 30, "darker": 40}
    rows = {f"fake/{value}": [row(value, 0, px, 100)] for value, px in values.items()}
    table = to_markdown(plan, summarise(plan, rows, 1), {})
    assert "| fake | 0.500 | 0.350 | 0.071 | blur: 0.300 |" in table


@pytest.mark.parametrize("spec", ["reasonseg", "nonsense:folder", "gqa:folder", "reasonseg:"])
def test_unknown_data_is_refused(spec: str) -> None:
    with pytest.raises(DataError, match="NAME:ROOT is expected, NAME being one of reasonseg"):
        read_questions(spec, "val", Problems())
