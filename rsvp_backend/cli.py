"""The command line. Answers go to stdout, logs and progress to stderr; heavy libraries are imported by what needs them.

Exit status: 0 done, 1 failed, 2 bad input or settings, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rsvp_backend import __version__
from rsvp_backend.commands import (
    distill,
    doctor,
    evaluate,
    experiment,
    finetune,
    label_config,
    predict,
    prelabel,
    pretrain,
    rank,
    versions,
)
from rsvp_backend.errors import ImageError, LabelConfigError, RsvpError, SettingsError
from rsvp_backend.security.logs import set_up_logging
from rsvp_backend.settings import Settings, load_settings, settings_markdown

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give the exit status; every expected error is one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (SettingsError, ImageError, LabelConfigError) as error:
        return _fail(error, 2)
    except RsvpError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130


def serve(args: argparse.Namespace) -> int:
    settings = _settings(args, preset=args.preset, host=args.host, port=args.port)
    import uvicorn

    from rsvp_backend import presets
    from rsvp_backend.server import create_app

    app = create_app(settings)
    presets.import_libraries(settings)
    uvicorn.run(
        app, host=settings.host, port=settings.port, log_config=None, server_header=False,
        access_log=settings.log_level == "DEBUG", timeout_graceful_shutdown=5,
        workers=1,  # one process owns the models, whatever WEB_CONCURRENCY says
    )  # fmt: skip
    return 0


def run_predict(args: argparse.Namespace) -> int:
    return predict.run(args, _settings(args, **predict.overrides(args)), out)


def run_evaluate(args: argparse.Namespace) -> int:
    return evaluate.run(args, _settings(args, preset=args.preset), out, err)


def run_experiment(args: argparse.Namespace) -> int:
    return experiment.run(args, _settings(args, preset=args.preset), out, err)


def train_demo(args: argparse.Namespace) -> int:
    from rsvp_backend.training import demo as training

    if args.minutes <= 0:
        raise SettingsError(f"--minutes is {args.minutes}: more than 0 is expected")
    if args.workers is not None and args.workers < 0:
        raise SettingsError(f"--workers is {args.workers}: 0 or more is expected")
    parts = training.PARTS if args.part == "both" else (args.part,)
    training.train(parts, args.out, training.Options(args.minutes, args.device, args.workers))
    for part in parts:
        out.print(f"{args.out / part / 'model'}", markup=False)
    return 0


def demo(args: argparse.Namespace) -> int:
    from rsvp_backend.demo.run import DemoOptions, run_demo

    options = DemoOptions(once=args.once, data=args.data_dir, picture=args.picture)
    return run_demo(options, lambda line: out.print(line, markup=False))


def run_doctor(args: argparse.Namespace) -> int:
    return doctor.run(args, _settings(args, preset=args.preset), out)


def show_settings(_: argparse.Namespace) -> int:
    sys.stdout.write(f"{settings_markdown()}\n")
    return 0


def run_label_config(args: argparse.Namespace) -> int:
    return label_config.run(args)


def run_versions(args: argparse.Namespace) -> int:
    return versions.run(args, _settings(args, preset=args.preset), out)


def run_finetune(args: argparse.Namespace) -> int:
    return finetune.run(args, _settings(args, preset=args.preset), out, err)


def run_distill(args: argparse.Namespace) -> int:
    return distill.run(args, _settings(args, preset=args.preset), out, err)


def run_prelabel(args: argparse.Namespace) -> int:
    return prelabel.run(args, _settings(args, preset=args.preset), out, err)


def run_pretrain(args: argparse.Namespace) -> int:
    return pretrain.run(args, _settings(args, preset=args.preset), out, err)


def run_rank(args: argparse.Namespace) -> int:
    return rank.run(args, _settings(args), out)


def run_worker(args: argparse.Namespace) -> int:
    from rsvp_backend.commands import worker

    return worker.run(_settings(args, preset=args.preset))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rsvp-backend",
        description="Reasoning segmentation (RSVP) as an ML backend for Label Studio.",
        epilog="Everything else is set by RSVP_* variables in the environment or a file .env: see `settings`.",
    )
    parser.add_argument("--version", action="version", version=f"rsvp-backend {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    preset = argparse.ArgumentParser(add_help=False)
    preset.add_argument("--preset", help="reasoner and VLSM by one name (default: RSVP_PRESET, else demo)")
    _add_serving(commands, preset)
    _add_images(commands, preset)
    command = commands.add_parser("finetune", parents=[preset], help="learn from the corrections in a project")
    finetune.add_options(command)
    command.set_defaults(run=run_finetune)
    command = commands.add_parser(
        "distill", parents=[preset], help="teach the local reasoner from corrections, a larger model, or scenes"
    )
    distill.add_options(command)
    command.set_defaults(run=run_distill)
    command = commands.add_parser("prelabel", parents=[preset], help="answer all tasks of a project, or of files")
    prelabel.add_options(command)
    command.set_defaults(run=run_prelabel)
    command = commands.add_parser("rank", help="which open tasks of a project to look at first, and why")
    rank.add_options(command)
    command.set_defaults(run=run_rank)
    command = commands.add_parser("versions", parents=[preset], help="fine-tuned versions: list, promote, roll back")
    versions.add_options(command)
    command.set_defaults(run=run_versions)
    command = commands.add_parser("settings", help="print all settings as a table")
    command.set_defaults(run=show_settings)
    command = commands.add_parser("label-config", help="print a labeling config for Label Studio")
    label_config.add_options(command)
    command.set_defaults(run=run_label_config)
    return parser


def _add_serving(commands: Any, preset: argparse.ArgumentParser) -> None:
    command = commands.add_parser("serve", parents=[preset], help="run the ML backend that Label Studio connects to")
    command.add_argument("--host", help="address to listen on (default: RSVP_HOST, else 127.0.0.1)")
    command.add_argument("--port", type=int, help="port to listen on (default: RSVP_PORT, else 9090)")
    command.set_defaults(run=serve)
    command = commands.add_parser(
        "worker", parents=[preset], help="run the training jobs that the server queues, beside it"
    )
    command.set_defaults(run=run_worker)
    command = commands.add_parser("demo", help="start a real Label Studio and the backend, with images and predictions")
    command.add_argument("--once", action="store_true", help="end after the predictions")
    command.add_argument("--picture", type=Path, metavar="FILE", help="write the picture of three results there")
    command.add_argument("--data-dir", type=Path, metavar="DIR", help="keep Label Studio's data there")
    command.set_defaults(run=demo)
    command = commands.add_parser("doctor", parents=[preset], help="check settings, Label Studio, token, and models")
    doctor.add_options(command)
    command.set_defaults(run=run_doctor)


def _add_images(commands: Any, preset: argparse.ArgumentParser) -> None:
    command = commands.add_parser("predict", parents=[preset], help="segment one image by an instruction")
    predict.add_options(command)
    command.set_defaults(run=run_predict)
    command = commands.add_parser("evaluate", help="scores on public data sets and on procedural scenes")
    evaluate.add_options(command, preset)
    command.set_defaults(run=run_evaluate)
    command = commands.add_parser("experiment", parents=[preset], help="the paper's experiments: table and plot of one")
    experiment.add_options(command)
    command.set_defaults(run=run_experiment)
    command = commands.add_parser("train-demo", help="train the demo preset's models from procedural scenes")
    command.add_argument("part", nargs="?", choices=["both", "reasoner", "vlsm"], default="both")
    command.add_argument("--minutes", type=float, default=60.0, help="wall time (default: 60)")
    command.add_argument("--out", type=Path, default=Path("out/demo-models"), metavar="DIR", help="where they go")
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N; cpu: a core per model")
    command.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that draw scenes for each model (default: the cores that are left on a GPU, 0 on a CPU)",
    )  # fmt: skip
    command.set_defaults(run=train_demo)
    command = commands.add_parser("pretrain", parents=[preset], help="train a VLSM on referring expressions")
    pretrain.add_options(command)
    command.set_defaults(run=run_pretrain)


def _settings(args: argparse.Namespace, **overrides: Any) -> Settings:
    """Settings with the command's options on top, and the logging that they ask for."""
    settings = load_settings(**overrides)
    set_up_logging(settings)
    return settings


def _fail(error: RsvpError, status: int) -> int:
    err.print(f"rsvp-backend: {error}", style="red", markup=False)
    return status
