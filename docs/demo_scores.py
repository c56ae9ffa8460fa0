"""Write the demo weights' scores into README.md and demo-models.md: python docs/demo_scores.py EASY.json FULL.json.

The two files hold what ``rsvp-backend evaluate scenes --level easy|full --seeds A:B --json`` printed.
"""

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROWS = {
    "giou": "end-to-end gIoU",
    "ciou": "end-to-end cIoU",
    "random_object_giou": "the same for a random object of the scene",
    "object_exact": "stage 1: object phrase exact",
    "crop_recall": "stage 1: crop recall",
    "crop_iou": "stage 1: crop IoU with the object's box",
    "absent_recall": "stage 1: absent object recognised",
    "absent_false_alarm": "stage 1: present object called absent",
    "schema_valid": "stage 1: schema-valid answers",
    "stage2_iou_true_crop": "stage 2: IoU on the true crop",
    "stage2_iou_wrong_text": "stage 2: IoU with another object's name",
    "seconds_per_image": "seconds per instruction, both stages",
}
KIND_ROWS = ("giou", "random_object_giou", "object_exact", "crop_recall", "absent_recall", "stage2_iou_true_crop")
SHORT = ("giou", "random_object_giou", "object_exact", "crop_recall", "absent_recall", "schema_valid",
         "stage2_iou_true_crop", "stage2_iou_wrong_text")  # fmt: skip


def shown(scores: dict[str, Any], key: str) -> str:
    """A figure with its 95 % interval."""
    if scores[key] is None:
        return ""
    low, high = scores["ci95"][key]
    return f"{scores[key]:.3f} ({low:.3f}-{high:.3f})"


def table(columns: dict[str, dict[str, Any]], keys: tuple[str, ...]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {ROWS[key]} | {' | '.join(shown(column, key) for column in columns.values())} |" for key in keys]
    return "\n".join([*lines, f"| instructions | {' | '.join(str(column['n']) for column in columns.values())} |"])


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the marks ``<!-- name -->`` and ``<!-- /name -->``."""
    before, _, rest = path.read_text().partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"<!-- /{name} -->")
    path.write_text(f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}")


def main() -> None:
    easy, full = (json.loads(Path(file).read_text()) for file in sys.argv[1:3])
    both = {"easy": easy, "full": full}
    wordings = {f"{level}: {name} wording": s["by_wording"][key] for level, s in both.items()
                for key, name in (("trained", "training's"), ("held_out", "held-out"))}  # fmt: skip
    parts = [
        f"Weights `{easy['version']}`; in brackets 95 % bootstrap intervals over instructions.",
        table(both, tuple(ROWS)),
        "By kind of instruction, at `full`:",
        table(full["by_kind"], KIND_ROWS),
        "By kind, at `easy`:",
        table(easy["by_kind"], KIND_ROWS),
        "In wordings that training never used (made of words that it did use):",
        table(wordings, KIND_ROWS),
    ]
    put(DOCS / "demo-models.md", "scores", "\n\n".join(parts))
    put(DOCS.parent / "README.md", "demo-scores", table({"easy": easy, "full": full}, SHORT))


if __name__ == "__main__":
    main()
