"""Label Studio after a promotion: the backend's title, and the project's model version with it, follow the version.

Uncertainty sampling and the score column look only at predictions whose version is the project's model version, and
that is the title of its backend (see `LabelStudioClient.create_ml_backend`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from rsvp_backend.errors import LabelStudioError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.replies import JSON

log = logging.getLogger(__name__)

OURS = "rsvp-"
_TASKS_PER_CALL = 5  # Label Studio gives a call 100 s in all, and large images take long


def follow_promotion(
    client: LabelStudioClient, project: int, segmenter: str, wait_s: float = 30.0, pause_s: float = 1.0
) -> str:
    """Wait until the project's backend serves ``segmenter`` (`VlsmSegmenter.version`), and give it that title.

    Label Studio asks the backend for its version whenever its backends are listed; the whole version, reasoner and
    settings among it, is what the backend says then. Gives that version. Raises `LabelStudioError` where no backend of
    ours is connected, or none serves the segmenter within ``wait_s``.
    """
    return _follow(
        client, project, lambda one: one.startswith(f"{OURS}{segmenter}-"),
        f"{segmenter} is current, but {{}}: has it the same RSVP_VERSIONS and RSVP_VLSM?", wait_s, pause_s,
    )  # fmt: skip


def served_versions(client: LabelStudioClient, project: int) -> frozenset[str]:
    """What the project's backends of ours serve now. Raises `LabelStudioError`."""
    return frozenset(str(backend["model_version"]) for backend in _ours(client, project))


def follow_change(
    client: LabelStudioClient, project: int, before: frozenset[str], wait_s: float = 30.0, pause_s: float = 1.0
) -> str:
    """As `follow_promotion`, after a promotion that does not show in the version's name: wait until the backend serves
    another version than those ``before``."""
    return _follow(
        client, project, lambda one: one not in before,
        "a version was promoted, but {}: has it the same RSVP_REASONER_VERSIONS and RSVP_REASONER?", wait_s, pause_s,
    )  # fmt: skip


def _follow(
    client: LabelStudioClient, project: int, awaited: Callable[[str], bool], late: str, wait_s: float, pause_s: float
) -> str:
    until_s = time.monotonic() + wait_s
    while True:
        ours = _ours(client, project)
        if not ours:
            raise LabelStudioError(f"project {project} has no backend of ours that answers: connect one, or start it")
        for backend in ours:
            version = str(backend["model_version"])
            if awaited(version):
                if backend.get("title") != version:
                    client.update_ml_backend(int(backend["id"]), project, str(backend["url"]), version)
                return version
        if time.monotonic() >= until_s:
            stays = f"still serves {ours[0]['model_version']} after {wait_s:.0f} s"
            raise LabelStudioError(late.format(f"project {project}'s backend at {ours[0]['url']} {stays}"))
        time.sleep(pause_s)


def _ours(client: LabelStudioClient, project: int) -> list[JSON]:
    return [b for b in client.ml_backends(project) if str(b.get("model_version")).startswith(OURS)]


def predict_again(
    client: LabelStudioClient, project: int, tasks: Sequence[int], tell: Callable[[int], None] = lambda _: None
) -> int:
    """Let Label Studio ask the backend about ``tasks`` again, in their order; how many it was asked about.

    ``tell`` hears of every few. Tasks that have a prediction of the current version already are passed over by Label
    Studio. A call that fails is logged, and the rest goes on.
    """
    asked = 0
    for start in range(0, len(tasks), _TASKS_PER_CALL):
        some = tasks[start : start + _TASKS_PER_CALL]
        try:
            client.retrieve_predictions(project, some)
            asked += len(some)
        except LabelStudioError as error:
            log.warning("tasks %s were not predicted again: %s", ", ".join(map(str, some)), error)
        tell(start + len(some))
    return asked
