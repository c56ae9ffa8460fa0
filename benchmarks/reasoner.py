"""Our local reasoner against transformers' plain ``generate`` (greedy): same MLLM, same questions, one run.

``python benchmarks/reasoner.py --size demo --device cpu [--scenes 40] [--json]`` or ``--size 2b --device cuda``
(Qwen2-VL-2B's real size with random weights, 120 answer tokens, 1024 px). Both sides start from picture and question
and end with the answer's text; they take turns, question by question. What our side learns from earlier answers it has
learned on other scenes than those measured. The last line of ``--json``: ``speedup_cpu``, ``speedup_gpu_b1`` (medians
of plain / ours per question; there are up to four on each picture, ``ratio_new_picture`` is that of the first ones),
``throughput_gpu_b16`` (our images/s in batches of 16 / plain's one by one), ``seconds_per_image_gpu`` (ours, batch 1,
median), ``same_answers`` (share of the plain side's answers that ours equal: of its valid ones for ``demo``, whose
others the grammar mends; in float32 for ``2b``, as near ties of random weights fall either way in bfloat16); null where
not run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image
from reasoner_models import load

from rsvp_backend.errors import AnswerError
from rsvp_backend.grid import draw_marks
from rsvp_backend.reasoner.base import Message
from rsvp_backend.reasoner.loading import LoadedModel
from rsvp_backend.reasoner.local import Decoding, LocalReasoner
from rsvp_backend.reasoner.model_folder import Marker
from rsvp_backend.reasoner.parsing import parse
from rsvp_backend.reasoner.schema import answer_schema
from rsvp_backend.reasoner.swaps import swap_modules
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.types import Marks

ANSWER_TOKENS = 120
BATCH = 16
MARKS = Marks()
SCHEMA = answer_schema(MARKS)
Asked = tuple[Image.Image, str]
T = TypeVar("T")


class Plain:
    """transformers as its documentation shows it."""

    def __init__(self, size: str, device: str, dtype: torch.dtype, limit: int) -> None:
        self.model, self.processor = load(size, device, dtype)
        self.processor.tokenizer.padding_side = "left"
        self.limit = limit

    def __call__(self, questions: Sequence[Asked]) -> list[str]:
        turns = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
            for image, text in questions
        ]
        inputs = self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, dtype=self.model.dtype)  # fmt: skip
        with torch.inference_mode():
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.limit)
        texts = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [str(text) for text in texts]


class Ours:
    """`LocalReasoner` on a copy of the same weights; without grammar for ``2b``, whose plain answers know none."""

    def __init__(self, size: str, device: str, dtype: torch.dtype, limit: int) -> None:
        model, processor = load(size, device, dtype)
        swap_modules(model)
        marker = Marker(prompt="demo") if size == "demo" else Marker()
        decoding = Decoding(max_new_tokens=limit, constrained=size == "demo")
        self.reasoner = LocalReasoner(LoadedModel(size, model, processor, "", marker), decoding)

    def __call__(self, questions: Sequence[Asked]) -> list[str]:
        conversations = [(Message("user", text, image),) for image, text in questions]
        return self.reasoner.complete_many(conversations, SCHEMA, None)


def questions(seeds: range, side_px: int) -> list[Asked]:
    asked = []
    for seed in seeds:
        scene = make_scene(seed, "easy")
        marked = draw_marks(scene.image.resize((side_px, side_px)), MARKS)
        asked += [(marked, question.instruction) for question in scene.questions[:4]]
    return asked


def timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def valid(text: str) -> bool:
    try:
        parse(text, MARKS)
    except AnswerError:
        return False
    return True


def one_by_one(plain: Plain, ours: Ours, asked: Sequence[Asked]) -> dict[str, Any]:
    """Both sides on every question in turn; seconds and answers of both."""
    rounds = [(timed(lambda q=q: plain([q])[0]), timed(lambda q=q: ours([q])[0])) for q in asked]
    theirs, own = zip(*rounds, strict=True)
    new = [n for n in range(len(asked)) if n == 0 or asked[n][0] is not asked[n - 1][0]]
    return {
        "ratio": statistics.median(a / b for (a, _), (b, _) in rounds),
        "ratio_new_picture": statistics.median(rounds[n][0][0] / rounds[n][1][0] for n in new),
        "total_ratio": sum(s for s, _ in theirs) / sum(s for s, _ in own),
        "plain_s": statistics.median(s for s, _ in theirs),
        "ours_s": statistics.median(s for s, _ in own),
        "pairs": [(a, b) for (_, a), (_, b) in rounds],
    }


def measure_demo(device: str, scenes: int) -> dict[str, Any]:
    plain, ours = (side("demo", device, torch.float32, 512) for side in (Plain, Ours))
    start = EVALUATION_SEEDS_FROM
    for question in questions(range(start + scenes, start + scenes + 20), 288):
        ours([question])
    plain(questions(range(start, start + 1), 288)[:1])
    seen = one_by_one(plain, ours, questions(range(start, start + scenes), 288))
    pairs = seen.pop("pairs")
    kept = [(a, b) for a, b in pairs if valid(a)]
    return {
        "speedup_cpu" if device == "cpu" else "speedup_gpu_b1": seen["ratio"],
        "same_answers": sum(a == b for a, b in kept) / len(kept),
        "questions": len(pairs), "valid_plain": len(kept), "valid_ours": sum(valid(b) for _, b in pairs),
        **{key: round(seen[key], 4) for key in ("total_ratio", "ratio_new_picture", "plain_s", "ours_s")},
    }  # fmt: skip


def measure_2b(device: str, scenes: int) -> dict[str, Any]:
    asked = questions(range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + scenes), 1024)
    exact = [side("2b", device, torch.float32, ANSWER_TOKENS) for side in (Plain, Ours)]
    pairs = [(exact[0]([q])[0], exact[1]([q])[0]) for q in asked[:8]]
    del exact
    plain, ours = (side("2b", device, torch.bfloat16, ANSWER_TOKENS) for side in (Plain, Ours))
    one_by_one(plain, ours, asked[:2])
    seen = one_by_one(plain, ours, asked)
    batch = (asked * BATCH)[:BATCH]
    ours(batch), plain(batch)
    batches = [(timed(lambda: plain(batch))[0], timed(lambda: ours(batch))[0]) for _ in range(3)]
    theirs, own = (statistics.median(side) for side in zip(*batches, strict=True))
    return {
        "speedup_gpu_b1": seen["ratio"],
        "seconds_per_image_gpu": seen["ours_s"],
        "throughput_gpu_b16": seen["plain_s"] * BATCH / own,
        "same_answers": sum(a == b for a, b in pairs) / len(pairs),
        "same_answers_bfloat16": sum(a == b for a, b in seen["pairs"]) / len(asked),
        "throughput_gpu_b16_over_plain_b16": round(theirs / own, 3),
        "questions": len(asked), "plain_s": round(seen["plain_s"], 4), "batch_s": round(own, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("demo", "2b"), default="demo")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--scenes", type=int, default=40, help="measured scenes, of up to 4 questions each")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seen: dict[str, Any] = dict.fromkeys(
        ("speedup_cpu", "speedup_gpu_b1", "throughput_gpu_b16", "seconds_per_image_gpu", "same_answers")
    )
    seen |= (measure_demo if options.size == "demo" else measure_2b)(options.device, options.scenes)
    seen = {key: round(value, 3) if isinstance(value, float) else value for key, value in seen.items()}
    seen |= {"size": options.size, "device": options.device, "threads": options.threads}
    if options.json:
        sys.stdout.write(json.dumps(seen) + "\n")
    else:
        sys.stdout.writelines(f"{key:34} {value}\n" for key, value in seen.items())


if __name__ == "__main__":
    main()
