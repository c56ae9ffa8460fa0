"""Which tasks of a project lack a prediction of a version, page by page, by the data manager's own filters.

Label Studio's "contains" goes by parts of words: a version's filter also finds the empty predictions that stand for it
(`RETRY_SUFFIX`), so that those are listed apart and looked at exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rsvp_backend.answers import RETRY_SUFFIX
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.replies import JSON

PAGE = 100
_IDS_PAGE = 500
_WHOLE_PAGE = 25
_CUT_OFF_CHARS = 480
"""Label Studio shows 500 characters of a task's versions."""
OPEN = (
    {"filter": "filter:tasks:total_annotations", "operator": "equal", "type": "Number", "value": 0},
    {"filter": "filter:tasks:cancelled_annotations", "operator": "equal", "type": "Number", "value": 0},
)
"""Tasks that nobody has annotated or skipped."""
Fetch = Callable[[Callable[[], JSON]], JSON]
"""Makes a request, again if it must."""


def at_once(request: Callable[[], JSON]) -> JSON:
    """The `Fetch` that tries once."""
    return request()


def query(*filters: JSON) -> JSON:
    """By id; all ``filters`` must hold."""
    return {"filters": {"conjunction": "and", "items": list(filters)}, "ordering": ["tasks:id"]}


def one_of(tasks: Sequence[int]) -> JSON:
    return {"filter": "filter:tasks:id", "operator": "in_list", "type": "List", "value": list(tasks)}


def between(first: int, last: int) -> JSON:
    """Ids from ``first`` to ``last``, both included."""
    value = {"min": first, "max": last}
    return {"filter": "filter:tasks:id", "operator": "in", "type": "Number", "value": value}


def with_version(version: str, present: bool = True) -> JSON:
    operator = "contains" if present else "not_contains"
    name = "filter:tasks:predictions_model_versions"
    return {"filter": name, "operator": operator, "type": "List", "value": [version]}


def versions_of(client: LabelStudioClient, task: JSON) -> frozenset[str]:
    """The versions of a task's predictions; the query that found it must have named them."""
    shown = str(task.get("predictions_model_versions") or "")
    if len(shown) < _CUT_OFF_CHARS:
        return frozenset(part.strip() for part in shown.split(","))
    return frozenset(str(one.get("model_version")) for one in client.predictions(int(task["id"])))


def lacking(
    client: LabelStudioClient, project: int, version: str, filters: Sequence[JSON] = (), fetch: Fetch = at_once
) -> Iterator[JSON]:
    """Tasks without a prediction of ``version``, by id; then those that hold only an empty one in its place.

    Each page starts behind the last id: tasks that come, go or get their prediction meanwhile make none be missed.
    """
    yield from _after(client, project, [*filters, with_version(version, present=False)], fetch)
    for task in _after(client, project, [*filters, with_version(version + RETRY_SUFFIX)], fetch):
        if version not in versions_of(client, task):
            yield task


def count_lacking(client: LabelStudioClient, project: int, version: str, filters: Sequence[JSON] = ()) -> int:
    """How many `lacking` would list, about: a task may hold both an empty prediction and the right one."""
    asked = (with_version(version, present=False), with_version(version + RETRY_SUFFIX))
    return sum(int(client.task_page(project, query(*filters, one), page_size=1)["total"]) for one in asked)


def in_view(client: LabelStudioClient, project: int, view: int, fetch: Fetch = at_once) -> Iterator[int]:
    """Ids as a tab of the data manager shows them; each once, though tasks may move meanwhile."""
    seen: set[int] = set()
    for page in range(1, 10**9):
        found = fetch(partial(client.task_page, project, {}, _IDS_PAGE, page, view=view))
        for task in found["tasks"]:
            if int(task["id"]) not in seen:
                seen.add(int(task["id"]))
                yield int(task["id"])
        if page * _IDS_PAGE >= found["total"] or not found["tasks"]:
            return


def ids(client: LabelStudioClient, project: int, filters: Sequence[JSON] = (), fetch: Fetch = at_once) -> Iterator[int]:
    """Ids, rising."""
    return (int(task["id"]) for task in _after(client, project, filters, fetch, _IDS_PAGE))


def scores(
    client: LabelStudioClient, project: int, filters: Sequence[JSON] = (), fetch: Fetch = at_once
) -> Iterator[tuple[int, float | None]]:
    """Ids, rising, each with the score of its newest prediction that has one; all predictions are read for it.

    Label Studio's own order by score goes by one version, which after a promotion has no predictions yet.
    """
    for task in _after(client, project, filters, fetch, _WHOLE_PAGE, whole=True):
        newest = sorted(task.get("predictions") or [], key=lambda one: int(one["id"]), reverse=True)
        known = (one["score"] for one in newest if isinstance(one.get("score"), int | float))
        yield int(task["id"]), next(known, None)


def _after(
    client: LabelStudioClient,
    project: int,
    filters: Sequence[JSON],
    fetch: Fetch,
    page_size: int = PAGE,
    whole: bool = False,
) -> Iterator[JSON]:
    last: Any = 0
    while True:
        behind = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": last}
        page = fetch(partial(client.task_page, project, query(behind, *filters), page_size, whole=whole))
        tasks = [task for task in page["tasks"] if int(task["id"]) > last]
        yield from tasks
        if not tasks:
            return
        last = max(int(task["id"]) for task in tasks)
