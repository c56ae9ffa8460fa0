"""``rsvp-backend worker``: run the jobs that the server queues."""

from __future__ import annotations

import logging

from rsvp_backend.errors import SettingsError
from rsvp_backend.jobs.job import missing
from rsvp_backend.jobs.worker import run_worker
from rsvp_backend.settings import Settings

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Until a signal; the exit status. Raises `SettingsError` where nothing can be learned, `JobError`."""
    if (lacking := missing(settings)) is not None:
        raise SettingsError(lacking)
    run_worker(settings)
    log.info("the worker has stopped")
    return 0
