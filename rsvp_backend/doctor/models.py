"""The models: loaded, and asked one question on a drawn scene."""

from __future__ import annotations

from rsvp_backend import presets
from rsvp_backend.doctor.finding import Finding, Findings, ok, problem
from rsvp_backend.doctor.machine import gpu_finding
from rsvp_backend.errors import RsvpError
from rsvp_backend.metrics import meter_of
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.settings import Settings
from rsvp_backend.types import Deadline, EmptyReason, Outcome

_NO_ANSWER = frozenset(
    {EmptyReason.REASONER_FAILED, EmptyReason.INVALID_ANSWER, EmptyReason.DEADLINE, EmptyReason.SEGMENTER_FAILED}
)


def model_findings(settings: Settings) -> Findings:
    """Answers that are kept would prove nothing: none is used."""
    try:
        rsvp = presets.build(settings.model_copy(update={"answer_cache": None}))
    except RsvpError as error:
        yield problem(f"models: {error}")
        return
    yield ok(f"models: {rsvp.version} (reasoner {rsvp.reasoner.version})")
    device = getattr(rsvp.segmenter, "device", None)
    if device is not None:
        yield gpu_finding(str(device))
    yield _question(rsvp, settings)


def _question(rsvp: RSVP, settings: Settings) -> Finding:
    """One question on a drawn scene: what a wrong model says is still an answer, its form is what is checked."""
    scene = make_scene(EVALUATION_SEEDS_FROM + 1, "easy")
    asked = next(question for question in scene.questions if question.kind == "function")
    outcome = rsvp(scene.image, asked.instruction, deadline=Deadline.after(settings.predict_timeout_s))
    question = f"question {asked.instruction!r} ({asked.objects[0]} is right)"
    if outcome.reason in _NO_ANSWER:
        return problem(f"{question}: {outcome.reason}: {outcome.detail}; {_took(rsvp, outcome)}")
    answers = "; ".join(f"{p.object if p.present else 'nothing'} ({p.reasoning})" for p in outcome.trace.proposals)
    masks = f"{len(outcome.instances)} mask{'' if len(outcome.instances) == 1 else 's'}"
    return ok(f"{question}: {answers or 'nothing'}; {masks}; {_took(rsvp, outcome)}")


def _took(rsvp: RSVP, outcome: Outcome) -> str:
    """Seconds of both stages; tokens and cost since start, for a reasoner that counts them."""
    times = outcome.trace.timings_s
    took = f"stage 1 {times.get('reason', 0.0):.2f} s, stage 2 {times.get('segment', 0.0):.2f} s"
    meter = meter_of(rsvp.reasoner)
    if meter is None:
        return took
    usage = meter.usage
    calls = sum(usage.calls.values())
    tokens = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"
    priced = f", cost {usage.cost:.4g}" if usage.cost else ""
    return f"{took}, {calls} call{'' if calls == 1 else 's'}, {tokens}{priced}"
