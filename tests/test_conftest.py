"""What conftest.py keeps from all tests: the ``.env`` and the shell's RSVP_* of whoever runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROBE = """
from rsvp_backend.settings import load_settings

def test_defaults():
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 9090)
"""


def probe(folder: Path) -> subprocess.CompletedProcess[str]:
    """A test of the defaults, run in a folder with a ``.env`` and from a shell with a setting."""
    (folder / "test_probe.py").write_text(PROBE, "utf-8")
    (folder / ".env").write_text("RSVP_PORT=9191\n", "utf-8")
    environment = os.environ | {"RSVP_HOST": "127.0.0.2", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", "test_probe.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_settings_of_whoever_runs_the_tests_do_not_reach_them(tmp_path: Path) -> None:
    without = probe(tmp_path)
    assert without.returncode == 1
    assert "('127.0.0.2', 9191)" in without.stdout
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    guarded = probe(tmp_path)
    assert guarded.returncode == 0, guarded.stdout
