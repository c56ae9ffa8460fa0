"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import FakeReasoner, fake_rsvp
from ls_http import json_reply, serving
from PIL import Image

from rsvp_backend import cli, presets
from rsvp_backend.errors import SettingsError
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.pipeline import RSVP
from rsvp_backend.settings import Settings, settings_markdown, settings_rows


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


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cups.png"
    Image.new("RGB", (90, 72), "gray").save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(argv)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.usefixtures("rsvp")
def test_predict_prints_one_json_object_and_writes_its_files(
    capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path
) -> None:
    status, printed, _ = run(capsys, "predict", str(picture), "the cup", "--json", "--out", str(tmp_path / "found"))
    answer = json.loads(printed)
    assert (status, answer["reason"], answer["size_px"]) == (0, None, [90, 72])
    assert [(found["object"], found["score"], found["reasoning"]) for found in answer["instances"]] == [
        ("cup", 0.75, "It is the cup.")
    ]
    with Image.open(tmp_path / "found" / "mask.png") as mask:
        assert int(np.asarray(mask).sum()) == 255 * answer["instances"][0]["area_px"] == 255 * 28 * 18
    with Image.open(tmp_path / "found" / "overlay.png") as overlay:
        assert overlay.size == (90, 72)
        assert overlay.getpixel((30, 30)) == (128, 128, 128) != overlay.getpixel((0, 0))
    assert (tmp_path / "found" / "visual_prompt.png").exists()
    trace = json.loads((tmp_path / "found" / "trace.json").read_text())
    assert trace["proposals"][0]["regions"]["rows"] == [4, 5, 6]


@pytest.mark.usefixtures("rsvp")
def test_predict_in_words(capsys: pytest.CaptureFixture[str], picture: Path) -> None:
    status, printed, _ = run(capsys, "predict", str(picture), "the cup")
    assert status == 0
    assert "cup  score 0.75" in printed
    assert "It is the cup." in printed
    assert Path("out/cups/overlay.png").exists()
    status, printed, _ = run(capsys, "predict", str(picture), "the absent cup")
    assert status == 0
    assert "no mask (absent): It is the absent cup." in printed


@pytest.mark.parametrize("content", [None, b"not an image"])
def test_a_file_that_is_no_image_is_bad_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    status, printed, complaint = run(capsys, "predict", str(path), "the cup")
    assert (status, printed) == (2, "")
    assert complaint.count("\n") == 1
    assert ("No such file" if content is None else "not a readable image") in complaint


@pytest.mark.parametrize("argv", [["serve"], ["predict", "x.png", "a"], ["evaluate", "scenes"], ["doctor"]])
def test_bad_settings_stop_every_command_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.setenv("RSVP_PRESET", "demi")
    status, printed, complaint = run(capsys, *argv)
    assert (status, printed) == (2, "")
    assert complaint == "rsvp-backend: RSVP_PRESET is 'demi': Input should be 'demo'\n"


def test_options_are_checked_like_settings(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, complaint = run(capsys, "serve", "--port", "99999")
    assert status == 2
    assert complaint.startswith("rsvp-backend: RSVP_PORT is '99999': ")
    with pytest.raises(SystemExit) as caught:
        cli.main(["predict", "only-an-image.png"])
    assert caught.value.code == 2


def test_serve_runs_the_application_with_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **options: seen.update(options, app=app))
    assert cli.main(["serve", "--preset", "demo", "--host", "127.0.0.2", "--port", "9999"]) == 0
    assert (seen["host"], seen["port"], seen["app"].title) == ("127.0.0.2", 9999, "rsvp-backend")


@pytest.mark.usefixtures("rsvp")
def test_evaluate_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "scenes", "--level", "easy", "--seeds", "10000000:10000002", "--json"]
    status, printed, _ = run(capsys, *argv)
    figures = json.loads(printed)
    assert status == 0
    assert figures["level"] == "easy"
    promised = (
        "n", "giou", "ciou", "stage2_iou_true_crop", "stage2_iou_wrong_text", "object_exact", "crop_recall",
        "absent_recall", "seconds_per_image",
    )  # fmt: skip
    assert figures.keys() >= set(promised)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--minutes", "0", "--minutes is 0.0: more than 0 is expected"),
        ("--workers", "-1", "--workers is -1: 0 or more is expected"),
    ],
)
def test_training_that_cannot_begin(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, value: str, complaint: str
) -> None:
    status, _, told = run(capsys, "train-demo", option, value, "--out", str(tmp_path / "out"))
    assert status == 2
    assert complaint in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seeds", ["5", "5:5", "a:b", "7:3", ""])
def test_seeds_that_make_no_range(capsys: pytest.CaptureFixture[str], seeds: str) -> None:
    status, _, complaint = run(capsys, "evaluate", "scenes", "--seeds", seeds)
    assert status == 2
    assert "A:B with A below B is expected" in complaint


def test_settings_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "settings")[:2] == (0, settings_markdown() + "\n")


def test_label_config_prints_what_the_backend_reads(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = run(capsys, "label-config", "--labels", "Cup, Ball & bat")
    config = parse_label_config(printed)
    assert (status, config.label_values, config.reasoning_name) == (0, ("Cup", "Ball & bat"), "reasoning")
    assert run(capsys, "label-config", "--labels", " , ")[0] == 2


@pytest.mark.parametrize(
    "command", ["serve", "demo", "predict", "evaluate", "doctor", "settings", "label-config", "worker"]
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: rsvp-backend {command}" in capsys.readouterr().out


@pytest.mark.usefixtures("rsvp")
def test_doctor_follows_every_hop(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, printed, _ = run(capsys, "doctor")
    assert status == 0
    assert "skipped  Label Studio: set RSVP_LABEL_STUDIO_URL" in printed
    with serving() as server:
        monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", server.url)
        monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", "0123456789abcdef")
        task = {"id": 3, "data": {"image": "/data/upload/1/a.png", "instruction": "the cup"}}
        server.routes["/api/current-user/whoami"] = lambda _: json_reply({"email": "a@b.c"})
        server.routes["/api/version"] = lambda _: json_reply({"release": "1.23.2"})
        server.routes["/api/ml"] = server.routes["/api/webhooks/"] = lambda _: json_reply([])
        server.routes["/api/projects/1/"] = lambda _: json_reply({"id": 1, "label_config": default_label_config()})
        server.routes["/api/projects/2/"] = lambda _: json_reply({"id": 2, "label_config": "<View/>"})
        server.routes["/api/tasks"] = lambda _: json_reply({"tasks": [task]})
        status, printed, _ = run(capsys, "doctor", "--project", "1")
        assert status == 1
        assert "ok       Label Studio at" in printed
        assert "token: legacy, of a@b.c" in printed
        assert 'masks go into <BrushLabels name="mask">' in printed
        assert "problem" in printed
        assert "answered 404" in printed  # the image
        status, printed, _ = run(capsys, "doctor", "--project", "2", "--no-models")
        assert status == 1
        assert '<BrushLabels name="mask" toName="image">' in printed
    status, printed, _ = run(capsys, "doctor", "--no-models")
    assert status == 1
    assert "RSVP_LABEL_STUDIO_URL" in printed


def test_a_remote_reasoner_needs_its_key_before_anything_is_loaded() -> None:
    with pytest.raises(SettingsError, match="RSVP_REASONER_API_KEY"):
        presets.build(Settings(reasoner="openai:gpt-4o"))


def test_weights_that_are_not_there_are_one_line(capsys: pytest.CaptureFixture[str], picture: Path) -> None:
    folder = picture.parent / "no-such-folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSVP_REASONER", "http://127.0.0.1:9/v1#none")
        patch.setenv("RSVP_VLSM", str(folder))
        status, _, complaint = run(capsys, "predict", str(picture), "the cup")
    assert status == 1
    assert complaint.count("rsvp-backend: ") == 1
    assert str(folder) in complaint


def test_asked_queries_carry_no_label_outside_label_studio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], picture: Path
) -> None:
    reasoner = FakeReasoner()
    monkeypatch.setattr(presets, "build", lambda settings: fake_rsvp(reasoner))
    run(capsys, "predict", str(picture), "the cup")
    assert [(query.instruction, query.labels) for query in reasoner.asked] == [("the cup", ())]
