"""Label Studio's annotations -> corrections to learn from; what cannot be used is counted, never dropped in silence.

Which annotations count: the last submitted one of each person on a task. Left out are skipped ones, imported ones that
nobody has saved since (unless asked for), predictions that were turned into annotations in bulk, and where a person
has marked an annotation as ground truth, the others of that task. What each region is: see
`compared.corrections_of`. TextAreas of the whole task (the prompt, the message) are no corrections.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence

from rsvp_backend.labelstudio.annotations import JSON, imported, latest, listed
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.compared import Annotated, Source, TaskImage, corrections_of
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.reading import Reading, Reason
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.training.samples import Correction

PAGE_SIZE = 25  # tasks come with every annotation and prediction, a megabyte each where images are large


def read_corrections(
    client: LabelStudioClient,
    project_id: int,
    fetcher: ImageFetcher,
    padding: float,
    reading: Reading | None = None,
    *,
    include_imported: bool = False,
    max_pixels: int = ImageLimits().max_pixels,
    page_size: int = PAGE_SIZE,
    seen: Callable[[JSON], None] = lambda _: None,
) -> Iterator[Correction]:
    """The corrections of a project, task by task, newest state. Pages through the API while it is iterated.

    ``padding``: how much of its own size is added around a mask that lies outside of its prediction's crop, or has
    none. No image is fetched here but where the results leave the image's size in doubt; `Correction.load_image`
    fetches it, and raises `ImageError` if its size is not the mask's, `LabelStudioAwayError` while Label Studio is
    away. ``seen`` gets each task before its corrections come. Raises `LabelStudioError` (no access, no such project)
    and `LabelConfigError`.
    """
    xml = str(client.project(project_id).get("label_config") or "")
    source = Source(
        parse_label_config(xml), prompt_controls(xml), fetcher, padding, max_pixels, include_imported, client.there
    )
    counted = reading if reading is not None else Reading()
    for task in client.annotated_tasks(project_id, page_size):
        counted.tasks += 1
        seen(task)
        for correction in _of_task(task, source, counted):
            counted.corrections[correction.origin] += 1
            yield correction


def _of_task(task: JSON, source: Source, reading: Reading) -> Iterator[Correction]:
    identity = int(task["id"])
    chosen = chosen_of(listed(task.get("annotations")), identity, source.include_imported, reading)
    data = task.get("data")
    uri = data.get(source.config.image_field) if isinstance(data, Mapping) else None
    if not isinstance(uri, str) or not uri:
        reading.leave_out(Reason.NO_IMAGE, identity, len(chosen), f"no address in data.{source.config.image_field}")
        return
    image = TaskImage(identity, uri, source.fetcher, source.check)
    for annotation in chosen:
        yield from corrections_of(Annotated(task, annotation, source, image), reading)


def chosen_of(annotations: Sequence[JSON], task: int, include_imported: bool, reading: Reading) -> list[JSON]:
    """The annotations that count, by the rules at the head of this module."""
    submitted = [one for one in annotations if not one.get("was_cancelled")]
    # Predictions that were made annotations in bulk look imported, but they are nobody's work.
    of_people = [
        one for one in submitted if not imported(one) or (include_imported and one.get("parent_prediction") is None)
    ]
    # Label Studio marks every import as ground truth: only a person's mark says which one to trust.
    starred = [one for one in of_people if one.get("ground_truth") and not imported(one)]
    trusted = starred or of_people
    last = latest(trusted)
    reading.leave_out(Reason.SKIPPED, task, len(annotations) - len(submitted))
    reading.leave_out(Reason.IMPORTED, task, len(submitted) - len(of_people))
    reading.leave_out(Reason.NOT_GROUND_TRUTH, task, len(of_people) - len(trusted))
    reading.leave_out(Reason.SUPERSEDED, task, len(trusted) - len(last))
    return last


def prompt_controls(xml: str) -> frozenset[str]:
    """Names of the tags that are only drawn with to ask the model: what is left of them is no annotation."""
    tags = ET.fromstring(xml).iter()
    return frozenset(tag.get("name", "") for tag in tags if tag.get("smartOnly", "").strip().lower() == "true")
