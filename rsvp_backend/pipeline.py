"""RSVP in one file (arXiv 2506.04277, section 3): mark -> ask -> box -> crop -> segment -> paste.

Every failure that one image can cause ends as an `Outcome` with its reason; programming errors still raise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace

from PIL import Image

from rsvp_backend import masks
from rsvp_backend.errors import AnswerError, DeadlineError, ReasonerError, SegmenterError
from rsvp_backend.grid import draw_marks, fit_marks, regions_box
from rsvp_backend.timing import timed
from rsvp_backend.types import (
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


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """All that changes predictions besides the two models. ``padding``: share of the box added to its size."""

    marks: Marks = field(default_factory=Marks)
    padding: float = 0.2
    cleanup: masks.Cleanup = field(default_factory=masks.Cleanup)

    def __post_init__(self) -> None:
        if not 0.0 <= self.padding <= 2.0:
            raise ValueError(f"padding is {self.padding}: 0.0 to 2.0 (share of the box's size) is expected")


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
        image = image.convert("RGB")
        trace = Trace(instruction=instruction)
        if not instruction.strip():
            return Outcome.empty(EmptyReason.NO_INSTRUCTION, "the instruction is empty", trace)
        timings: dict[str, float] = {}
        try:
            with timed(timings, "mark"):
                prompt = self._visual_prompt(image)
            trace = replace(trace, visual_prompt=prompt, timings_s=timings)
            with timed(timings, "reason"):
                answer = self.reasoner.propose(prompt, Query(instruction, labels), self.config.marks, deadline)
            trace = replace(trace, raw_texts=answer.raw_texts, proposals=answer.proposals)
            targets, reason, detail = self._targets(answer.proposals, image)
            if not targets:
                return Outcome.empty(reason, detail, trace)
            trace = replace(trace, crops=tuple(box for _, box in targets))
            if deadline is not None and deadline.expired:
                raise DeadlineError("the time of this request was over after the reasoner's answer")
            with timed(timings, "segment"):
                prompts = [Prompt(box, proposal.object) for proposal, box in targets]
                found = self.segmenter.segment([image] * len(prompts), prompts)
            with timed(timings, "paste"):
                made = (self.instance(p, b, s, image) for (p, b), s in zip(targets, found, strict=True))
                instances = tuple(instance for instance in made if instance is not None)
        except AnswerError as error:
            return Outcome.empty(EmptyReason.INVALID_ANSWER, str(error), replace(trace, raw_texts=error.raw_texts))
        except DeadlineError as error:
            return Outcome.empty(EmptyReason.DEADLINE, str(error), trace)
        except ReasonerError as error:
            return Outcome.empty(EmptyReason.REASONER_FAILED, str(error), trace)
        except SegmenterError as error:
            return Outcome.empty(EmptyReason.SEGMENTER_FAILED, str(error), trace)
        if not instances:
            objects = ", ".join(proposal.object for proposal, _ in targets)
            return Outcome.empty(EmptyReason.EMPTY_MASK, f"the segmenter found no pixel of: {objects}", trace)
        return Outcome(instances, trace)

    def _visual_prompt(self, image: Image.Image) -> Image.Image:
        canvas = self.reasoner.canvas_px
        if canvas is not None and image.size != canvas:
            image = image.resize(canvas, Image.Resampling.BILINEAR)
        elif canvas is None and self.reasoner.max_side_px is not None:
            image = fit_marks(image, self.config.marks, self.reasoner.max_side_px)
        return draw_marks(image, self.config.marks)

    def _targets(
        self, proposals: tuple[Proposal, ...], image: Image.Image
    ) -> tuple[list[tuple[Proposal, Box]], EmptyReason, str]:
        """The proposals to segment with their padded crop boxes; else why there are none."""
        present = [proposal for proposal in proposals if proposal.present]
        if not present:
            reasoning = " ".join(p.reasoning for p in proposals if p.reasoning)
            return [], EmptyReason.ABSENT, reasoning or "the reasoner proposed nothing"
        targets = []
        for proposal in present:
            box = regions_box(proposal.regions, self.config.marks, image.width, image.height)
            if box is not None:
                targets.append((proposal, box.padded(self.config.padding, image.width, image.height)))
        detail = f"the reasoner names no region for: {', '.join(p.object for p in present)}"
        return targets, EmptyReason.NO_REGIONS, detail

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
