"""The three rings: imports point inwards only, and importing a module does nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rsvp_backend

ROOT = Path(rsvp_backend.__file__).parent
CORE = {"types", "errors", "grid", "masks", "pipeline", "refinement", "timing", "flights", "targets", "zoom", "phrases"}
MODELS = {"reasoner", "vlsm", "training", "evaluation", "experiments", "scenes"}
OUTSIDE_OF_CORE = {
    "fastapi", "starlette", "uvicorn", "httpx", "httpx2", "httpcore", "requests", "openai", "label_studio_sdk",
    "pydantic", "pydantic_settings", "dotenv", "os", "torch", "transformers", "rich",
}  # fmt: skip
OUTSIDE_OF_MODELS = {"fastapi", "starlette", "uvicorn", "label_studio_sdk", "pydantic_settings", "dotenv", "rich"}
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, inside functions as well."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_of_package(names: set[str]) -> set[str]:
    """The first part below ``rsvp_backend`` of each import of ours (``__version__`` is no module)."""
    found = {name.split(".")[1] for name in names if name.startswith("rsvp_backend.")}
    return found - {"__version__"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_inwards(module: str) -> None:
    names = imported(ROOT / module)
    ours, outside = parts_of_package(names), {name.split(".")[0] for name in names}
    ring = module.split("/")[0].removesuffix(".py")
    if ring in CORE | {"__init__"}:
        assert ours <= CORE
        assert not outside & OUTSIDE_OF_CORE
    elif ring in MODELS:
        assert ours <= CORE | MODELS
        assert not outside & OUTSIDE_OF_MODELS


def test_the_rings_are_the_packages_that_exist() -> None:
    tops = {module.split("/")[0].removesuffix(".py") for module in MODULES}
    assert tops > CORE | MODELS


def test_the_server_and_the_command_line_are_light_to_import() -> None:
    """No model library, no file written, no thread, until something is asked for."""
    code = (
        "import sys, threading\n"
        "import rsvp_backend.cli, rsvp_backend.server, rsvp_backend.presets, rsvp_backend.doctor\n"
        "heavy = {'torch', 'transformers', 'torchvision', 'segment_anything', 'openai'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_reads_no_environment(tmp_path: Path) -> None:
    """A setting that would stop the start does not stop an import."""
    (tmp_path / ".env").write_text("RSVP_PORT=abc\n")
    code = "import rsvp_backend.cli, rsvp_backend.server"
    env = {"RSVP_PRESET": "unknown", "PYTHONPATH": str(ROOT.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, env=env)
