"""`Room`: how many bytes of images are under way at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from PIL import Image

from rsvp_backend.flights import CacheLimits

ROOM_BYTES = 512 * 2**20
KEPT = CacheLimits(max_bytes=128 * 2**20, keep_s=600.0)
"""Images that were decoded: several tasks often ask about one."""
_POLL_S = 0.2


class Room:
    """Safe to share by threads. One image is let in whatever its size."""

    def __init__(self, max_bytes: int = ROOM_BYTES) -> None:
        self._max_bytes = max_bytes
        self._used_bytes = 0
        self._changed = threading.Condition()

    def take(self, image: Image.Image, given_up: Callable[[], bool]) -> None:
        """Wait until ``image`` fits, or ``given_up``."""
        with self._changed:
            while self._used_bytes and self._used_bytes + size_bytes(image) > self._max_bytes and not given_up():
                self._changed.wait(_POLL_S)
            self._used_bytes += size_bytes(image)

    def give(self, image: Image.Image) -> None:
        """``image`` is needed no more."""
        with self._changed:
            self._used_bytes -= size_bytes(image)
            self._changed.notify_all()


def size_bytes(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())
