"""Settings -> what reaches Label Studio and images, the API's client and the image fetcher; and the log of traces."""

from __future__ import annotations

import logging

from rsvp_backend.errors import SettingsError
from rsvp_backend.labelstudio.auth import TokenAuth
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.hosts import allowed_hosts
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.settings import Settings
from rsvp_backend.trace_files import TraceLimits
from rsvp_backend.traces import TraceLog

log = logging.getLogger(__name__)


def open_client(settings: Settings) -> LabelStudioClient:
    """Label Studio's API as the settings' user. Raises `SettingsError` without an address or a token."""
    if settings.label_studio_url is None or settings.label_studio_token is None:
        raise SettingsError("RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN are not both set: set the address and "
                            "a token of Label Studio")  # fmt: skip
    return LabelStudioClient(settings.label_studio_url, settings.label_studio_token.get_secret_value())


def make_fetcher(settings: Settings) -> ImageFetcher:
    """The image fetcher that the settings describe. Raises `LabelStudioError` for an unusable token."""
    auth = None
    if settings.label_studio_url and settings.label_studio_token:
        auth = TokenAuth(settings.label_studio_url, settings.label_studio_token.get_secret_value())
        log.info("Label Studio at %s, with a %s token", settings.label_studio_url, auth.kind)
    limits = ImageLimits(settings.image_max_bytes, settings.image_max_pixels, settings.image_timeout_s)
    return ImageFetcher(
        settings.label_studio_url,
        auth,
        limits,
        allow_private=settings.allow_private_addresses,
        public_url=settings.label_studio_public_url,
        hosts=allowed_hosts(settings.image_hosts),
    )


def make_traces(settings: Settings) -> TraceLog:
    """The log of traces that the settings describe."""
    limits = TraceLimits(settings.traces_days, settings.traces_bytes)
    return TraceLog(settings.traces, limits, settings.public_url)
