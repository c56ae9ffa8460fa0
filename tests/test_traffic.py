"""The paper model of a mass pre-labelling: the slowest place sets the rate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "traffic.py"


def ran(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)


def rows(*options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ran(*options, "--json").stdout)["rows"]
    return found


def test_models_on_one_gpu_add_up_gpus_multiply_and_label_studio_is_one_for_all() -> None:
    one, eight, many = rows("--stage1-s", "0.5", "--stage2-s", "0.3", "--store-s", "0.1", "--usd-per-gpu-hour", "2")
    assert (one["slowest"], many["slowest"]) == ("GPU", "store")
    assert eight["images_per_s"] == pytest.approx(10.0)  # both at their limit
    assert one["images_per_s"] == pytest.approx(1 / 0.8)
    assert one["hours"] == pytest.approx(1e6 * 0.8 / 3600)
    assert one["device_cost"] == pytest.approx(one["hours"] * 2)
    assert (many["images_per_s"], many["busy"]) == (pytest.approx(10.0), pytest.approx(10 * 0.8 / 64))


def test_a_server_for_stage_1_takes_calls_side_by_side_and_money() -> None:
    (row,) = rows(
        "--devices", "4", "--images", "1000", "--remote-calls", "8", "--stage1-s", "2", "--stage2-s", "0.1",
        "--tokens-in", "1000", "--tokens-out", "100", "--price-in", "2.5", "--price-out", "10",
    )  # fmt: skip
    assert (row["slowest"], row["images_per_s"]) == ("stage 1, server", pytest.approx(4.0))
    assert row["call_cost"] == pytest.approx(1000 * (2500 + 1000) / 1e6)


def test_a_real_runs_stage_times_become_its_own_rate(tmp_path: Path) -> None:
    report = {"tasks_per_s": 20.0, "stage_shares": {"fetch": 0.1, "reason": 1.0, "store": 0.5, "segment": 0.0}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    one, two, many = rows("--run", str(tmp_path / "report.json"), "--devices", "1", "2", "64")
    assert [row["images_per_s"] for row in (one, two, many)] == pytest.approx([20.0, 40.0, 40.0])
    assert (one["slowest"], many["slowest"]) == ("reason", "store")


def test_without_times_it_says_what_it_needs() -> None:
    done = ran()
    assert done.returncode == 1
    assert "--stage1-s" in done.stderr
