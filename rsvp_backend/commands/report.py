"""``rsvp-backend evaluate project``: what became of a Label Studio project's predictions in people's hands."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rsvp_backend.errors import RsvpError, SettingsError
from rsvp_backend.settings import Settings

if TYPE_CHECKING:
    from rsvp_backend.reports.report import Report, Wanted


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--project", type=int, required=True, metavar="ID", help="the Label Studio project")
    command.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where report.html, answers.csv and regions.csv go (default: out/evaluate/project-ID)",
    )  # fmt: skip
    command.add_argument("--names", action="store_true", help="annotators by name; without it, by number")
    command.add_argument(
        "--minutes-by-hand", type=float, metavar="X",
        help="what one task takes without predictions, where it cannot be measured in the project",
    )  # fmt: skip
    command.add_argument("--worst", type=int, default=20, metavar="N", help="answers to show; 0 for none (20)")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    """Read, write, and give the exit status: 0 also where there is nothing to report yet.

    Progress goes to ``err``. Raises `SettingsError`, `LabelStudioError` and `LabelConfigError`.
    """
    wanted = _wanted(args, settings)
    folder = args.out or Path("out") / "evaluate" / f"project-{args.project}"
    report = _read(args.project, settings, wanted, err)
    from rsvp_backend.reports.page import headline, page
    from rsvp_backend.reports.tables import answers_csv, regions_csv

    texts = {
        "report.html": page(report),
        "answers.csv": answers_csv(report.answers, report.names),
        "regions.csv": regions_csv(report.answers, report.names),
    }
    _write(folder, texts)
    if args.json:
        out.out(json.dumps({**report.to_dict(), "files": str(folder)}), highlight=False)
        return 0
    for line in headline(report):
        out.print(line, markup=False)
    if not report.answers:
        out.print("nothing to report yet: no annotation of a person counts; submit some first", markup=False)
    out.print(f"written to {folder / 'report.html'}", markup=False)
    return 0


def _wanted(args: argparse.Namespace, settings: Settings) -> Wanted:
    minutes = args.minutes_by_hand
    if minutes is not None and not (minutes > 0 and math.isfinite(minutes)):
        raise SettingsError(f"--minutes-by-hand is {minutes}: more than 0 is expected")
    if args.worst < 0:
        raise SettingsError(f"--worst is {args.worst}: 0 or more is expected")
    from rsvp_backend.reports.report import Wanted

    url = settings.label_studio_public_url or settings.label_studio_url or ""
    return Wanted(url, args.names, minutes, args.worst, settings.instruction_field, settings.image_max_pixels)


def _read(project: int, settings: Settings, wanted: Wanted, err: Console) -> Report:
    from rsvp_backend.access import make_fetcher, open_client
    from rsvp_backend.reports.report import make_report

    columns = (TextColumn("reading tasks"), BarColumn(), MofNCompleteColumn())
    with (
        open_client(settings) as client,
        Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress,
    ):
        bar = progress.add_task("", total=None)

        def opened(annotated: int | None) -> None:
            progress.update(bar, total=annotated)

        fetcher = make_fetcher(settings)
        return make_report(client, project, fetcher, wanted, lambda _: progress.advance(bar), opened)


def _write(folder: Path, texts: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RsvpError(f"{folder} cannot be written: {error.strerror} (--out)") from None
