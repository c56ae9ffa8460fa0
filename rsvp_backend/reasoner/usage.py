"""What calls to a model use up: tokens, cost and results counted since start, and a budget per sliding hour."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from rsvp_backend.errors import ReasonerError

HOUR_S = 3600.0
Result = Literal[
    "answered", "refused", "rate_limited", "rejected", "server_error", "timeout", "unreachable", "broken_off",
    "invalid_reply", "over_budget", "failed",
]  # fmt: skip


class BudgetError(ReasonerError):
    """The budget of this hour is spent; nothing was sent."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Per million tokens, in the currency of the bill. Discounts, such as for cached input, are left out."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (self.input * prompt_tokens + self.output * completion_tokens) / 1e6


@dataclass(frozen=True, slots=True)
class Budget:
    """What any 3600 s in a row may use up; None: no limit."""

    cost_per_hour: float | None = None
    calls_per_hour: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Counted since start. ``calls`` by result; tokens as the endpoint reports them; ``cost`` by `Prices`."""

    calls: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def answers(self) -> int:
        return self.calls.get("answered", 0)


@dataclass(slots=True)
class Call:
    """One request under way. ``tokens``: input and output, None while unknown; ``billed``: whether it may cost."""

    result: Result = "failed"
    billed: bool = True
    tokens: tuple[int, int] | None = None

    def free(self, result: Result) -> None:
        """It failed before the model worked: endpoints do not bill that."""
        self.result, self.billed = result, False

    def answered(self, usage: Any) -> None:
        """``usage``: what the reply says of its tokens, in OpenAI's form; anything else counts as unknown."""
        self.result = "answered"
        if isinstance(usage, Mapping):
            counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
            found = [n for n in counts if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
            self.tokens = (found[0], found[1]) if len(found) == 2 else None


class Meter:
    """Counts the calls to one model and stops them at the budget. Safe to share by threads.

    A call whose tokens are unknown (under way, timed out, not reported) counts as the dearest one so far, at least as
    ``max_tokens`` of output: the budget is exceeded by about one call.
    """

    def __init__(
        self,
        model: str,
        prices: Prices | None = None,
        budget: Budget | None = None,
        max_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self._prices, self._budget, self._clock = prices or Prices(), budget or Budget(), clock
        self._lock = threading.Lock()
        self._hour: deque[tuple[float, float]] = deque()  # when a billed call ended, and its cost
        self._flying = 0
        self._dearest = self._prices.cost(0, max_tokens)
        self._calls: Counter[str] = Counter()
        self._prompt_tokens = self._completion_tokens = 0
        self._cost = 0.0

    @property
    def usage(self) -> Usage:
        with self._lock:
            return Usage(dict(self._calls), self._prompt_tokens, self._completion_tokens, self._cost)

    @contextmanager
    def call(self) -> Iterator[Call]:
        """Around one request; what came of it is set on the `Call`. Raises `BudgetError` before anything is sent."""
        with self._lock:
            problem = self._over_budget(self._clock())
            if problem:
                self._calls["over_budget"] += 1
                raise BudgetError(problem)
            self._flying += 1
        call = Call()
        try:
            yield call
        finally:
            with self._lock:
                self._flying -= 1
                self._book(call)

    def _book(self, call: Call) -> None:
        self._calls[call.result] += 1
        if not call.billed:
            return
        cost = self._dearest
        if call.tokens is not None:
            cost = self._prices.cost(*call.tokens)
            self._dearest = max(self._dearest, cost)
            self._prompt_tokens += call.tokens[0]
            self._completion_tokens += call.tokens[1]
        self._cost += cost
        self._hour.append((self._clock(), cost))

    def _over_budget(self, now_s: float) -> str:
        """Why no call may go out now, and when the next one may; empty where one may."""
        while self._hour and self._hour[0][0] <= now_s - HOUR_S:
            self._hour.popleft()
        limits = (
            (self._budget.cost_per_hour, self._dearest, [cost for _, cost in self._hour], "BUDGET"),
            (self._budget.calls_per_hour, 1, [1 for _ in self._hour], "CALLS"),
        )
        for limit, each, spent, name in limits:
            if limit is None or sum(spent) + self._flying * each < limit:
                continue
            seen = f"{sum(spent):.4g} in the last hour and {self._flying} calls under way"
            when = self._free_again(limit - self._flying * each, spent, now_s)
            return f"the limit of {limit:g} per hour (RSVP_REASONER_{name}_PER_HOUR) is reached, with {seen}: {when}"
        return ""

    def _free_again(self, limit: float, spent: list[float] | list[int], now_s: float) -> str:
        left = float(sum(spent))
        for (ended_s, _), amount in zip(self._hour, spent, strict=True):
            left -= amount
            if left < limit:
                return f"the next call can go out in {max(1, round(ended_s + HOUR_S - now_s))} s"
        return "the next call can go out when those have ended"
