"""RSVP in one file (arXiv 2506.04277, section 3): mark -> ask -> box -> (zoom) -> crop -> segment -> paste.

Every failure that one image can cause ends as an `Outcome` with its reason; programming errors still raise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

from PIL import Image

from rsvp_backend import masks
from rsvp_backend.errors import AnswerError, DeadlineError, ReasonerError, SegmenterError
from rsvp_backend.grid import visual_prompt
from rsvp_backend.phrases import taken_as_name
from rsvp_backend.targets import Target, choose_targets, distinct
from rsvp_backend.timing import timed
from rsvp_backend.types import (
    Answer,
    Box,
    Deadline,
    EmptyReason,
    Instance,
    Marks,
    Outcome,
    Prompt,
    Proposal,
    Query,
    Reasoner,
    Segmentation,
    Segmenter,
    Trace,
)  # fmt: skip
from rsvp_backend.zoom import Closer, Zoom


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """All that changes predictions besides the two models. ``padding``: share of the box added to its size.

    ``text_only``: plain noun phrases are segmented in the whole image, without the reasoner (see `phrases`).
    """

    marks: Marks = field(default_factory=Marks)
    padding: float = 0.2
    cleanup: masks.Cleanup = field(default_factory=masks.Cleanup)
    zoom: Zoom = field(default_factory=Zoom)
    text_only: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.padding <= 2.0:
            raise ValueError(f"padding is {self.padding}: 0.0 to 2.0 (share of the box's size) is expected")


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What stage 1 came to: where in ``image`` (RGB) to look for which ``targets``, the crops in ``trace``."""

    image: Image.Image
    targets: tuple[Target, ...]
    trace: Trace

    def prompts(self) -> list[Prompt]:
        """What to segment, one per target."""
        pairs = zip(self.targets, self.trace.crops, strict=True)
        return [Prompt(crop, target.proposal.object) for target, crop in pairs]

    def trace_with(self, timings_s: dict[str, float]) -> Trace:
        return replace(self.trace, timings_s={**self.trace.timings_s, **timings_s})


class RSVP:
    """Both stages together. Stateless besides its two models; safe to call from several threads."""

    def __init__(self, reasoner: Reasoner, segmenter: Segmenter, config: PipelineConfig | None = None) -> None:
        self.reasoner = reasoner
        self.segmenter = segmenter
        self.config = config or PipelineConfig()

    @property
    def version(self) -> str:
        """``rsvp-<segmenter>-<digest>``: stable across processes, new with anything that changes predictions."""
        parts = [self.reasoner.version, self.segmenter.version, json.dumps(asdict(self.config), sort_keys=True)]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
        return f"rsvp-{self.segmenter.version}-{digest}"

    def __call__(
        self, image: Image.Image, instruction: str, labels: tuple[str, ...] = (), deadline: Deadline | None = None
    ) -> Outcome:
        """Segment what ``instruction`` asks for in ``image`` (upright, any mode); masks have the image's size."""
        look = self.look(image, instruction, labels, deadline)
        return look if isinstance(look, Outcome) else self.cut([look])[0]

    def look(
        self, image: Image.Image, instruction: str, labels: tuple[str, ...] = (), deadline: Deadline | None = None
    ) -> Look | Outcome:
        """Stage 1: where to look for what, or the outcome where that is all."""
        image = image.convert("RGB")
        trace = Trace(instruction=instruction)
        if not instruction.strip():
            return Outcome.empty(EmptyReason.NO_INSTRUCTION, "the instruction is empty", trace)
        query, timings = Query(instruction, labels), dict[str, float]()
        trace = replace(trace, timings_s=timings)
        try:
            answer = taken_as_name(query, self.config.marks) if self.config.text_only else None
            if answer is None:
                with timed(timings, "mark"):
                    prompt = self._visual_prompt(image)
                trace = replace(trace, visual_prompt=prompt)
                with timed(timings, "reason"):
                    answer = self.reasoner.propose(prompt, query, self.config.marks, deadline)
            choice = choose_targets(answer.proposals, self.config.marks, *image.size)
            trace = replace(trace, raw_texts=answer.raw_texts, proposals=answer.proposals, notes=choice.notes)
            if not choice.targets:
                return Outcome.empty(choice.reason, choice.detail, trace)
            closer = self._closer(image, query, deadline, timings.get("reason", 0.0))
            targets = closer.look(choice.targets, unsure=len(answer.raw_texts) > 1)
            timings |= {"zoom": sum(step.seconds for step in closer.steps)} if closer.steps else {}
            crops = tuple(target.box.padded(self.config.padding, *image.size) for target in targets)
            trace = replace(trace, crops=crops, zooms=tuple(closer.steps))
            if deadline is not None and deadline.expired:
                raise DeadlineError("the time of this request was over after the reasoner's answer")
        except AnswerError as error:
            return Outcome.empty(EmptyReason.INVALID_ANSWER, str(error), replace(trace, raw_texts=error.raw_texts))
        except DeadlineError as error:
            return Outcome.empty(EmptyReason.DEADLINE, str(error), trace)
        except ReasonerError as error:
            return Outcome.empty(EmptyReason.REASONER_FAILED, str(error), trace)
        return Look(image, targets, trace)

    def cut(self, looks: Sequence[Look]) -> list[Outcome]:
        """Stage 2 for several tasks at once, an outcome each; what fails for all together is tried one by one."""
        images = [look.image for look in looks for _ in look.targets]
        prompts = [prompt for look in looks for prompt in look.prompts()]
        timings = dict[str, float]()
        try:
            with timed(timings, "segment"):
                found = self.segmenter.segment(images, prompts)
        except SegmenterError as error:
            if len(looks) > 1:
                return [outcome for look in looks for outcome in self.cut([look])]
            trace = looks[0].trace_with(timings)
            return [Outcome.empty(EmptyReason.SEGMENTER_FAILED, str(error), trace)]
        share, rest = {"segment": timings["segment"] / max(1, len(looks))}, iter(found)
        return [self._paste(look, list(islice(rest, len(look.targets))), share) for look in looks]

    def _paste(self, look: Look, found: Sequence[Segmentation], timings: dict[str, float]) -> Outcome:
        timings = dict(timings)
        with timed(timings, "paste"):
            cut = zip(look.targets, look.trace.crops, found, strict=True)
            made = [self.instance(target.proposal, crop, one, look.image) for target, crop, one in cut]
            instances, notes = distinct([instance for instance in made if instance is not None])
        trace = look.trace_with(timings)
        missing = [target.proposal.object for target, one in zip(look.targets, made, strict=True) if one is None]
        detail = f"the segmenter found no pixel of: {', '.join(missing)}"
        if not instances:
            return Outcome.empty(EmptyReason.EMPTY_MASK, detail, trace)
        return Outcome(instances, replace(trace, notes=(*trace.notes, *notes, *([detail] if missing else ()))))

    def _closer(self, image: Image.Image, query: Query, deadline: Deadline | None, call_s: float) -> Closer:
        def ask(picture: Image.Image, limit: Deadline | None) -> Answer:
            return self.reasoner.propose(self._visual_prompt(picture), query, self.config.marks, limit)

        return Closer(ask, image, self.config.zoom, self.config.marks, deadline, call_s)

    def _visual_prompt(self, image: Image.Image) -> Image.Image:
        return visual_prompt(image, self.config.marks, self.reasoner.canvas_px, self.reasoner.max_side_px)

    def instance(self, proposal: Proposal, box: Box, found: Segmentation, image: Image.Image) -> Instance | None:
        """The cleaned mask of ``found`` in the whole image, with what ``proposal`` says of it; None if it is empty."""
        crop_mask = masks.clean(found.logits > 0, self.config.cleanup)
        if not crop_mask.any():
            return None
        return Instance(
            mask=masks.paste(crop_mask, box, image.width, image.height),
            object=proposal.object,
            score=masks.score(found),
            reasoning=proposal.reasoning,
            box=box,
            regions=proposal.regions,
            label=proposal.label,
        )
