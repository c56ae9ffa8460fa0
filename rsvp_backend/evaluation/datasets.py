"""The public data sets by name, and how each is read and scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rsvp_backend.evaluation.boxed import read_clevr_ref, read_gqa
from rsvp_backend.evaluation.coco import read_coco
from rsvp_backend.evaluation.reasonseg import read_reasonseg
from rsvp_backend.evaluation.refcoco import read_refcoco
from rsvp_backend.evaluation.samples import EvaluationSet, Problems
from rsvp_backend.evaluation.seginw import read_seginw
from rsvp_backend.training.referring import DataError

_READERS = {"reasonseg": read_reasonseg, "coco": read_coco, "clevr-ref": read_clevr_ref, "gqa": read_gqa}


def read(
    name: str, root: Path, split: str, problems: Problems, *, sets: Sequence[str] = (), split_by: str | None = None
) -> EvaluationSet:
    """``sets``: of SegInW, all where empty; ``split_by``: who divided refCOCOg. Raises `DataError`."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder: the one that holds the data set {name} is expected (--data)")
    if name == "seginw":
        return read_seginw(root, split, problems, sets)
    if name in _READERS:
        return _READERS[name](root, split, problems)
    return read_refcoco(root, name, split, problems, split_by)
