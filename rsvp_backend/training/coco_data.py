"""Any folder of images with COCO annotations.

    ROOT/annotations/*.json   "images", "annotations", "categories"; the file's name tells the split (val, test, train)
    ROOT/images/*.jpg         or ROOT itself, or a folder called like the end of the annotation file's name (train2017)

An annotation's ``sentences`` (texts, or objects with ``sent``) or ``caption`` mean its own mask. Without them the text
is the category's name, and the mask all that is of this category in the image: one text has one answer.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rsvp_backend.training.coco_masks import CocoMask, is_segmentation
from rsvp_backend.training.referring import DataError, Dataset, FileImage, Sample

log = logging.getLogger(__name__)
Row = Mapping[str, Any]
Ident = int | str


def read_coco(root: Path) -> Dataset:
    """All annotation files of ``root``. Raises `DataError` where files are missing or damaged as a whole."""
    files = sorted((root / "annotations").glob("*.json"))
    if not files:
        raise DataError(f"{root}/annotations has no *.json: COCO annotations and the images beside them are expected")
    left_out: Counter[str] = Counter()
    splits: dict[str, list[Sample]] = {}
    for file in files:
        splits.setdefault(split_of(file.stem), []).extend(_File(root, file, left_out).samples())
    # Several files may hold the same annotations (instances and keypoints).
    unique = {split: list({(s.region, s.text): s for s in samples}.values()) for split, samples in splits.items()}
    found = Dataset.of(f"COCO annotations in {root}", unique, left_out)
    log.info("%s", found.summary())
    return found


def split_of(stem: str) -> str:
    """The split that an annotation file's name tells: ``instances_val2017`` -> ``val``."""
    return next((split for split in ("val", "test") if split in stem.lower()), "train")


def read_json(path: Path) -> Row:
    """The object in ``path``. Raises `DataError`."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}: COCO's object with images and annotations is expected")
    return data


def rows(data: Row, name: str, path: Path) -> list[Row]:
    """The objects in the list ``name``. Raises `DataError` where there is no such list."""
    found = data.get(name)
    if not isinstance(found, list):
        raise DataError(f"{path} has no list {name!r}: COCO's images, annotations and categories are expected")
    return [row for row in found if isinstance(row, dict)]


def ident(value: object) -> Ident | None:
    """``value`` if it can be an id."""
    return value if isinstance(value, int | str) else None


def by_id(found: Iterable[Row]) -> dict[Ident, Row]:
    """Rows by their ``id``; those without one are dropped."""
    return {key: row for row in found if (key := ident(row.get("id"))) is not None}


class Pictures:
    """The images of an annotation file that are there, by id; the others are counted in ``left_out``."""

    def __init__(self, images: Iterable[Row], folders: Path | Sequence[Path], left_out: Counter[str]) -> None:
        within = [folders] if isinstance(folders, Path) else list(folders)
        # One listing instead of a look at each file: on network disks that is minutes.
        names = {folder: {entry.name for entry in folder.iterdir()} for folder in within if folder.is_dir()}
        self._found: dict[Ident, FileImage] = {}
        for key, row in by_id(images).items():
            found = _picture(row, names)
            if isinstance(found, FileImage):
                self._found[key] = found
            else:
                left_out[found] += 1

    def get(self, image_id: object) -> FileImage | None:
        key = ident(image_id)
        return None if key is None else self._found.get(key)


def _picture(row: Row, names: Mapping[Path, set[str]]) -> FileImage | str:
    """The image of ``row`` in the first folder that has it; ``names``: what is in the folders. Or why there is none."""
    name, width, height = row.get("file_name"), row.get("width"), row.get("height")
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        return "images without size"
    if not isinstance(name, str) or not _inside(name):
        return "images without usable name"
    plain = "/" not in name
    folders = (f for f, there in names.items() if (name in there if plain else (f / name).is_file()))
    folder = next(folders, None)
    return "images missing" if folder is None else FileImage(folder / name, width, height)


def _inside(name: str) -> bool:
    """Whether ``name`` stays in its folder."""
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


@dataclass(slots=True)
class _Region:
    """What is meant by one text in one image."""

    image: FileImage
    segmentations: list[Any] = field(default_factory=list)


class _File:
    """One annotation file."""

    def __init__(self, root: Path, file: Path, left_out: Counter[str]) -> None:
        self.root, self.left_out = root, left_out
        data = read_json(file)
        ending = file.stem.rpartition("_")[2]
        folders = [root / ending, root / "images" / ending, root / "images", root]
        self.pictures = Pictures(rows(data, "images", file), folders, left_out)
        self.categories = by_id(rows(data, "categories", file)) if "categories" in data else {}
        self.annotations = rows(data, "annotations", file)

    def samples(self) -> list[Sample]:
        regions: dict[tuple[str, str], _Region] = {}
        for number, row in enumerate(self.annotations):
            image = self.pictures.get(row.get("image_id"))
            if image is None:
                self.left_out["annotations on unusable images"] += 1
            elif not is_segmentation(row.get("segmentation")):
                self.left_out["annotations without usable outline"] += 1
            else:
                for key, text in self._texts(row, number, str(image.path.relative_to(self.root))):
                    regions.setdefault((key, text), _Region(image)).segmentations.append(row["segmentation"])
        return _with_others(regions)

    def _texts(self, row: Row, number: int, image: str) -> list[tuple[str, str]]:
        """The region's name and text, for each text of an annotation."""
        own = f"{image}:{row.get('id', f'number {number}')}"
        given = row.get("sentences")
        sentences = [s.get("sent") if isinstance(s, dict) else s for s in given] if isinstance(given, list) else []
        texts = [text.strip() for text in [*sentences, row.get("caption")] if isinstance(text, str) and text.strip()]
        if texts:
            return [(own, text) for text in dict.fromkeys(texts)]
        category = ident(row.get("category_id"))
        name = self.categories.get(category, {}).get("name") if category is not None else None
        if not isinstance(name, str) or not name.strip():
            self.left_out["annotations without text"] += 1
            return []
        return [(f"{image}:{name.strip()}", name.strip())]


def _with_others(regions: Mapping[tuple[str, str], _Region]) -> list[Sample]:
    """Samples that know the other regions of their image."""
    masks: dict[str, CocoMask] = {}
    on_image: dict[Path, dict[str, CocoMask]] = {}
    for (key, _), region in regions.items():
        image = region.image
        masks.setdefault(key, CocoMask(tuple(region.segmentations), image.height_px, image.width_px))
        on_image.setdefault(image.path, {})[key] = masks[key]
    found = []
    for (key, text), region in regions.items():
        others = tuple(mask for name, mask in on_image[region.image.path].items() if name != key)
        found.append(Sample(key, f"coco:{region.image.path.name}", text, region.image, masks[key], others))
    return found
