"""Questions that a reasoner must go on answering: scenes in the wordings of `scenes.language`.

They are scored against the scenes' exact truth. What is trained on is the truth as well for a model that learned from
scenes; any other model repeats its own valid answers (self-distillation), as the truth would teach it our style.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from PIL import Image

from rsvp_backend.grid import mask_regions
from rsvp_backend.reasoner.local import LocalReasoner
from rsvp_backend.reasoner.local import Question as Asked
from rsvp_backend.scenes import LevelName, Question, Scene, make_scene
from rsvp_backend.scenes.styles import STYLED_KINDS, styled_questions
from rsvp_backend.training.examples import Example, Source, make_example
from rsvp_backend.training.prompt_store import PromptStore
from rsvp_backend.types import Answer, Marks, Proposal, Query, Regions

# Beside the seeds of demo training, pretraining, fine-tuning's replay and evaluation.
STYLED_SEEDS_FROM, _TRAINING_SEEDS_FROM, _SCORING_SEEDS_FROM = 6_000_000, 6_500_000, 6_700_000
_LONGEST_PX = 480


def styled_examples(style: str, count: int, marks: Marks, first_seed: int = STYLED_SEEDS_FROM) -> list[Example]:
    """At least ``count`` examples in a style of `scenes.styles`; each scene is a task. Level ``easy``."""
    return _examples(first_seed, count, marks, lambda scene: styled_questions(scene, style), style)


def replay_to_train(count: int, marks: Marks) -> list[Example]:
    """Earlier questions to train on, with their true answers."""
    return _examples(_TRAINING_SEEDS_FROM, count, marks, _plain_questions, "plain")


def replay_to_score(count: int, marks: Marks) -> list[Example]:
    """Earlier questions to score on: none of `replay_to_train`'s."""
    return _examples(_SCORING_SEEDS_FROM, count, marks, _plain_questions, "plain")


def own_answers(
    reasoner: LocalReasoner,
    examples: Sequence[Example],
    prompts: PromptStore,
    batch: int = 16,
    tell: Callable[[int], None] = lambda _: None,
) -> list[Example]:
    """``examples`` with the answers that ``reasoner`` gives to them now; without those that it cannot answer."""
    found: list[Example] = []
    for start in range(0, len(examples), batch):
        some = examples[start : start + batch]
        asked = [Asked(prompts.get(one), one.query, prompts.marks) for one in some]
        for one, answer in zip(some, reasoner.propose_many(asked, batch=batch), strict=True):
            if isinstance(answer, Answer) and answer.proposals:
                found.append(replace(one, proposals=answer.proposals, source=Source.OWN))
        tell(min(start + batch, len(examples)))
    return found


def _plain_questions(scene: Scene) -> tuple[Question, ...]:
    return tuple(question for question in scene.questions if question.kind in STYLED_KINDS)


def _examples(
    first_seed: int, count: int, marks: Marks, ask: Callable[[Scene], Sequence[Question]], style: str
) -> list[Example]:
    found: list[Example] = []
    seed = first_seed
    while len(found) < count:
        found += [_example(seed, question, marks, style) for question in ask(_scene("easy", seed))]
        seed += 1
    return found


def _example(seed: int, question: Question, marks: Marks, style: str) -> Example:
    regions = mask_regions(question.mask, marks) if question.present else Regions()
    (meant,) = question.truth.referents  # `STYLED_KINDS` mean one object each
    proposal = Proposal(meant.object, question.present, regions, meant.reasoning)
    query, load = Query(question.instruction), partial(_image, "easy", seed)
    return make_example(seed, query, [proposal], load, Source.SCENE, f"scene:{style}:{seed}")


@lru_cache(maxsize=8)
def _scene(level: LevelName, seed: int) -> Scene:
    return make_scene(seed, level, _LONGEST_PX)


def _image(level: LevelName, seed: int) -> Image.Image:
    return _scene(level, seed).image
