"""``rsvp-backend label-config``."""

import pytest
from label_studio_sdk.label_interface import LabelInterface

from rsvp_backend import cli
from rsvp_backend.labelstudio.tags import MASK_TAGS, Kind, default_label_config, parse_label_config


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["label-config", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("kind", list(MASK_TAGS))
def test_every_kind_is_printed_and_read_back(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = run(capsys, "--labels", "car, door key", "--tag", kind)
    assert status == 0
    LabelInterface(printed).validate()
    config = parse_label_config(printed)
    assert (config.kind, config.mask_name, config.label_values) == (kind, "mask", ("car", "door key"))
    assert (config.prompt_name, config.message_name, config.reasoning_name) == ("prompt", "message", "reasoning")
    assert ('smoothing="false"' in printed) == (kind == "bitmask")


def test_without_options_it_is_the_demos(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys) == (0, default_label_config(), "")


def test_wrong_options_say_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, complaint = run(capsys, "--labels", " , ")
    assert (status, printed) == (2, "")
    assert "one or more names with commas between are expected" in complaint
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "--tag", "ellipse")
    assert stopped.value.code == 2
    assert "invalid choice: 'ellipse'" in capsys.readouterr().err
