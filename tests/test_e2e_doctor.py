"""The doctor against a real Label Studio that is broken in many ways: it names each cause and its cure, and mends."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ls_http import Reply, Seen, json_reply, serving

from rsvp_backend import cli
from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.demo.project import create_project, demo_tasks, preannotate
from rsvp_backend.demo.run import Stack, running
from rsvp_backend.doctor import Finding, Subject, examine, repair
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.login import create_personal_token
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.settings import Settings, load_settings

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)
SECRET = "a-secret-of-the-webhooks"
WHOLE = default_label_config(["key", "mug"])


@dataclass(frozen=True)
class Clinic:
    """A running Label Studio with a healthy project; each test breaks one of its own or the settings."""

    stack: Stack
    client: LabelStudioClient
    settings: Settings
    healthy: int
    images: list[tuple[Path, str]]

    def project(self, label_config: str = WHOLE) -> int:
        """A connected project with one task."""
        return create_project(self.client, self.stack.backend, self.images[:1], "broken", label_config).project

    def hook(self, project: int) -> dict[str, Any]:
        (hook,) = self.client.webhooks(project)
        return hook

    def backend(self, project: int) -> dict[str, Any]:
        (backend,) = self.client.ml_backends(project)
        return backend

    def send(self, method: str, path: str, body: object = None) -> httpx.Response:
        answer = httpx.request(
            method, f"{self.client.base_url}{path}", json=body, auth=self.client.auth, timeout=60.0, trust_env=False
        )
        return answer.raise_for_status()


def say(line: str) -> None:
    print(line)  # noqa: T201


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    data = tmp_path_factory.mktemp("doctor")
    label_studio.prepare(HOME, say)
    images = demo_tasks(data / "images", 2)
    with running(HOME, data, say) as stack, LabelStudioClient(stack.label_studio_url, stack.token) as client:
        healthy = create_project(client, stack.backend, images, "healthy", WHOLE)
        preannotate(client, healthy, say)
        settings = load_settings(
            label_studio_url=stack.label_studio_url, label_studio_token=stack.token, traces=data / "traces"
        )
        yield Clinic(stack, client, settings, healthy.project, images)


def seen(settings: Settings, project: int | None, url: str | None = None) -> list[Finding]:
    return list(examine(settings, Subject(project, url, models=False)))


def problems(settings: Settings, project: int | None, url: str | None = None) -> list[str]:
    return [str(one) for one in seen(settings, project, url) if one.state == "problem"]


def test_a_healthy_project_has_no_problem(clinic: Clinic) -> None:
    found = seen(clinic.settings, clinic.healthy)
    assert {one.state for one in found} == {"ok"}, "\n".join(map(str, found))
    told = "\n".join(map(str, found))
    for expected in ("release 1.23.2", "token: personal, of demo@example.com", "labels key, mug", "(with the token)",
                     "512 x 384 px", f"serving {clinic.stack.backend.model_version}", "/webhook, active",
                     "clock: the same"):  # fmt: skip
        assert expected in told
    assert clinic.stack.token not in told


# --- address and token ---------------------------------------------------------------------------------------------


def jwt(claims: dict[str, Any]) -> str:
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in
                    (b'{"alg":"HS256"}', json.dumps(claims).encode(), b"signature"))  # fmt: skip


def legacy(clinic: Clinic) -> str:
    return str(clinic.send("GET", "/api/current-user/token").json()["token"])


@pytest.mark.parametrize(
    ("token", "cause", "cure"),
    [
        (lambda _: "0" * 40, "does not know this legacy token", "make a personal access token"),
        (legacy, "a legacy token, which this Label Studio's organization has switched off", "make a personal access"),
        (lambda _: jwt({"token_type": "refresh", "exp": 4e9}), "it was revoked, or is of another", "make a personal"),
        (lambda _: jwt({"token_type": "access"}), "is an access token (ends in minutes)", "make a new one"),
    ],
    ids=["unknown", "legacy-off", "revoked", "access"],
)
def test_tokens(clinic: Clinic, token: Callable[[Clinic], str], cause: str, cure: str) -> None:
    settings = clinic.settings.model_copy(update={"label_studio_token": _secret(token(clinic))})
    (problem,) = problems(settings, clinic.healthy)
    assert cause in problem
    assert cure in problem
    assert token(clinic) not in problem


def _secret(value: str) -> Any:
    return load_settings(label_studio_url="http://x", label_studio_token=value).label_studio_token


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "cause", "cure"),
    [
        (lambda _: f"http://127.0.0.1:{free_port()}", "refused", "nothing listens at"),
        (lambda _: "http://no-such-host.invalid:8080", "no-such-host.invalid", "host name of RSVP_LABEL_STUDIO_URL"),
        (lambda clinic: clinic.stack.backend.url, "answered 404", "the address of a Label Studio?"),
    ],
    ids=["down", "host-name", "not-label-studio"],
)
def test_addresses(clinic: Clinic, url: Callable[[Clinic], str], cause: str, cure: str) -> None:
    settings = clinic.settings.model_copy(update={"label_studio_url": url(clinic)})
    (problem,) = problems(settings, clinic.healthy)
    assert cause in problem
    assert cure in problem


def test_a_project_that_is_not_there(clinic: Clinic) -> None:
    (problem,) = problems(clinic.settings, 9999)
    assert "project 9999: it is not there, or the token's user may not see it" in problem
    assert f"{clinic.healthy} (healthy)" in problem


# --- the labeling config and the tasks -----------------------------------------------------------------------------


def without(tag: str, xml: str = WHOLE) -> str:
    """The config less the tag with this attribute."""
    start = xml.index(tag)
    start = xml.rindex("<", 0, start)
    return xml[:start] + xml[xml.index("/>", start) + 2 :]


def test_no_tag_for_masks(clinic: Clinic) -> None:
    choices = '<Choices name="c" toName="image"><Choice value="A"/></Choices>'
    project = int(
        clinic.client.create_project("no masks", f'<View><Image name="image" value="$image"/>{choices}</View>')["id"]
    )
    found = problems(clinic.settings, project)
    assert "no <BrushLabels>, <BitmaskLabels>, <PolygonLabels> or <RectangleLabels>" in found[0]
    assert 'Add inside <View>: <BrushLabels name="mask"' in found[0]
    assert "rsvp-backend label-config" in found[0]


def test_no_field_for_the_reasoning_and_none_for_a_prompt(clinic: Clinic) -> None:
    xml = without('name="prompt"', without('name="reasoning"'))
    project = clinic.project(xml)
    (problem,) = problems(clinic.settings, project)
    assert "reasons are only in a region's Info panel" in problem
    assert "doctor --fix" in problem
    (advice,) = [str(one) for one in seen(clinic.settings, project) if one.state == "advice"]
    assert "no field for an instruction of their own" in advice
    fixed = list(repair(clinic.settings, project, None))
    assert [one.state for one in fixed] == ["fixed"]
    now = str(clinic.client.project(project)["label_config"])
    assert parse_label_config(now).reasoning_name == "reasoning"
    assert now.startswith(xml[: xml.rindex("</View>")])  # nothing else was touched
    assert problems(clinic.settings, project) == []
    assert list(repair(clinic.settings, project, None)) == []


def test_predictions_that_name_what_the_config_lacks(clinic: Clinic) -> None:
    project = clinic.project()
    task = next(clinic.client.tasks(project))
    value = {"format": "rle", "rle": [1], "brushlabels": ["lorry"]}
    result = {"id": "a", "from_name": "old-mask", "to_name": "image", "type": "brushlabels", "value": value}
    clinic.client.create_prediction(int(task["id"]), {"result": [result], "score": 0.5, "model_version": "x"})
    (problem,) = problems(clinic.settings, project)
    assert "name the control old-mask and the label lorry, which the labeling config lacks" in problem
    assert "Delete Predictions" in problem


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (
            {"image": "/data/upload/1/gone.png", "instruction": "x"},
            "the file is gone, or the project lacks the storage",
        ),
        ({"image": "http://10.0.0.1/a.png", "instruction": "x"}, "RSVP_ALLOW_PRIVATE_ADDRESSES=true allows others"),
        (
            {"image": "http://no-such-host.invalid/a.png", "instruction": "x"},
            "see that this machine reaches that address",
        ),
        ({"image": "/data/upload/1/a.png"}, "Add the field 'instruction' to the task's data"),
    ],
    ids=["gone", "private", "unknown-host", "no-instruction"],
)
def test_tasks(clinic: Clinic, data: dict[str, str], cause: str) -> None:
    project = int(clinic.client.create_project("tasks", WHOLE)["id"])
    clinic.client.create_ml_backend(project, clinic.stack.backend.url, clinic.stack.backend.model_version)
    clinic.client.import_tasks(project, [{"data": data}])
    (problem,) = problems(clinic.settings, project)
    assert cause in problem


# --- the backend and its webhook -----------------------------------------------------------------------------------


def test_no_backend_is_connected_by_fix(clinic: Clinic) -> None:
    project = int(clinic.client.create_project("alone", WHOLE)["id"])
    (problem,) = problems(clinic.settings, project)
    assert f"backend: project {project} has none" in problem
    assert "--fix --backend-url" in problem
    fixed = [str(one) for one in repair(clinic.settings, project, clinic.stack.backend.url)]
    assert fixed == [
        f"backend: connected at {clinic.stack.backend.url}",
        f"backend: its title is its version now, {clinic.stack.backend.model_version}",
    ]
    assert problems(clinic.settings, project) == []
    assert list(repair(clinic.settings, project, clinic.stack.backend.url)) == []
    assert len(clinic.client.ml_backends(project)) == 1


def health(_: Seen) -> Reply:
    return json_reply({"status": "UP"})


def test_a_backend_that_is_gone_and_where_it_is_now(clinic: Clinic) -> None:
    with serving() as server:
        server.routes |= {"/health": health, "/setup": lambda _: json_reply({"model_version": "rsvp-x"})}
        project = int(clinic.client.create_project("gone", WHOLE)["id"])
        clinic.client.create_ml_backend(project, server.url, "rsvp-x")
    (problem,) = [one for one in problems(clinic.settings, project) if one.startswith("backend")]
    assert f"Label Studio cannot use {server.url}" in problem
    assert "nothing listens there" in problem
    fixed = [one.text for one in repair(clinic.settings, project, clinic.stack.backend.url)]
    assert fixed[0] == f"backend: its address is {clinic.stack.backend.url}"
    assert problems(clinic.settings, project) == []


def test_a_backend_that_asks_for_a_password(clinic: Clinic) -> None:
    expected = base64.b64encode(b"studio:the-password").decode()

    asks = False

    def setup(request: Seen) -> Reply:
        right = not asks or request.headers.get("authorization") == f"Basic {expected}"
        return json_reply({"model_version": "rsvp-x"}) if right else json_reply({}, 401)

    with serving() as server:
        server.routes |= {"/health": health, "/setup": setup}
        project = int(clinic.client.create_project("password", WHOLE)["id"])
        clinic.client.create_ml_backend(project, server.url, "rsvp-x")
        asks = True
        settings = clinic.settings.model_copy(
            update={"basic_auth_user": "studio", "basic_auth_password": _secret("the-password")}
        )
        (problem,) = [one for one in problems(settings, project) if one.startswith("backend")]
        assert "asks for RSVP_BASIC_AUTH_USER and its password" in problem
        fixed = [one.text for one in repair(settings, project, None)]
        assert fixed == ["backend: it has the user and the password"]
        assert problems(settings, project) == []


def test_titles_and_versions_that_differ(clinic: Clinic) -> None:
    version, url = clinic.stack.backend.model_version, clinic.stack.backend.url
    project = clinic.project()
    clinic.client.update_ml_backend(int(clinic.backend(project)["id"]), project, url, "my model", is_interactive=False)
    titled, interactive = problems(clinic.settings, project)
    assert f"its title is 'my model', its version '{version}'" in titled
    assert "interactive pre-annotations are off" in interactive
    assert [one.text for one in repair(clinic.settings, project, None)] == [
        "backend: interactive pre-annotations are on", f"backend: its title is its version now, {version}",
    ]  # fmt: skip
    task = int(next(clinic.client.tasks(project))["id"])
    clinic.client.create_prediction(task, {"result": [], "score": 0.5, "model_version": "old"})
    clinic.client.update_project(project, model_version="old")
    (other,) = problems(clinic.settings, project)
    assert f"its model version is 'old', not the backend's '{version}'" in other
    assert [one.text for one in repair(clinic.settings, project, None)] == [
        f"project: its model version is {version} now"
    ]
    assert problems(clinic.settings, project) == []


def test_webhooks(clinic: Clinic) -> None:
    project = clinic.project()
    clinic.send("DELETE", f"/api/webhooks/{clinic.hook(project)['id']}/")
    (missing,) = problems(clinic.settings, project)
    assert "webhook: there is none" in missing
    assert [one.text for one in repair(clinic.settings, project, None)] == [
        "webhook: made, for all events, with their data"
    ]
    assert problems(clinic.settings, project) == []
    clinic.client.update_webhook(
        int(clinic.hook(project)["id"]), is_active=False, send_for_all_actions=False, actions=["PROJECT_UPDATED"]
    )
    settings = clinic.settings.model_copy(update={"webhook_secret": _secret(SECRET)})
    off, events, secret = problems(settings, project)
    assert "it is switched off" in off
    assert "it does not send the events of annotations" in events
    assert "it does not send RSVP_WEBHOOK_SECRET, so its events are refused" in secret
    assert [one.text for one in repair(settings, project, None)] == [
        "webhook: headers, is_active, send_for_all_actions set"
    ]
    assert clinic.hook(project)["headers"] == {"X-RSVP-Webhook-Secret": SECRET}
    assert problems(settings, project) == []
    assert list(repair(settings, project, None)) == []


def test_a_name_that_label_studio_takes_no_webhook_to(clinic: Clinic) -> None:
    fixed = list(
        repair(clinic.settings, int(clinic.client.create_project("no dot", WHOLE)["id"]), "http://no-such-backend:9090")
    )
    assert [one.state for one in fixed] == ["problem"]
    assert "Label Studio does not know this host name" in str(fixed[0])


def test_a_label_studio_that_refuses_private_addresses(
    tmp_path: Path, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is by default: a second one, with its guards up."""
    environment = label_studio._server_env
    guards = {"LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "true", "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "true"}
    monkeypatch.setattr(label_studio, "_server_env", lambda *given: environment(*given) | guards)
    child, url, account = label_studio.start(HOME, tmp_path / "guarded", say)
    try:
        token = create_personal_token(url, account.email, account.password)
        settings = load_settings(label_studio_url=url, label_studio_token=token)
        with LabelStudioClient(url, token) as client:
            project = int(client.create_project("guarded", WHOLE)["id"])
        (refused,) = repair(settings, project, clinic.stack.backend.url)
        assert refused.state == "problem"
        assert "reserved network address" in refused.text
        assert "LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false" in refused.todo
    finally:
        child.stop()


def test_the_command(clinic: Clinic, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", clinic.stack.label_studio_url)
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", clinic.stack.token)
    project = clinic.project(without('name="reasoning"'))
    asked = ["doctor", "--no-models", "--project", str(project)]
    assert cli.main(asked) == 1
    printed = capsys.readouterr().out
    assert "problem  labeling config: there is no" in printed
    assert "         to do: `rsvp-backend doctor --fix` adds one" in printed
    assert cli.main([*asked, "--fix", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == 0
    assert report["findings"][0]["state"] == "fixed"
