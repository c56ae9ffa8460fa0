"""This machine and its settings: folders, disk, GPU, passwords, time limits."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from rsvp_backend.doctor.finding import Finding, Findings, ok, problem
from rsvp_backend.errors import SettingsError
from rsvp_backend.security.credentials import Credentials
from rsvp_backend.settings import Settings

LABEL_STUDIO_TIMEOUT_S = 100.0
LEAST_DISK_BYTES = 2**30
LEAST_GPU_BYTES = 2**30
_GIB = 2**30


def settings_findings(settings: Settings) -> Findings:
    """Passwords where others can reach the server, and the time limit below Label Studio's."""
    try:
        Credentials.of(settings)
    except SettingsError as error:
        yield problem(f"settings: {error}")
    else:
        yield ok(f"settings: read; listening on {settings.host}:{settings.port}, {_guarded(settings)}")
    if settings.predict_timeout_s >= LABEL_STUDIO_TIMEOUT_S:
        yield problem(
            f"settings: RSVP_PREDICT_TIMEOUT_S is {settings.predict_timeout_s:g}, and Label Studio waits "
            f"{LABEL_STUDIO_TIMEOUT_S:g} s: what is answered later is lost",
            f"set it below {LABEL_STUDIO_TIMEOUT_S:g}, unless Label Studio's ML_TIMEOUT_PREDICT was raised",
        )


def folder_findings(settings: Settings) -> Findings:
    """Whether each folder that is written to can be, and has room."""
    for name in ("versions", "reasoner_versions", "traces", "backlog", "answer_cache"):
        folder: Path | None = getattr(settings, name)
        if folder is not None:
            yield _folder(f"RSVP_{name.upper()}", folder)


def gpu_finding(device: str) -> Finding:
    """After the models were loaded: is there room for images? ``device``: as torch names it."""
    import torch

    if not device.startswith("cuda"):
        return ok(f"models run on {device}" + ("" if torch.cuda.is_available() else "; there is no GPU"))
    free, total = torch.cuda.mem_get_info(device)
    text = f"models run on {torch.cuda.get_device_name(device)}: {free / _GIB:.1f} of {total / _GIB:.1f} GiB are free"
    if free < LEAST_GPU_BYTES:
        return problem(text, "set RSVP_VLSM_MAX_BATCH=1 and RSVP_DTYPE=bfloat16, or give it a GPU of its own")
    return ok(text)


def _folder(name: str, folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-"):
            pass
    except OSError as error:
        who = f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"
        return problem(
            f"{name}: {there} cannot be written to: {error.strerror}", f"let {who} write there, or name another"
        )
    free = shutil.disk_usage(there).free
    text = f"{name}: {folder}, {free / _GIB:.1f} GiB free"
    if free < LEAST_DISK_BYTES:
        return problem(text, f"make room: {LEAST_DISK_BYTES / _GIB:.0f} GiB are expected")
    return ok(text)


def _guarded(settings: Settings) -> str:
    if settings.basic_auth_user is not None:
        return f"basic auth as {settings.basic_auth_user}"
    return "without a password" + (" (RSVP_ALLOW_NO_AUTH)" if settings.allow_no_auth else "")
