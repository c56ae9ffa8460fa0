"""Tokens and API calls against a real HTTP server that answers as Label Studio does."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
from ls_http import Reply, Seen, Server, json_reply, serving

from rsvp_backend.errors import LabelStudioError
from rsvp_backend.labelstudio.auth import TokenAuth, origin
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.login import create_personal_token

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.signature"


PAT = jwt(token_type="refresh", exp=9_999_999_999, iat=0)


class Studio:
    """Hands out access tokens by number and accepts only the newest."""

    def __init__(self, server: Server) -> None:
        self.server, self.issued, self.life_s = server, 0, 300.0
        server.routes["/api/token/refresh/"] = self.refresh
        server.routes["/api/current-user/whoami"] = self.whoami

    def access(self) -> str:
        return jwt(token_type="access", iat=1000.0, exp=1000.0 + self.life_s, number=self.issued)

    def refresh(self, request: Seen) -> Reply:
        if request.json != {"refresh": PAT}:
            return json_reply({"detail": "Token is blacklisted"}, 401)
        self.issued += 1
        return json_reply({"access": self.access()})

    def whoami(self, request: Seen) -> Reply:
        accepted = (f"Bearer {self.access()}", f"Token {LEGACY}")
        return json_reply({"id": 1}) if request.headers.get("authorization") in accepted else json_reply({}, 401)

    def revoke(self) -> None:
        """From now on no access token of before is accepted."""
        self.issued += 1


@pytest.fixture
def studio() -> Iterator[Studio]:
    with serving() as server:
        yield Studio(server)


def test_a_personal_token_is_exchanged_once_for_many_calls(studio: Studio) -> None:
    with LabelStudioClient(studio.server.url + "/", PAT) as client:
        assert client.auth.kind == "personal"
        for _ in range(3):
            assert client.whoami() == {"id": 1}
    assert studio.server.paths() == ["/api/token/refresh/"] + ["/api/current-user/whoami"] * 3
    assert all(PAT not in seen.headers.get("authorization", "") for seen in studio.server.seen)


def test_an_access_token_is_renewed_in_time(studio: Studio) -> None:
    studio.life_s = 0.1
    with LabelStudioClient(studio.server.url, PAT) as client:
        client.whoami()
        time.sleep(0.1)
        client.whoami()
    assert studio.server.paths().count("/api/token/refresh/") == 2
    assert studio.server.paths()[2] == "/api/token/refresh/"  # before the call, not because of a refusal


def test_a_refused_access_token_is_renewed_once(studio: Studio) -> None:
    with LabelStudioClient(studio.server.url, PAT) as client:
        client.whoami()
        studio.revoke()
        assert client.whoami() == {"id": 1}
        studio.server.routes["/api/current-user/whoami"] = lambda _: json_reply({"detail": "no"}, 401)
        before = len(studio.server.seen)
        with pytest.raises(LabelStudioError, match="answered 401: no"):
            client.whoami()
    paths = studio.server.paths()[before:]
    assert paths == ["/api/current-user/whoami", "/api/token/refresh/", "/api/current-user/whoami"]


def test_only_the_refused_header_is_replaced(studio: Studio) -> None:
    auth = TokenAuth(studio.server.url, PAT)
    old = auth.header()
    new = auth.header(refused=old)
    assert new != old
    assert auth.header(refused=old) == new  # another thread has renewed it meanwhile
    assert studio.issued == 2


def test_a_legacy_token_is_sent_as_it_is(studio: Studio) -> None:
    with LabelStudioClient(studio.server.url, f" {LEGACY}\n") as client:
        assert client.auth.kind == "legacy"
        assert client.whoami() == {"id": 1}
        studio.server.routes["/api/current-user/whoami"] = lambda _: json_reply({"detail": "disabled"}, 401)
        with pytest.raises(LabelStudioError, match="disabled"):
            client.whoami()
    assert studio.server.paths() == ["/api/current-user/whoami"] * 2


@pytest.mark.parametrize("token", ["a.b.c", "custom-token", "x" * 40, "eyJ.###.z"])
def test_what_is_no_jwt_counts_as_legacy(token: str) -> None:
    assert TokenAuth("http://studio", token).kind == "legacy"


def test_useless_tokens_are_refused_at_once() -> None:
    with pytest.raises(LabelStudioError, match=r"is an access token.*RSVP_LABEL_STUDIO_TOKEN"):
        TokenAuth("http://studio", jwt(token_type="access"))
    with pytest.raises(LabelStudioError, match="is empty"):
        TokenAuth("http://studio", " ")


def test_a_revoked_personal_token_says_what_to_do_and_hides_itself(studio: Studio) -> None:
    revoked = jwt(token_type="refresh", other="user")
    with (
        LabelStudioClient(studio.server.url, revoked) as client,
        pytest.raises(LabelStudioError, match=r"refused the personal access token \(401\).*RSVP_LABEL") as caught,
    ):
        client.whoami()
    assert revoked not in str(caught.value)


def test_other_origins_are_not_signed(studio: Studio) -> None:
    with serving() as other:
        other.routes["/x"] = lambda _: json_reply({})
        with httpx.Client(auth=TokenAuth(studio.server.url, PAT)) as http:
            http.get(f"{other.url}/x")
    assert "authorization" not in other.seen[0].headers
    assert studio.server.seen == []


def test_origins() -> None:
    assert origin("http://localhost:80/a") == origin("HTTP://127.0.0.1/b") == origin("http://[::1]")
    assert origin("https://studio.example") == ("https", "studio.example", 443)
    assert origin("http://studio.example") != origin("https://studio.example:80")


def test_an_unreachable_or_other_server_is_named(studio: Studio) -> None:
    with serving() as server:
        url = server.url
    for token in (PAT, LEGACY):
        with pytest.raises(LabelStudioError, match=url.removeprefix("http://")):
            LabelStudioClient(url, token).whoami()
    studio.server.routes["/api/current-user/whoami"] = lambda _: (200, {}, b"<html>")
    with pytest.raises(LabelStudioError, match="without a JSON object"):
        LabelStudioClient(studio.server.url, LEGACY).whoami()


def test_validation_errors_are_shown(studio: Studio) -> None:
    complaint = {"detail": "Validation error", "validation_errors": {"title": ["too short"]}}
    studio.server.routes["/api/projects/"] = lambda _: json_reply(complaint, 400)
    with pytest.raises(LabelStudioError, match=r"POST /api/projects/ answered 400: Validation error.*too short"):
        LabelStudioClient(studio.server.url, LEGACY).create_project("x", "<View/>")


def test_projects_backends_and_predictions(studio: Studio) -> None:
    routes = studio.server.routes
    for path in ("/api/projects/", "/api/projects/3/import", "/api/ml", "/api/dm/actions", "/api/predictions"):
        routes[path] = lambda _: json_reply({"id": 3}, 201)
    with LabelStudioClient(studio.server.url, LEGACY) as client:
        client.create_project("Keys", "<View/>", description="d")
        client.import_tasks(3, [{"data": {"image": "/data/upload/3/a.png"}}])
        client.create_ml_backend(3, "http://127.0.0.1:9090", "rsvp-demo-1", extra_params={"instruction": "x"})
        client.retrieve_predictions(3)
        client.retrieve_predictions(3, [5, 6])
        client.create_prediction(5, {"result": [], "score": 0.0, "model_version": "v"})
    bodies = [seen.json for seen in studio.server.seen]
    assert bodies == [
        {"title": "Keys", "label_config": "<View/>", "description": "d"},
        [{"data": {"image": "/data/upload/3/a.png"}}],
        {
            "project": 3, "url": "http://127.0.0.1:9090", "title": "rsvp-demo-1", "is_interactive": True,
            "extra_params": {"instruction": "x"},
        },
        {"selectedItems": {"all": True, "excluded": []}},
        {"selectedItems": {"all": False, "included": [5, 6]}},
        {"task": 5, "result": [], "score": 0.0, "model_version": "v"},
    ]  # fmt: skip
    assert studio.server.paths()[3] == "/api/dm/actions?id=retrieve_tasks_predictions&project=3"


def test_uploads_give_the_uris_in_order(studio: Studio, tmp_path: Path) -> None:
    names: list[str] = []

    def accept(request: Seen) -> Reply:
        names.append(request.body.split(b'filename="')[1].split(b'"')[0].decode())
        number = len(names)
        studio.server.routes[f"/api/import/file-upload/{number}"] = lambda _: json_reply(
            {"file": f"upload/3/{names[number - 1]}"}
        )
        return json_reply({"file_upload_ids": [number]}, 201)

    studio.server.routes["/api/projects/3/import"] = accept
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    for path in paths:
        path.write_bytes(b"pixels of " + path.name.encode())
    with LabelStudioClient(studio.server.url, LEGACY) as client:
        assert client.upload_files(3, paths) == ["/data/upload/3/b.png", "/data/upload/3/a.png"]
    assert studio.server.paths()[0] == "/api/projects/3/import?commit_to_project=false"
    assert b"pixels of b.png" in studio.server.seen[0].body


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_tasks_are_read_page_by_page(studio: Studio, count: int) -> None:
    def page(request: Seen) -> Reply:
        query = parse_qs(request.path.partition("?")[2])
        first = (int(query["page"][0]) - 1) * 2
        if first >= count and first > 0:
            return json_reply({"detail": "Invalid page."}, 404)
        return json_reply({"tasks": [{"id": i} for i in range(first, min(first + 2, count))], "total": count})

    studio.server.routes["/api/tasks"] = page
    with LabelStudioClient(studio.server.url, LEGACY) as client:
        assert [task["id"] for task in client.tasks(3, page_size=2)] == list(range(count))


class LoginStudio:
    """The login form and the token list of one user."""

    def __init__(self, server: Server) -> None:
        self.tokens: list[str] = []
        server.routes["/user/login/"] = self.login
        server.routes["/api/token/"] = self.token
        server.routes["/api/token/blacklist/"] = self.revoke

    def login(self, request: Seen) -> Reply:
        if request.method == "GET":
            form = b'<input type="hidden" name="csrfmiddlewaretoken" value="abc">'
            return 200, {"Set-Cookie": "csrftoken=abc; Path=/"}, form
        sent = {key: value[0] for key, value in parse_qs(request.body.decode()).items()}
        if sent == {"email": "a@example.com", "password": "right", "csrfmiddlewaretoken": "abc"}:
            return 302, {"Set-Cookie": "sessionid=s1; Path=/", "Location": "/projects/"}, b""
        return 200, {}, b"<form>wrong</form>"

    def token(self, request: Seen) -> Reply:
        if "sessionid=s1" not in request.headers.get("cookie", ""):
            return json_reply({"detail": "no session"}, 401)
        if request.method == "GET":
            return json_reply([{"token": token} for token in self.tokens])
        if request.headers.get("x-csrftoken") != "abc":
            return json_reply({"detail": "csrf"}, 403)
        if self.tokens:
            return json_reply({"detail": "You already have a valid token."}, 409)
        self.tokens.append(f"token-{len(self.tokens)}")
        return json_reply({"token": self.tokens[-1]}, 201)

    def revoke(self, request: Seen) -> Reply:
        body = request.json
        assert isinstance(body, dict)
        self.tokens.remove(body["refresh"])
        return 204, {}, b""


def test_a_personal_token_from_the_login_form() -> None:
    with serving() as server:
        login = LoginStudio(server)
        with pytest.raises(LabelStudioError, match=r"did not log in 'a@example.com'"):
            create_personal_token(server.url, "a@example.com", "wrong")
        assert create_personal_token(server.url + "/", "a@example.com", "right") == "token-0"
        with pytest.raises(LabelStudioError, match="409: You already have a valid token"):
            create_personal_token(server.url, "a@example.com", "right")
        login.tokens = ["old"]
        assert create_personal_token(server.url, "a@example.com", "right", replace=True) == "token-0"
        assert login.tokens == ["token-0"]
