"""``rsvp-backend evaluate`` on data sets: what it prints and writes, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_folders import write_reasonseg, write_seginw
from fake_models import FakeReasoner, fake_rsvp
from refer_folders import write_refer

from rsvp_backend import cli, presets
from rsvp_backend.pipeline import RSVP
from rsvp_backend.settings import settings_rows


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def rsvp(monkeypatch: pytest.MonkeyPatch) -> RSVP:
    """The fake models in place of the preset's."""
    loaded = fake_rsvp()
    monkeypatch.setattr(presets, "build", lambda settings: loaded)
    return loaded


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(("evaluate", *argv))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.usefixtures("rsvp")
def test_one_json_object_and_all_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = write_reasonseg(tmp_path / "data")
    status, printed, said = run(capsys, "reasonseg", "--data", str(root), "--json", "--save-worst", "5")
    figures = json.loads(printed)
    assert (status, figures["n"], figures["giou"], figures["partial"]) == (0, 4, 0.625, False)
    assert "partial" not in said
    folder = tmp_path / "out" / "evaluate" / "reasonseg-val"
    assert sorted(path.name for path in folder.iterdir()) == [
        "samples.csv", "samples.jsonl", "summary.json", "summary.md", "worst.html",
    ]  # fmt: skip
    assert json.loads((folder / "summary.json").read_text()) == figures
    assert "the absent dog" in (folder / "worst.html").read_text()


@pytest.mark.usefixtures("rsvp")
def test_the_table_and_a_partial_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = write_reasonseg(tmp_path / "data")
    (root / "val" / "b.jpg").unlink()
    (root / "val" / "c.json").write_text("{")
    status, printed, said = run(capsys, "reasonseg", "--data", str(root), "--out", "here")
    assert status == 0
    assert "**Partial result:** 2 of 3 samples have a result; 2 files, entries or samples could not be used." in printed
    assert "b.jpg cannot be read as an image" in printed
    assert "c.json is not JSON" in printed
    assert "written to here" in printed
    assert said.splitlines()[-1].startswith("partial result: 2 of 3 samples")
    status, printed, said = run(capsys, "reasonseg", "--data", str(root), "--out", "there", "--strict")
    assert (status, printed) == (1, "")
    assert said.splitlines()[-1].endswith("(--strict)")
    assert said.splitlines()[-1].startswith(f"rsvp-backend: {root}/val/c.json is not JSON")


def test_a_second_run_goes_on_and_another_model_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rsvp: RSVP, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(write_refer(tmp_path / "data", {"val": [1, 2]}))
    argv = ("refcoco", "--data", root, "--out", "here", "--json")
    assert run(capsys, *argv, "--limit", "3")[0] == 0
    status, printed, _ = run(capsys, *argv, "--workers", "2")
    assert (status, json.loads(printed)["n"]) == (0, 8)
    assert isinstance(rsvp.reasoner, FakeReasoner)
    assert len(rsvp.reasoner.asked) == 8
    other = fake_rsvp(FakeReasoner(version="another"))
    monkeypatch.setattr(presets, "build", lambda settings: other)
    status, printed, said = run(capsys, *argv)
    assert (status, printed) == (1, "")
    assert f"with version {rsvp.version!r}, this is {other.version!r}" in said.splitlines()[-1]
    assert run(capsys, *argv, "--fresh")[0] == 0
    assert isinstance(other.reasoner, FakeReasoner)
    assert len(other.reasoner.asked) == 8
    assert (tmp_path / "here" / "samples-1.jsonl").is_file()
    status, _, said = run(
        capsys, "refcoco", "--data", str(write_refer(tmp_path / "more", {"val": [1]})), "--out", "here"
    )
    assert status == 1
    assert f"with data '{root}', this is '{tmp_path}/more'" in said.splitlines()[-1]


def test_an_interrupted_run_leaves_a_partial_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rsvp: RSVP, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_reasonseg(tmp_path / "data")
    propose = rsvp.reasoner.propose

    def until_the_third(*args: object) -> object:
        if len(rsvp.reasoner.asked) == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return propose(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rsvp.reasoner, "propose", until_the_third)
    status, printed, said = run(capsys, "reasonseg", "--data", str(root), "--json")
    figures = json.loads(printed)
    assert (status, figures["n"], figures["partial"]) == (130, 2, True)
    assert figures["partial_because"] == ["interrupted", "2 of 4 samples have a result"]
    assert "partial result: interrupted" in said


@pytest.mark.usefixtures("rsvp")
def test_some_sets_of_seginw(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = str(write_seginw(tmp_path / "data"))
    argv = ("seginw", "--data", root, "--sets", "Phones", "--instances", "components", "--json")
    status, printed, _ = run(capsys, *argv)
    assert (status, json.loads(printed)["ap_by_set"]) == (0, {"Phones": 1.0})
    status, _, said = run(capsys, "seginw", "--data", root, "--sets", "Phone")
    assert status == 1
    assert "SegInW has no set 'Phone'" in said.splitlines()[-1]


@pytest.mark.usefixtures("rsvp")
@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["reasonseg", "--data", "nowhere"], 1, "nowhere is no folder"),
        (
            ["reasonseg", "--data", "data", "--split", "dev"],
            1,
            "data has no split 'dev', there are val (--data, --split)",
        ),
        (["reasonseg", "--data", "data", "--limit", "0"], 2, "--limit is 0: at least 1 is expected"),
        (["reasonseg", "--data", "data", "--workers", "0"], 2, "--workers is 0: at least 1 is expected"),
        (["refcoco", "--data", "data"], 1, "data/refcoco/refs(unc).p does not exist, there is no refs(...).p"),
        (["scenes", "--seeds", "5", "--out", "here"], 2, "A:B with A below B is expected"),
        (["reasonseg", "--data", "data", "--out", "data/val/a.json"], 1, "cannot be written"),
    ],
)
def test_bad_input_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], status: int, said: str
) -> None:
    write_reasonseg(tmp_path / "data")
    found, printed, complaint = run(capsys, *argv)
    assert (found, printed) == (status, "")
    assert said in complaint.splitlines()[-1]


@pytest.mark.usefixtures("rsvp")
def test_no_sample_that_could_be_run_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = write_reasonseg(tmp_path / "data")
    for path in (root / "val").glob("*.jpg"):
        path.unlink()
    status, printed, said = run(capsys, "reasonseg", "--data", str(root))
    assert (status, printed) == (1, "")
    assert "no sample has a result; a: " in said.splitlines()[-1]


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from rsvp_backend import cli\n"
        "sys.exit(cli.main(['evaluate', 'reasonseg', '--data', 'data']))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    said = "rsvp-backend: cv2 is not installed: data sets need it; pip install 'rsvp-backend[evaluate]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_scenes_through_the_demo_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ("scenes", "--seeds", "10000000:10000001", "--out", "here", "--save-worst", "3", "--json")
    status, printed, _ = run(capsys, *argv)
    figures = json.loads(printed)
    assert (status, figures["dataset"], figures["partial"]) == (0, "scenes", False)
    assert figures["diagnosis"]["object_right"] is not None
    assert (tmp_path / "here" / "worst.html").is_file()
