"""Traces: what is kept of them, for how long, and the sentence that says which stage failed."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fake_models import FakeReasoner, fake_rsvp
from PIL import Image

from rsvp_backend import trace_pictures, traces
from rsvp_backend.pages import verdict
from rsvp_backend.trace_files import TraceFiles, TraceLimits
from rsvp_backend.trace_pictures import decoded_mask, kept_size
from rsvp_backend.trace_summary import EMPTY, FOUND, Asked, Summary
from rsvp_backend.traces import TraceLog, trace_record
from rsvp_backend.types import EmptyReason, Outcome, Trace

IMAGE = Image.new("RGB", (90, 72), "gray")


def outcome(instruction: str = "the cup") -> Outcome:
    return fake_rsvp(FakeReasoner())(IMAGE, instruction)


def added(log: TraceLog, instruction: str = "the cup", **about: object) -> str:
    known = {"task": 1, "project": "7.1", "size_px": IMAGE.size, "model_version": "rsvp-a", **about}
    return log.add(outcome(instruction), picture=IMAGE, **known)


def files_of(folder: Path, trace_id: str) -> set[str]:
    return {path.name.removeprefix(f"{trace_id}.") for path in folder.iterdir() if path.name.startswith(trace_id)}


@pytest.mark.parametrize("on_disk", [True, False])
def test_pictures_are_kept_with_the_record(tmp_path: Path, on_disk: bool) -> None:
    log = TraceLog(tmp_path if on_disk else None)
    trace_id = added(log)
    for name, size in (("original", IMAGE.size), ("marked", IMAGE.size), ("mask-0", IMAGE.size)):
        with Image.open(io.BytesIO(log.picture(trace_id, name) or b"")) as picture:
            assert picture.size == size
    (instance,) = outcome().instances
    assert np.array_equal(decoded_mask(log.picture(trace_id, "mask-0") or b""), instance.mask)
    assert log.picture(trace_id, "mask-1") is None
    assert log.picture(trace_id, "nothing") is None
    if on_disk:
        assert files_of(tmp_path, trace_id) == {"json", "original.jpg", "marked.jpg", "mask-0.png"}


def test_large_images_are_kept_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_pictures, "KEPT_PX", 45)
    log = TraceLog()
    trace_id = added(log)
    assert kept_size(IMAGE.size) == (45, 36)
    assert log.recent()[0]["kept_px"] == (45, 36)
    assert decoded_mask(log.picture(trace_id, "mask-0") or b"").shape == (36, 45)


def test_another_process_finds_what_is_in_the_folder(tmp_path: Path) -> None:
    trace_id = added(TraceLog(tmp_path))
    other = TraceLog(tmp_path)
    found = other.get(trace_id)
    assert found is not None
    assert found["instances"][0]["object"] == "cup"
    assert [one.id for one in other.summaries()] == [trace_id]
    assert other.picture(trace_id, "original")
    assert other.recent() == []


@pytest.mark.parametrize("name", ["../secret", "secret", "", "20260101T000000-0000000g", "20260101T000000-00000000/x"])
def test_only_ids_are_looked_up(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.json").write_text("{}")
    folder = tmp_path / "traces"
    folder.mkdir()
    log = TraceLog(folder)
    assert log.get(name) is None
    assert log.picture(name, "original") is None
    assert log.picture("20260101T000000-00000000", "../secret") is None


def test_damaged_records_are_passed_over(tmp_path: Path) -> None:
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    for number, text in enumerate(("", "[]", "{}", '{"instances": 3}', "\xff")):
        (tmp_path / f"{now}-0000000{number}.json").write_text(text, encoding="latin-1")
    log = TraceLog(tmp_path)
    good = added(log)
    assert [one.id for one in TraceLog(tmp_path).summaries()] == [good]


def test_the_oldest_go_where_bytes_are_too_many(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x" * 5000)
    log = TraceLog(tmp_path, TraceLimits(max_bytes=40_000))
    ids = [added(log) for _ in range(30)]
    sizes = [path.stat().st_size for path in tmp_path.iterdir() if path.name != "notes.txt"]
    assert 20_000 < sum(sizes) <= 40_000
    # Ids of one second have no order among themselves: the newest need not be the last one here.
    kept = {one.id for one in TraceLog(tmp_path).summaries()}
    assert kept == {path.name.partition(".")[0] for path in tmp_path.glob("*.jpg")}
    assert kept < set(ids)
    assert (tmp_path / "notes.txt").exists()


def test_old_ones_go(tmp_path: Path) -> None:
    trace_id = added(TraceLog(tmp_path))
    for days in (29, 31):
        old = f"{datetime.now(UTC) - timedelta(days=days):%Y%m%dT%H%M%S}-00000000"
        for path in list(tmp_path.glob(f"{trace_id}.*")):
            (tmp_path / path.name.replace(trace_id, old)).write_bytes(
                path.read_bytes().replace(trace_id.encode(), old.encode())
            )
    log = TraceLog(tmp_path, TraceLimits(days=30))
    ids = [one.id for one in log.summaries()]
    assert len(ids) == 2
    assert ids[0] == trace_id
    assert len(list(tmp_path.glob("*.original.jpg"))) == 2


def test_pictures_in_memory_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MEMORY_BYTES", 12_000)
    log = TraceLog()
    ids = [added(log) for _ in range(12)]
    kept = [trace_id for trace_id in ids if log.picture(trace_id, "original")]
    assert 0 < len(kept) < 12
    assert kept == ids[-len(kept) :]
    assert all(log.get(trace_id) for trace_id in ids)


def test_a_folder_that_cannot_be_written_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    trace_id = added(TraceLog(tmp_path / "file" / "traces"))
    assert f"trace {trace_id} is not written" in caplog.text


def test_a_link_needs_the_public_address() -> None:
    assert TraceLog().address("x") is None
    assert TraceLog(public_url="https://rsvp.example/ml/").address("x") == "https://rsvp.example/ml/traces/x"


def test_a_list_is_narrowed_down() -> None:
    log = TraceLog()
    added(log)
    added(log, "absent cup", project="8.5", task=2)
    added(log, "broken", project="8.5", task=3, model_version="rsvp-b")

    def tasks(**asked: str) -> set[str]:
        return {one.task for one in Asked(**asked).narrowed(log.summaries())}

    assert tasks() == {"1", "2", "3"}
    assert tasks(reason=FOUND) == {"1"}
    assert tasks(reason=EMPTY) == {"2", "3"}
    assert tasks(reason="reasoner_failed") == {"3"}
    assert tasks(project="8") == tasks(project="8.5") == {"2", "3"}
    assert tasks(project="8", task="2") == {"2"}
    assert tasks(version="rsvp-b") == {"3"}
    assert tasks(reason="nothing of the kind") == set()


def test_a_summary_tells_the_weakest_mask() -> None:
    record = {"id": "a", "time": "t", "instances": [{"score": 0.9}, {"score": 0.4}], "instruction": "x", "reason": None,
              "timings_s": {"a": 1.0, "b": 0.5}}  # fmt: skip
    assert Summary.of(record) == Summary("a", "t", "", "", "x", FOUND, "", 2, 0.4, 1.5)


# --- the sentence ------------------------------------------------------------------------------------------------


def record_of(why: EmptyReason, /, **timings_s: float) -> dict[str, object]:
    return trace_record(Outcome.empty(why, "", Trace("x", timings_s=timings_s)))


@pytest.mark.parametrize("reason", list(EmptyReason))
def test_every_reason_has_a_sentence_that_names_the_stage(reason: EmptyReason) -> None:
    sentence = verdict.sentence(record_of(reason, fetch=0.1, mark=0.1, reason=0.1))
    assert sentence.endswith(".")
    failed = verdict.failed_stage(record_of(reason, fetch=0.1, mark=0.1, reason=0.1))
    if failed in ("reason", "segment"):
        number = "1" if failed == "reason" else "2"
        assert f"stage {number}" in sentence.lower() or reason is EmptyReason.INTERNAL


def test_sentences_of_real_outcomes() -> None:
    assert verdict.sentence(trace_record(outcome())).startswith("Both stages answered: 1 mask with score 0.")
    assert verdict.sentence(trace_record(outcome("absent"))) == "Stage 1 answered that the object is absent."
    failed = trace_record(outcome("broken"))
    assert verdict.sentence(failed) == "Stage 1 could not be asked, or did not answer."
    assert [(one.name, one.state) for one in verdict.stages(failed)] == [
        ("mark", "went"), ("reason", "failed"), ("segment", ""), ("paste", ""),
    ]  # fmt: skip
    assert {one.state for one in verdict.stages(trace_record(outcome()))} == {"went"}
    assert (verdict.tone(failed), verdict.tone(trace_record(outcome("absent")))) == ("bad", "unsure")


@pytest.mark.parametrize(
    ("timings_s", "words"),
    [
        ({}, "before it was begun"),
        ({"fetch": 1.0}, "before stage 1"),
        ({"fetch": 1.0, "mark": 0.1, "reason": 9.0}, "while stage 1 was asked"),
    ],
)
def test_where_time_ran_out(timings_s: dict[str, float], words: str) -> None:
    assert words in verdict.sentence(record_of(EmptyReason.DEADLINE, **timings_s))


def test_records_are_json(tmp_path: Path) -> None:
    log = TraceLog(tmp_path)
    trace_id = added(log)
    files = TraceFiles(tmp_path, TraceLimits())
    assert files.read(trace_id) == json.loads(json.dumps(log.get(trace_id)))
