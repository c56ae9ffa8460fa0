"""Versions over HTTP: what /jobs shows of them, promoting, rolling back. `rsvp-backend versions` does the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from rsvp_backend import versioning
from rsvp_backend.engine import Engine, NotReadyError
from rsvp_backend.jobs import versions_page
from rsvp_backend.presets import reasoner_registry
from rsvp_backend.security.same_site import refuse_other_sites
from rsvp_backend.settings import Settings
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import VersionError

log = logging.getLogger(__name__)
Of = Literal["vlsm", "reasoner"]
Act = Callable[[], str | None]


class BackBody(BaseModel):
    """What POST /versions/rollback reads."""

    of: Of


class PromoteBody(BackBody):
    """What POST /versions/promote reads."""

    version: str = Field(min_length=1, max_length=200)


class VersionShelf:
    """The versions in the folders that the settings name, and the models served that they are tried on."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._engine = engine
        self._registries: dict[str, Registry] = {}
        if settings.versions is not None:
            self._registries["vlsm"] = Registry(settings.versions)
        if settings.reasoner_versions is not None:
            self._registries["reasoner"] = reasoner_registry(settings)

    def sections(self) -> str:
        """HTML; empty where no folder is set."""
        return "".join(self._section(of, registry) for of, registry in self._registries.items())

    def promote(self, of: str, version: str) -> str:
        """Gives the current version. Raises `VersionError` and `NotReadyError`."""
        return versioning.promote(self._registry(of), version, self._fitting(of))

    def roll_back(self, of: str) -> str | None:
        """Gives the current version, None for the base weights. Raises `VersionError` and `NotReadyError`."""
        return versioning.roll_back(self._registry(of), self._fitting(of))

    def _section(self, of: str, registry: Registry) -> str:
        try:
            found = versioning.listed(registry)
        except VersionError as error:
            return versions_page.unreadable(of, str(error))
        try:
            self._fitting(of)
        except (VersionError, NotReadyError) as error:
            return versions_page.section(of, found, f"Nothing can be promoted here now: {error}.")
        return versions_page.section(of, found, "")

    def _fitting(self, of: str) -> versioning.Fitting:
        return versioning.fitting(self._engine.ready(), of)

    def _registry(self, of: str) -> Registry:
        if of not in self._registries:
            raise VersionError(f"the {of} has no versions here: set {versioning.MODELS[of]}")
        return self._registries[of]


def version_routes(shelf: VersionShelf) -> APIRouter:
    router = APIRouter(prefix="/versions", dependencies=[Depends(refuse_other_sites)])

    @router.post("/promote")
    async def promote(body: PromoteBody) -> Response:
        """Serve a version from now on; running servers follow in seconds."""
        return await _moved(body.of, lambda: shelf.promote(body.of, body.version))

    @router.post("/rollback")
    async def roll_back(body: BackBody) -> Response:
        """Go back to what was current before."""
        return await _moved(body.of, lambda: shelf.roll_back(body.of))

    return router


async def _moved(of: str, act: Act) -> Response:
    try:
        current = await run_in_threadpool(act)
    except VersionError as error:
        raise HTTPException(409, str(error)) from None
    except NotReadyError as error:
        raise HTTPException(503, str(error)) from None
    log.info("by hand: %s is the current %s", current or "the base", of)
    return JSONResponse({"of": of, "current": current})
