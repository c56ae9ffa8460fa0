"""docker-compose.yml: what runs by default, who reaches whom, and that no secret is in it. No engine is needed."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfiles import read_dockerfile
from dotenv import dotenv_values

from rsvp_backend.security.credentials import Credentials
from rsvp_backend.settings import Settings, load_settings, settings_rows

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ["backend", "worker", "backend-gpu", "worker-gpu"]
KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "env_file", "environment", "healthcheck", "image", "init",
    "logging", "networks", "ports", "profiles", "read_only", "restart", "secrets", "security_opt", "shm_size",
    "stop_grace_period", "tmpfs", "user", "volumes",
}  # fmt: skip
FILLED = {
    "RSVP_BASIC_AUTH_USER": "rsvp",
    "RSVP_BASIC_AUTH_PASSWORD": "0f3a9c5e7b1d2468",
    "RSVP_WEBHOOK_SECRET": "8642d1b7e5c9a3f0",
}
RESERVED = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", "::/128", "::1/128", "::ffff:0:0/96",
    "64:ff9b::/96", "2002::/16", "fc00::/7", "fe80::/10", "ff00::/8",
]  # fmt: skip
"""What no address of the public internet is in (IANA's registries of special-purpose addresses)."""


class MissingError(Exception):
    """A required variable is not set: what compose prints then."""


def interpolated(value: Any, env: Mapping[str, str]) -> Any:
    """``value`` with ``${NAME}``, ``:-``, ``-`` and ``:?`` resolved as the compose specification says."""
    if isinstance(value, dict):
        return {key: interpolated(one, env) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, env) for one in value]
    if not isinstance(value, str):
        return value

    def resolve(match: re.Match[str]) -> str:
        name, operator, text = match[1], match[2] or "", match[3] or ""
        if operator == "-":
            return env.get(name, text)
        if operator == ":?" and not env.get(name):
            raise MissingError(text)
        return env.get(name) or text

    return re.sub(r"\$\{(\w+)(?:(:-|-|:\?)([^}]*))?\}", resolve, value)


def environment_of(service: str, env: Mapping[str, str]) -> dict[str, str]:
    """What a container of ours is started with: the env file, then what the compose file sets."""
    assert SERVICES[service]["env_file"] == [".env"]
    return {**env, **interpolated(SERVICES[service]["environment"], env)}


def networks_of(service: str) -> set[str]:
    return set(SERVICES[service]["networks"])


def example(*switched_on: str) -> dict[str, str]:
    """.env as the example with `FILLED`, and with the commented lines that begin with ``switched_on``."""
    lines = EXAMPLE.splitlines()
    text = "\n".join(line.removeprefix("#") if line.startswith(switched_on or "\0") else line for line in lines)
    found = {name: value or "" for name, value in dotenv_values(stream=StringIO(text), interpolate=False).items()}
    return found | FILLED


# --- what is started -------------------------------------------------------------------------------------------------


def test_by_default_label_studio_the_backend_and_the_worker_are_started() -> None:
    assert [name for name, one in SERVICES.items() if not one.get("profiles")] == ["label-studio", "backend", "worker"]
    profiles = {profile for one in SERVICES.values() for profile in one.get("profiles", [])}
    assert profiles == {"gpu", "vllm", "redis", "monitoring"}


def test_services_have_only_what_the_specification_knows() -> None:
    assert not {key for one in SERVICES.values() for key in one} - KEYS
    assert set(COMPOSE) - {"name", "services", "networks", "volumes", "secrets"} == {
        key for key in COMPOSE if key.startswith("x-")
    }


def test_what_is_named_is_declared() -> None:
    for name, one in SERVICES.items():
        assert networks_of(name) <= set(COMPOSE["networks"]), name
        assert set(one.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert set(one.get("depends_on", {})) <= set(SERVICES), name
        for source, target, *mode in (volume.split(":") for volume in one.get("volumes", [])):
            assert target.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).is_file(), source
                assert mode == ["ro"]
            else:
                assert source in COMPOSE["volumes"]
    used = {volume.split(":")[0] for one in SERVICES.values() for volume in one.get("volumes", [])}
    assert set(COMPOSE["volumes"]) <= used


def test_images_are_pinned_or_built_from_a_target_that_exists() -> None:
    targets = {stage.name for stage in read_dockerfile(ROOT / "docker" / "Dockerfile")}
    for name, one in SERVICES.items():
        if "build" in one:
            assert one["build"]["target"] in targets
            assert (ROOT / one["build"]["dockerfile"]).is_file()
            assert one["image"] == f"rsvp-backend:{one['build']['target']}"
        else:
            assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+(-[a-z]+)?", one["image"]), name


def test_the_gpu_twins_differ_in_what_a_gpu_needs_only() -> None:
    for name in ("backend", "worker"):
        plain, gpu = SERVICES[name], SERVICES[f"{name}-gpu"]
        assert {key for key in {*plain, *gpu} if plain.get(key) != gpu.get(key)} == {
            "image", "build", "deploy", "profiles",
        }  # fmt: skip
        (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert interpolated(plain["deploy"]["replicas"], {"CPU_REPLICAS": "0"}) == "0"
        assert interpolated(plain["deploy"]["replicas"], {}) == "1"


def test_every_service_is_watched_started_again_and_rotates_its_log() -> None:
    for name, one in SERVICES.items():
        assert one["restart"] == "unless-stopped"
        assert one["logging"]["options"]["max-size"]
        health = one.get("healthcheck", {})
        # The backend's is in its image; a worker listens to nothing.
        assert health.get("test") or name.startswith("backend") or (name.startswith("worker") and health["disable"])
        for needed in one.get("depends_on", {}).values():
            assert needed == {"condition": "service_healthy"}


# --- who may do what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OURS, "redis"])
def test_containers_of_ours_can_write_nothing_but_their_volumes(name: str) -> None:
    one = SERVICES[name]
    assert (one["read_only"], one["cap_drop"]) == (True, ["ALL"])
    assert [mount.split(":")[0] for mount in one["tmpfs"]] == ["/tmp"]


def test_nothing_gains_privileges() -> None:
    for one in SERVICES.values():
        assert one["security_opt"] == ["no-new-privileges:true"]
    assert not re.search(r"privileged: *true|docker\.sock|network_mode|pid: *host|ipc: *host", TEXT)


def test_only_this_machine_reaches_the_ports() -> None:
    ports = [port for one in SERVICES.values() for port in one.get("ports", [])]
    assert len(ports) >= 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)


def test_label_studio_shares_a_network_with_the_backend_and_its_worker_only() -> None:
    shared = [name for name in SERVICES if networks_of(name) & networks_of("label-studio")]
    assert shared == ["label-studio", *OURS]
    assert COMPOSE["networks"]["queue"]["internal"] is True
    assert networks_of("redis") == {"queue"}


def test_label_studios_guard_lets_the_backends_address_through_and_no_other_reserved_one() -> None:
    env = SERVICES["label-studio"]["environment"]
    assert env["LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS"] == "false"
    banned = [ipaddress.ip_network(one) for one in env["LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS"].split(",")]
    for name in ("backend", "backend-gpu"):
        address = ipaddress.ip_address(SERVICES[name]["networks"]["rsvp"]["ipv4_address"])
        assert not any(address in network for network in banned)
    for reserved in map(ipaddress.ip_network, RESERVED):
        left = [reserved]
        for network in (one for one in banned if one.version == reserved.version):
            left = [part for whole in left for part in _less(whole, network)]
        assert left in ([], [ipaddress.ip_network(address)]), reserved
    for public in ("1.1.1.1", "140.82.112.3", "172.32.0.1", "2606:4700::1"):
        assert not any(ipaddress.ip_address(public) in network for network in banned)


def _less(whole: Any, network: Any) -> list[Any]:
    if not whole.overlaps(network):
        return [whole]
    return [] if whole.subnet_of(network) else list(whole.address_exclude(network))


def test_the_backends_address_is_in_its_network_and_given_to_nobody_else() -> None:
    (config,) = COMPOSE["networks"]["rsvp"]["ipam"]["config"]
    address = ipaddress.ip_address(SERVICES["backend"]["networks"]["rsvp"]["ipv4_address"])
    assert address in ipaddress.ip_network(config["subnet"])
    assert address not in ipaddress.ip_network(config["ip_range"])
    assert ipaddress.ip_network(config["ip_range"]).subnet_of(ipaddress.ip_network(config["subnet"]))


def test_label_studio_takes_the_backends_name_for_a_webhook() -> None:
    """It drops those of names without a dot, or whose last part is no word."""
    for service in ("backend", "backend-gpu"):
        for alias in SERVICES[service]["networks"]["rsvp"]["aliases"]:
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,63}", alias)
            assert f"@{alias}:9090" in TEXT


# --- settings and secrets --------------------------------------------------------------------------------------------


def test_no_secret_is_in_the_file() -> None:
    found = 0
    for one in SERVICES.values():
        for name, value in one.get("environment", {}).items():
            if re.search("TOKEN|SECRET|PASSWORD|API_KEY", name):
                found += 1
                assert re.fullmatch(r"\$\{\w+(:-|:\?[^}]+)\}|/run/secrets/[a-z-]+", value), name
    assert found >= 6
    assert {tuple(secret) for secret in COMPOSE["secrets"].values()} == {("environment",)}
    assert all(not value for name, value in dotenv_values(ROOT / ".env.example").items()
               if re.search("TOKEN|SECRET|PASSWORD|API_KEY", name))  # fmt: skip
    assert ".env" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("name", list(FILLED))
def test_a_secret_that_is_not_set_stops_the_start_and_says_which(name: str) -> None:
    assert interpolated(COMPOSE, FILLED)
    with pytest.raises(MissingError, match=f"set {name} in .env"):
        interpolated(COMPOSE, {**FILLED, name: ""})


@pytest.mark.parametrize("service", OURS)
@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("#RSVP_REASONER=openai", "#RSVP_REASONER_API_KEY", "#RSVP_VLSM"),
        ("#RSVP_REASONER='http", "#VLLM"),
        ("#RSVP_QUEUE", "#RSVP_TRAIN", "#LABEL_STUDIO_HOST"),
    ],
)
def test_the_example_filled_in_makes_settings_that_are_safe_to_serve(
    service: str, lines: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RSVP_")]:
        monkeypatch.delenv(name)
    for name, value in environment_of(service, example(*lines)).items():
        monkeypatch.setenv(name, value)
    settings = load_settings(host="0.0.0.0")
    credentials = Credentials.of(settings)
    assert credentials.user == "rsvp"
    assert settings.versions == Path("/home/rsvp/learned/versions")
    assert settings.label_studio_url == "http://label-studio.rsvp.internal:8080"
    assert (settings.reasoner is not None) == any("REASONER" in line for line in lines)
    assert (settings.queue is not None) == ("#RSVP_QUEUE" in lines)


def test_versions_can_be_switched_off() -> None:
    """SAM 3 has none."""
    assert environment_of("backend", FILLED)["RSVP_VERSIONS"]
    assert environment_of("backend", {**FILLED, "RSVP_VERSIONS": ""})["RSVP_VERSIONS"] == ""


def test_the_example_names_what_exists() -> None:
    named = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", EXAMPLE, re.MULTILINE))
    known = {variable for variable, _, _ in settings_rows()}
    used = set(re.findall(r"\$\{(\w+)", TEXT)) | {"COMPOSE_PROFILES", "HF_TOKEN"}
    assert {name for name in named if name.startswith("RSVP_")} <= known
    assert {name for name in named if not name.startswith("RSVP_")} <= used
    assert set(FILLED) <= named
    assert used - named <= {"RSVP_VERSIONS", "VLLM_MAX_MODEL_LEN"}


def test_vllm_asks_for_the_key_that_the_backend_sends() -> None:
    vllm = SERVICES["vllm"]
    assert vllm["environment"]["VLLM_API_KEY"] == "${RSVP_REASONER_API_KEY:-}"
    reasoner = example("#RSVP_REASONER='http", "#VLLM")
    address, _, model = reasoner["RSVP_REASONER"].partition("#")
    assert address == f"http://{vllm['networks']['models']['aliases'][0]}:8000/v1"
    assert f"--model={model}" in interpolated(vllm["command"], reasoner)
    assert f"--model={model}" in interpolated(vllm["command"], {})
    assert "models" in networks_of("backend") & networks_of("worker")


def test_the_queue_is_the_redis_that_is_started() -> None:
    env = example("#RSVP_QUEUE")
    queue = Settings(queue=env["RSVP_QUEUE"]).queue
    assert queue is not None
    assert queue.get_secret_value() == "redis://redis:6379/0"
    assert all("queue" in networks_of(name) for name in OURS)


# --- monitoring ------------------------------------------------------------------------------------------------------


def monitoring(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "monitoring" / name).read_text())
    return found


def test_prometheus_asks_the_backend_with_its_password() -> None:
    (job,) = monitoring("prometheus.yml")["scrape_configs"]
    for file in job["basic_auth"].values():
        assert Path(file).parent == Path("/run/secrets")
        assert Path(file).name in SERVICES["prometheus"]["secrets"]
    assert job["static_configs"] == [{"targets": ["backend:9090"]}]
    for name in ("backend", "backend-gpu"):
        assert SERVICES[name]["networks"]["monitoring"]["aliases"] == ["backend"]
    assert COMPOSE["secrets"]["metrics-password"] == {"environment": "RSVP_BASIC_AUTH_PASSWORD"}


def test_grafana_shows_the_dashboard_from_prometheus() -> None:
    (source,) = monitoring("datasource.yml")["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    (provider,) = monitoring("dashboards.yml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert Path(mounts["./docker/grafana.json"]).parent == Path(provider["options"]["path"])
    assert Path(mounts["./docker/monitoring/datasource.yml"]).parent.name == "datasources"
    assert Path(mounts["./docker/monitoring/dashboards.yml"]).parent.name == "dashboards"
