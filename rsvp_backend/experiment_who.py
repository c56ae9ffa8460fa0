"""``--reasoners``: who answers in an experiment, by name; models are loaded when their turn comes, one at a time.

oracle, oracle:P (one region off with probability P), whole-image, or a model as RSVP_REASONER takes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rsvp_backend import presets
from rsvp_backend.errors import SettingsError
from rsvp_backend.pipeline import PipelineConfig
from rsvp_backend.settings import REASONER_FORMS, Settings
from rsvp_backend.types import Marks, Reasoner, Segmenter

if TYPE_CHECKING:
    from rsvp_backend.experiments.variants import Who

FORMS = f"oracle, oracle:PROBABILITY, whole-image, {REASONER_FORMS}"
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True, slots=True)
class Named:
    """One of ``--reasoners``. ``spec``: as it was written; ``noise``: of an oracle, else None."""

    spec: str
    noise: float | None = None

    @property
    def model(self) -> bool:
        """Whether a language model is asked."""
        return self.noise is None and self.spec != "whole-image"

    @property
    def local(self) -> bool:
        return self.spec == "demo" or self.spec.startswith("hf:")

    @property
    def label(self) -> str:
        """Short, for tables: the model's own name of a folder or an address."""
        if self.spec.startswith("hf:"):
            return self.spec.removeprefix("hf:").rstrip("/").rsplit("/", 1)[-1]
        return self.spec.partition("#")[2] or self.spec

    @classmethod
    def read(cls, spec: str, settings: Settings) -> Named:
        """Raises `SettingsError`."""
        kind, colon, rest = spec.partition(":")
        if kind == "oracle":
            try:
                noise = float(rest) if colon else 0.0
            except ValueError:
                noise = -1.0
            if not 0 <= noise <= 1:
                raise SettingsError(f"--reasoners: {spec!r} is given, oracle:P with P from 0 to 1 is expected")
            return cls(spec, noise)
        if spec != "whole-image":
            try:
                Settings.model_validate({**settings.model_dump(), "reasoner": spec})
            except ValueError:
                raise SettingsError(f"--reasoners: {spec!r} is given, one of {FORMS} is expected") from None
        return cls(spec)


class Models:
    """The models of one sweep over ``settings``: the last reasoner and the last segmenter stay loaded."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._kept: OrderedDict[str, tuple[object, Any]] = OrderedDict()

    @property
    def configured(self) -> str:
        return self.settings.reasoner or presets.PRESETS[self.settings.preset].reasoner

    def fixed_marks(self, named: Named) -> tuple[Marks, ...]:
        """The only marks that a model reads; none where it reads any."""
        from rsvp_backend.reasoner.model_folder import Marker

        if not named.model or not named.local:
            return ()
        return Marker.read(_folder(named.spec)).marks if _folder(named.spec).is_dir() else ()

    def keeps_its_prompt(self, named: Named) -> bool:
        """Whether a model was trained on a prompt of its own, or is none."""
        from rsvp_backend.reasoner.model_folder import Marker

        if not named.model:
            return True
        return named.local and _folder(named.spec).is_dir() and Marker.read(_folder(named.spec)).prompt is not None

    def marks(self, named: Named) -> Marks:
        """Those of the settings, or where it cannot read them, its usual ones."""
        own, fixed = self.settings, self.fixed_marks(named)
        asked = Marks(own.marks_kind, own.marks_rows, own.marks_columns)
        return fixed[0] if fixed and asked not in fixed else asked

    def config(self, marks: Marks) -> PipelineConfig:
        """Of the settings; stage 1 is always asked."""
        return replace(presets.pipeline_config(self.settings, marks), text_only=False)

    def who(self, named: Named, **changes: Any) -> Who:
        """Loaded, under the settings with ``changes``."""
        from rsvp_backend.experiments.oracle import WholeImageReasoner
        from rsvp_backend.experiments.variants import Oracles, Same

        if named.noise is not None:
            return Oracles(named.noise)
        return Same(self.reasoner(named, **changes) if named.model else WholeImageReasoner())

    def reasoner(self, named: Named, **changes: Any) -> Reasoner:
        """The model of ``named``, loaded."""
        settings = self.settings.model_copy(update={"reasoner": named.spec, **changes})
        return self._keep("reasoner", (named.spec, repr(changes)), lambda: presets.reasoner_of(settings)[0])

    def drawn(self, named: Named, temperature: float) -> Who:
        """The model of ``named``, its base weights, at ``temperature``; 0: greedy."""
        from rsvp_backend.experiments.sampling import SampledChat, SampledLocal
        from rsvp_backend.experiments.variants import Drawn, Same
        from rsvp_backend.reasoner.cache import CachedReasoner
        from rsvp_backend.reasoner.chat import ChatReasoner

        if named.local:
            settings = self.settings.model_copy(update={"reasoner": named.spec})
            base = self._keep("reasoner", (named.spec, "base"), lambda: presets.reasoner_base(settings))
            if temperature == 0:
                return Same(base.plain)
            return Drawn(SampledLocal(base.loaded, base.decoding, base.prompts, temperature))
        reasoner = self.reasoner(named)
        chat = reasoner.inner if isinstance(reasoner, CachedReasoner) else reasoner
        assert isinstance(chat, ChatReasoner)  # what is neither local nor a stand-in
        return Drawn(SampledChat(chat.config, temperature)) if temperature else Same(chat)

    def segmenter(self, vlsm: str | None = None) -> Segmenter:
        """Of the settings, or the weights ``vlsm``."""
        changes = {} if vlsm is None else {"vlsm": vlsm, "versions": None}
        settings = self.settings.model_copy(update=changes)
        return self._keep("segmenter", vlsm, lambda: presets.segmenter_of(settings))

    def _keep(self, slot: str, key: object, load: Callable[[], _Loaded]) -> _Loaded:
        if slot not in self._kept or self._kept[slot][0] != key:
            self._kept.pop(slot, None)  # its memory goes first
            self._kept[slot] = key, load()
        loaded: _Loaded = self._kept[slot][1]
        return loaded


def _folder(spec: str) -> Path:
    return presets.DEMO_ASSETS / "reasoner" if spec == "demo" else Path(spec.removeprefix("hf:"))


def read_all(text: str, settings: Settings) -> tuple[Named, ...]:
    """``--reasoners``: specs with commas between. Raises `SettingsError`."""
    specs = [spec.strip() for spec in text.split(",") if spec.strip()]
    if not specs:
        raise SettingsError(f"--reasoners is {text!r}: one or more of {FORMS}, with commas between, are expected")
    return tuple(map(partial(Named.read, settings=settings), dict.fromkeys(specs)))
