"""SegInW (X-Decoder, arXiv 2212.11270): 25 small sets of outlined instances, scored by COCO's mask AP.

    ROOT/<Set>/{train,train_10shot,valid}/*.jpg with _annotations_min1cat.coco.json (or ROOT/seginw/<Set>/...)

Every category of a set is asked for in every image of it, there or not: what is found where nothing is lowers the AP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rsvp_backend.evaluation.average_precision import InstanceTruth
from rsvp_backend.evaluation.coco_file import CocoFile, UnionTruth
from rsvp_backend.evaluation.samples import EvaluationSet, Problems, Sample
from rsvp_backend.training.referring import DataError

SETS = (
    "Airplane-Parts", "Bottles", "Brain-Tumor", "Chicken", "Cows", "Electric-Shaver", "Elephants", "Fruits", "Garbage",
    "Ginger-Garlic", "Hand", "Hand-Metal", "House-Parts", "HouseHold-Items", "Nutterfly-Squireel", "Phones", "Poles",
    "Puppies", "Rail", "Salmon-Fillet", "Strawberry", "Tablets", "Toolkits", "Trash", "Watermelon",
)  # fmt: skip
ANNOTATIONS = "_annotations_min1cat.coco.json"


def read_seginw(root: Path, split: str, problems: Problems, sets: Sequence[str] = ()) -> EvaluationSet:
    """The sets named by ``sets``, else all that are there. Raises `DataError`."""
    root = root / "seginw" if (root / "seginw").is_dir() else root
    for name in sets:
        if name not in SETS:
            raise DataError(f"SegInW has no set {name!r}: {', '.join(SETS)} are expected (--sets)")
    samples: list[Sample] = []
    truths: dict[str, InstanceTruth] = {}
    for name in sets or SETS:
        path = root / name / split / ANNOTATIONS
        if not path.is_file():
            problems.add(f"{path} does not exist: the set {name} is left out")
            continue
        file = CocoFile.read(path, [path.parent], problems)
        truths[name] = InstanceTruth(name, file)
        samples += _samples(name, file)
    if not truths:
        raise DataError(f"{root} has none of SegInW's sets with a split {split!r} (--data, --split)")
    return EvaluationSet("seginw", split, tuple(samples), "instances", sets=truths)


def phrase(category: str) -> str:
    """A category's name as one would say it: ``Fork_handle`` -> ``fork handle``."""
    return re.sub(r"[\s_-]+", " ", category).strip().lower()


def _samples(name: str, file: CocoFile) -> list[Sample]:
    samples = []
    for image, picture in file.pictures.items():
        for key, category in file.categories.items():
            own = tuple(a for a in file.annotations[image] if a.category == key)
            text = phrase(category)
            samples.append(
                Sample(
                    f"{name}:{image}:{key}", f"{name}:{image}", picture, text, UnionTruth(own), object=text,
                    groups={"set": name, "there": "yes" if own else "no"},
                )
            )  # fmt: skip
    return samples
