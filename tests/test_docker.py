"""docker/Dockerfile: what it builds from, who runs in it, and that what it names exists. No engine is needed."""

from __future__ import annotations

import fnmatch
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dockerfiles import Instruction, Stage, lineage, read_dockerfile
from fake_models import fake_rsvp
from fastapi.testclient import TestClient
from ls_http import serving

from rsvp_backend import cli
from rsvp_backend.engine import Engine
from rsvp_backend.errors import WeightsError
from rsvp_backend.labelstudio import ml_base
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.pipeline import RSVP
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
STAGES = read_dockerfile(ROOT / "docker" / "Dockerfile")
TARGETS = ["cpu", "cuda", "label-studio-ml"]
RUNS = [run for stage in STAGES for run in stage.all("RUN")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def last(target: str, name: str) -> Instruction:
    """The one that counts in ``target``: of it, or of a stage that it is built on."""
    return [one for stage in lineage(STAGES, target) for one in stage.all(name)][-1]


def variables(stages: list[Stage]) -> dict[str, str]:
    pairs = [word for stage in stages for one in stage.all("ENV") for word in one.words]
    return dict(pair.split("=", 1) for pair in pairs)


def ignored(path: Path) -> bool:
    """By .dockerignore, whose last fitting line counts; a line names folders with all in them."""
    found = False
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern, keeps = line.removeprefix("!"), line.startswith("!")
        parts = [path, *path.parents][:-1]
        if any(fnmatch.fnmatch(part.as_posix(), pattern.removeprefix("**/")) for part in parts) or (
            pattern.startswith("**/") and pattern[3:] in path.parts
        ):
            found = not keeps
    return found


# --- what it is built from -------------------------------------------------------------------------------------------


def test_the_default_target_is_for_cpus() -> None:
    assert STAGES[-1].name == "cpu"
    assert {stage.name for stage in STAGES} >= set(TARGETS)


def test_every_base_is_a_stage_or_a_pinned_image() -> None:
    known: set[str] = set()
    for stage in STAGES:
        assert stage.base in known or re.fullmatch(r"[a-z/.]+:\d+\.\d+\.\d+(-[a-z]+)*", stage.base), stage.base
        assert stage.name not in known
        known.add(stage.name)


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_holds_no_tool_that_built_it(target: str) -> None:
    stages = lineage(STAGES, target)
    assert not [
        run.rest for stage in stages for run in stage.all("RUN") if "install --" in run.rest or "uv " in run.rest
    ]
    (copied,) = [one.words for stage in stages for one in stage.all("COPY")]
    assert copied[1:] == ["/app/.venv", "/app/.venv"]
    assert copied[0].removeprefix("--from=") in {stage.name for stage in STAGES}


def test_all_that_is_copied_exists_and_is_let_through() -> None:
    sources = [word for stage in STAGES for one in stage.all("COPY") for word in one.words[:-1]]
    own = [Path(word) for word in sources if not word.startswith(("--", "/"))]
    assert Path("rsvp_backend") in own
    for source in own:
        assert (ROOT / source).exists(), source
        assert not ignored(source)
    assert not ignored(Path("rsvp_backend/demo/assets/vlsm/model.safetensors"))


@pytest.mark.parametrize("path", [".env", ".git/config", ".venv/bin/python", "out/x", "rsvp_backend/__pycache__/a.pyc"])
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert ignored(Path(path))


def test_packages_are_those_of_the_lock_file() -> None:
    commands = [part.strip() for run in RUNS for part in run.rest.split("&&")]
    installs = [part for part in commands if re.search(" (install|sync) ", part)]
    assert len(installs) >= 6
    for part in installs:
        pinned = "--locked" in part or "--require-hashes" in part or "--constraints versions.txt" in part
        own = "--no-deps" in part
        assert pinned or own or "pip install --no-cache-dir uv==" in part or part.startswith("install -d"), part
    exports = [part for part in commands if "uv export" in part]
    assert exports
    assert all("--locked" in part for part in exports)
    for written in ("hashed.txt", "versions.txt"):
        assert any(f"--output-file {written}" in part for part in exports)


def test_the_installer_is_the_one_of_the_makefile() -> None:
    (pinned,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert any(run.rest == f"pip install --no-cache-dir uv=={pinned}" for run in RUNS)


def test_label_studio_ml_is_the_commit_that_the_package_asks_for() -> None:
    (stage,) = [stage for stage in STAGES if stage.name == "built-label-studio-ml"]
    arguments = dict(one.rest.split("=", 1) for one in stage.all("ARG"))
    assert arguments["LABEL_STUDIO_ML"] == ml_base.COMMIT
    assert arguments["LABEL_STUDIO_ML_ARCHIVE"].startswith(ml_base.SOURCE.removeprefix("git+"))
    assert "label-studio-ml" in PROJECT["optional-dependencies"]


def test_no_package_manager_leaves_its_lists_behind() -> None:
    for run in RUNS:
        assert "apt-get install" not in run.rest or "rm -rf /var/lib/apt/lists/*" in run.rest
        assert not re.search(r"curl|wget|sudo|chmod 777|--break-system-packages", run.rest)
    assert not [one for stage in STAGES for one in stage.all("ADD")]


def test_no_secret_is_built_in() -> None:
    names = [word.partition("=")[0] for stage in STAGES for one in (*stage.all("ENV"), *stage.all("ARG"))
             for word in one.words]  # fmt: skip
    assert names
    assert not [name for name in names if re.search("TOKEN|SECRET|PASSWORD|API_?KEY", name, re.IGNORECASE)]


# --- what runs in it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_a_user_by_number_who_owns_the_volumes(target: str) -> None:
    assert last(target, "USER").rest == "10001:10001"
    made = last(target, "RUN").rest
    assert "--uid 10001" in made
    volumes = last(target, "VOLUME").words
    for folder in volumes:
        assert re.search(rf"install -d -o rsvp -g rsvp .*{folder}( |$)", made)
    kept = variables(lineage(STAGES, target))
    for name in {"HF_HOME", "MODEL_DIR"} & set(kept):
        assert any(kept[name] == folder or kept[name].startswith(f"{folder}/") for folder in volumes), name
    order = [one.name for stage in lineage(STAGES, target) for one in stage.instructions]
    assert order.index("USER") < order.index("ENTRYPOINT")


def test_the_start_command_is_one_that_exists() -> None:
    assert last("cpu", "ENTRYPOINT").words == ["rsvp-backend"]
    assert PROJECT["scripts"]["rsvp-backend"] == "rsvp_backend.cli:main"
    args = cli._parser().parse_args(last("cpu", "CMD").words)
    assert (args.run, args.host, args.port) == (cli.serve, "0.0.0.0", 9090)
    assert [last(target, "EXPOSE").rest for target in TARGETS] == ["9090"] * 3


def test_label_studio_ml_is_run_with_one_worker() -> None:
    program, *options, application = last("label-studio-ml", "ENTRYPOINT").words
    assert program == "gunicorn"
    assert options[options.index("--workers") + 1] == "1"
    assert "--preload" not in options
    module, _, call = application.partition(":")
    assert callable(getattr(importlib.import_module(module), call.removesuffix("()")))
    assert last("label-studio-ml", "CMD").words == []


def test_the_server_is_one_process_whatever_the_platform_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts set WEB_CONCURRENCY to their cores: each process would load the models for itself."""
    seen: dict[str, Any] = {}
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    monkeypatch.setattr("uvicorn.run", lambda app, **options: seen.update(options, app=app))
    assert cli.main(["serve"]) == 0
    from uvicorn import Config

    assert Config(seen["app"]).workers == 4
    assert Config(seen["app"], workers=seen["workers"]).workers == 1


def damaged() -> RSVP:
    raise WeightsError("model.safetensors is damaged")


@pytest.mark.parametrize(("build", "status"), [(fake_rsvp, 0), (damaged, 1)])
def test_the_health_check_runs_and_sees_models_that_do_not_load(build: Any, status: int) -> None:
    engine = Engine(build, ImageFetcher(None))
    with TestClient(create_app(Settings(), engine)) as client, serving() as server:
        assert checked(server.port) != 0
        assert engine._settled.wait(20)
        health = client.get("/health").content
        server.routes["/health"] = lambda _: (200, {}, health)
        assert checked(server.port) == status


def checked(port: int, target: str = "cpu") -> int:
    """The exit status of the image's health check, against a server on ``port``."""
    _, _, command = last(target, "HEALTHCHECK").rest.partition("CMD ")
    python, option, code = Instruction("CMD", command).words
    assert (python, option) == ("python", "-c")
    assert "9090" in code
    ours = [sys.executable, "-c", code.replace("9090", str(port))]
    return subprocess.run(ours, check=False, capture_output=True, timeout=60).returncode


def test_the_health_check_of_label_studio_ml_sees_whether_something_listens() -> None:
    with serving() as server:
        assert checked(server.port, "label-studio-ml") == 0
    assert checked(server.port, "label-studio-ml") == 1
