"""Published checkpoints from the hub, against a local server: what is fetched, resumed, kept and said."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_http import COMMIT, Hub, serving
from huggingface_hub import constants
from safetensors.torch import load_file
from vlsm_models import random_folder

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm import hub, weights

ID = "someone/tiny-vlsm"
BIG = "model.safetensors"
CHUNK = 2**16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = random_folder(tmp_path_factory.mktemp("hub") / "tiny")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[Hub]:
    with serving(Hub({ID: dict(files)})) as running:
        yield running


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download is written in pieces of 10 MB: smaller ones, so that a cut leaves something of a tiny file."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)


def fetch(server: Hub, cache: Path, revision: str | None = None) -> Path:
    return hub.download(ID, revision, cache_dir=cache, endpoint=server.endpoint)


def refusal(server: Hub, cache: Path, revision: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(server, cache, revision)
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("YxZhang/evf-sam", ("YxZhang/evf-sam", None)),
        ("YxZhang/evf-sam@refs/pr/2", ("YxZhang/evf-sam", "refs/pr/2")),
        ("./weights/evf", None),
        ("/weights/evf", None),
        ("~/evf", None),
        ("evf-sam", None),
        ("a/b/c", None),
        ("weights/model.safetensors", None),
        ("weights/sam.pth", None),
    ],
)
def test_ids_and_paths_are_told_apart(spec: str, found: tuple[str, str | None] | None) -> None:
    assert hub.parse_id(spec) == found


def test_the_needed_files_and_no_others_are_downloaded(
    server: Hub, tmp_path: Path, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    server.repositories[ID] |= {"pytorch_model.bin": b"another form", "README.md": b"text", "added_tokens.json": b"{}"}
    folder = fetch(server, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {**files, "added_tokens.json": b"{}"}
    assert not list(tmp_path.rglob("*.rsvp-partial"))
    caplog.set_level(logging.INFO, "rsvp_backend")
    loaded = weights.load(folder)
    digest = hashlib.sha256(files[BIG]).hexdigest()
    assert loaded.version == f"tiny-{digest[:8]}"
    assert caplog.text.count(digest) == 1


def test_the_older_weights_file_is_taken_where_there_is_no_other(server: Hub, tmp_path: Path) -> None:
    state = tmp_path / "state.bin"
    (tmp_path / "model.safetensors").write_bytes(server.repositories[ID].pop(BIG))
    torch.save(load_file(tmp_path / "model.safetensors"), state)
    server.repositories[ID]["pytorch_model.bin"] = state.read_bytes()
    folder = fetch(server, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "pytorch_model.bin", "sentencepiece.bpe.model",
    ]  # fmt: skip
    assert weights.load(folder).version.startswith("tiny-")


def test_a_digest_in_the_cache_is_not_computed_again(server: Hub, tmp_path: Path, files: dict[str, bytes]) -> None:
    """The blob is replaced behind the cache's back, so that only its name can have given the digest."""
    folder = fetch(server, tmp_path)
    other = random_folder(tmp_path / "other", seed=1) / BIG
    (folder / BIG).resolve().write_bytes(other.read_bytes())
    assert weights.load(folder).version == f"tiny-{hashlib.sha256(files[BIG]).hexdigest()[:8]}"


def test_a_second_load_downloads_nothing(server: Hub, tmp_path: Path) -> None:
    first = fetch(server, tmp_path)
    server.requests.clear()
    assert fetch(server, tmp_path) == first
    assert {method for method, _, _ in server.requests} == {"HEAD"}


def test_after_a_reset_the_next_call_goes_on_where_it_stopped(
    server: Hub, tmp_path: Path, files: dict[str, bytes]
) -> None:
    server.cut_at = 3 * CHUNK
    said = refusal(server, tmp_path)
    assert "the download failed" in said
    assert "Start again to go on where it stopped" in said
    [partial] = tmp_path.rglob("*.rsvp-partial")
    kept = partial.stat().st_size
    assert 0 < kept <= 3 * CHUNK
    folder = fetch(server, tmp_path)
    assert server.ranges(BIG) == [None, f"bytes={kept}-"]
    assert (folder / BIG).read_bytes() == files[BIG]
    assert not partial.exists()


def test_a_closed_connection_is_taken_up_within_the_same_call(
    server: Hub, tmp_path: Path, files: dict[str, bytes]
) -> None:
    server.cut_at, server.reset = 2 * CHUNK, False
    assert (fetch(server, tmp_path) / BIG).read_bytes() == files[BIG]
    assert server.ranges(BIG) == [None, f"bytes={2 * CHUNK}-"]


def test_a_partial_file_that_is_too_long_is_begun_anew(server: Hub, tmp_path: Path, files: dict[str, bytes]) -> None:
    server.cut_at = 3 * CHUNK
    refusal(server, tmp_path)
    [partial] = tmp_path.rglob("*.rsvp-partial")
    partial.write_bytes(files[BIG] + b"more")
    assert (fetch(server, tmp_path) / BIG).read_bytes() == files[BIG]


def test_damaged_content_is_thrown_away(server: Hub, tmp_path: Path, files: dict[str, bytes]) -> None:
    server.wrong_content = True
    assert "its sha256 is" in refusal(server, tmp_path)
    assert not list(tmp_path.rglob("*.rsvp-partial"))
    server.wrong_content = False
    assert (fetch(server, tmp_path) / BIG).read_bytes() == files[BIG]


def test_without_the_hub_the_cache_is_used(
    server: Hub, tmp_path: Path, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch(server, tmp_path)
    gone = Hub({}, endpoint="http://127.0.0.1:9")
    assert fetch(gone, tmp_path) == folder
    assert fetch(gone, tmp_path, COMMIT) == folder
    assert "the copy in the cache is used" in caplog.text
    server.refuse = 503, ""
    assert fetch(server, tmp_path) == folder


def test_a_new_commit_that_breaks_off_leaves_the_old_one_usable(server: Hub, tmp_path: Path) -> None:
    old = fetch(server, tmp_path)
    server.commit = "b" * 40
    server.repositories[ID][BIG] = bytes(8 * CHUNK)
    server.cut_at = CHUNK
    assert fetch(server, tmp_path) == old


def test_without_hub_and_cache_the_message_says_how_to_get_them(tmp_path: Path) -> None:
    said = refusal(Hub({}, endpoint="http://127.0.0.1:9"), tmp_path)
    for part in (ID, "the download failed", "model.safetensors", "sentencepiece", "HF_ENDPOINT", "RSVP_VLSM"):
        assert part in said


def test_what_the_hub_refuses_is_said_plainly(server: Hub, tmp_path: Path) -> None:
    assert "no such revision" in refusal(server, tmp_path, "nowhere")
    server.refuse = 401, "GatedRepo"
    said = refusal(server, tmp_path)
    assert "accepted its terms" in said
    assert "HF_TOKEN" in said
    server.refuse = 401, ""
    said = refusal(server, tmp_path)
    assert "the hub answered 401" in said
    assert "Check the id" in said
    server.refuse = None
    server.repositories = {}
    said = refusal(server, tmp_path)
    assert "no such public repository" in said
    assert "there is no such path here either" in said


def test_a_repository_of_something_else_is_named_as_such(server: Hub, tmp_path: Path) -> None:
    del server.repositories[ID][BIG]
    assert "has no model.safetensors or pytorch_model.bin" in refusal(server, tmp_path)
    server.repositories[ID] = {"config.json": b"{}"}
    assert "lacks sentencepiece.bpe.model" in refusal(server, tmp_path)


def test_an_id_loads_by_the_environment_alone_and_then_offline(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user has it: HF_ENDPOINT and HF_HOME are set; `huggingface_hub` reads both when it is imported."""
    code = f"from rsvp_backend.vlsm import weights; print(weights.load({ID!r}).version)"
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": server.endpoint, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(Path(weights.__file__).parents[2])
    run = subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True, timeout=300)
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert weights.load(ID).version == run.stdout.strip()
    assert run.stdout.startswith("tiny-vlsm-")
    said = refusal(server, tmp_path / "empty")
    assert "HF_HUB_OFFLINE is set, so the hub is not asked" in said
    assert "Unset HF_HUB_OFFLINE once" in said
    assert not server.requests


def test_a_path_that_exists_wins_over_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_folder(tmp_path / "someone" / "tiny-vlsm")
    monkeypatch.chdir(tmp_path)
    assert weights.load(ID).name == "tiny"
    described = json.loads((tmp_path / ID / "config.json").read_text())
    assert described["name"] == "tiny"
