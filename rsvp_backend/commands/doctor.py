"""``rsvp-backend doctor``: what stands in the way, what to do about it, and ``--fix``."""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import asdict

from rich.console import Console

from rsvp_backend.errors import SettingsError
from rsvp_backend.settings import Settings

_COLOURS = {"ok": "green", "problem": "red", "advice": "yellow", "skipped": "dim", "fixed": "cyan"}


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--project", type=int, metavar="ID", help="also check this project: labeling config, backend, webhook, an image"
    )
    command.add_argument(
        "--fix", action="store_true",
        help="first add what the project lacks: connect the backend and its webhook (with the passwords that are set), "
        "give it its version as title, add a field for the reasoning; nothing is removed",
    )  # fmt: skip
    command.add_argument(
        "--backend-url", metavar="URL",
        help="this backend's address as Label Studio's machine sees it (default: as it is connected already, else "
        "RSVP_HOST and RSVP_PORT)",
    )  # fmt: skip
    command.add_argument("--no-models", action="store_true", help="do not load the models")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console) -> int:
    """Print each finding as it comes, and give the exit status: 1 where there is a problem.

    Raises `SettingsError` where something is to be fixed and the project, or Label Studio's address, is not named.
    """
    if args.fix and args.project is None:
        raise SettingsError("--fix needs --project ID: it changes that project's settings in Label Studio")
    from rsvp_backend.doctor import Subject, examine, repair

    told, problems = [], 0
    subject = Subject(args.project, args.backend_url, models=not args.no_models)
    fixes = repair(settings, args.project, args.backend_url) if args.fix else ()
    for finding in itertools.chain(fixes, examine(settings, subject)):
        problems += finding.state == "problem"
        told.append(asdict(finding))
        if not args.json:
            out.print(f"[{_COLOURS[finding.state]}]{finding.state:8}[/]", end=" ")
            out.print(finding.text, markup=False, highlight=False)
            if finding.todo:
                out.print(f"         to do: {finding.todo}", markup=False, highlight=False)
    if args.json:
        out.print(json.dumps({"problems": problems, "findings": told}), markup=False, highlight=False, soft_wrap=True)
    return 1 if problems else 0
