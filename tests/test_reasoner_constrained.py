"""Local decoding: answers of the asked form always, the model's own wherever they are, in any batch and any loop."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mllm_folders import FAMILIES, demo_reasoner_folder, save_random_mllm
from PIL import Image

from rsvp_backend.errors import AnswerError, DeadlineError, ReasonerError
from rsvp_backend.grid import draw_marks
from rsvp_backend.reasoner import drafts as drafting
from rsvp_backend.reasoner.base import Message
from rsvp_backend.reasoner.batching import Rendezvous
from rsvp_backend.reasoner.constrained import FreeGuide, Grammars, ThinkingGuide, bounded
from rsvp_backend.reasoner.decoding import Decoder
from rsvp_backend.reasoner.drafts import Drafts
from rsvp_backend.reasoner.local import Decoding, LocalReasoner, Question
from rsvp_backend.reasoner.parsing import parse
from rsvp_backend.reasoner.prefix import Prompt
from rsvp_backend.reasoner.schema import answer_schema
from rsvp_backend.reasoner.steps import TextModel
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.types import Answer, Deadline, Marks, Query

BANDS, CELLS = Marks("bands", 9, 9), Marks("cells", 4, 5)
LABELS = ("Mug", "Blåbær bowl", "a/b")


@pytest.fixture(scope="module")
def demo() -> LocalReasoner:
    return LocalReasoner.load(demo_reasoner_folder(), device="cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalReasoner:
    folder = save_random_mllm(request.param, tmp_path_factory.mktemp(request.param))
    return LocalReasoner.load(folder, device="cpu", decoding=Decoding(max_new_tokens=100))


def questions(level: Any, scenes: int) -> list[Question]:
    """The questions on the first evaluation scenes, as the demo model is asked them."""
    found = []
    for seed in range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + scenes):
        scene = make_scene(seed, level)
        marked = draw_marks(scene.image.resize((288, 288)), BANDS)
        found += [Question(marked, Query(question.instruction), BANDS) for question in scene.questions]
    return found


def noise(width_px: int, height_px: int) -> Image.Image:
    pixels = np.random.default_rng(width_px).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def inputs(reasoner: LocalReasoner, texts: list[str], image: Image.Image) -> dict[str, Any]:
    turns = [[reasoner._turn(Message("user", text, image))] for text in texts]
    return dict(
        reasoner.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )
    )  # fmt: skip


def generated(reasoner: LocalReasoner, given: dict[str, Any], limit: int) -> list[list[int]]:
    """What transformers' own loop writes, up to the first end token."""
    with torch.inference_mode():
        output = reasoner.model.generate(**given, max_new_tokens=limit)[:, given["input_ids"].shape[1] :].tolist()
    return [list(itertools.takewhile(lambda token: token not in reasoner._end_tokens, row)) for row in output]


def free_guides(reasoner: LocalReasoner, count: int) -> list[Any]:
    return [FreeGuide(frozenset(reasoner._end_tokens)) for _ in range(count)]


@pytest.mark.parametrize("level", ["easy", "full"])
def test_the_demo_model_s_own_valid_answers_stay_and_all_are_valid(level: str, demo: LocalReasoner) -> None:
    asked = questions(level, 4)
    kept = 0
    for question in asked:
        answer = demo.propose(question.visual_prompt, question.query, BANDS, None)
        assert len(answer.raw_texts) == 1
        given = inputs(demo, [f"bands: {question.query.instruction}"], question.visual_prompt)
        own = demo.processor.batch_decode(generated(demo, given, 512), skip_special_tokens=True)[0]
        try:
            parse(own, BANDS)
        except AnswerError:
            continue
        assert answer.raw_texts[0] == own
        kept += 1
    assert kept >= len(asked) * 0.8


def test_every_family_writes_as_generate_does(family: LocalReasoner) -> None:
    assert TextModel.supports(family.model)
    texts = ["what is it?", "which of the things in the picture opens the door?"]
    image = noise(90, 70)
    for some in ([texts[0]], texts):
        given = inputs(family, some, image)
        expected = generated(family, given, 40)
        for static in (False, True):
            decoder = Decoder(family.model, 0, family._end_tokens[0], static=static)
            with torch.inference_mode():
                first = decoder.write(given, free_guides(family, len(some)), 40, None)
                again = decoder.write(given, free_guides(family, len(some)), 40, None)
            assert first == expected
            assert again == expected


def test_a_picture_is_read_once_for_all_questions_in_turn(
    family: LocalReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    prefill = TextModel.prefill

    def counted(self: TextModel, given: dict[str, Any], cache: Any) -> Any:
        read.append(given["input_ids"].shape[1])
        return prefill(self, given, cache)

    monkeypatch.setattr(TextModel, "prefill", counted)
    decoder = Decoder(family.model, 0, family._end_tokens[0], static=False)
    one, other = noise(90, 70), noise(70, 90)
    asked = [(one, "what is it?"), (one, "which of them opens the door?"), (one, "what?"), (other, "what?"), (one, "a")]
    for image, text in asked:
        given = inputs(family, [text], image)
        with torch.inference_mode():
            assert decoder.write(given, free_guides(family, 1), 20, None) == generated(family, given, 20)
    assert len(read) == 3


@pytest.mark.parametrize(
    ("ids", "pictures", "expected"),
    [
        ((7, 0, 0, 8, 9), b"a", 4),  # one token is always left to read
        ((7, 0, 0, 8, 1, 2), b"a", 4),
        ((7, 0, 0, 1, 1, 2), b"a", 3),
        ((7, 0, 0, 8, 9), b"b", 0),
        ((7, 0, 0, 0, 8), b"a", 0),
        ((6, 0, 0, 8, 9), b"a", 0),
    ],
)
def test_prompts_share_what_is_equal_up_to_and_beyond_their_pictures(
    ids: tuple[int, ...], pictures: bytes, expected: int
) -> None:
    last = Prompt((7, 0, 0, 8, 9), 3, b"a")
    assert Prompt(ids, len(ids) - ids[::-1].index(0), pictures).shared_with(last) == expected


def test_every_family_gives_valid_answers_whatever_its_weights(family: LocalReasoner) -> None:
    image = noise(90, 70)
    for marks, labels in itertools.product((BANDS, CELLS), ((), LABELS)):
        answer = family.propose(draw_marks(image, marks), Query("the cup", labels), marks, None)
        assert len(answer.raw_texts) == 1
        json.loads(answer.raw_texts[0])


def test_answers_are_the_same_alone_and_in_a_batch(family: LocalReasoner) -> None:
    pictures = [noise(*size) for size in ((90, 70), (70, 90), (120, 60))]
    asked = [Question(image, Query(text), BANDS) for image in pictures for text in ("a cup", "what opens the door?")]
    alone = [family.propose(q.visual_prompt, q.query, q.marks, None) for q in asked]
    assert family.propose_many(asked, batch=4) == alone


def test_the_demo_model_s_answers_are_the_same_in_a_batch(demo: LocalReasoner) -> None:
    asked = questions("easy", 3)
    alone = [demo.propose(q.visual_prompt, q.query, q.marks, None) for q in asked]
    assert demo.propose_many(asked) == alone


def test_one_bad_question_does_not_spoil_its_batch(demo: LocalReasoner) -> None:
    good = questions("easy", 1)[0]
    bad = Question(good.visual_prompt, good.query, CELLS)
    too_long = Question(good.visual_prompt, Query("x" * 5000), BANDS)
    first, second, third, fourth = demo.propose_many([good, bad, too_long, good])
    assert isinstance(first, Answer)
    assert first == fourth
    assert isinstance(second, ReasonerError)
    assert "was trained on" in str(second)
    assert isinstance(third, ReasonerError)
    assert demo.propose_many([]) == []


def test_a_batch_that_fails_as_a_whole_is_asked_one_by_one(
    demo: LocalReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions("easy", 1)[:3]
    alone = [demo.propose(q.visual_prompt, q.query, q.marks, None) for q in asked]
    write = demo._decoder.write

    def short_of_memory(given: Any, guides: Any, *rest: Any) -> Any:
        if len(guides) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return write(given, guides, *rest)

    monkeypatch.setattr(demo._decoder, "write", short_of_memory)
    assert demo.propose_many(asked) == alone


def test_the_deadline_of_a_batch_reaches_all(demo: LocalReasoner) -> None:
    answers = demo.propose_many(questions("easy", 1)[:2], Deadline.after(0.0))
    assert [type(answer) for answer in answers] == [DeadlineError, DeadlineError]


def test_unknown_families_go_through_generate_under_the_same_grammar(
    demo: LocalReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions("full", 2)
    ours = [demo.propose(q.visual_prompt, q.query, q.marks, None) for q in asked]
    monkeypatch.setattr(demo._decoder, "_text", None)
    assert [demo.propose(q.visual_prompt, q.query, q.marks, None) for q in asked] == ours
    assert demo.propose_many(asked) == ours
    with pytest.raises(DeadlineError, match="was over"):
        demo.propose(asked[0].visual_prompt, asked[0].query, BANDS, Deadline.after(0.0))


def test_without_constraint_the_model_writes_what_it_likes(tmp_path: Path) -> None:
    save_random_mllm("qwen2_vl", tmp_path)
    free = LocalReasoner.load(tmp_path, device="cpu", decoding=Decoding(max_new_tokens=40, constrained=False))
    image = noise(90, 70)
    question = (Message("user", "what is it?", image),)
    written = free.complete(question, answer_schema(BANDS), None)
    expected = generated(free, inputs(free, ["what is it?"], image), 40)
    assert written == free.processor.batch_decode(expected, skip_special_tokens=True)[0]
    with pytest.raises(AnswerError):
        parse(written, BANDS)


def test_short_reasoning_is_bounded_and_asked_for(tmp_path: Path, demo: LocalReasoner) -> None:
    save_random_mllm("qwen2_vl", tmp_path)
    short = LocalReasoner.load(tmp_path, device="cpu", decoding=Decoding(reasoning="short"))
    image = noise(90, 70)
    answer = short.propose(image, Query("the cup"), BANDS, None)
    assert answer.proposals
    assert all(len(proposal.reasoning) <= 80 for proposal in answer.proposals)
    asked = short._turn(Message("user", "?"))["content"][0]["text"]
    assert asked == "?\nGive the rationale in at most ten words."
    trained = LocalReasoner.load(demo_reasoner_folder(), device="cpu", decoding=Decoding(reasoning="short"))
    assert trained._turn(Message("user", "?")) == demo._turn(Message("user", "?"))


class Scripted:
    """Scores that want ``text`` and, where that is over or refused, the token ``then``."""

    def __init__(self, tokenizer: Any, vocabulary: int, text: str, then: str) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.wanted = tokenizer.encode(text, add_special_tokens=False)
        (self.then,) = tokenizer.encode(then, add_special_tokens=False)

    def write(self, guide: Any, limit: int) -> str:
        written: list[int] = []
        while len(written) < limit and not guide.complete:
            wish = self.wanted[len(written)] if len(written) < len(self.wanted) else self.then
            scores = torch.zeros(self.vocabulary)
            scores[self.then], scores[wish] = 1.0, 2.0
            token = guide.take(scores, wish, limit - len(written))
            if token is None:
                break
            written.append(token)
        return str(self.tokenizer.decode(written))


@pytest.fixture(scope="module")
def grammars(demo: LocalReasoner) -> Grammars:
    """For a model whose vocabulary is padded beyond the tokenizer's."""
    tokenizer = demo.processor.tokenizer
    return Grammars(tokenizer, len(tokenizer) + 90, [tokenizer.eos_token_id, 0])


def padded(demo: LocalReasoner) -> tuple[Any, int]:
    return demo.processor.tokenizer, len(demo.processor.tokenizer) + 90


HEAD = '{"proposals": [{"object": "red mug", '


REASONING = HEAD + '"present": true, "rows": [], "columns": [], "reasoning": "'
STARTS = [
    "", '{"pro', '{"proposals": [', '{"proposals": [{"object": "red mu', HEAD, HEAD + '"present": tr',
    HEAD + '"present": true, "rows": [', HEAD + '"present": true, "rows": [1, 2', HEAD + '"present": true, "rows": [1,',
    REASONING + "a \\", REASONING + "\\u00",
]  # fmt: skip


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("then", ["a", " ", "\n", ",", "1", "{", '"'])
def test_answers_close_within_the_limit_from_anywhere(
    start: str, then: str, demo: LocalReasoner, grammars: Grammars
) -> None:
    schema = answer_schema(BANDS)
    text = Scripted(*padded(demo), start, then).write(grammars.guide(schema), 200)
    parse(text, BANDS)


def test_long_labels_close_as_well(demo: LocalReasoner, grammars: Grammars) -> None:
    labels = ("w" * 60, "Q" * 60)
    guide = grammars.guide(answer_schema(CELLS, labels))
    text = Scripted(*padded(demo), '{"proposals": [{"object": "', "a").write(guide, 300)
    (proposal,) = parse(text, CELLS, labels)
    assert proposal.label in labels


@pytest.mark.parametrize(
    "spelling",
    [{}, {"indent": 2}, {"indent": 4}, {"separators": (",", ":")}, {"separators": (" , ", " : ")}],
)
def test_any_spelling_of_a_valid_answer_is_left_alone(
    spelling: dict[str, Any], demo: LocalReasoner, grammars: Grammars
) -> None:
    proposal: dict[str, Any] = {
        "object": 'a "wide" cup \\ été', "present": True, "rows": [3, 4], "columns": [9],
        "reasoning": "it's {here}: [x]",
    }  # fmt: skip
    for proposals in ([], [proposal], [proposal, proposal]):
        text = json.dumps({"proposals": proposals}, ensure_ascii=False, **spelling)
        assert Scripted(*padded(demo), text, "a").write(grammars.guide(answer_schema(BANDS)), 2000) == text


@pytest.mark.parametrize("change", [{"rows": [10]}, {"rows": [0]}, {"object": " "}, {"object": ""}, {"label": "Cup"}])
def test_what_does_not_exist_cannot_be_written(change: dict[str, Any], demo: LocalReasoner, grammars: Grammars) -> None:
    good = {"object": "cup", "label": "a/b", "present": True, "rows": [1], "columns": [1], "reasoning": ""}
    schema = answer_schema(BANDS, LABELS)
    text = json.dumps({"proposals": [good | change]})
    written = Scripted(*padded(demo), text, "a").write(grammars.guide(schema), 300)
    assert written != text
    parse(written, BANDS, LABELS)


def test_a_tokenizer_without_fast_form_is_named() -> None:
    with pytest.raises(ValueError, match="a fast tokenizer is expected"):
        Grammars([], 10, [0])


def test_the_bounds_are_in_the_local_grammar_only() -> None:
    schema = answer_schema(BANDS)
    before = copy.deepcopy(schema)
    assert bounded(schema, 80) != schema
    assert schema == before


class Wishes:
    """A guide that takes what the model wants."""

    complete = False

    def take(self, scores: torch.Tensor, best: int, left: int) -> int:
        return best


@pytest.mark.parametrize(("budget", "ends_itself"), [(100, True), (12, False), (0, False)])
def test_thinking_is_free_but_bounded(budget: int, ends_itself: bool, demo: LocalReasoner, grammars: Grammars) -> None:
    tokenizer, vocabulary = padded(demo)
    answer = grammars.guide(answer_schema(BANDS))
    guide = ThinkingGuide(tokenizer, answer, budget)
    thought = "let me see: the cup is red" + ("</think>" if ends_itself else " " + "and red " * 40)
    text = Scripted(tokenizer, vocabulary, thought, "a").write(guide, 400)
    assert text.count("</think>") == 1
    assert text.startswith("let me" if budget else "\n</think>")
    parse(text, BANDS)


def test_an_end_token_ends_the_thinking_not_the_answer(demo: LocalReasoner) -> None:
    tokenizer = demo.processor.tokenizer
    guide = ThinkingGuide(tokenizer, Wishes(), 100)
    scores = torch.zeros(10)
    forced = [guide.take(scores, tokenizer.eos_token_id, 50)]
    while len(forced) < len(tokenizer.encode("\n</think>\n\n")):
        forced.append(guide.take(scores, 7, 50))
    assert tokenizer.decode(forced) == "\n</think>\n\n"
    assert guide.take(scores, 7, 50) == 7


def test_models_whose_template_opens_a_thinking_block_think_first(tmp_path: Path) -> None:
    save_random_mllm("qwen3_vl", tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + "<think>\n")
    decoding = Decoding(max_new_tokens=120, max_thinking_tokens=20)
    reasoner = LocalReasoner.load(tmp_path, device="cpu", decoding=decoding)
    answer = reasoner.propose(noise(90, 70), Query("the cup"), BANDS, None)
    assert "</think>" in answer.raw_texts[0]
    assert len(answer.raw_texts) == 1


def test_drafts_recall_what_followed_in_this_answer_and_in_earlier_ones() -> None:
    drafts = Drafts()
    assert drafts.start([1, 2, 3]).guess(4) == []
    drafts.learn([1, 2, 3, 4, 5, 6])
    drafts.learn([9, 2, 3, 7])
    assert drafts.start([0, 1, 2, 3]).guess(9) == [4, 5, 6]
    assert drafts.start([0, 0, 2, 3]).guess(4) == [7]
    assert drafts.start([0, 1, 2]).guess(1) == [3]
    assert drafts.start([0, 1, 2]).guess(0) == []
    own = drafts.start([2, 3, 8, 8, 5])
    own.add([2, 3])
    assert own.guess(2) == [8, 8]
    assert own.text == [2, 3, 8, 8, 5, 2, 3]


def test_drafts_forget_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "MAX_KNOWN", 3)
    drafts = Drafts()
    drafts.learn([1, 2])
    drafts.learn([3, 4, 5])
    assert drafts.start([0, 1]).guess(1) == []
    assert drafts.start([0, 3]).guess(1) == [4]


def test_members_who_leave_hold_up_nobody() -> None:
    meeting: Rendezvous[int, int] = Rendezvous(3, lambda jobs: [job * 10 for job in jobs])
    meeting.leave()
    meeting.leave()
    assert meeting.submit(2, 4) == 40
    broken: Rendezvous[int, int] = Rendezvous(1, lambda jobs: [ValueError("no")])
    with pytest.raises(ValueError, match="no"):
        broken.submit(0, 1)
