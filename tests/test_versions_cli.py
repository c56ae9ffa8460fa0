"""``rsvp-backend versions``: what it prints, refuses, and tells Label Studio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ls_http import Reply, Seen, Server, json_reply, serving
from versions_data import projector_delta, record
from vlsm_models import random_folder

from rsvp_backend import cli
from rsvp_backend.errors import LabelStudioError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.promotion import follow_promotion
from rsvp_backend.settings import settings_rows
from rsvp_backend.training.registry import Registry
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.weights import Weights

TOKEN = "0123456789abcdef0123456789abcdef01234567"
TABLE = {"knots": [[0.5, 0.6]], "table": [[0.4, 0.6, 12, 0.51, 0.62]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def base(folder: Path) -> Weights:
    return weights.load(folder)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Registry:
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RSVP_VLSM", str(folder))
    monkeypatch.setenv("RSVP_VERSIONS", str(tmp_path / "versions"))
    return Registry(tmp_path / "versions")


@pytest.fixture
def two(registry: Registry, base: Weights) -> tuple[str, str]:
    """A parent and its child, both candidates."""
    parent = registry.add_candidate(projector_delta(base, 1), record(base.version, before={"iou": 0.1})).id
    known = record(
        base.version, parent=parent, data=("k1", "k2"), before={"iou": 0.412, "old": 0.83},
        after={"iou": 0.781, "old": 0.83}, decision="promote", reasons=("gain between +0.2 and +0.4",),
        calibration=TABLE,
    )  # fmt: skip
    return parent, registry.add_candidate(projector_delta(base, 2), known).id


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(["versions", *argv])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def loaded(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    status, printed, complaint = run(capsys, *argv, "--json")
    assert status == 0, complaint
    return json.loads(printed)


def test_no_versions_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[:2] == (0, "the base weights are current\n")
    assert loaded(capsys) == {"current": None, "versions": [], "damaged": {}}


def test_the_list_shows_scores_state_parent_date_and_size(
    capsys: pytest.CaptureFixture[str], registry: Registry, base: Weights, two: tuple[str, str]
) -> None:
    parent, child = two
    registry.promote(child, base.version)
    status, printed, _ = run(capsys, "list")
    first, second = printed.splitlines()
    assert status == 0
    assert first.split()[:2] == [parent, "candidate"]
    assert first.endswith("iou 0.100 -> ?")
    assert second.split()[:3] == ["*", child, "promoted"]
    created = registry.get(child).created
    assert f"{created:%Y-%m-%dT%H:%M}" in second
    assert f"parent {parent}" in second
    assert second.endswith("MB  parent " + f"{parent:24} iou 0.412 -> 0.781, old 0.830 -> 0.830")
    found = loaded(capsys)
    assert found["current"] == child
    assert [(one["id"], one["state"], one["current"]) for one in found["versions"]] == [
        (parent, "candidate", False),
        (child, "promoted", True),
    ]
    assert found["versions"][1]["bytes"] == registry.get(child).delta_bytes


def test_show_tells_all_that_is_known(
    capsys: pytest.CaptureFixture[str], registry: Registry, base: Weights, two: tuple[str, str]
) -> None:
    status, printed, _ = run(capsys, "show", two[1])
    assert status == 0
    for line in (
        f"{two[1]}: candidate", f"base        {base.version}", f"parent      {two[0]}", "data        2 corrections",
        "decision    promote", "            gain between +0.2 and +0.4", registry.get(two[1]).delta_sha256,
        "calibration 0.40-0.60: 12 corrections, predicted 0.51, reached 0.62",
    ):  # fmt: skip
        assert line in printed
    found = loaded(capsys, "show", two[1])
    assert (found["data"], found["reasons"]) == (["k1", "k2"], ["gain between +0.2 and +0.4"])
    assert (found["calibration"], found["decision"]) == (TABLE, "promote")


def test_promote_roll_back_delete(
    capsys: pytest.CaptureFixture[str], registry: Registry, base: Weights, two: tuple[str, str]
) -> None:
    parent, child = two
    status, printed, _ = run(capsys, "promote", parent)
    assert (status, registry.current()) == (0, parent)
    assert printed == f"{parent}: current from now on; running servers follow in seconds\n"
    assert loaded(capsys, "promote", child) == {"current": child, "model_version": None}
    status, _, complaint = run(capsys, "delete", child)
    assert (status, complaint.count("\n")) == (1, 1)
    assert f"version {child} is current" in complaint
    assert loaded(capsys, "rollback") == {"current": parent, "model_version": None}
    assert loaded(capsys, "delete", child) == {"deleted": child}
    assert run(capsys, "rollback")[1].startswith(f"the base weights {base.version}: current from now on")
    status, _, complaint = run(capsys, "rollback")
    assert (status, registry.current()) == (1, None)
    assert "there is no way back" in complaint


def test_a_version_that_does_not_fit_its_base_is_not_promoted(
    capsys: pytest.CaptureFixture[str], registry: Registry, base: Weights
) -> None:
    (bias,) = projector_delta(base).values()
    misfit = registry.add_candidate({"text_hidden_fcs.7.bias": bias}, record(base.version)).id
    status, _, complaint = run(capsys, "promote", misfit)
    assert (status, registry.current()) == (1, None)
    assert "which the model lacks" in complaint


def test_a_damaged_version_is_shown_as_such(
    capsys: pytest.CaptureFixture[str], registry: Registry, two: tuple[str, str]
) -> None:
    (registry.folder / two[1] / "version.json").write_text("{")
    status, printed, _ = run(capsys)
    assert status == 0
    assert f"! {two[1]}" in printed
    assert list(loaded(capsys)["damaged"]) == [two[1]]
    status, _, complaint = run(capsys, "promote", two[1])
    assert status == 1
    assert f"version {two[1]} is damaged" in complaint


@pytest.mark.parametrize(
    ("argv", "status", "seen"),
    [
        (["show"], 2, "versions show: the ID of a version is expected"),
        (["promote"], 2, "versions promote: the ID of a version is expected"),
        (["list", "tiny-1"], 2, "versions list: no ID is expected"),
        (["show", "tiny-1"], 1, "version 'tiny-1' is unknown"),
        (["delete", "../x"], 1, "version '../x' is unknown"),
        (["list", "--project", "1"], 2, "--project goes with promote and rollback only"),
        (["rollback", "--project", "1"], 2, "--project needs RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], status: int, seen: str
) -> None:
    found, printed, complaint = run(capsys, *argv)
    assert (found, printed, complaint.count("\n")) == (status, "", 1)
    assert seen in complaint


def test_the_folder_must_be_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSVP_VERSIONS")
    status, _, complaint = run(capsys)
    assert status == 2
    assert complaint == "rsvp-backend: RSVP_VERSIONS is not set: name the folder where the versions are\n"


# --- Label Studio ------------------------------------------------------------------------------------------------


class Studio:
    """Answers for project 3, whose backend says each of ``versions`` once, the last one for ever."""

    def __init__(self, server: Server, versions: list[str | None], title: str = "old") -> None:
        self.url, self.versions, self.title, self.patches = server.url, versions, title, list[Any]()
        server.routes["/api/ml"] = self.listed
        server.routes["/api/ml/7"] = self.patched

    def listed(self, request: Seen) -> Reply:
        assert request.path == "/api/ml?project=3"
        version = self.versions[0] if len(self.versions) == 1 else self.versions.pop(0)
        ours = {"id": 7, "url": "http://backend:9090", "title": self.title, "model_version": version}
        return json_reply([{"id": 6, "url": "http://x", "title": "other", "model_version": "v1"}, ours])

    def patched(self, request: Seen) -> Reply:
        assert (request.method, request.headers["authorization"]) == ("PATCH", f"Token {TOKEN}")
        self.patches.append(request.json)
        return json_reply({"id": 7})


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_label_studio_follows_a_promotion_as_soon_as_the_backend_serves_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server, two: tuple[str, str]
) -> None:
    new = f"rsvp-{two[0]}-abcdef01"
    studio = Studio(server, ["rsvp-tiny-00000000-11111111", new])
    monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", server.url)
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", TOKEN)
    assert loaded(capsys, "promote", two[0], "--project", "3") == {"current": two[0], "model_version": new}
    assert studio.patches == [{"project": 3, "url": "http://backend:9090", "title": new}]


def test_a_title_that_is_right_already_is_left_alone(server: Server) -> None:
    studio = Studio(server, ["rsvp-tiny-1-full+box-22222222"], title="rsvp-tiny-1-full+box-22222222")
    with LabelStudioClient(server.url, TOKEN) as client:
        assert follow_promotion(client, 3, "tiny-1") == studio.title
    assert studio.patches == []


@pytest.mark.parametrize(
    ("version", "seen"),
    [
        ("rsvp-tiny-0-11111111", "tiny-1 is current, but project 3's backend at http://backend:9090 still serves rsvp"),
        (None, "project 3 has no backend of ours that answers"),
    ],
)
def test_a_backend_that_does_not_follow_is_named(server: Server, version: str | None, seen: str) -> None:
    Studio(server, [version])
    with LabelStudioClient(server.url, TOKEN) as client, pytest.raises(LabelStudioError) as caught:
        follow_promotion(client, 3, "tiny-1", wait_s=0.05, pause_s=0.01)
    assert seen in str(caught.value)


def test_a_refusal_of_label_studio_is_told(server: Server) -> None:
    server.routes["/api/ml"] = lambda _: json_reply({"detail": "You do not have permission"}, 403)
    with LabelStudioClient(server.url, TOKEN) as client, pytest.raises(LabelStudioError, match="403: You do not"):
        follow_promotion(client, 3, "tiny-1")
