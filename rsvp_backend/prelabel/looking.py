"""Stage 1 for several tasks at once: in one batch where the model is local, side by side where it is on a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from PIL import Image

from rsvp_backend.metrics import layers
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel.steps import Answered, Asked, Seen, look
from rsvp_backend.reasoner.batching import Rendezvous
from rsvp_backend.types import Answer, Deadline, Marks, Query, Reasoner

if TYPE_CHECKING:
    from rsvp_backend.reasoner.local import LocalReasoner, Question

BATCH = 16
Ask = Callable[["Question"], Answer]


def batches(reasoner: Reasoner) -> bool:
    """Whether the reasoner writes several answers at once faster than one after another: local ones do."""
    return _local(reasoner) is not None


def look_many(rsvp: RSVP, asked: Sequence[Asked]) -> list[Seen | Answered]:
    """`look` for all of ``asked``, in order. Their first questions meet in one batch, then those of zoom, and so on."""
    local = _local(rsvp.reasoner)
    if local is None or len(asked) < 2:
        return [look(rsvp, one) for one in asked]
    meeting: Rendezvous[Question, Answer] = Rendezvous(
        len(asked), lambda questions: local.propose_many(questions, batch=len(questions))
    )

    def one(index: int) -> Seen | Answered:
        try:
            own = _over(rsvp.reasoner, _Member(local, lambda question: meeting.submit(index, question)))
            return look(RSVP(own, rsvp.segmenter, rsvp.config), asked[index])
        finally:
            meeting.leave()

    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(one, range(len(asked))))


class _Member:
    """A reasoner whose questions are asked together with those of others."""

    def __init__(self, local: LocalReasoner, ask: Ask) -> None:
        self._local, self._ask = local, ask

    @property
    def version(self) -> str:
        return self._local.version

    @property
    def canvas_px(self) -> tuple[int, int] | None:
        return self._local.canvas_px

    @property
    def max_side_px(self) -> int | None:
        return self._local.max_side_px

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        from rsvp_backend.reasoner.local import Question

        return self._ask(Question(visual_prompt, query, marks))


def _local(reasoner: Reasoner) -> LocalReasoner | None:
    """The innermost reasoner, where it is a local one."""
    from rsvp_backend.reasoner.local import LocalReasoner

    return next((layer for layer in layers(reasoner) if isinstance(layer, LocalReasoner)), None)


def _over(reasoner: Reasoner, member: Reasoner) -> Reasoner:
    """``member`` in the place of the innermost reasoner, under the same cache of answers."""
    from rsvp_backend.reasoner.cache import CachedReasoner

    return reasoner.over(member) if isinstance(reasoner, CachedReasoner) else member
