"""``rsvp-backend predict``: segment one image by an instruction, then by clicks on it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from rsvp_backend.errors import ImageError, RsvpError, SettingsError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.refinement import Hints, refine
from rsvp_backend.settings import Settings
from rsvp_backend.types import Click, Outcome

_MARKS = re.compile(r"(bands|cells):(\d{1,2})x(\d{1,2})")


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", type=Path, metavar="IMAGE", help="an image file")
    command.add_argument("instruction", metavar="INSTRUCTION", help='such as "the thing you would drink from"')
    command.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where overlay.png, mask.png, visual_prompt.png and trace.json go (default: out/<image's name>)",
    )  # fmt: skip
    command.add_argument("--marks", metavar="KIND:ROWSxCOLUMNS", help="such as cells:5x5, instead of RSVP_MARKS_*")
    command.add_argument("--padding", type=float, metavar="SHARE", help="instead of RSVP_PADDING")
    command.add_argument("--zoom", choices=["off", "auto", "always"], help="instead of RSVP_ZOOM")
    command.add_argument(
        "--click", dest="clicks", action="append", default=[], type=_inside, metavar="X,Y",
        help="refine the mask: this pixel belongs to it; more than once for more clicks",
    )  # fmt: skip
    command.add_argument(
        "--click-off", dest="clicks", action="append", type=_outside, metavar="X,Y", help="this pixel does not"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that the options name. Raises `SettingsError`."""
    found: dict[str, Any] = {"preset": args.preset, "padding": args.padding, "zoom": args.zoom}
    if args.marks is not None:
        marks = _MARKS.fullmatch(args.marks)
        if marks is None:
            raise SettingsError(f"--marks is {args.marks!r}: KIND:ROWSxCOLUMNS is expected, such as bands:9x9")
        found |= {"marks_kind": marks[1], "marks_rows": int(marks[2]), "marks_columns": int(marks[3])}
    return found


def run(args: argparse.Namespace, settings: Settings, out: Console) -> int:
    """Raises `ImageError`, and `RsvpError` where the folder cannot be written."""
    image = _open(args.image, settings)
    from rsvp_backend import presets
    from rsvp_backend.traces import trace_record

    rsvp = presets.build(settings)
    began_s = time.perf_counter()
    outcome = _answered(rsvp, image, args.instruction, tuple(args.clicks))
    seconds = round(time.perf_counter() - began_s, 3)
    record = {
        "image": str(args.image), "size_px": image.size, "model_version": rsvp.version, "seconds": seconds,
        **trace_record(outcome),
    }  # fmt: skip
    folder = args.out or Path("out") / args.image.stem
    _write(folder, image, outcome, record)
    if args.json:
        sys.stdout.write(json.dumps({**record, "files": str(folder)}) + "\n")
        return 0
    for instance in outcome.instances:
        out.print(f"{instance.object}  score {instance.score:.2f}\n  {instance.reasoning}", markup=False)
    if not outcome.instances:
        out.print(f"no mask ({outcome.reason}): {outcome.detail}", markup=False)
    out.print(f"{seconds:.2f} s, written to {folder}", markup=False)
    return 0


def _answered(rsvp: RSVP, image: Image.Image, instruction: str, clicks: tuple[Click, ...]) -> Outcome:
    if not clicks:
        return rsvp(image, instruction)
    remembered = rsvp(image, instruction).instances if instruction.strip() else ()
    return refine(rsvp, image, Hints(clicks), remembered, instruction)


def _open(path: Path, settings: Settings) -> Image.Image:
    from rsvp_backend.labelstudio.pixels import decode_image

    try:
        return decode_image(path.read_bytes(), settings.image_max_pixels)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from None


def _write(folder: Path, image: Image.Image, outcome: Outcome, record: dict[str, Any]) -> None:
    from rsvp_backend.demo.picture import overlay

    mask = outcome.union(image.width, image.height)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        overlay(image, mask).save(folder / "overlay.png")
        Image.fromarray(mask).convert("L").save(folder / "mask.png")
        if outcome.trace.visual_prompt is not None:
            outcome.trace.visual_prompt.save(folder / "visual_prompt.png")
        (folder / "trace.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RsvpError(f"{folder} cannot be written: {error.strerror} (--out)") from None


def _inside(text: str) -> Click:
    return _click(text, True)


def _outside(text: str) -> Click:
    return _click(text, False)


def _click(text: str, positive: bool) -> Click:
    x, _, y = text.partition(",")
    try:
        return Click(float(x), float(y), positive)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no X,Y in pixels of the image, such as 120,85.5") from None
