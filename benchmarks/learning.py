"""What learning from corrections gains, and whether it can be trusted: through the real Label Studio, preset demo, CPU.

``python benchmarks/learning.py [--corrections 20] [--kills 100] [--noise-seeds 5] [--json]``, after ``make setup``. Two
concepts that the demo weights never saw are corrected in Label Studio and learned by `learn`, one after the other, each
version on top of the last; scored on other scenes, and on the old classes. The last line of ``--json``: ``iou_before``,
``iou_after`` and ``seconds`` of training (each the worse of the two concepts), ``old_giou_loss`` (base weights less the
last version), ``kills`` (of `rsvp-backend finetune`, at random moments), ``lost_corrections``, ``half_versions``,
``bad_promotions`` (of versions learned from 20 % wrong corrections that are worse on clean ones, or from wrong ones
alone). ``--curve`` prints the IoU over the number of corrections instead, without Label Studio.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from learning_concepts import (
    CONCEPTS,
    TEST_SEEDS_FROM,
    TRAINING_SEEDS_FROM,
    old_classes,
    samples,
    score,
    spoiled,
)
from learning_studio import Studio, kill_lessons, studio

import rsvp_backend
from rsvp_backend.access import make_fetcher
from rsvp_backend.labelstudio.corrections import read_corrections
from rsvp_backend.learning import learn
from rsvp_backend.training.adapters import apply_delta
from rsvp_backend.training.finetune import FinetuneResult, finetune
from rsvp_backend.training.finetune_config import FinetuneConfig
from rsvp_backend.training.gate import decide
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.replay import NoReplay, SceneReplay
from rsvp_backend.training.samples import Correction
from rsvp_backend.vlsm import weights

OLD_CROPS = 900
"""Crops of earlier data that versions are scored on; the standard error of their mean is 0.004."""
DEMO = Path(rsvp_backend.__file__).parent / "demo" / "assets" / "vlsm"


def load(version: str | None = None, versions: Path | None = None) -> weights.Weights:
    """The demo weights in float32, or a version of them."""
    base = weights.load(DEMO)
    loaded = base if version is None or versions is None else Registry(versions).load(base, version)
    loaded.model.float()
    return loaded


def through_label_studio(running: Studio, count: int, tests: int, folder: Path) -> dict[str, Any]:
    """Both concepts, one lesson each."""
    versions, rows, submitted = running.settings.versions, [], 0
    current = Registry(versions).current()
    for name, concept in CONCEPTS.items():
        project, clean = running.project(name), samples(concept, TEST_SEEDS_FROM, tests)
        running.submit(project, samples(concept, TRAINING_SEEDS_FROM, count), folder / name)
        submitted += count
        before = score(load(current, versions), clean).mean
        lesson = learn(running.settings, project)
        current = Registry(versions).current()
        row = {"concept": name, "before": before, "after": score(load(current, versions), clean).mean}
        row |= {"promoted": lesson.promoted, "seconds": lesson.seconds, "steps": lesson.steps, "told": str(lesson)}
        row["read"] = sum(1 for _ in read_corrections(running.client, project, make_fetcher(running.settings), 0.2))
        rows.append(row)
        say(row)
    old = old_classes(OLD_CROPS)
    return {
        "iou_before": max(row["before"] for row in rows),
        "iou_after": min(row["after"] for row in rows),
        "old_giou_loss": score(load(), old).mean - score(load(current, versions), old).mean,
        "seconds": max(row["seconds"] for row in rows),
        "lost_corrections": submitted - sum(row["read"] for row in rows),
    }


def killed(running: Studio, count: int, kills: int, folder: Path) -> dict[str, Any]:
    """Lessons of another project under ``kill -9``."""
    project, concept = running.project("killed"), CONCEPTS["part"]
    pool = samples(concept, TRAINING_SEEDS_FROM + 500_000, count + kills)
    running.submit(project, pool[:count], folder / "killed")
    more = [[correction] for correction in pool[count:]]
    seen = kill_lessons(running, project, more, kills, folder)
    submitted = count + seen.submitted
    read = sum(1 for _ in read_corrections(running.client, project, make_fetcher(running.settings), 0.2))
    say(vars(seen) | {"read": read})
    return {"kills": seen.kills, "half_versions": seen.half_versions, "lost": submitted - read,
            "refused_requests": seen.refused_requests, "failed_lessons": seen.failed}  # fmt: skip


def bad_promotions(count: int, tests: int, seeds: int) -> dict[str, Any]:
    """Lessons of spoiled corrections: how many pass the gate, and how many of those should not have."""
    base, bad = load(), 0
    for name, concept in CONCEPTS.items():
        clean = samples(concept, TEST_SEEDS_FROM, tests)
        before = score(base, clean).mean
        for seed in range(seeds):
            drawn = samples(concept, TRAINING_SEEDS_FROM + 100_000 * seed, count)
            for share in (0.2, 1.0):
                made, promoted = train(base, spoiled(drawn, share, seed))
                after = score(tuned(made), clean).mean
                worse = promoted and (share == 1.0 or after < before)
                bad += worse
                say({"concept": name, "seed": seed, "wrong": share, "promoted": promoted, "before": before,
                     "after": after})  # fmt: skip
    return {"bad_promotions": bad}


def curve(counts: list[int], tests: int, replay: bool) -> None:
    """IoU on other scenes after so many corrections, each from the base weights."""
    base, old = load(), old_classes(OLD_CROPS)
    known = score(base, old).mean
    for name, concept in CONCEPTS.items():
        clean = samples(concept, TEST_SEEDS_FROM, tests)
        before = score(base, clean).mean
        for count in counts:
            made, promoted = train(base, samples(concept, TRAINING_SEEDS_FROM, count), replay)
            after = tuned(made)
            say({"concept": name, "corrections": count, "before": before, "after": score(after, clean).mean,
                 "old_giou_loss": known - score(after, old).mean, "promoted": promoted, "steps": made.steps,
                 "seconds": made.seconds, "delta_bytes": sum(t.nbytes for t in made.delta.values())})  # fmt: skip


def train(base: weights.Weights, corrections: list[Correction], replay: bool = True) -> tuple[FinetuneResult, bool]:
    """Fine-tune, and whether the gate would promote it."""
    source = SceneReplay() if replay else NoReplay()
    with tempfile.TemporaryDirectory() as folder:
        made = finetune(base, corrections, source, FinetuneConfig(device="cpu"), Path(folder))
    return made, decide(made.before, made.after, made.replay_before, made.replay_after).promote


def tuned(made: FinetuneResult) -> weights.Weights:
    found = load()
    apply_delta(found.model, made.delta)
    return found


def say(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corrections", type=int, default=20, help="of each concept")
    parser.add_argument("--tests", type=int, default=60, help="scenes that a version is scored on")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--noise-seeds", type=int, default=5, help="draws of wrong corrections per concept and share")
    parser.add_argument("--curve", nargs="+", type=int, metavar="N", help="numbers of corrections")
    parser.add_argument("--no-replay", action="store_true", help="with --curve: train on the corrections alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if options.curve:
        curve(options.curve, options.tests, not options.no_replay)
        return
    found = bad_promotions(options.corrections, options.tests, options.noise_seeds) if options.noise_seeds else {}
    with tempfile.TemporaryDirectory() as name, studio(Path(name) / "data", DEMO) as running:
        found |= through_label_studio(running, options.corrections, options.tests, Path(name))
        if options.kills:
            more = killed(running, options.corrections, options.kills, Path(name))
            found["lost_corrections"] += more.pop("lost")
            found |= more
    say(found)


if __name__ == "__main__":
    main()
