"""SAM's image encoder through `torch.compile`, warmed up for the two batch sizes that it will be called with."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rsvp_backend.errors import SettingsError
from rsvp_backend.vlsm.model import Vlsm

log = logging.getLogger(__name__)


@torch.inference_mode()
def compiled(
    model: Vlsm, device: torch.device, dtype: torch.dtype, max_batch: int, backend: str = "inductor"
) -> Callable[[Tensor], Tensor]:
    """``model.embed_image``, compiled: ``(B, 3, S, S) -> (B, C, h, w)`` for B up to ``max_batch``.

    Shapes are fixed, as CUDA graphs need them: one picture, or ``max_batch`` of them, short batches filled up with
    zeros. What it returns is overwritten by the next call: copy what is to be kept. Compiling takes minutes and a C++
    compiler (on a CPU). Raises `SettingsError` where it fails.
    """
    graphs = "reduce-overhead" if device.type == "cuda" else None
    embed = torch.compile(model.embed_image, backend=backend, mode=graphs, dynamic=False)

    def run(pixels: Tensor) -> Tensor:
        count = len(pixels)
        if 1 < count < max_batch:
            pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, max_batch - count))
        embedding: Tensor = embed(pixels)[:count]
        return embedding

    side = model.config.sam.image_size
    started = time.monotonic()
    try:
        for batch in sorted({1, max_batch}):
            for _ in range(3):  # CUDA graphs are recorded in the second run
                run(torch.zeros(batch, 3, side, side, device=device, dtype=dtype))
    except Exception as error:  # the compiler stack raises types of its own
        raise SettingsError(
            f"RSVP_VLSM_COMPILE is true, but compiling failed on {device} ({type(error).__name__}: {error}): set it to "
            "false, or install what is missing"
        ) from error
    log.info("image encoder compiled for batches of 1 and %d in %.0f s", max_batch, time.monotonic() - started)
    return run
