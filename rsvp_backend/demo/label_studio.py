"""The real Label Studio for the demo and the tests: install it, migrate a database once, start it on loopback.

Run as ``python3 -m rsvp_backend.demo.label_studio`` it does the first two; only the standard library is needed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rsvp_backend.demo.process import LOOPBACK, Child, ChildError, Command, Say, answers, clean_env, free_port

VERSION = "1.23.2"
REQUIREMENTS = Path(__file__).with_name("label-studio-requirements.txt")
DATABASE = "label_studio.sqlite3"
PREFERRED_PORT = 8080
INSTALL_TIMEOUT_S, MIGRATE_TIMEOUT_S, START_TIMEOUT_S = 900.0, 600.0, 300.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Home:
    """The folder with Label Studio's own environment, a migrated empty database to copy, logs, and the demo's data."""

    root: Path = Path(".label-studio")

    @property
    def venv(self) -> Path:
        return self.root / "venv"

    @property
    def template(self) -> Path:
        return self.root / "template"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def marker(self) -> Path:
        """Exists once this very set of versions is installed and migrated."""
        return self.root / f"ready-{VERSION}"

    @property
    def ready(self) -> bool:
        return self.marker.exists() and self.marker.read_text() == REQUIREMENTS.read_text()


@dataclass(frozen=True, slots=True)
class Account:
    """The one user of a fresh Label Studio."""

    email: str
    password: str


def prepare(home: Home, say: Say) -> None:
    """Install Label Studio and migrate the template database, unless both are done. Raises `ChildError`."""
    if home.ready:
        return
    say(f"Label Studio {VERSION}: installing into {home.venv} (a minute; log in {home.logs})")
    _install(home)
    say("Label Studio: creating its database (one to two minutes, only this once)")
    shutil.rmtree(home.template, ignore_errors=True)
    home.template.mkdir(parents=True)
    # Every sub-command migrates first; `version` does nothing else.
    _run(home, "Label Studio's migrations", [_program(home), "version"], _offline(home.template), MIGRATE_TIMEOUT_S)
    home.marker.write_text(REQUIREMENTS.read_text())
    say("Label Studio: ready")


def start(home: Home, data: Path, say: Say) -> tuple[Child, str, Account]:
    """Start Label Studio on loopback with its data in ``data`` and wait for it: (child, its URL, who can log in).

    A fresh ``data`` gets the migrated database and a user with a random password. Raises `ChildError`.
    """
    data = data.absolute()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (data / DATABASE).exists():
        shutil.copyfile(home.template / DATABASE, data / DATABASE)
    account = _account(data)
    port = free_port(PREFERRED_PORT)
    url = f"http://{LOOPBACK}:{port}"
    command: Command = [_program(home), "start", "--no-browser", "--internal-host", LOOPBACK, "--port", str(port)]
    child = Child("Label Studio", command, _server_env(data, url, account), _log_of(home, data), data)
    try:
        child.wait_until_ready(lambda: answers(f"{url}/health"), START_TIMEOUT_S, say)
    except BaseException:
        child.stop()
        raise
    return child, url, account


def _install(home: Home) -> None:
    """Make the environment with uv where there is one, else with venv and pip."""
    home.logs.mkdir(parents=True, exist_ok=True)
    # Caches, certificates and proxies of the installers are the caller's business: the whole environment is passed.
    env = dict(os.environ)
    python = home.venv.absolute() / "bin" / "python"
    uv = env.get("UV") or shutil.which("uv")
    if uv:
        make: Command = [uv, "venv", "--clear", "--python", sys.executable, home.venv.absolute()]
        install: Command = [uv, "pip", "install", "--python", python, "--requirement", REQUIREMENTS]
    else:
        make = [sys.executable, "-m", "venv", "--clear", home.venv.absolute()]
        install = [python, "-m", "pip", "install", "--requirement", REQUIREMENTS]
    _run(home, "Label Studio's environment", make, env, INSTALL_TIMEOUT_S)
    _run(home, "Label Studio's installation", install, env, INSTALL_TIMEOUT_S)


def _run(home: Home, name: str, command: Command, env: Mapping[str, str], timeout_s: float) -> None:
    child = Child(name, command, env, home.logs / f"{name.split()[-1]}.log", Path.cwd())
    try:
        child.finish(timeout_s)
    finally:
        child.stop()


def _program(home: Home) -> Path:
    return home.venv.absolute() / "bin" / "label-studio"


def _log_of(home: Home, data: Path) -> Path:
    return home.logs / f"label-studio-{data.name}.log"


def _account(data: Path) -> Account:
    """The account of this data folder; a new one has a random password, in a file that only its owner can read."""
    path = data / "login.json"
    if not path.exists():
        account = Account("demo@example.com", secrets.token_urlsafe(12))
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(account)))
    return Account(**json.loads(path.read_text()))


def _offline(data: Path) -> dict[str, str]:
    """An environment in which Label Studio keeps its files in ``data`` and calls nobody outside this machine."""
    folder = str(data.absolute())
    return clean_env(
        {
            "LABEL_STUDIO_BASE_DATA_DIR": folder,
            **{f"XDG_{kind}_HOME": folder for kind in ("CONFIG", "DATA", "CACHE")},
            "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
            "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
            # Empty counts as set: without these the built-in addresses of an error collector are used.
            "LABEL_STUDIO_SENTRY_DSN": "",
            "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
        }
    )


def _server_env(data: Path, url: str, account: Account) -> dict[str, str]:
    """The environment of the server; the password goes here and not on the command line, where `ps` shows it."""
    return _offline(data) | {
        "LABEL_STUDIO_HOST": url,
        "LABEL_STUDIO_USERNAME": account.email,
        "LABEL_STUDIO_PASSWORD": account.password,
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        # The backend runs on loopback, which both guards refuse by default: the ML backend's, and the webhooks'.
        "LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "false",
        "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "false",
        # Two busy cores answer late now and then: the defaults are 1 s and 3 s.
        "LABEL_STUDIO_ML_TIMEOUT_HEALTH": "10",
        "LABEL_STUDIO_ML_TIMEOUT_SETUP": "20",
        "LABEL_STUDIO_ML_CONNECTION_TIMEOUT": "10",
        "LABEL_STUDIO_WEBHOOK_TIMEOUT": "10",
    }


def main(arguments: list[str] | None = None) -> int:
    """Install and migrate; the exit status is 1 if that failed."""
    parser = argparse.ArgumentParser(prog="python3 -m rsvp_backend.demo.label_studio", description=main.__doc__)
    parser.add_argument("--home", type=Path, default=Home().root, help="where it goes (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare(Home(options.home), logger.info)
    except ChildError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
