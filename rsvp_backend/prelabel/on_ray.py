"""The same steps on Ray Data: one run over the machines of a cluster. Ray moves the tasks, and makes up for lost nodes.

    Work -fetch-> Asked -reason-> Seen -segment-> Result        on the cluster, see `ray_workers`
    Result -store->                                             here

Results are stored by the one process that also reads the tasks, so each is stored once however often a node is lost
and its part computed again. Tasks go out in waves, which grow: the first masks come soon, later waves outweigh the time
in which each of them loads the models, and a million tasks are never in memory together. The next wave is read from its
source while one is computed.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from rsvp_backend.errors import RsvpError, SettingsError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel.line import Clock
from rsvp_backend.prelabel.looking import BATCH, batches
from rsvp_backend.prelabel.ray_workers import Batch, Fetching, Job, Reasoning, Segmenting
from rsvp_backend.prelabel.running import Result, Steps
from rsvp_backend.prelabel.steps import Work
from rsvp_backend.settings import Settings

if TYPE_CHECKING:
    import ray.data

WAVES = (1_000, 10_000, 100_000)
"""Tasks of the first waves; all later ones are as large as the last."""
CONNECT_S = 10.0
CHUNK = 32
"""Results that are stored by one request, and that a stop waits for at most."""


class ClusterError(RsvpError):
    """The cluster, or a worker on it, cannot do its part."""


@dataclass(frozen=True, slots=True)
class Places:
    """How many workers of each stage; ``gpus``: of each reasoner (0 where it is on a server), and of each segmenter."""

    fetchers: int
    reasoners: int
    segmenters: int
    gpus: tuple[float, float]

    @classmethod
    def on(cls, cpus: float, gpus: float, fetchers: int, *, local: bool) -> Places:
        """For a cluster of so many cores and GPUs. A ``local`` reasoner shares each GPU with a segmenter. One worker
        asks a reasoner on a server, side by side: its settings bound calls and cost by process."""
        devices = int(gpus) or max(1, int(cpus) // 2)
        if not gpus:
            return cls(fetchers, devices if local else 1, devices, (0.0, 0.0))
        return cls(fetchers, devices if local else 1, devices, (0.5, 0.5) if local else (0.0, 1.0))


class RayLine:
    """In the place of `Line`. The settings must mean the same on all machines: paths of weights, versions and traces,
    addresses, the token. Connects to the cluster at ``address`` (as `ray.init` takes it), or makes one of this machine.
    """

    def __init__(
        self, settings: Settings, project: int, rsvp: RSVP, steps: Steps, address: str | None = None,
        patience_s: float = 600.0,
    ) -> None:  # fmt: skip
        """Raises `SettingsError` without Ray or its cluster."""
        self._ray = _connected(address)
        self._steps = steps
        self._job = Job(settings, steps.common, project, rsvp.version, steps.reasoners, patience_s)
        here, self._local = self._ray.cluster_resources(), batches(rsvp.reasoner)
        self.places = Places.on(here.get("CPU", 1), here.get("GPU", 0), steps.fetchers, local=self._local)
        workers = {
            "fetch": self.places.fetchers, "reason": self.places.reasoners, "segment": self.places.segmenters,
            "store": 1,
        }  # fmt: skip
        self.clocks = {name: Clock(count) for name, count in workers.items()}
        self._spent: tuple[float, int] | None = None
        self._stopped = False
        self.began_s = self.ended_s = 0.0

    def stop(self) -> None:
        """Begin no further wave, and drop what of this one is not answered yet: the next run answers it."""
        self._stopped = True

    @property
    def stopping(self) -> bool:
        return self._stopped

    @property
    def seconds(self) -> float:
        return (self.ended_s or time.monotonic()) - self.began_s if self.began_s else 0.0

    def slowest(self) -> str:
        return max(self.clocks, key=lambda name: self.clocks[name].share(self.seconds))

    def spent(self) -> tuple[float, int] | None:
        """Cost and calls of a reasoner on a server; None of one that does not count."""
        return self._spent

    def run(self, source: Iterable[Work]) -> Iterator[Result]:
        """Results as they are stored, in any order. Raises what ``source`` or storing raised, and `ClusterError`."""
        self.began_s = time.monotonic()
        try:
            for wave in waves(iter(source)):
                if self._stopped:
                    break
                for batch in self._computed(wave):
                    yield from self._store(self._counted(batch))
                    if self._stopped:
                        break
        finally:
            self.ended_s = time.monotonic()

    def _computed(self, works: Sequence[Work]) -> Iterator[Batch]:
        try:
            yield from self._wave(works).iter_batches(batch_size=CHUNK, batch_format="numpy", prefetch_batches=0)
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"the Ray cluster could not go on: {_said(error)}") from error

    def _wave(self, works: Sequence[Work]) -> ray.data.Dataset:
        places = self.places
        size = max(1, min(BATCH, len(works) // (2 * places.segmenters)))
        asked = size if self._local else 4 * self._steps.reasoners
        rows = [{"item": work} for work in works]
        found = self._ray.data.from_items(rows, override_num_blocks=-(-len(works) // size))
        for worker, batch, count, share, gpus in (
            (Fetching, size, places.fetchers, 0.1, 0.0),
            (Reasoning, asked, places.reasoners, 0.25, places.gpus[0]),
            (Segmenting, size, places.segmenters, 0.25, places.gpus[1]),
        ):
            pool = self._ray.data.ActorPoolStrategy(size=count)
            found = found.map_batches(
                worker, fn_constructor_args=(self._job,), batch_size=batch, compute=pool, num_cpus=share, num_gpus=gpus
            )
        dataset: ray.data.Dataset = found
        return dataset

    def _counted(self, batch: Batch) -> list[Result]:
        for row in batch["told"]:
            for name, seconds in row.busy_s.items():
                self.clocks[name].busy_s += seconds
                self.clocks[name].items += 1
            if row.spent is not None:
                cost, calls = self._spent or (0.0, 0)
                self._spent = cost + row.spent[0], calls + row.spent[1]
        return list(batch["item"])

    def _store(self, results: Sequence[Result]) -> list[Result]:
        began_s, clock = time.monotonic(), self.clocks["store"]
        answered = [one for one in results if one.item is not None]
        stored = [one for one in results if one.item is None] + list(self._steps.store(answered))
        clock.busy_s += time.monotonic() - began_s
        clock.items += len(results)
        return stored


def waves(works: Iterator[Work]) -> Iterator[list[Work]]:
    """Each is read while the one before is computed. Raises what ``works`` raises, after the waves before it."""
    sizes = iter(WAVES)

    def read() -> list[Work]:
        return list(islice(works, next(sizes, WAVES[-1])))

    with ThreadPoolExecutor(1, thread_name_prefix="prelabel-source") as pool:
        coming = pool.submit(read)
        while wave := coming.result():
            coming = pool.submit(read)
            yield wave


def _said(error: Exception) -> str:
    """The last line of what a worker raised, after the tracebacks that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error: " in line), lines[-1] if lines else type(error).__name__)


def _check(address: str) -> None:
    """Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        if address != "auto":
            raise SettingsError(f"--ray-address is {address!r}: auto, HOST:PORT or ray://HOST:PORT is expected")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"nothing answers at {address!r} (--ray-address): {error}; is `ray start --head` running there?"
        ) from None


def _connected(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed: pip install 'rsvp-backend[ray]'") from None
    if address is not None:
        _check(address)
    own: dict[str, Any] = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SettingsError(f"no Ray cluster at {address!r} (--ray-address): {error}") from None
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray").setLevel(logging.ERROR)  # its rows are no Arrow tables, which it would warn of each time
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray
