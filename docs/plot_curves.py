"""Draw the demo models' learning curves: python docs/plot_curves.py (needs matplotlib, part of the dev group)."""

import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent
PANELS = {
    "reasoner": {
        "class": "class of visual tokens",
        "colour": "colour of visual tokens",
        "point": "pointing IoU at the query's end",
    },
    "vlsm": {
        "iou_target": "IoU, right text",
        "iou_other": "IoU, text of another object",
        "iou_absent": "text of an absent object: empty mask",
        "iou_click": "clicks alone",
        "iou_box": "a box, alone or with a text",
    },
}


def smooth(values: list[float], width: int = 7) -> np.ndarray:
    """Running mean; each logged value is that of a single batch."""
    padded = np.pad(np.asarray(values, float), width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def main() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, (part, lines) in zip(axes, PANELS.items(), strict=True):
        rows = [json.loads(line) for line in (DOCS / "curves" / f"{part}.jsonl").read_text().splitlines()]
        for key, label in lines.items():
            known = [row for row in rows if key in row]
            axis.plot([row["minutes"] for row in known], smooth([row[key] for row in known]), label=label)
        axis.set(title=part, xlabel="minutes on one CPU core", ylim=(0, 1))
        axis.legend(loc="lower right", frameon=False)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
