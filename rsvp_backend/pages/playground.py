"""`Playground`: pictures that people bring, and runs on them by the models that answer Label Studio.

A run waits for its turn on the models as an interactive call does, in the threads that are kept for those.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import replace

from PIL import Image

from rsvp_backend.engine import Engine
from rsvp_backend.errors import ImageError, RsvpError
from rsvp_backend.grid import visual_prompt
from rsvp_backend.labelstudio.pixels import decode_image
from rsvp_backend.pages.pictures import jpeg
from rsvp_backend.pages.play_asked import PlayAsked, command
from rsvp_backend.pages.play_run import Run
from rsvp_backend.pipeline import RSVP, Look
from rsvp_backend.refinement import Hints, refine
from rsvp_backend.serving.crew import Crew, Party
from rsvp_backend.serving.desk import BusyError
from rsvp_backend.serving.turns import Demand, Urgency
from rsvp_backend.settings import Settings
from rsvp_backend.timing import timed
from rsvp_backend.trace_pictures import kept_size
from rsvp_backend.types import Deadline, Instance, Outcome, Trace

log = logging.getLogger(__name__)

PROJECT = "playground"
"""Stands for a project in the traces of runs."""
MAX_UNDER_WAY = 4
MAX_RUNS = 20
IMAGE_BYTES = 64 * 2**20
MASK_BYTES = 64 * 2**20
"""Masks that clicks can still correct."""


class Playground:
    """Pictures and runs are kept in memory, the oldest go first. Safe to share by threads."""

    def __init__(self, settings: Settings, engine: Engine, crew: Crew) -> None:
        self._settings, self._engine, self._crew = settings, engine, crew
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.Lock()

    def keep(self, file: bytes) -> tuple[str, tuple[int, int]]:
        """An id for the picture, and its size (width, height) in pixels. Raises `ImageError`."""
        if len(file) > self._settings.image_max_bytes:
            limit = self._settings.image_max_bytes
            raise ImageError(f"the file has {len(file)} bytes: at most {limit} are expected (RSVP_IMAGE_MAX_BYTES)")
        size_px = self._decoded(file).size
        image_id = hashlib.sha256(file).hexdigest()[:20]
        with self._lock:
            self._images[image_id] = file
            self._images.move_to_end(image_id)
            while len(self._images) > 1 and sum(map(len, self._images.values())) > IMAGE_BYTES:
                self._images.popitem(last=False)
        return image_id, size_px

    def shown(self, image_id: str) -> bytes | None:
        """The picture as a JPEG that any browser shows, upright; None: it is not kept."""
        with self._lock:
            file = self._images.get(image_id)
        if file is None:
            return None
        image = self._decoded(file)
        return jpeg(image.resize(kept_size(image.size)))

    def start(self, asked: PlayAsked) -> Run:
        """Raises `ImageError` for an image that is not kept, `BusyError` and `NotReadyError`."""
        rsvp = self._engine.ready()
        with self._lock:
            if asked.image not in self._images:
                raise ImageError("this image is not kept here any more: choose it again")
            if sum(not run.ended for run in self._runs.values()) >= MAX_UNDER_WAY:
                raise BusyError(f"{MAX_UNDER_WAY} tries are under way in the playground: wait for one to end", 2)
            file = self._images[asked.image]
            run = Run(secrets.token_hex(8), asked, command(asked, rsvp.config))
            self._runs[run.id] = run
            while len(self._runs) > MAX_RUNS:
                self._runs.popitem(last=False)
        self._crew.start()
        self._crew.add(Party(Urgency.INTERACTIVE, [lambda: self._work(run, rsvp, file)]))
        return run

    def run(self, run_id: str) -> Run | None:
        with self._lock:
            return self._runs.get(run_id)

    def _work(self, run: Run, rsvp: RSVP, file: bytes) -> None:
        try:
            self._compute(run, RSVP(rsvp.reasoner, rsvp.segmenter, run.asked.configured(rsvp.config)), file)
        except RsvpError as error:
            run.fail(str(error))
        except Exception as error:
            log.exception("run %s of the playground failed by a fault of this program", run.id)
            run.fail(f"{type(error).__name__}: {error}")
        self._forget_masks()

    def _compute(self, run: Run, rsvp: RSVP, file: bytes) -> None:
        asked, began_s = run.asked, time.monotonic()
        deadline = Deadline.after(self._settings.predict_timeout_s)
        image = self._decoded(file)
        with self._engine.turns.turn(Demand(Urgency.INTERACTIVE), deadline):
            self._engine.metrics.waited(Urgency.INTERACTIVE.name.lower(), time.monotonic() - began_s)
            outcome = self._answer(run, rsvp, image, deadline)
        self._engine.metrics.observe(outcome)
        trace_id = self._engine.traces.add(
            outcome, picture=image, project=PROJECT, image=asked.name, size_px=image.size, labels=(),
            model_version=rsvp.version,
        )  # fmt: skip
        run.done(outcome, image.size, trace_id, rsvp.version)

    def _answer(self, run: Run, rsvp: RSVP, image: Image.Image, deadline: Deadline) -> Outcome:
        """Clicks refine what the instruction gives, which is asked for where no earlier run has it."""
        asked = run.asked
        if not asked.clicks:
            return _both_stages(run, rsvp, image, deadline)
        earlier = self._earlier(asked)
        if earlier is None:
            earlier = _both_stages(run, rsvp, image, deadline).instances if asked.instruction else ()
        run.begin("segment")
        return refine(rsvp, image, Hints(asked.clicks), earlier, asked.instruction)

    def _earlier(self, asked: PlayAsked) -> tuple[Instance, ...] | None:
        """The masks of the run that the clicks follow; None where it asked something else, or they are forgotten."""
        earlier = self.run(asked.after) if asked.after else None
        if earlier is None or earlier.asked != replace(asked, clicks=(), after=None):
            return None
        return earlier.instances

    def _forget_masks(self) -> None:
        with self._lock:
            kept = 0
            for run in reversed(self._runs.values()):
                kept += sum(instance.mask.nbytes for instance in run.instances or ())
                if kept > MASK_BYTES:
                    run.instances = None

    def _decoded(self, file: bytes) -> Image.Image:
        """One at a time: a large image takes hundreds of megabytes on its way."""
        with self._decoding:
            return decode_image(file, self._settings.image_max_pixels)


def _both_stages(run: Run, rsvp: RSVP, image: Image.Image, deadline: Deadline) -> Outcome:
    run.begin("mark")
    reasoner, timings_s = rsvp.reasoner, dict[str, float]()
    with timed(timings_s, "mark"):
        marked = visual_prompt(image, rsvp.config.marks, reasoner.canvas_px, reasoner.max_side_px)
    run.show("marked", marked)
    run.begin("reason", Trace(run.asked.instruction, timings_s=timings_s))
    look = rsvp.look(image, run.asked.instruction, (), deadline)
    if not isinstance(look, Look):
        return look
    run.begin("segment", look.trace)
    return rsvp.cut([look])[0]
