"""The experiments by name: which variants each has. Making a plan loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsvp_backend.errors import SettingsError
from rsvp_backend.experiment_who import Models, Named, read_all
from rsvp_backend.pipeline import PipelineConfig
from rsvp_backend.types import Marks
from rsvp_backend.zoom import Zoom

if TYPE_CHECKING:
    from rsvp_backend.experiments.variants import Pipeline, Plan, Variant, Who
    from rsvp_backend.training.fitting import Tell

GRIDS = (5, 9, 13)
PADDINGS = (0.0, 0.2, 0.4)
LONGEST_PX = (320, 160)
TEMPERATURES = (0.0, 0.5, 1.0)
WORDINGS = 3
SEEDS_TEMPERATURE = 1.0
"""Of the answers that `robustness` draws with several seeds."""
NO_STEPS = Path(__file__).parent / "experiments" / "prompts"
WITH_ORACLES = "oracle,oracle:0.5,{configured}"
REASONERS = {
    "grid": WITH_ORACLES, "padding": WITH_ORACLES, "encoding": WITH_ORACLES, "mllm": "oracle,{configured},whole-image",
    "connector": "oracle", "zoom": "{configured}", "temperature": "{configured}", "robustness": "oracle,{configured}",
}  # fmt: skip
"""Who is asked where ``--reasoners`` is not given."""
LEVELS = {"zoom": "small"}
"""Of scenes, where ``--level`` is not given; else ``easy``."""


@dataclass(frozen=True, slots=True)
class Options:
    """What else the command line says. ``checkpoints``: weights, as RSVP_VLSM, in place of trained connectors;
    ``steps``, ``train_on``: of those that are trained, and ``folder`` where they go; ``scenes``: they are asked about,
    whose instructions have other wordings."""

    reasoners: str | None = None
    repeats: int = 5
    temperatures: tuple[float, ...] = TEMPERATURES
    checkpoints: tuple[str, ...] = ()
    steps: int = 300
    train_on: str = "scenes:easy"
    folder: Path = Path("out/experiments")
    scenes: bool = True
    tell: Tell = field(default=lambda _: None)


def make_plan(name: str, models: Models, options: Options) -> Plan:
    """The plan of experiment ``name``, a key of `REASONERS`. Raises `SettingsError`."""
    specs = options.reasoners or REASONERS[name].format(configured=models.configured)
    return _PLANS[name](models, read_all(specs, models.settings), options)


def _grid(models: Models, named: Sequence[Named], options: Options) -> Plan:
    kind = models.settings.marks_kind
    return _over_marks("grid", f"marks ({kind})", "9x9", {f"{n}x{n}": Marks(kind, n, n) for n in GRIDS}, models, named)


def _padding(models: Models, named: Sequence[Named], options: Options) -> Plan:
    from rsvp_backend.experiments.variants import Plan

    variants = [
        _variant(models, who, f"{padding:.0%}", replace(_config(models, who), padding=padding))
        for who in named
        for padding in PADDINGS
    ]
    return Plan("padding", "padding", "20%", tuple(variants))


def _encoding(models: Models, named: Sequence[Named], options: Options) -> Plan:
    rows, columns = models.settings.marks_rows, models.settings.marks_columns
    kinds = {kind: Marks(kind, rows, columns) for kind in ("bands", "cells")}
    plan = _over_marks("encoding", "encoding", "bands", kinds, models, named)
    variants = (*plan.variants, *_sizes(models, named), *_rationales(models, named))
    labels = [who.label for who in named]
    return replace(plan, variants=tuple(sorted(variants, key=lambda variant: labels.index(variant.series))))


def _sizes(models: Models, named: Sequence[Named]) -> Iterator[Variant]:
    from rsvp_backend.experiments.changes import shrink

    for who in named:
        for longest_px in LONGEST_PX:
            value = f"{models.marks(who).kind}@{longest_px}px"
            yield replace(_variant(models, who, value, _config(models, who)), change=shrink(longest_px))


def _rationales(models: Models, named: Sequence[Named]) -> Iterator[Variant]:
    """With less reasoning: a bound on its length, or a prompt that does not ask for steps."""
    for who in named:
        kind, config = models.marks(who).kind, _config(models, who)
        if who.model and who.local and models.settings.reasoner_constrained:
            yield _variant(models, who, f"{kind}-short", config, reasoning="short")
        if not models.keeps_its_prompt(who):
            yield _variant(models, who, f"{kind}-no-steps", config, prompts=NO_STEPS)


def _mllm(models: Models, named: Sequence[Named], options: Options) -> Plan:
    from rsvp_backend.experiments.variants import Plan

    variants = [replace(_variant(models, who, who.label, _config(models, who)), series="stage 1") for who in named]
    reference = next((who.label for who in named if who.model), named[0].label)
    return Plan("mllm", "answered by", reference, tuple(variants))


def _connector(models: Models, named: Sequence[Named], options: Options) -> Plan:
    from rsvp_backend.experiments.connectors import CONNECTORS
    from rsvp_backend.experiments.variants import Plan

    places: dict[str, Callable[[], str]] = {spec: partial(str, spec) for spec in options.checkpoints}
    if not places:
        places = {name: partial(_train_connector, models, name, options) for name in CONNECTORS}
    variants = [
        _variant(models, who, value, _config(models, who), place=place)
        for who in named
        for value, place in places.items()
    ]
    return Plan("connector", "connector", next(iter(places)), tuple(variants))


def _train_connector(models: Models, name: str, options: Options) -> str:
    """The folder of its weights, trained unless they are."""
    from rsvp_backend.experiments import connectors
    from rsvp_backend.presets import vlsm_source
    from rsvp_backend.training.pretrain_data import read_data

    place = connectors.train(
        vlsm_source(models.settings), connectors.CONNECTORS[name], read_data([options.train_on]),
        connectors.config_of(options.steps, seed=0), options.folder / "connectors" / name, options.tell,
    )  # fmt: skip
    return str(place)


def _zoom(models: Models, named: Sequence[Named], options: Options) -> Plan:
    from rsvp_backend.experiments.variants import Plan

    _only_models("zoom", named, "the oracle knows whole pictures only")
    variants = [
        _variant(models, who, mode, replace(_config(models, who), zoom=Zoom(mode)))
        for who in named
        for mode in ("off", "auto", "always")
    ]
    return Plan("zoom", "zoom", "off", tuple(variants))


def _temperature(models: Models, named: Sequence[Named], options: Options) -> Plan:
    from rsvp_backend.experiments.variants import Plan

    _only_models("temperature", named, "only a language model has one")
    variants = [
        replace(
            _variant(models, who, f"{temperature:g}", _config(models, who), temperature=temperature),
            repeats=options.repeats if temperature else 1,
        )
        for who in named
        for temperature in options.temperatures
    ]
    return Plan("temperature", "temperature", f"{options.temperatures[0]:g}", tuple(variants))


def _robustness(models: Models, named: Sequence[Named], options: Options) -> Plan:
    from rsvp_backend.experiments.changes import AS_IT_IS, TRANSFORMS
    from rsvp_backend.experiments.variants import Plan
    from rsvp_backend.experiments.wordings import reworded

    variants = []
    for who in named:
        config = _config(models, who)
        variants += [replace(_variant(models, who, c.name, config), change=c) for c in (AS_IT_IS, *TRANSFORMS)]
        if who.model and options.scenes:  # an oracle does not read instructions
            words = {f"wording-{n + 1}": partial(reworded, number=n) for n in range(WORDINGS)}
            variants += [replace(_variant(models, who, name, config), reword=of) for name, of in words.items()]
        if who.model:
            drawn = _variant(models, who, "seeds", config, temperature=SEEDS_TEMPERATURE)
            variants.append(replace(drawn, repeats=options.repeats))
    return Plan("robustness", "changed", AS_IT_IS.name, tuple(variants))


_PLANS: dict[str, Callable[[Models, Sequence[Named], Options], Plan]] = {
    "grid": _grid, "mllm": _mllm, "padding": _padding, "connector": _connector, "encoding": _encoding, "zoom": _zoom,
    "temperature": _temperature, "robustness": _robustness,
}  # fmt: skip


def _over_marks(
    name: str, varied: str, reference: str, values: dict[str, Marks], models: Models, named: Sequence[Named]
) -> Plan:
    """Each reasoner in all ``values`` that it can read."""
    from rsvp_backend.experiments.variants import Plan

    variants, notes = [], []
    for who in named:
        fixed = models.fixed_marks(who)
        readable = {value: marks for value, marks in values.items() if not fixed or marks in fixed}
        variants += [_variant(models, who, value, models.config(marks)) for value, marks in readable.items()]
        if fixed and len(readable) < len(values):
            left_out = ", ".join(value for value in values if value not in readable)
            notes.append(
                f"{who.label} was trained on {' and '.join(map(str, fixed))} and reads no other marks: it is not asked "
                f"in {left_out}."
            )
    return Plan(name, varied, reference, tuple(variants), tuple(notes))


def _config(models: Models, who: Named) -> PipelineConfig:
    return models.config(models.marks(who))


def _variant(
    models: Models, who: Named, value: str, config: PipelineConfig, *, place: Callable[[], str] | None = None,
    temperature: float | None = None, **changes: Any,
) -> Variant:  # fmt: skip
    """``place`` gives stage 2's weights, None: the configured ones; ``changes``: of the settings, for stage 1."""
    from rsvp_backend.experiments.variants import Pipeline, Variant

    def load() -> Pipeline:
        asked: Who = models.who(who, **changes) if temperature is None else models.drawn(who, temperature)
        return Pipeline(asked, models.segmenter(place() if place else None), config)

    return Variant(who.label, value, load)


def _only_models(name: str, named: Sequence[Named], why: str) -> None:
    for who in named:
        if not who.model:
            raise SettingsError(f"--reasoners: {who.spec!r} cannot be asked in {name}: {why}")
