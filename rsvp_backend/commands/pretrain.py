"""``rsvp-backend pretrain``: train a VLSM on referring expressions; ``accelerate launch -m rsvp_backend pretrain``
spreads it over several GPUs or hosts.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rsvp_backend.errors import SettingsError
from rsvp_backend.presets import vlsm_source
from rsvp_backend.settings import Settings

if TYPE_CHECKING:
    from rsvp_backend.training.fitting import Progress
    from rsvp_backend.training.pretrain_config import PretrainConfig, PretrainReport

# Numbers that PretrainConfig takes, with their help; defaults are those of the class.
_NUMBERS = (
    ("steps", int, 1000, "of the optimiser"),
    ("batch", int, 8, "samples that each process computes at a time"),
    ("accumulate", int, 1, "batches of each process that make one step"),
    ("rate", float, 1e-4, "highest learning rate"),
    ("warmup", int, 100, "steps in which the rate rises"),
    ("weight-decay", float, 0.0, "of AdamW"),
    ("lora-rank", int, 16, "of the adapters in BEiT-3; 0 leaves BEiT-3 as it is"),
    ("evaluate-every", int, 200, "steps between two scores on held-out samples"),
    ("evaluate-on", int, 200, "held-out samples to score on; 0 for all"),
    ("checkpoint-every", int, 200, "steps after which a killed run can go on"),
    ("log-every", int, 10, "steps between two lines of progress"),
    ("seed", int, 0, "the same seed gives the same weights"),
)


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", action="append", required=True, metavar="KIND:ROOT",
        help="refcoco:ROOT, refcoco+:ROOT, refcocog:ROOT, coco:ROOT or scenes[:LEVEL]; may be given several times",
    )  # fmt: skip
    command.add_argument("--held-out", default="val", metavar="SPLIT", help="the split to score on (default: val)")
    command.add_argument("--init", metavar="WEIGHTS", help="what to start from, as RSVP_VLSM (default: that)")
    command.add_argument("--out", type=Path, default=Path("out/pretrain"), metavar="DIR", help="where all of it goes")
    command.add_argument("--name", default="pretrained", help="of the new weights (default: pretrained)")
    for name, kind, default, text in _NUMBERS:
        command.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: {default})")
    command.add_argument(
        "--view", choices=["mixed", "whole", "crop"], default="mixed",
        help="what is shown of an image: all, the crop that stage 1 would give, or either (default: mixed)",
    )  # fmt: skip
    command.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"], default="auto", help="auto: bf16 on GPUs that have it"
    )
    command.add_argument("--device", choices=["auto", "cpu"], default="auto", help="auto: GPUs where there are any")
    command.add_argument("--cache", type=Path, metavar="DIR", help="keep image embeddings there, for later epochs")
    command.add_argument("--cache-gb", type=float, default=20.0, metavar="N", help="size of --cache (default: 20)")
    command.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    """Do it and give the exit status; only the first of several processes prints."""
    try:
        from rsvp_backend.training.pretrain import pretrain
        from rsvp_backend.training.pretrain_data import read_data
        from rsvp_backend.training.processes import join_processes
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: pretraining needs it; pip install 'rsvp-backend[pretrain]'"
        ) from None
    from rsvp_backend.vlsm import weights

    config = _config(args)
    main: bool = join_processes(config.device).is_main_process
    if not main:
        logging.getLogger("rsvp_backend").setLevel(logging.ERROR)
    data = read_data(args.data, args.held_out)
    init = weights.load(_source(args, settings))
    report = pretrain(init, data, config, args.out, args.name, lambda told: err.print(_line(told), markup=False))
    if main:
        _print(report, args.json, out)
    return 0


def _config(args: argparse.Namespace) -> PretrainConfig:
    from rsvp_backend.training.pretrain_config import PretrainConfig

    given = {field.name: getattr(args, field.name) for field in fields(PretrainConfig) if hasattr(args, field.name)}
    try:
        return PretrainConfig(**given, cache_bytes=int(args.cache_gb * 2**30))
    except ValueError as error:
        raise SettingsError(f"--{error}".replace("_", "-", 1)) from None


def _source(args: argparse.Namespace, settings: Settings) -> str | Path:
    return vlsm_source(settings.model_copy(update={"vlsm": args.init}) if args.init else settings)


def _line(told: Progress) -> str:
    hours, minutes = divmod(round(told.eta_s / 60), 60)
    return (
        f"step {told.step} of {told.steps}: loss {told.loss:.4f}, held-out gIoU {told.held_out:.4f}, "
        f"{hours} h {minutes:02} min to go"
    )


def _print(report: PretrainReport, as_json: bool, out: Console) -> None:
    if as_json:
        out.out(json.dumps(report.to_dict()), highlight=False)
        return
    for point in (report.curve[0], report.curve[-1]):
        scores = ", ".join(
            f"{view} gIoU {scores['giou']:.4f} cIoU {scores['ciou']:.4f}"
            for view, scores in point.items() if isinstance(scores, dict)
        )  # fmt: skip
        out.print(f"step {point['step']:6}  {scores}", markup=False)
    if report.unreadable:
        out.print(
            f"{len(report.unreadable)} files or masks were left out, the first: {report.unreadable[0]}",
            markup=False,
        )
    out.print(f"{report.version} in {report.folder}, {report.seconds:.0f} s: RSVP_VLSM={report.folder}", markup=False)
