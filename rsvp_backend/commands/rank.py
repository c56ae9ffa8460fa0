"""``rsvp-backend rank``: which open tasks of a Label Studio project to look at first, and why."""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from rsvp_backend.errors import SettingsError
from rsvp_backend.settings import Settings


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--project", type=int, required=True, metavar="ID", help="the Label Studio project")
    command.add_argument("--top", type=int, default=20, metavar="N", help="how many tasks (default: 20)")
    command.add_argument(
        "--random", type=float, default=0.1, metavar="SHARE", help="share of places given by chance (default: 0.1)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console) -> int:
    """List the tasks and give the exit status. Raises `SettingsError`, `LabelStudioError` and `LabelConfigError`."""
    if args.top < 1 or not 0 <= args.random <= 1:
        raise SettingsError(f"--top {args.top} --random {args.random}: at least 1 and 0 to 1 are expected")
    from rsvp_backend.access import open_client
    from rsvp_backend.labelstudio.ranking import doubtful

    with open_client(settings) as client:
        found = doubtful(client, args.project, args.top, args.random)
    if args.json:
        tasks = [{"task": one.task, "value": round(one.value, 4), "reason": one.reason} for one in found]
        out.out(json.dumps({"project": args.project, "tasks": tasks}), highlight=False)
        return 0
    for place, one in enumerate(found, 1):
        out.print(f"{place:4}  task {one.task:<8} {one.value:.2f}  {one.reason}", markup=False)
    if not found:
        out.print(f"project {args.project} has no open task", markup=False)
    return 0
