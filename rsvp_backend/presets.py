"""Settings -> the two models, loaded. A preset is a named choice of both; single settings override its parts.

The model libraries are imported inside the functions, so that a server can answer while they load.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rsvp_backend.errors import SettingsError
from rsvp_backend.masks import Cleanup
from rsvp_backend.pipeline import RSVP, PipelineConfig
from rsvp_backend.settings import Settings
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import VersionError
from rsvp_backend.types import Marks, Reasoner, Segmenter
from rsvp_backend.zoom import Zoom

if TYPE_CHECKING:
    from rsvp_backend.training.reasoner_deltas import ReasonerBase

log = logging.getLogger(__name__)
DEMO_ASSETS = Path(__file__).parent / "demo" / "assets"


@dataclass(frozen=True, slots=True)
class Preset:
    """Values for ``RSVP_REASONER`` and ``RSVP_VLSM`` where those are not set."""

    reasoner: str
    vlsm: str


PRESETS = {"demo": Preset(reasoner="demo", vlsm="demo")}


def build(settings: Settings) -> RSVP:
    """Load both models. Raises `WeightsError` and `SettingsError`, and imports torch: this takes seconds to minutes."""
    preset = PRESETS[settings.preset]
    reasoner, marks = _reasoner(settings.reasoner or preset.reasoner, settings)
    segmenter = segmenter_of(settings)
    rsvp = RSVP(reasoner, segmenter, pipeline_config(settings, marks))
    log.info("loaded %s: reasoner %s, segmenter %s", rsvp.version, reasoner.version, segmenter.version)
    return rsvp


def import_libraries(settings: Settings) -> None:
    """Import what `build` will: seconds, in which nothing else runs for tenths of a second at a time, no `/health`
    either. To be called before a port is open."""
    log.info("importing the model libraries")
    spec = settings.reasoner or PRESETS[settings.preset].reasoner
    modules = ["training.versioned_reasoner", "reasoner.local"] if _is_local(spec) else ["reasoner.chat"]
    modules += ["training.versioned", "vlsm.segmenter"]
    for name in modules:
        import_module(f"rsvp_backend.{name}")


def pipeline_config(settings: Settings, marks: Marks) -> PipelineConfig:
    """What the settings say of the pipeline besides its models; ``marks``: those that the reasoner reads."""
    return PipelineConfig(
        marks=marks,
        padding=settings.padding,
        cleanup=Cleanup(settings.mask_min_area_px, settings.mask_components),
        zoom=Zoom(settings.zoom),
        text_only=settings.text_only == "noun-phrases",
    )


def updated(rsvp: RSVP) -> RSVP | None:
    """``rsvp`` with the versions that were promoted since it was built or last asked for, else None.

    Raises `VersionError` where none of them can be used. Base weights and image embeddings are shared.
    """
    segmenter, reasoner, problems = rsvp.segmenter, rsvp.reasoner, list[VersionError]()
    try:
        segmenter = _newer_segmenter(segmenter)
    except VersionError as error:
        problems.append(error)
    try:
        reasoner = _newer_reasoner(reasoner)
    except VersionError as error:
        problems.append(error)
    if segmenter is rsvp.segmenter and reasoner is rsvp.reasoner:
        if problems:
            raise problems[0]
        return None
    for problem in problems:
        log.error("%s. What was served in its place is served on", problem)
    return RSVP(reasoner, segmenter, rsvp.config)


def fixed_marks(settings: Settings) -> tuple[Marks, ...]:
    """The marks that a local reasoner was trained on and reads alone, the usual ones first; none: it reads any."""
    from rsvp_backend.reasoner.model_folder import Marker

    spec = settings.reasoner or PRESETS[settings.preset].reasoner
    folder = DEMO_ASSETS / "reasoner" if spec == "demo" else Path(spec.removeprefix("hf:"))
    return Marker.read(folder).marks if _is_local(spec) and folder.is_dir() else ()


def reasoner_registry(settings: Settings) -> Registry:
    """Where versions of the local reasoner are. Raises `SettingsError` where no folder is set."""
    if settings.reasoner_versions is None:
        raise SettingsError("RSVP_REASONER_VERSIONS is not set: name a folder for what the reasoner learns")
    of = "RSVP_REASONER (with RSVP_PROMPTS and RSVP_MARKS_*)"
    return Registry(settings.reasoner_versions, "RSVP_REASONER_VERSIONS", of)


def reasoner_base(settings: Settings) -> ReasonerBase:
    """The base weights of the local reasoner, loaded. Raises `SettingsError` where the reasoner is on a server."""
    spec = settings.reasoner or PRESETS[settings.preset].reasoner
    if not _is_local(spec):
        raise SettingsError(
            f"RSVP_REASONER is {spec!r}, a model on a server: `demo` or `hf:ID-OR-FOLDER` can be taught"
        )
    return _base(DEMO_ASSETS / "reasoner" if spec == "demo" else Path(spec.removeprefix("hf:")), settings)


def reasoner_of(settings: Settings) -> tuple[Reasoner, Marks]:
    """The reasoner alone, loaded, and the marks that it reads."""
    return _reasoner(settings.reasoner or PRESETS[settings.preset].reasoner, settings)


def _newer_segmenter(segmenter: Segmenter) -> Segmenter:
    from rsvp_backend.training.versioned import VersionedSegmenter

    fresh = segmenter.source.changed() if isinstance(segmenter, VersionedSegmenter) else None
    return segmenter if fresh is None else fresh


def _newer_reasoner(reasoner: Reasoner) -> Reasoner:
    from rsvp_backend.reasoner.cache import CachedReasoner
    from rsvp_backend.training.versioned_reasoner import VersionedReasoner

    if isinstance(reasoner, CachedReasoner):
        inner = _newer_reasoner(reasoner.inner)
        return reasoner if inner is reasoner.inner else reasoner.over(inner)
    fresh = reasoner.source.changed() if isinstance(reasoner, VersionedReasoner) else None
    return reasoner if fresh is None else fresh


def _is_local(reasoner: str) -> bool:
    return reasoner == "demo" or reasoner.startswith("hf:")


def vlsm_source(settings: Settings) -> str | Path:
    """The VLSM's base weights as `weights.load` takes them. Raises `SettingsError` where those are SAM 3's."""
    spec = settings.vlsm or PRESETS[settings.preset].vlsm
    if spec.startswith("sam3:"):
        raise SettingsError(f"RSVP_VLSM is {spec!r}: SAM 3 is not fine-tuned and has no versions; choose another")
    return DEMO_ASSETS / "vlsm" if spec == "demo" else spec


def _reasoner(spec: str, settings: Settings) -> tuple[Reasoner, Marks]:
    """The reasoner and the marks to draw: those that it was trained on, where it says so."""
    if spec == "demo":
        return _local(DEMO_ASSETS / "reasoner", settings)
    if spec.startswith("hf:"):
        reasoner, marks = _local(Path(spec.removeprefix("hf:")), settings)
    else:
        reasoner, marks = _remote(spec, settings), _marks(settings)
    return _cached(reasoner, settings), marks


def _local(source: Path, settings: Settings) -> tuple[Reasoner, Marks]:
    from rsvp_backend.training import versioned_reasoner

    base = _base(source, settings)
    if settings.reasoner_versions is None:
        return base.plain, base.marks
    return versioned_reasoner.follow(reasoner_registry(settings), base), base.marks


def _base(source: Path, settings: Settings) -> ReasonerBase:
    from rsvp_backend.reasoner.loading import load_model
    from rsvp_backend.reasoner.local import Decoding
    from rsvp_backend.reasoner.model_folder import Marker
    from rsvp_backend.training.reasoner_deltas import ReasonerBase

    trained_on = Marker.read(source).marks if source.is_dir() else ()
    marks = _marks(settings)
    if trained_on and marks not in trained_on:
        if settings.model_fields_set & {"marks_kind", "marks_rows", "marks_columns"}:
            raise SettingsError(
                f"the reasoner {source.name} reads {' and '.join(map(str, trained_on))} only, the settings ask for "
                f"{marks}: leave out RSVP_MARKS_KIND, RSVP_MARKS_ROWS and RSVP_MARKS_COLUMNS"
            )
        marks = trained_on[0]
    decoding = Decoding(constrained=settings.reasoner_constrained, reasoning=settings.reasoning)
    loaded = load_model(str(source), settings.device, settings.dtype)
    return ReasonerBase(loaded, marks, decoding, settings.prompts)


def _remote(spec: str, settings: Settings) -> Reasoner:
    from rsvp_backend.reasoner.chat import ChatConfig, ChatReasoner
    from rsvp_backend.reasoner.endpoint import EndpointConfig
    from rsvp_backend.reasoner.usage import Budget, Prices

    url, model, key = _address(spec, settings)
    config = ChatConfig(
        model,
        EndpointConfig(url, key, settings.reasoner_timeout_s, concurrency=settings.reasoner_concurrency),
        max_tokens=settings.reasoner_max_tokens,
        image_px=settings.reasoner_image_px,
        prices=Prices(settings.reasoner_price_in or 0.0, settings.reasoner_price_out or 0.0),
        budget=Budget(settings.reasoner_budget_per_hour, settings.reasoner_calls_per_hour),
        prompts=settings.prompts,
    )
    return ChatReasoner(config)


def _address(spec: str, settings: Settings) -> tuple[str, str, str | None]:
    """Base URL, model and API key."""
    from rsvp_backend.reasoner.chat import OPENAI_URL

    key = settings.reasoner_api_key.get_secret_value() if settings.reasoner_api_key else None
    if spec.startswith("openai:"):
        if key is None:
            raise SettingsError(f"RSVP_REASONER is {spec!r}, which needs an API key: set RSVP_REASONER_API_KEY")
        return OPENAI_URL, spec.removeprefix("openai:"), key
    url, _, model = spec.partition("#")
    if "?" in url:
        raise SettingsError(
            "RSVP_REASONER's address holds a query (?...): the base address is expected; Azure's, which needs no "
            "api-version, is https://RESOURCE.openai.azure.com/openai/v1#DEPLOYMENT"
        )
    return url, model, key


def _cached(reasoner: Reasoner, settings: Settings) -> Reasoner:
    """Around models that take seconds and money; the demo's is quicker asked than looked up."""
    from rsvp_backend.reasoner.cache import AnswerStore, CachedReasoner

    folder = settings.answer_cache
    return CachedReasoner(reasoner, AnswerStore(folder, settings.answer_cache_bytes) if folder else None)


def segmenter_of(settings: Settings) -> Segmenter:
    """The segmenter alone, loaded."""
    spec = settings.vlsm or PRESETS[settings.preset].vlsm
    if spec.startswith("sam3:"):
        from rsvp_backend.vlsm.sam3 import Sam3Segmenter

        return Sam3Segmenter.load(spec.removeprefix("sam3:"), device=settings.device, dtype=settings.dtype)

    from rsvp_backend.vlsm.segmenter import SegmenterOptions, VlsmSegmenter

    options = SegmenterOptions(
        view=settings.vlsm_view,
        max_batch=settings.vlsm_max_batch,
        cache_bytes=settings.vlsm_cache_bytes,
        compile=settings.vlsm_compile,
    )
    source, device, dtype = vlsm_source(settings), settings.device, settings.dtype
    if settings.versions is not None:
        from rsvp_backend.training import versioned

        return versioned.load(settings.versions, source, device=device, dtype=dtype, options=options)
    return VlsmSegmenter.load(source, device=device, dtype=dtype, options=options)


def _marks(settings: Settings) -> Marks:
    return Marks(settings.marks_kind, settings.marks_rows, settings.marks_columns)
