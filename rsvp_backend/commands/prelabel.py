"""``rsvp-backend prelabel``: answer many tasks, of a Label Studio project or of files; resumable."""

from __future__ import annotations

import argparse
import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rsvp_backend.errors import SettingsError
from rsvp_backend.settings import Settings

if TYPE_CHECKING:
    from rsvp_backend.pipeline import RSVP
    from rsvp_backend.prelabel.files import Goal
    from rsvp_backend.prelabel.running import Run, Steps
    from rsvp_backend.prelabel.selection import Selection
    from rsvp_backend.prelabel.sources import Source


def add_options(command: argparse.ArgumentParser) -> None:
    what = command.add_argument_group("what to answer").add_mutually_exclusive_group(required=True)
    what.add_argument("--project", type=int, metavar="ID", help="tasks of a Label Studio project")
    what.add_argument("--images", type=Path, metavar="DIR", help="all images in a folder, with one --instruction")
    what.add_argument(
        "--tasks", type=Path, metavar="FILE", help="tasks of a file: .csv, .jsonl, or Label Studio's .json"
    )
    command.add_argument("--limit", type=int, metavar="N", help="at most so many tasks")
    command.add_argument("--retry-failed", action="store_true", help="only the tasks that failed in earlier runs")
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and how long it would take")
    command.add_argument("--fetchers", type=int, default=4, metavar="N", help="images fetched at a time (default: 4)")
    command.add_argument("--json", action="store_true", help="print one JSON object at the end")
    _add_project(command.add_argument_group("with --project"))
    _add_files(command.add_argument_group("with --images or --tasks"))


def run(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    """Do it; the exit status: 0 all answered, 1 some failed or it had to end, 130 interrupted."""
    for name in ("limit", "fetchers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name} is {value}: at least 1 is expected")
    try:
        return _project(args, settings, out, err) if args.project is not None else _files(args, settings, out, err)
    finally:
        gc.unfreeze()  # frozen by `_models`; some libraries complain at the end of what was never freed


def _add_project(group: Any) -> None:
    group.add_argument("--filter", action="append", default=[], metavar="TEXT", help="such as 'data.camera = north'; "
                       "may be repeated, all must hold (docs/prelabel.md)")  # fmt: skip
    group.add_argument("--ids", metavar="A-B,C", help="ids of tasks, and ranges of them")
    group.add_argument("--view", type=int, metavar="ID", help="a tab of the data manager (tab= in its address)")
    group.add_argument("--all", action="store_true", help="also tasks that have annotations, or were skipped")
    group.add_argument("--order", choices=["id", "doubt", "random"], default="id", help="doubt: lowest scores first")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the random order (default: 0)")
    group.add_argument("--patience", type=float, default=600.0, metavar="SECONDS",
                       help="how long Label Studio may be away (default: 600)")  # fmt: skip
    group.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="what does the work: this process, or a Ray cluster (docs/prelabel.md#several-machines)",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the cluster, such as auto, HOST:6379 or ray://HOST:10001 (default: one of this machine alone)",
    )
    group.add_argument("--work-dir", type=Path, metavar="DIR", help="lock and list of failures (default: beside "
                       "RSVP_VERSIONS, else ~/.local/state/rsvp-backend)")  # fmt: skip


def _add_files(group: Any) -> None:
    group.add_argument("--out", type=Path, metavar="DIR", help="results.jsonl, tasks.json, coco.json, masks/")
    group.add_argument("--instruction", metavar="TEXT", help="of all images; of tasks that have none")
    group.add_argument("--labels", default="Object", metavar="A,B", help="names of the masks' labels (default: Object)")
    group.add_argument("--label-config", type=Path, metavar="FILE", help="a labeling config in place of --labels")
    group.add_argument("--root", type=Path, metavar="DIR", help="folder of the local images that --tasks names "
                       "(default: that of the file)")  # fmt: skip
    group.add_argument("--image-prefix", default="", metavar="TEXT", help="before local images' names in tasks.json,"
                       " such as '/data/local-files/?d=photos/'")  # fmt: skip


def _project(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    from rsvp_backend.prelabel.preview import preview
    from rsvp_backend.prelabel.studio import Manner, answer_all, opened
    from rsvp_backend.prelabel.telling import Teller, conclude, interruptible, promoted

    if args.patience < 0:
        raise SettingsError(f"--patience is {args.patience}: 0 seconds or more are expected")
    selection = _selection(args)
    with opened(settings, args.project, Manner(args.fetchers, args.patience), args.work_dir) as studio:
        if args.retry_failed:
            selection = replace(selection, only=tuple(int(key) for key in studio.failures.known))
        before, rsvp = promoted(settings), _models(settings)
        total = studio.patience(lambda: selection.count(studio.client, args.project, rsvp.version))
        steps = studio.steps(rsvp.version)
        if args.dry_run:
            return preview(out, rsvp, steps, studio.works(selection, rsvp.version), total, args.json)
        run = _run(args, settings, rsvp, steps)
        with Teller(err, run, total, lambda: studio.patience.trouble) as teller, interruptible(run):
            report = answer_all(studio, rsvp, selection, run, teller.tell)
        if studio.shown_version != rsvp.version:
            report.notes.append(f"the project shows the scores of {studio.shown_version or 'no version'!r}: call its "
                                f"ML backend, or the project's model version, {rsvp.version!r}")  # fmt: skip
    return conclude(out, report, teller, promoted(settings) != before, args.json)


def _run(args: argparse.Namespace, settings: Settings, rsvp: RSVP, steps: Steps) -> Run:
    from rsvp_backend.prelabel.running import Run

    if args.engine == "local":
        return Run(rsvp, steps)
    from rsvp_backend.prelabel.on_ray import RayLine

    line = RayLine(settings, args.project, rsvp, steps, args.ray_address, args.patience)
    return Run(rsvp, steps, line, line.spent)


def _files(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    from rsvp_backend.prelabel.files import Files, answer_files
    from rsvp_backend.prelabel.journal import alone
    from rsvp_backend.prelabel.preview import preview
    from rsvp_backend.prelabel.running import Run
    from rsvp_backend.prelabel.telling import Teller, conclude, interruptible, promoted

    if args.engine != "local":
        raise SettingsError("--engine ray works on a project (--project): files of this machine are on no other")
    if args.out is None:
        raise SettingsError("--out is not given: a folder for the results is expected")
    goal = _goal(args)
    source = _source(args, goal)
    if args.instruction and args.tasks is not None:
        settings = settings.model_copy(update={"default_instruction": args.instruction})
    with alone(args.out, str(args.out)):
        before, rsvp = promoted(settings), _models(settings)
        files = Files(source, goal, settings, rsvp.version, args.fetchers)
        total, works = files.count(args.retry_failed, args.limit), files.works(args.retry_failed, args.limit)
        if args.dry_run:
            return preview(out, rsvp, files.steps(), works, total, args.json)
        run = Run(rsvp, files.steps())
        with Teller(err, run, total) as teller, interruptible(run):
            report = answer_files(files, run, works, teller.tell)
    return conclude(out, report, teller, promoted(settings) != before, args.json)


def _selection(args: argparse.Namespace) -> Selection:
    from rsvp_backend.labelstudio.filters import parse_filter, parse_ids
    from rsvp_backend.prelabel.selection import Selection

    if args.view is not None and args.order == "doubt":
        raise SettingsError("--view has an order of its own: leave out --order doubt, or sort the tab by its score")
    return Selection(
        tuple(parse_filter(text) for text in args.filter),
        tuple(parse_ids(args.ids)) if args.ids is not None else (),
        args.view,
        args.all,
        None,
        args.order,
        args.limit,
        args.seed,
    )


def _source(args: argparse.Namespace, goal: Goal) -> Source:
    from rsvp_backend.labelstudio.tags import parse_label_config
    from rsvp_backend.prelabel.sources import Source

    if args.images is not None:
        return Source.folder(args.images, args.instruction or "", parse_label_config(goal.label_config).image_field)
    return Source.file(args.tasks, args.root)


def _goal(args: argparse.Namespace) -> Goal:
    from rsvp_backend.labelstudio.tags import default_label_config
    from rsvp_backend.prelabel.files import Goal

    if args.label_config is not None:
        try:
            xml = args.label_config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--label-config {args.label_config} cannot be read: {error}") from None
    else:
        labels = [label.strip() for label in args.labels.split(",") if label.strip()]
        if not labels:
            raise SettingsError(f"--labels is {args.labels!r}: one or more names with commas between are expected")
        xml = default_label_config(labels)
    return Goal(args.out, xml, args.image_prefix)


def _models(settings: Settings) -> RSVP:
    """Loaded; on a CPU with threads for two stages that work side by side."""
    from rsvp_backend import presets

    rsvp = presets.build(settings)
    if getattr(getattr(rsvp.segmenter, "device", None), "type", "cpu") == "cpu":
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    gc.freeze()  # the model libraries' objects stay: going through them for garbage stops all stages for 0.3 s
    return rsvp
