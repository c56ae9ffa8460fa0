"""The registry of versions: what it keeps, moves, refuses, and how it survives kills and damage."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from versions_data import ADAPTED, PROJECTOR, WORDS, projector_delta, record, whole_delta
from vlsm_models import random_folder

from rsvp_backend.training import durable
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import Version, VersionError, VersionState
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.weights import Weights

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return weights.load(random_folder(tmp_path_factory.mktemp("weights") / "tiny"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "versions")


def added(registry: Registry, base: Weights, seed: int, parent: str | None = None) -> str:
    return registry.add_candidate(projector_delta(base, seed), record(base.version, parent=parent)).id


def damage(registry: Registry, version_id: str) -> None:
    """Flip the delta's last byte."""
    file = registry.folder / version_id / "delta.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def hidden(registry: Registry) -> list[str]:
    return [path.name for path in registry.folder.glob(".*") if path.name != ".lock"]


# --- what is kept ------------------------------------------------------------------------------------------------


def test_a_folder_without_versions_has_the_base_as_current_and_is_not_made(registry: Registry) -> None:
    registry.clean()
    assert (registry.list(), registry.damaged(), registry.current(), registry.stamp()) == ((), {}, None, None)
    assert not registry.folder.exists()
    with pytest.raises(VersionError, match=r"'tiny-1' is unknown in .*: known are none"):
        registry.get("tiny-1")


def test_a_candidate_is_kept_with_all_that_is_known_of_it(registry: Registry, base: Weights) -> None:
    known = record(
        base.version, parent="tiny-00000000", data=("a", "b"), before={"iou": 0.25}, after={"iou": 0.75, "old": 0.1},
        decision="promote", reasons=("better",), calibration={"knots": [[0.1, 0.30000000000000004]], "table": []},
    )  # fmt: skip
    version = registry.add_candidate(projector_delta(base), known)
    assert registry.get(version.id) == version == registry.verify(version.id)
    assert registry.list() == (version,)
    assert version.record == known
    assert version.id.startswith("tiny-")
    assert version.id != base.version
    assert (registry.states(), registry.current()) == ({version.id: VersionState.CANDIDATE}, None)
    assert version.delta_bytes == (registry.folder / version.id / "delta.safetensors").stat().st_size < 1000
    assert json.loads((registry.folder / version.id / "version.json").read_text())["record"]["data"] == ["a", "b"]


def test_scores_of_nothing_are_kept_too(registry: Registry, base: Weights) -> None:
    version = registry.add_candidate(projector_delta(base), record(base.version, after={"iou": math.nan}))
    assert math.isnan(registry.get(version.id).record.after["iou"])


def test_the_id_follows_base_delta_and_calibration_and_nothing_else(registry: Registry, base: Weights) -> None:
    delta = projector_delta(base)
    first = registry.add_candidate(delta, record(base.version, reasons=("first",)))
    again = registry.add_candidate(delta, record(base.version, reasons=("second",)))
    assert again == first
    others = {
        registry.add_candidate(projector_delta(base, 2), record(base.version)).id,
        registry.add_candidate(delta, record("tiny-00000000")).id,
        registry.add_candidate(delta, record(base.version, calibration={"knots": [], "table": []})).id,
    }
    assert len(others | {first.id}) == 4


def test_a_version_is_the_base_with_its_delta_and_shares_the_rest(registry: Registry, base: Weights) -> None:
    delta = whole_delta(base)
    version = registry.add_candidate(delta, record(base.version)).id
    loaded = registry.load(base, version)
    assert (loaded.version, loaded.name, loaded.tokenizer) == (version, base.name, base.tokenizer)
    old, new = base.model.state_dict(), loaded.model.state_dict()
    changed = {key for key in old if old[key].data_ptr() != new[key].data_ptr()}
    assert changed == {PROJECTOR, ADAPTED, WORDS}
    assert {key: tensor.dtype for key, tensor in new.items()} == {key: tensor.dtype for key, tensor in old.items()}
    assert torch.equal(new[PROJECTOR], delta[PROJECTOR].to(new[PROJECTOR].dtype))
    lora = delta[f"{ADAPTED}.lora_b"].float() @ delta[f"{ADAPTED}.lora_a"].float()
    torch.testing.assert_close(new[ADAPTED].float(), old[ADAPTED].float() + lora, atol=2e-3, rtol=2e-3)
    moved = {int(row) for row in (new[WORDS] != old[WORDS]).any(dim=1).nonzero()}
    assert moved == {5, 9}


def test_a_version_takes_the_dtype_that_the_base_has_by_then(registry: Registry, tmp_path: Path) -> None:
    base = weights.load(random_folder(tmp_path / "other", seed=4))
    version = added(registry, base, 1)
    base.model.to(torch.bfloat16)
    assert registry.load(base, version).model.state_dict()[PROJECTOR].dtype == torch.bfloat16


# --- what is refused ---------------------------------------------------------------------------------------------


def test_deltas_that_cannot_be_served_are_not_kept(registry: Registry, base: Weights) -> None:
    known, bias = record(base.version), base.model.state_dict()[PROJECTOR]
    with pytest.raises(VersionError, match="holds no tensors"):
        registry.add_candidate({}, known)
    with pytest.raises(VersionError, match=f"not finite in {PROJECTOR}"):
        registry.add_candidate({PROJECTOR: torch.full_like(bias, math.inf)}, known)
    with pytest.raises(VersionError, match="changes the image encoder"):
        registry.add_candidate({"visual_model.image_encoder.pos_embed": torch.zeros(1)}, known)
    assert registry.list() == ()


@pytest.mark.parametrize(
    ("delta", "seen"),
    [
        ({"text_hidden_fcs.7.bias": torch.zeros(3)}, "text_hidden_fcs.7.bias, which the model lacks"),
        ({PROJECTOR: torch.zeros(3)}, rf"{PROJECTOR} is \(3,\), the model's"),
    ],
)
def test_a_delta_of_another_model_is_named(
    registry: Registry, base: Weights, delta: dict[str, torch.Tensor], seen: str
) -> None:
    version = registry.add_candidate(delta, record(base.version))
    with pytest.raises(VersionError, match=rf"does not fit the base weights {base.version}: .*{seen}.*RSVP_VLSM"):
        registry.load(base, version.id)


def test_a_version_of_another_base_is_neither_promoted_nor_loaded(registry: Registry, base: Weights) -> None:
    version = registry.add_candidate(projector_delta(base), record("tiny-00000000")).id
    expected = f"belongs to the base weights tiny-00000000, but {base.version} are in use"
    with pytest.raises(VersionError, match=expected):
        registry.promote(version, base.version)
    with pytest.raises(VersionError, match=expected):
        registry.load(base, version)
    assert registry.current() is None


@pytest.mark.parametrize(
    ("file", "content", "seen"),
    [
        ("delta.safetensors", b"short", "5 bytes instead of"),
        ("delta.safetensors", None, "No such file"),
        ("version.json", b'{"id": ', "version.json"),
        ("version.json", b"{}", "version.json: id: Field required"),
        ("version.json", None, "No such file"),
    ],
)
def test_a_damaged_version_is_listed_apart_and_refused(
    registry: Registry, base: Weights, file: str, content: bytes | None, seen: str
) -> None:
    good, bad = added(registry, base, 1), added(registry, base, 2)
    registry.promote(good, base.version)
    path = registry.folder / bad / file
    path.unlink() if content is None else path.write_bytes(content)
    assert [version.id for version in registry.list()] == [good]
    assert seen in registry.damaged()[bad]
    with pytest.raises(VersionError, match=f"version {bad} is damaged"):
        registry.promote(bad, base.version)
    assert registry.current() == good


def test_a_flipped_bit_is_found_before_anything_is_promoted_or_loaded(registry: Registry, base: Weights) -> None:
    good, bad = added(registry, base, 1), added(registry, base, 2)
    registry.promote(good, base.version)
    damage(registry, bad)
    for refused in (lambda: registry.promote(bad, base.version), lambda: registry.load(base, bad)):
        with pytest.raises(VersionError, match="has another sha256"):
            refused()
    assert registry.current() == good
    assert added(registry, base, 2) == bad  # trained again, it is written again
    assert registry.promote(bad, base.version).id == registry.current() == bad


def test_a_record_that_was_moved_under_another_name_is_refused(registry: Registry, base: Weights) -> None:
    first, second = added(registry, base, 1), added(registry, base, 2)
    for file in ("version.json", "delta.safetensors"):
        (registry.folder / second / file).write_bytes((registry.folder / first / file).read_bytes())
    with pytest.raises(VersionError, match=f"describes another one, {first}"):
        registry.get(second)


# --- promotion and the way back ----------------------------------------------------------------------------------


def test_rollback_goes_back_exactly_the_way_that_promotions_went(registry: Registry, base: Weights) -> None:
    a, b, c = (added(registry, base, seed) for seed in (1, 2, 3))
    for version in (a, b, a, c):
        registry.promote(version, base.version)
    assert registry.rollback(base.version) == registry.current() == a
    assert registry.states()[c] is VersionState.ROLLED_BACK
    registry.promote(b, base.version)
    seen = [registry.rollback(base.version) for _ in range(4)]
    assert seen == [a, b, a, None]
    assert registry.current() is None
    assert set(registry.states().values()) == {VersionState.ROLLED_BACK}
    with pytest.raises(VersionError, match="no way back"):
        registry.rollback(base.version)


def test_rollback_passes_over_what_cannot_be_used_any_more(registry: Registry, base: Weights) -> None:
    a, b, c, d = (added(registry, base, seed) for seed in (1, 2, 3, 4))
    for version in (a, b, c, d):
        registry.promote(version, base.version)
    registry.delete(c)
    damage(registry, b)
    assert registry.rollback(base.version) == a
    assert registry.rollback(base.version) is None


def test_rollback_passes_over_versions_of_another_base(registry: Registry, base: Weights) -> None:
    other = registry.add_candidate(projector_delta(base), record("tiny-00000000")).id
    registry.promote(other, "tiny-00000000")
    registry.promote(added(registry, base, 1), base.version)
    assert registry.rollback(base.version) is None


def test_a_promotion_can_expect_what_is_current(registry: Registry, base: Weights) -> None:
    a, b = added(registry, base, 1), added(registry, base, 2)
    registry.promote(a, base.version, expected_current=None)
    with pytest.raises(VersionError, match=f"{a} is current, base was expected"):
        registry.promote(b, base.version, expected_current=None)
    registry.promote(b, base.version, expected_current=a)
    assert registry.current() == b


def test_of_many_that_promote_at_once_one_wins(registry: Registry, base: Weights) -> None:
    versions = [added(registry, base, seed) for seed in range(6)]

    def promote(version: str) -> bool:
        try:
            Registry(registry.folder).promote(version, base.version, expected_current=None)
        except VersionError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(promote, versions))
    assert [version for version, one in zip(versions, won, strict=True) if one] == [registry.current()]


def test_promoting_the_current_one_again_is_no_step_but_seen_by_servers(registry: Registry, base: Weights) -> None:
    version = added(registry, base, 1)
    registry.promote(version, base.version)
    stamp = registry.stamp()
    registry.promote(version, base.version)
    assert registry.stamp() != stamp
    assert registry.rollback(base.version) is None


def test_the_current_one_and_parents_stay(registry: Registry, base: Weights) -> None:
    parent = added(registry, base, 1)
    child = added(registry, base, 2, parent)
    registry.promote(child, base.version)
    with pytest.raises(VersionError, match=f"{child} is current: roll back"):
        registry.delete(child)
    with pytest.raises(VersionError, match=f"{parent} is the parent of {child}"):
        registry.delete(parent)
    with pytest.raises(VersionError, match="unknown"):
        registry.delete("../" + parent)
    registry.rollback(base.version)
    registry.delete(child)
    registry.delete(parent)
    assert (registry.list(), registry.states(), hidden(registry)) == ((), {}, [])


# --- kills, full disks, damage -----------------------------------------------------------------------------------


def test_a_kill_at_any_moment_leaves_whole_versions_only(tmp_path: Path) -> None:
    """Before every change of a file, and at 20 random moments; the way on is free each time."""
    script = Path(__file__).parent / "registry_killed.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "20"],
        check=True, env=env, stdout=subprocess.PIPE, text=True, timeout=300,
    )  # fmt: skip
    seen = json.loads(ran.stdout)
    assert (seen["steps"]["problems"], seen["random"]["problems"]) == ([], [])
    assert seen["steps"]["kills"] > 15
    assert seen["steps"]["left"] > 3  # kills that left something to clear


@pytest.mark.parametrize("failing", ["write", "append", "replace"])
def test_a_full_disk_changes_nothing_and_says_so(
    registry: Registry, base: Weights, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    good, other = added(registry, base, 1), added(registry, base, 2)
    registry.promote(good, base.version)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(durable, failing, full)
        with pytest.raises(VersionError, match=r"RSVP_VERSIONS.*No space left on device"):
            added(registry, base, 3) if failing == "write" else registry.promote(other, base.version)
        assert (registry.current(), registry.damaged(), hidden(registry)) == (good, {}, [])
        assert len(registry.list()) == 2
    registry.clean()
    # Once its line is in the history a promotion holds, and the pointer is moved when there is room again.
    assert registry.current() == (other if failing == "replace" else good)


def test_leftovers_are_cleared_at_the_next_start(registry: Registry, base: Weights) -> None:
    version = added(registry, base, 1)
    registry.promote(version, base.version)
    (registry.folder / ".tiny-1.abc").mkdir()
    (registry.folder / ".tiny-1.abc" / "delta.safetensors").write_bytes(b"half")
    (registry.folder / ".current.abc").write_bytes(b"tin")
    with (registry.folder / "history.jsonl").open("ab") as file:
        file.write(b'{"at": "2026')
    assert [one.id for one in registry.list()] == [version]
    assert registry.states() == {version: VersionState.PROMOTED}
    registry.clean()
    assert hidden(registry) == []
    assert (registry.folder / "history.jsonl").read_bytes().count(b"\n") == 1
    assert registry.rollback(base.version) is None


def test_a_damaged_pointer_is_named_and_set_right_by_the_history(registry: Registry, base: Weights) -> None:
    version = added(registry, base, 1)
    registry.promote(version, base.version)
    (registry.folder / "current").write_text("")
    with pytest.raises(VersionError, match="current is empty"):
        registry.current()
    registry.clean()
    assert registry.current() == version


def test_a_damaged_history_is_named(registry: Registry, base: Weights) -> None:
    registry.promote(added(registry, base, 1), base.version)
    (registry.folder / "history.jsonl").write_text("nothing\n")
    with pytest.raises(VersionError, match=r"history.jsonl is damaged"):
        registry.rollback(base.version)


def test_a_lock_that_is_held_is_waited_for_and_then_named(
    registry: Registry, base: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsvp_backend.training.registry.LOCK_WAIT_S", 0.1)
    added(registry, base, 1)
    with (
        durable.locked(registry.folder / ".lock", 1.0),
        pytest.raises(VersionError, match="was held by another process"),
    ):
        added(registry, base, 2)


def test_versions_are_values(registry: Registry, base: Weights) -> None:
    version = registry.add_candidate(projector_delta(base), record(base.version))
    assert isinstance(version, Version)
    with pytest.raises(dataclasses.FrozenInstanceError):
        version.id = "x"  # type: ignore[misc]
