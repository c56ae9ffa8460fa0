"""Figures -> a picture: one panel per measure, one colour per series, 95 % intervals. Needs matplotlib.

The paper behind it is opaque, so that it can be read on light and dark pages alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rsvp_backend.experiments.figures import MEASURES, Figures
from rsvp_backend.experiments.variants import Plan

PANELS: dict[str, tuple[str, ...]] = {
    "grid": ("giou", "crop_recall", "crop_share"),
    "mllm": ("giou", "object_right", "absent_right"),
    "padding": ("giou", "crop_recall", "crop_share"),
    "connector": ("giou", "ciou"),
    "encoding": ("giou", "crop_recall", "regions"),
    "zoom": ("giou", "crop_recall", "crop_share"),
    "temperature": ("giou", "crop_recall", "valid"),
    "robustness": ("giou", "crop_recall", "object_right"),
}
ORDERED = {"grid", "padding", "temperature"}
"""Experiments whose values are steps of one quantity, so that lines between them mean something."""
COUNTS = {"regions", "zooms", "characters"}
"""All other measures end at 1."""
PAPER, INK, GRID = "#ffffff", "#24292f", "#d0d7de"
# Okabe and Ito's, told apart by colour-blind readers; markers tell them apart in print.
STYLES = (
    ("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#56b4e9", "v"), ("#e69f00", "P"),
)  # fmt: skip
_OFFSET = 0.14


def draw(plan: Plan, figures: Sequence[Figures], files: Sequence[Path]) -> None:
    """Draw it into each of ``files``, in the format that its ending names."""
    panels = [name for name in PANELS[plan.name] if any(name in one.measures for one in figures)]
    values = list(dict.fromkeys(one.variant.value for one in figures))
    series = list(dict.fromkeys(one.variant.series for one in figures))
    width_in = max(3.4, 1.2 + 0.55 * len(values)) * len(panels)
    figure = Figure(figsize=(width_in, 4.2), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    for position, name in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), position)
        for number, who in enumerate(series):
            offset = _OFFSET * (number - (len(series) - 1) / 2)
            own = [one for one in figures if one.variant.series == who]
            points = _series(axes, name, own, values, number, offset)
            points.set_linestyle(":" if plan.name in ORDERED else "")
        _dress(axes, MEASURES[name].title, values)
        if name not in COUNTS:
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))
        axes.set_xlabel(plan.varied, color=INK)
    if plan.name != "mllm":  # there the values say it
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(series)), frameon=False, labelcolor=INK
        )
    for file in files:
        figure.savefig(file, dpi=110, facecolor=PAPER)


def _series(
    axes: Axes, name: str, figures: Sequence[Figures], values: Sequence[str], number: int, offset: float
) -> Line2D:
    known = [(values.index(one.variant.value) + offset, one.measures[name]) for one in figures if name in one.measures]
    colour, marker = STYLES[number % len(STYLES)]
    centres = [found.value for _, found in known]
    # A bootstrap interval may leave its mean out by a hair where all draws are equal.
    errors = [
        [max(0.0, found.value - found.low) for _, found in known],
        [max(0.0, found.high - found.value) for _, found in known],
    ]
    drawn = axes.errorbar(
        [x for x, _ in known], centres, yerr=errors, label=figures[0].variant.series, color=colour, marker=marker,
        markersize=6, capsize=3, linewidth=1.0, elinewidth=1.6,
    )  # fmt: skip
    line: Line2D = drawn.lines[0]
    return line


def _dress(axes: Axes, title: str, values: Sequence[str]) -> None:
    axes.set_title(title, color=INK, fontsize=11)
    axes.set_facecolor(PAPER)
    slanted = sum(len(value) for value in values) > 28
    axes.set_xticks(
        range(len(values)), values, rotation=35 if slanted else 0, ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )  # fmt: skip
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
