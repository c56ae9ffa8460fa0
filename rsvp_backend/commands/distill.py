"""``rsvp-backend distill``: teach the local reasoner what annotators, a larger model or generated scenes know."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from rsvp_backend.errors import SettingsError
from rsvp_backend.presets import reasoner_registry
from rsvp_backend.scenes.styles import STYLES
from rsvp_backend.settings import Settings, load_settings

if TYPE_CHECKING:
    from rsvp_backend.distilling import Sources
    from rsvp_backend.training.distill_config import DistillConfig
    from rsvp_backend.types import Marks, Reasoner


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--project", type=int, metavar="ID", help="learn from this Label Studio project's corrections")
    command.add_argument(
        "--teacher", metavar="SPEC", help="also ask this reasoner (as RSVP_REASONER) about the project's open tasks"
    )
    command.add_argument("--limit", type=int, default=500, metavar="N", help="open tasks it is asked about (500)")
    command.add_argument("--scenes", choices=sorted(STYLES), help="learn this style of instructions from scenes")
    command.add_argument("--count", type=int, default=600, metavar="N", help="instructions on scenes (600)")
    command.add_argument("--rank", type=int, default=8, metavar="N", help="of the adapters (8)")
    command.add_argument("--mlp", action="store_true", help="adapt the language model's MLPs beside its attention")
    command.add_argument(
        "--rate", type=float, metavar="X", help="highest learning rate (default: by the model's width)"
    )
    command.add_argument("--batch", type=int, default=16, metavar="N", help="examples in one step (16)")
    command.add_argument(
        "--steps", type=int, metavar="N", help="of the optimiser (default: half a step per example, 60 to 1000)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same version")
    command.add_argument(
        "--no-promote", action="store_true", help="keep the version as a candidate, even where it is better"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    """Do it, with a progress bar on ``err``, and give the exit status: 0 also where the version is not promoted."""
    reasoner_registry(settings)
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: distillation needs it; pip install 'rsvp-backend[distill]'"
        ) from None
    from rsvp_backend.distilling import distill_reasoner
    from rsvp_backend.lessons import Told

    config, sources = _config(args), _sources(args)
    columns = (
        TextColumn("{task.fields[stage]:10}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", stage="", total=None)

        def tell(told: Told) -> None:
            progress.update(bar, description=told.text, stage=told.stage, completed=told.done, total=told.total or None)

        found = distill_reasoner(settings, sources, tell, promote=not args.no_promote, config=config)
    if args.json:
        record = found.to_dict()
        scores = {name: None if math.isnan(value) else value for name, value in found.scores.items()}
        out.out(json.dumps({**record, "scores": scores}), highlight=False)
    else:
        out.print(str(found), markup=False)
    return 0


def _config(args: argparse.Namespace) -> DistillConfig:
    from rsvp_backend.training.distill_config import DistillConfig

    for name in ("limit", "count"):
        if getattr(args, name) < 1:
            raise SettingsError(f"--{name} is {getattr(args, name)}: at least 1 is expected")
    if args.rate is not None and not 0 < args.rate < 1:
        raise SettingsError(f"--rate is {args.rate}: more than 0 and less than 1 is expected")
    try:
        return DistillConfig(
            steps=args.steps, batch=args.batch, learning_rate=args.rate, lora_rank=args.rank, lora_mlp=args.mlp,
            seed=args.seed,
        )  # fmt: skip
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _sources(args: argparse.Namespace) -> Sources:
    from rsvp_backend.distilling import Sources

    sources = Sources(args.project, None, args.limit, args.scenes, args.count)
    if args.teacher is None:
        return sources
    if args.project is None:
        raise SettingsError("--teacher is asked about the open tasks of a project: give --project too")
    return Sources(args.project, _teacher(args), args.limit, args.scenes, args.count)


def _teacher(args: argparse.Namespace) -> tuple[Reasoner, Marks]:
    from rsvp_backend.presets import reasoner_of

    try:
        return reasoner_of(load_settings(preset=args.preset, reasoner=args.teacher, reasoner_versions=""))
    except SettingsError as error:
        raise SettingsError(f"--teacher, read as RSVP_REASONER: {error}") from None
