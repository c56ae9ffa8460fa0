"""What distillation gains: the demo reasoner on a style of instructions that it was never trained on.

``python benchmarks/distill.py [--examples 900] [--scenes 60] [--json]``. Learns the style ``telegraphic`` from
generated scenes (``rsvp-backend distill --scenes telegraphic``), and scores both reasoners, with the demo's VLSM behind
them, on scenes that neither training nor the gate has seen, asked in the new style and in the old wordings. The last
line of ``--json``: of the new style ``object_exact`` (share of objects named exactly), ``region_iou`` and ``giou`` (end
to end), each ``_before`` and ``_after``; ``old_giou_loss`` (gIoU in the old wordings, before less after), ``promoted``,
``seconds`` and ``steps`` of training, ``delta_bytes``, and the gate's own scores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rsvp_backend import presets
from rsvp_backend.distilling import Distilled, Sources, distill_reasoner
from rsvp_backend.evaluation.metrics import Overlap
from rsvp_backend.grid import mask_regions
from rsvp_backend.lessons import Told
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import Question, Scene, make_scene
from rsvp_backend.scenes.styles import STYLED_KINDS, STYLES, styled_questions
from rsvp_backend.settings import Settings
from rsvp_backend.training.answer_scoring import compare
from rsvp_backend.training.distill_config import DistillConfig
from rsvp_backend.training.registry import Registry
from rsvp_backend.types import Proposal, Regions

TEST_SEEDS_FROM = 11_000_000
KINDS = ("all", *STYLED_KINDS)


def score(rsvp: RSVP, scenes: list[Scene], style: str | None) -> dict[str, dict[str, float]]:
    """By kind: share of objects named exactly, region IoU and gIoU on ``scenes``, in ``style`` (None: as trained)."""
    rows: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    for scene in scenes:
        asked = scene.questions if style is None else styled_questions(scene, style)
        for question in (one for one in asked if one.kind in STYLED_KINDS):
            row = _row(rsvp, scene, question)
            rows["all"].append(row)
            rows[question.kind].append(row)
    names = ("object_exact", "region_iou", "giou")
    return {kind: dict(zip(names, np.mean(found, axis=0).tolist(), strict=True)) for kind, found in rows.items()}


def _row(rsvp: RSVP, scene: Scene, question: Question) -> tuple[float, float, float]:
    marks = rsvp.config.marks
    outcome = rsvp(scene.image, question.instruction)
    regions = mask_regions(question.mask, marks) if question.present else Regions()
    right = Proposal(question.object, question.present, regions, "")
    region_iou, _, exact = compare(outcome.trace.proposals, [right], marks)
    return float(exact), region_iou, Overlap.of(outcome.union(*scene.image.size), question.mask).iou


def learn(settings: Settings, style: str, examples: int, seed: int, steps: int | None) -> Distilled:
    def tell(told: Told) -> None:
        if told.stage == "training" and told.done % 25 == 0:
            sys.stderr.write(f"{told.done}/{told.total} {told.text}\n")

    config = DistillConfig(seed=seed, steps=steps)
    return distill_reasoner(settings, Sources(style=style, scenes=examples), tell, config=config)


def say(row: dict[str, Any]) -> None:
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", choices=sorted(STYLES), default="telegraphic")
    parser.add_argument("--examples", type=int, default=900, help="instructions to learn from, the held-out fifth too")
    parser.add_argument("--scenes", type=int, default=60, help="scenes to score on, three instructions each")
    parser.add_argument("--steps", type=int, default=200, help="of the optimiser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(reasoner_versions=Path(name) / "versions")
        scenes = [make_scene(TEST_SEEDS_FROM + n, "easy") for n in range(options.scenes)]
        rsvp = presets.build(settings)
        sides = {"before": {style: score(rsvp, scenes, style) for style in (options.style, None)}}
        found = learn(settings, options.style, options.examples, options.seed, options.steps)
        fresh = presets.updated(rsvp)
        sides["after"] = {style: score(fresh or rsvp, scenes, style) for style in (options.style, None)}
        delta_bytes = Registry(Path(name) / "versions").get(str(found.version)).delta_bytes
    for style in (options.style, None):
        for kind in KINDS:
            say({"style": style or "as trained", "kind": kind} | {
                f"{name}_{side}": value for side, scores in sides.items() for name, value in scores[style][kind].items()
            })  # fmt: skip
    sys.stderr.write(f"{found}\n")
    new = {f"{n}_{side}": value for side, one in sides.items() for n, value in one[options.style]["all"].items()}
    old = sides["before"][None]["all"]["giou"] - sides["after"][None]["all"]["giou"]
    say(new | {"old_giou_loss": old, "promoted": found.promoted, "seconds": found.seconds, "steps": found.steps,
               "delta_bytes": delta_bytes, **found.scores})  # fmt: skip


if __name__ == "__main__":
    main()
