"""docs/upgrading.md's commands, run as they stand there: versions are backed up, restored and verified."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from versions_data import projector_delta, record
from vlsm_models import random_folder

from rsvp_backend.training.registry import Registry
from rsvp_backend.vlsm import weights

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")


def commands(name: str) -> str:
    """What stands between the page's marks ``name``."""
    (found,) = re.findall(rf"<!-- {name} -->\n```\n(.*?)```\n<!-- /{name} -->", TEXT, re.DOTALL)
    return str(found)


@pytest.fixture
def shell_path(tmp_path: Path) -> str:
    """A PATH with ``rsvp-backend``, whatever environment the tests run in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "rsvp-backend").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rsvp_backend "$@"\n')
    (folder / "rsvp-backend").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def run(name: str, folder: Path, versions: Path, path: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": path, "PYTHONPATH": str(ROOT), "RSVP_VERSIONS": str(versions), "HOME": str(folder)}
    script = ["bash", "-e", "-c", commands(name)]
    return subprocess.run(script, check=False, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_versions_are_restored_with_the_current_one_and_verified(tmp_path: Path, shell_path: str) -> None:
    base = weights.load(random_folder(tmp_path / "tiny"))
    registry = Registry(tmp_path / "here" / "versions")
    older, newer = (registry.add_candidate(projector_delta(base, seed), record(base.version)).id for seed in (1, 2))
    for version in (older, newer):
        registry.promote(version, base.version)
    assert run("backup", tmp_path, registry.folder, shell_path).returncode == 0
    shutil.rmtree(registry.folder)

    restored = tmp_path / "there" / "versions"
    listed = run("restore", tmp_path, restored, shell_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [
        [older, "promoted"],
        ["*", newer],
    ]  # fmt: skip
    verified = run("verify", tmp_path, restored, shell_path)
    assert (verified.returncode, verified.stdout.count("sha256")) == (0, 2)
    assert Registry(restored).rollback(base.version) == older

    delta = restored / newer / "delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:-1] + b"\0")
    broken = run("verify", tmp_path, restored, shell_path)
    assert broken.returncode != 0
    assert f"version {newer} is damaged" in broken.stderr


def test_the_page_names_what_is_written_and_no_more() -> None:
    """The files beside the versions, by the names that the code gives them."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rsvp_backend").rglob("*.py"))
    named = re.findall(r"`versions(?:-work)?/([a-z.*-]+?)[/N]*`", TEXT.split("## Backup")[0])
    assert len(named) >= 6
    for name in [*named, "queue.db", "worker.lock"]:
        stem = name.partition("*")[0]
        assert re.search(rf"\"{re.escape(stem)}|f\"{re.escape(stem)}", sources), name
