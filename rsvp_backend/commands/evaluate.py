"""``rsvp-backend evaluate DATASET``: scores on public data sets and procedural scenes, with what went wrong and why."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from rsvp_backend.commands import report
from rsvp_backend.errors import RsvpError, SettingsError
from rsvp_backend.settings import Settings

if TYPE_CHECKING:
    from rsvp_backend.evaluation.samples import EvaluationSet, Problems
    from rsvp_backend.pipeline import RSVP

DEFAULT_SEEDS = "10000000:10000300"
LEVELS = ("easy", "crowded", "full", "small")
# The default split of each data set, and its help.
DATASETS = {
    "reasonseg": ("val", "ReasonSeg: ROOT/{train,val,test}/*.jpg and *.json"),
    "refcoco": ("val", "refCOCO in REFER's layout: ROOT/refcoco/refs(unc).p, instances.json, ROOT/images"),
    "refcoco+": ("val", "refCOCO+, likewise"),
    "refcocog": ("val", "refCOCOg, likewise: refs(umd).p, or another with --split-by"),
    "seginw": ("valid", "SegInW's 25 sets: ROOT/<Set>/valid/_annotations_min1cat.coco.json"),
    "coco": ("val", "images with COCO annotations: ROOT/annotations/*.json; captions or categories are asked"),
    "clevr-ref": ("val", "CLEVR-Ref+: ROOT/{refexps,scenes,images}"),
    "gqa": ("val", "GQA's questions that objects answer: ROOT/{questions,sceneGraphs,images}"),
}
CONVENTIONS = ("lisa", "evf", "seg-zero", "exact")


def add_options(command: argparse.ArgumentParser, preset: argparse.ArgumentParser) -> None:
    """A sub-command for each data set; ``preset``: options that all of them take."""
    datasets = command.add_subparsers(title="data sets", metavar="DATASET", dest="dataset", required=True)
    scenes = datasets.add_parser("scenes", parents=[preset], help="procedural scenes with exact truth")
    scenes.add_argument("--level", choices=LEVELS, default="easy", help="how hard (default: easy)")
    scenes.add_argument("--seeds", default=DEFAULT_SEEDS, metavar="A:B", help=f"scenes A to B-1 ({DEFAULT_SEEDS})")
    _common(scenes, "exact")
    for name, (split, text) in DATASETS.items():
        one = datasets.add_parser(name, parents=[preset], help=text, description=text)
        one.add_argument("--data", type=Path, required=True, metavar="ROOT", help="the folder that holds the data set")
        one.add_argument("--split", default=split, help=f"(default: {split})")
        if name == "refcocog":
            one.add_argument("--split-by", metavar="WHO", help="umd (default) or google")
        if name == "seginw":
            one.add_argument("--sets", default="", metavar="A,B", help="these sets only (default: all)")
            one.add_argument(
                "--instances", choices=["proposals", "components"], default="proposals",
                help="an instance is a mask of the pipeline, or each connected part of it (default: proposals)",
            )  # fmt: skip
        _common(one, "lisa")
    text = "a Label Studio project: its predictions in people's hands, over versions and time, and the minutes saved"
    report.add_options(datasets.add_parser("project", parents=[preset], help=text, description=text))


def run(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    """Do it and give the exit status; figures go to ``out``, progress to ``err``."""
    if args.dataset == "project":
        return report.run(args, settings, out, err)
    for name in ("limit", "workers", "save_worst"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name.replace('_', '-')} is {value}: at least 1 is expected")
    if args.dataset == "scenes" and args.out is None and args.save_worst is None:
        return _scenes(args, settings, out, err)
    try:
        from rsvp_backend.evaluation.samples import Problems

        problems = Problems(args.strict)
        data = _read(args, problems)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: data sets need it; pip install 'rsvp-backend[evaluate]'"
        ) from None
    return _measure(args, settings, data, problems, out, err)


def seed_range(text: str) -> range:
    """``A:B`` -> the seeds A to B-1. Raises `SettingsError`."""
    first, colon, end = text.partition(":")
    try:
        seeds = range(int(first), int(end))
    except ValueError:
        seeds = range(0)
    if not colon or not seeds:
        raise SettingsError(f"--seeds is {text!r}: A:B with A below B is expected, such as {DEFAULT_SEEDS}")
    return seeds


def _common(command: argparse.ArgumentParser, convention: str) -> None:
    command.add_argument("--limit", type=int, metavar="N", help="N samples by chance (of seginw: N images)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of that choice (default: 0)")
    command.add_argument("--strict", action="store_true", help="stop at the first thing that cannot be used")
    command.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where samples.jsonl, samples.csv and summary.json go (default: out/evaluate/DATASET-SPLIT); a run that "
        "was stopped goes on there",
    )  # fmt: skip
    command.add_argument(
        "--fresh", action="store_true", help="begin anew; earlier results are kept beside the new ones"
    )
    command.add_argument("--save-worst", type=int, metavar="N", help="write DIR/worst.html on the N worst samples")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="samples at a time (default: 1)")
    command.add_argument(
        "--convention", choices=CONVENTIONS, default=convention,
        help=f"how empty masks count, and a small term in divisions (default: {convention})",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _scenes(args: argparse.Namespace, settings: Settings, out: Console, err: Console) -> int:
    """The figures that the demo models are known by; nothing is written."""
    seeds = seed_range(args.seeds)
    from rsvp_backend import presets
    from rsvp_backend.evaluation.scenes import evaluate

    rsvp = presets.build(settings)
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task(f"scenes, {args.level}", total=len(seeds))
        figures = evaluate(rsvp, args.level, seeds, lambda: progress.advance(bar))
    if args.json:
        out.out(json.dumps(figures), highlight=False)
    else:
        for name, value in figures.items():
            out.print(f"{name:24} {value}", markup=False)
    return 0


def _read(args: argparse.Namespace, problems: Problems) -> EvaluationSet:
    from rsvp_backend.evaluation.samples import limited

    if args.dataset == "scenes":
        from rsvp_backend.evaluation.scene_set import scene_set

        data = scene_set(args.level, seed_range(args.seeds))
    else:
        from rsvp_backend.evaluation import datasets

        sets = [name.strip() for name in getattr(args, "sets", "").split(",") if name.strip()]
        by = getattr(args, "split_by", None)
        data = datasets.read(args.dataset, args.data.expanduser(), args.split, problems, sets=sets, split_by=by)
    return limited(data, args.limit, args.seed)


def _measure(
    args: argparse.Namespace, settings: Settings, data: EvaluationSet, problems: Problems, out: Console, err: Console
) -> int:
    from rsvp_backend import presets
    from rsvp_backend.evaluation import metrics, tables
    from rsvp_backend.evaluation.page import page
    from rsvp_backend.evaluation.summary import Run, summarise

    rsvp = presets.build(settings)
    folder = args.out or Path("out") / "evaluate" / f"{args.dataset}-{data.split}"
    records, interrupted = _records(args, rsvp, data, folder, problems, err)
    if not records:
        first = next(iter(problems), "interrupted before the first was done")
        raise RsvpError(f"{data.name}, {data.split}: no sample has a result; {first}")
    result = Run(data, records, rsvp.version, tuple(problems), interrupted)
    summary = summarise(result, metrics.CONVENTIONS[args.convention])
    table = tables.markdown(summary, args.dataset)
    texts = {
        "summary.json": json.dumps(summary, indent=2) + "\n", "summary.md": table,
        "samples.csv": tables.sample_rows(records),
    }  # fmt: skip
    if args.save_worst:
        texts["worst.html"] = page(result, summary, rsvp.config.marks, args.save_worst)
    _write(folder, texts)
    if args.json:
        out.out(json.dumps(summary), highlight=False)
    else:
        out.print(f"{table}\nwritten to {folder}", markup=False)
    if summary["partial"]:
        err.print(f"partial result: {'; '.join(summary['partial_because'])}", style="yellow", markup=False)
    return 130 if interrupted else 0


def _records(
    args: argparse.Namespace, rsvp: RSVP, data: EvaluationSet, folder: Path, problems: Problems, err: Console
) -> tuple[list[Any], bool]:
    """The results of ``data``'s samples, earlier ones included, and whether the run was interrupted."""
    from rsvp_backend.evaluation.records import Store
    from rsvp_backend.evaluation.running import run as run_samples

    instances, root = getattr(args, "instances", "proposals"), getattr(args, "data", None)
    identity = {
        "dataset": data.name, "split": data.split, "data": str(root.expanduser().resolve()) if root else None,
        "version": rsvp.version, "instances": instances,
    }  # fmt: skip
    store, interrupted = (Store.fresh if args.fresh else Store)(folder, identity), False
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task(f"{data.name}, {data.split}", total=len(data.samples))
        try:
            run_samples(
                rsvp, data.samples, store, problems, workers=args.workers, split_masks=instances == "components",
                progress=lambda: progress.advance(bar),
            )  # fmt: skip
        except KeyboardInterrupt:
            interrupted = True
    return [store.records[sample.id] for sample in data.samples if sample.id in store.records], interrupted


def _write(folder: Path, texts: dict[str, str]) -> None:
    try:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RsvpError(f"{folder} cannot be written: {error.strerror} (--out)") from None
