"""What the playground is asked for, and the same as a command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from rsvp_backend.pipeline import PipelineConfig
from rsvp_backend.types import Click, Marks
from rsvp_backend.zoom import ZoomMode


@dataclass(frozen=True, slots=True)
class PlayAsked:
    """``image``: an id of `Playground.keep`; ``name``: what the file is called; ``after``: the run whose masks the
    clicks correct. Without clicks both stages are asked."""

    image: str
    name: str
    instruction: str
    marks: Marks
    padding: float
    zoom: ZoomMode
    clicks: tuple[Click, ...] = ()
    after: str | None = None

    def configured(self, config: PipelineConfig) -> PipelineConfig:
        zoom = replace(config.zoom, mode=self.zoom)
        return replace(config, marks=self.marks, padding=self.padding, zoom=zoom)


def command(asked: PlayAsked, config: PipelineConfig) -> str:
    """For a POSIX shell; only what differs from the server's own ``config`` is named."""
    marks = f"{asked.marks.kind}:{asked.marks.rows}x{asked.marks.columns}"
    words = ["rsvp-backend", "predict"]
    words += ["--marks", marks] if asked.marks != config.marks else []
    words += ["--padding", f"{asked.padding:g}"] if asked.padding != config.padding else []
    words += ["--zoom", asked.zoom] if asked.zoom != config.zoom.mode else []
    for click in asked.clicks:
        words += ["--click" if click.positive else "--click-off", f"{click.x_px:g},{click.y_px:g}"]
    return shlex.join([*words, "--", asked.name, asked.instruction])
