"""``rsvp-backend experiment NAME``: the paper's experiments and its open ablations, one resumable sweep each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rsvp_backend.commands.evaluate import DEFAULT_SEEDS, seed_range
from rsvp_backend.commands.evaluate import LEVELS as LEVEL_NAMES
from rsvp_backend.errors import SettingsError
from rsvp_backend.experiment_plans import LEVELS, REASONERS, TEMPERATURES, Options, make_plan
from rsvp_backend.experiment_who import FORMS, Models
from rsvp_backend.settings import Settings

if TYPE_CHECKING:
    from rsvp_backend.evaluation.samples import EvaluationSet, Problems, Sample
    from rsvp_backend.experiments.figures import Figures
    from rsvp_backend.experiments.variants import Plan, Variant
    from rsvp_backend.training.fitting import Progress as Training

TABLE, CSV, SUMMARY, PLOTS = "table.md", "figures.csv", "summary.json", ("plot.png", "plot.svg")


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", choices=sorted(REASONERS), help="what is varied")
    command.add_argument("--reasoners", metavar="A,B", help=f"who answers in stage 1: {FORMS}")
    command.add_argument("--variants", metavar="A,B", help="only these: a value, a reasoner or REASONER/VALUE; * fits")
    command.add_argument("--level", choices=LEVEL_NAMES, help="of the scenes (default: easy)")
    command.add_argument("--seeds", default=DEFAULT_SEEDS, metavar="A:B", help=f"scenes A to B-1 ({DEFAULT_SEEDS})")
    command.add_argument("--data", metavar="KIND:ROOT", help="a data set in place of scenes: reasonseg:ROOT, ...")
    command.add_argument("--split", default="val", help="of --data (default: val)")
    command.add_argument("--limit", type=int, metavar="N", help="so many questions, drawn by chance")
    command.add_argument("--threads", type=int, default=1, metavar="N", help="questions at a time (1)")
    command.add_argument("--out", type=Path, metavar="DIR", help="where it goes (default: out/experiments/NAME)")
    command.add_argument("--repeats", type=int, default=5, metavar="N", help="answers drawn to each question (5)")
    command.add_argument(
        "--temperatures", default=",".join(f"{t:g}" for t in TEMPERATURES), metavar="A,B", help="(default: %(default)s)"
    )
    command.add_argument("--checkpoints", metavar="A,B", help="connector: compare these weights, as RSVP_VLSM")
    command.add_argument("--steps", type=int, default=300, metavar="N", help="connector: of each training (300)")
    command.add_argument("--train-on", metavar="DATA", help="connector: as pretrain's --data (default: the scenes)")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    """Do it, with progress on ``err``; the exit status is 1 where answers are missing."""
    _installed(args)
    from rsvp_backend.evaluation.samples import Problems
    from rsvp_backend.experiments.store import Store

    folder = args.out or Path("out/experiments") / args.experiment
    plan = make_plan(args.experiment, Models(settings), _options(args, folder, err))
    plan = plan.only(_listed(args.variants, "--variants")) if args.variants else plan
    problems = Problems()
    asked = _questions(args, problems)
    store = Store(folder)
    with store.alone():
        figures = _sweep(plan, asked.samples, store, problems, args.threads, err)
    about = {"data": f"{asked.name} {asked.split}", "questions": len(asked.samples)}
    if asked.whole > len(asked.samples):
        about |= {"of": asked.whole}
    _write(folder, plan, figures, about)
    for line in list(problems)[:20]:
        err.print(f"left out: {line}", markup=False)
    shown = (folder / (SUMMARY if args.json else TABLE)).read_text(encoding="utf-8")
    out.out(json.dumps(json.loads(shown)) if args.json else shown, highlight=False)
    if not args.json:
        out.print(f"written to {folder}: {TABLE}, {CSV}, {SUMMARY}, {', '.join(PLOTS)}", markup=False)
    return 1 if len(problems) else 0


def _installed(args: argparse.Namespace) -> None:
    try:
        import matplotlib  # noqa: F401

        if args.experiment == "connector" and not args.checkpoints:
            import rsvp_backend.experiments.connectors  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: this experiment needs it; pip install 'rsvp-backend[experiment,pretrain]'"
        ) from None


def _options(args: argparse.Namespace, folder: Path, err: Console) -> Options:
    for name in ("limit", "threads", "repeats", "steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name} is {value}: at least 1 is expected")
    checkpoints = tuple(_listed(args.checkpoints, "--checkpoints")) if args.checkpoints else ()

    def tell(told: Training) -> None:
        err.print(f"training, step {told.step} of {told.steps}: loss {told.loss:.4f}", markup=False)

    return Options(
        args.reasoners, args.repeats, _temperatures(args.temperatures), checkpoints, args.steps,
        args.train_on or f"scenes:{_level(args)}", folder, args.data is None, tell,
    )  # fmt: skip


def _temperatures(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= temperature <= 2 for temperature in found):
        raise SettingsError(f"--temperatures is {text!r}: numbers from 0 to 2 with commas between are expected")
    return found


def _listed(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise SettingsError(f"{option} is {text!r}: one or more names with commas between are expected")
    return names


def _level(args: argparse.Namespace) -> str:
    return str(args.level or LEVELS.get(args.experiment, "easy"))


def _questions(args: argparse.Namespace, problems: Problems) -> EvaluationSet:
    from rsvp_backend.evaluation.samples import limited
    from rsvp_backend.experiments.questions import read_questions, read_scenes

    if args.data and args.level:
        raise SettingsError("--level is of scenes: leave it out where --data is given")
    level: Any = _level(args)
    scenes = None if args.data else read_scenes(level, seed_range(args.seeds))
    return limited(scenes or read_questions(args.data, args.split, problems), args.limit, seed=0)


def _sweep(
    plan: Plan, samples: Sequence[Sample], store: Any, problems: Problems, threads: int, err: Console
) -> list[Figures]:
    from rsvp_backend.experiments.figures import summarise
    from rsvp_backend.experiments.sweep import run as sweep

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bars = {v.name: progress.add_task(v.name, total=len(samples) * v.repeats, start=False) for v in plan.variants}

        def tell(variant: Variant, done: int) -> None:
            progress.start_task(bars[variant.name])
            progress.update(bars[variant.name], completed=done)
            total = len(samples) * variant.repeats
            if not err.is_terminal and (done % 100 == 0 or done == total):
                err.print(f"{variant.name}: {done} of {total}", markup=False)

        rows = sweep(plan, samples, store, problems, threads=threads, tell=tell)
    return summarise(plan, rows, len(samples))


def _write(folder: Path, plan: Plan, figures: list[Figures], about: dict[str, Any]) -> None:
    from rsvp_backend.experiments.plot import draw
    from rsvp_backend.experiments.report import to_csv, to_dict, to_markdown

    if not figures:
        raise SettingsError(f"no question of {plan.name} was answered: see above")
    summary = json.dumps(to_dict(plan, figures, about), indent=2) + "\n"
    try:
        (folder / TABLE).write_text(to_markdown(plan, figures, about), encoding="utf-8")
        (folder / CSV).write_text(to_csv(figures), encoding="utf-8")
        (folder / SUMMARY).write_text(summary, encoding="utf-8")
        draw(plan, figures, [folder / name for name in PLOTS])
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror} (--out)") from None
