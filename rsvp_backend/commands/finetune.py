"""``rsvp-backend finetune``: learn from what annotators corrected in one Label Studio project."""

from __future__ import annotations

import argparse
import json
import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from rsvp_backend.errors import SettingsError
from rsvp_backend.settings import Settings


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--project", type=int, required=True, metavar="ID", help="the Label Studio project")
    command.add_argument(
        "--no-promote", action="store_true", help="keep the version as a candidate, even where it is better"
    )
    command.add_argument(
        "--steps", type=int, metavar="N", help="of the optimiser (default: 5 a correction, 100 to 1000)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same version")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    """Do it, with a progress bar on ``err``, and give the exit status: 0 also where the version is not promoted."""
    if args.steps is not None and args.steps < 1:
        raise SettingsError(f"--steps is {args.steps}: at least 1 is expected")
    from rsvp_backend.learning import learn
    from rsvp_backend.lessons import Told
    from rsvp_backend.training.finetune_config import FinetuneConfig

    columns = (
        TextColumn("{task.fields[stage]:10}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("", stage="", total=None)

        def tell(told: Told) -> None:
            progress.update(bar, description=told.text, stage=told.stage, completed=told.done, total=told.total or None)

        config = FinetuneConfig(steps=args.steps, seed=args.seed)
        lesson = learn(settings, args.project, tell, promote=not args.no_promote, config=config)
    if args.json:
        out.out(json.dumps(_finite(lesson.to_dict())), highlight=False)
    else:
        out.print(str(lesson), markup=False)
    return 0


def _finite(record: dict[str, object]) -> dict[str, object]:
    """JSON has no nan: the mean of nothing is null there."""
    scores = record["scores"]
    assert isinstance(scores, dict)
    return {**record, "scores": {name: None if math.isnan(value) else value for name, value in scores.items()}}
