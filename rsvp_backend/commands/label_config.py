"""``rsvp-backend label-config``: a labeling config for Label Studio with all that the backend reads and fills."""

from __future__ import annotations

import argparse
import sys

from rsvp_backend.errors import LabelConfigError
from rsvp_backend.labelstudio.tags import MASK_TAGS, default_label_config


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--labels", default="Object", metavar="A,B", help="names of the masks' labels, with commas between"
    )
    command.add_argument(
        "--tag", default="brush", choices=list(MASK_TAGS),
        help="what a mask becomes: every pixel (brush, bitmask), a polygon (holes are filled), or a rectangle "
        "(default: brush)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the config and give the exit status. Raises `LabelConfigError` where no label is named."""
    labels = [label.strip() for label in args.labels.split(",") if label.strip()]
    if not labels:
        raise LabelConfigError(f"--labels is {args.labels!r}: one or more names with commas between are expected")
    sys.stdout.write(default_label_config(labels, args.tag))
    return 0
