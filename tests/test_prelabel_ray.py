"""Pre-labelling on a real Ray cluster of two nodes on this machine: the same answers, also when a node dies."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import ray
from ls_http import json_reply, serving
from ray.cluster_utils import Cluster

from rsvp_backend import presets
from rsvp_backend.access import make_fetcher
from rsvp_backend.answers import Question
from rsvp_backend.errors import SettingsError
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel import on_ray
from rsvp_backend.prelabel.on_ray import ClusterError, Places, RayLine, waves
from rsvp_backend.prelabel.running import Result, Run, Steps
from rsvp_backend.prelabel.steps import Answered, Common, Work
from rsvp_backend.prelabel.studio import encode
from rsvp_backend.scenes import make_scene
from rsvp_backend.settings import Settings, load_settings
from rsvp_backend.traces import TraceLog

COMMON = Common(parse_label_config(default_label_config(["Object"])))
TASKS, UNREADABLE = 24, 3


@dataclass(frozen=True)
class Models:
    settings: Settings
    rsvp: RSVP


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    """The images are in the tasks: of Label Studio they want to know only whether it is there."""
    with serving() as server:
        server.routes["/api/current-user/whoami"] = lambda _: json_reply({"id": 1})
        settings = load_settings(label_studio_url=server.url, label_studio_token="x" * 40)
        yield Models(settings, presets.build(settings))


@pytest.fixture(scope="module")
def works() -> list[Work]:
    return [work(n) for n in range(TASKS)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, which this process belongs to, and another node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 2, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=head)
        try:
            found.add_node(num_cpus=2)
            ray.init(address=found.address, log_to_driver=False)
            yield found
        finally:
            ray.shutdown()  # type: ignore[no-untyped-call]
            found.shutdown()


def work(number: int) -> Work:
    """One whose image cannot be read among those that can."""
    scene = make_scene(7_100_000 + number % 6, "easy", 320)
    data = io.BytesIO()
    scene.image.save(data, "PNG")
    content = "AAAA" if number == UNREADABLE else base64.b64encode(data.getvalue()).decode()
    question = scene.questions[number % len(scene.questions)]
    data_of = {"image": f"data:image/png;base64,{content}", "instruction": question.instruction}
    return Work(str(number), {"id": number, "data": data_of})


def steps(models: Models, stored: list[str]) -> Steps:
    fetcher = make_fetcher(models.settings)

    def fetch(question: Question) -> object:
        return fetcher.fetch(question.uri, None, None)

    def encoded(answered: Answered) -> Result:
        return encode(answered, models.rsvp.version, COMMON.config, 1, TraceLog())

    def store(results: Sequence[Result]) -> Sequence[Result]:
        stored.extend(one.key for one in results)
        return results

    return Steps(COMMON, fetch, encoded, store, fetchers=2)  # type: ignore[arg-type]


def run_on(models: Models, stored: list[str]) -> Run:
    how = steps(models, stored)
    line = RayLine(models.settings, 1, models.rsvp, how, patience_s=0)
    return Run(models.rsvp, how, line, line.spent)


def said(result: Result) -> object:
    """What is the same in every run: all but the ids, which are drawn at random."""
    item = result.item or {"result": [], "score": None}
    return result.state, result.reason, item["score"], [one["value"] for one in item["result"]]


@pytest.fixture(scope="module")
def local(models: Models, works: list[Work]) -> dict[str, object]:
    found: dict[str, object] = {}
    Run(models.rsvp, steps(models, [])).over(works, lambda one: found.update({one.key: said(one)}))
    return found


def test_two_nodes_answer_as_one_process_does(
    cluster: Cluster, models: Models, works: list[Work], local: dict[str, object]
) -> None:
    stored: list[str] = []
    found: list[Result] = []
    run = run_on(models, stored)
    run.over(works, found.append)
    assert {one.key: said(one) for one in found} == local
    assert sorted(stored, key=int) == [str(n) for n in range(TASKS) if n != UNREADABLE]
    assert run.report.states == {"new": TASKS - 1, "failed": 1}
    assert run.report.shares.keys() == {"fetch", "reason", "segment", "store"}
    assert min(run.report.shares.values()) > 0
    assert run.report.cost is None  # the demo's reasoner has no price


def test_a_node_that_dies_in_the_middle_costs_no_task_and_doubles_none(
    cluster: Cluster, models: Models, works: list[Work], local: dict[str, object]
) -> None:
    stored: list[str] = []
    found: list[Result] = []
    victim = cluster.add_node(num_cpus=2)
    run = run_on(models, stored)

    def tell(result: Result) -> None:
        found.append(result)
        if len(found) == 1:
            cluster.remove_node(victim, allow_graceful=False)

    more = [replace(one, key=f"{turn}-{one.key}") for turn in range(5) for one in works]
    run.over(more, tell)
    assert sorted(one.key for one in found) == sorted(one.key for one in more)
    assert {one.key: said(one) for one in found} == {one.key: local[one.key.split("-")[1]] for one in more}
    assert sorted(stored) == sorted(one.key for one in found if one.state == "new")


def test_a_machine_with_other_weights_is_named_and_a_stop_leaves_the_rest(
    cluster: Cluster, models: Models, works: list[Work]
) -> None:
    other = RSVP(models.rsvp.reasoner, models.rsvp.segmenter, replace(models.rsvp.config, padding=0.7))
    stored: list[str] = []
    how = steps(models, stored)
    line = RayLine(models.settings, 1, other, how, patience_s=0)
    with pytest.raises(ClusterError, match="give all machines the same weights, versions and settings"):
        Run(other, how, line).over(works, lambda _: None)
    assert stored == []
    run = run_on(models, stored)
    run.over(
        [replace(one, key=f"{turn}-{one.key}") for turn in range(5) for one in works], lambda _: run.stop("enough")
    )
    assert 0 < len(stored) < 5 * TASKS
    assert run.report.stopped == "enough"


def test_gpus_carry_the_models_and_cores_the_rest() -> None:
    assert Places.on(16, 4, 8, local=True) == Places(8, 4, 4, (0.5, 0.5))
    assert Places.on(16, 4, 8, local=False) == Places(8, 1, 4, (0.0, 1.0))
    assert Places.on(4, 0, 4, local=True) == Places(4, 2, 2, (0.0, 0.0))
    assert Places.on(1, 0, 4, local=False) == Places(4, 1, 1, (0.0, 0.0))


def test_waves_grow_and_are_read_one_ahead(monkeypatch: pytest.MonkeyPatch, works: list[Work]) -> None:
    monkeypatch.setattr(on_ray, "WAVES", (2, 5))
    read: list[Work] = []

    def source() -> Iterator[Work]:
        for one in works[:13]:
            read.append(one)
            yield one

    found = []
    for wave in waves(source()):
        found.append(len(wave))
        assert len(read) <= sum(found) + 5
    assert found == [2, 5, 5, 1]
    assert read == works[:13]


def test_what_the_source_raises_comes_after_the_waves_before_it(works: list[Work]) -> None:
    def source() -> Iterator[Work]:
        yield from works[:3]
        raise OSError("Label Studio is away")

    with pytest.raises(OSError, match="away"):
        list(waves(source()))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "somewhere", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_told_at_once(models: Models, address: str) -> None:
    with pytest.raises(SettingsError, match="--ray-address"):
        RayLine(models.settings, 1, models.rsvp, steps(models, []), address)
