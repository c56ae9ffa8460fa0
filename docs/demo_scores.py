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
SHORT = ("giou", "random_object_giou", "object_exact", "crop_recall", "absent_recall", "schema_valid",
         "stage2_iou_true_crop", "stage2_iou_wrong_text")  # fmt: skip
KINDS = ("name", "function", "absent", "relation")


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def table(columns: dict[str, dict[str, Any]], keys: tuple[str, ...]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {ROWS[key]} | {' | '.join(shown(column[key]) for column in columns.values())} |" for key in keys]
    return "\n".join([*lines, f"| instructions | {' | '.join(str(column['n']) for column in columns.values())} |"])


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the marks ``<!-- name -->`` and ``<!-- /name -->``."""
    before, _, rest = path.read_text().partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"<!-- /{name} -->")
    path.write_text(f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}")


def main() -> None:
    easy, full = (json.loads(Path(file).read_text()) for file in sys.argv[1:3])
    intervals = {
        name: "{:.3f} to {:.3f}".format(*scores["giou_ci95"]) for name, scores in (("easy", easy), ("full", full))
    }
    columns = {"easy": easy} | {f"easy: {kind}": easy["by_kind"][kind] for kind in KINDS} | {"full": full}
    wording = easy["by_wording"]
    put(
        DOCS / "demo-models.md",
        "scores",
        f"Weights `{easy['version']}`.\n\n{table(columns, tuple(ROWS))}\n\n"
        f"95 % bootstrap intervals of the end-to-end gIoU: {intervals['easy']} at `easy`, {intervals['full']} at "
        f"`full`.\nAt `easy`, instructions in wordings held out from training reach "
        f"{shown(wording['held_out']['giou'])}, those in\ntraining's wordings {shown(wording['trained']['giou'])}.",
    )
    put(DOCS.parent / "README.md", "demo-scores", table({"easy": easy, "full": full}, SHORT))


if __name__ == "__main__":
    main()
