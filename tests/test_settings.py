"""Settings: read from the environment and .env, strict about names and values, and equal to the README's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsvp_backend import presets
from rsvp_backend.access import make_traces
from rsvp_backend.errors import SettingsError
from rsvp_backend.masks import Cleanup
from rsvp_backend.reasoner.cache import AnswerStore, CachedReasoner
from rsvp_backend.reasoner.chat import ChatConfig, ChatReasoner
from rsvp_backend.reasoner.endpoint import EndpointConfig
from rsvp_backend.reasoner.local import Decoding, LocalReasoner
from rsvp_backend.reasoner.usage import Budget, Prices
from rsvp_backend.settings import Settings, load_settings, settings_markdown, settings_rows
from rsvp_backend.trace_files import TraceLimits
from rsvp_backend.vlsm.segmenter import SegmenterOptions, VlsmSegmenter

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)


def test_defaults_need_nothing() -> None:
    settings = load_settings()
    assert (settings.preset, settings.host, settings.port) == ("demo", "127.0.0.1", 9090)
    assert settings.predict_timeout_s < 100  # Label Studio's own limit


def test_overrides_win_over_the_environment_which_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("RSVP_PORT=1000\nRSVP_HOST=10.0.0.1\nRSVP_PADDING=0.5\nOTHER=1\n")
    monkeypatch.setenv("RSVP_PORT", "2000")
    monkeypatch.setenv("rsvp_host", "10.0.0.2")
    settings = load_settings(port=3000, preset=None)
    assert (settings.port, settings.host, settings.padding) == (3000, "10.0.0.2", 0.5)


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, _, _ in settings_rows():
        monkeypatch.setenv(variable, "")
    assert load_settings() == Settings.model_construct()


@pytest.mark.parametrize("place", ["environment", "file"])
def test_an_unknown_name_stops_the_start_and_is_named(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    if place == "file":
        Path(".env").write_text("RSVP_PROT=9091\n")
    else:
        monkeypatch.setenv("RSVP_PROT", "9091")
    with pytest.raises(SettingsError, match=r"RSVP_PROT: did you mean RSVP_PORT\?"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("RSVP_PRESET", "demi", "'demo'"),
        ("RSVP_PORT", "70000", "65535"),
        ("RSVP_PUBLIC_URL", "backend:9090", "an address like http"),
        ("RSVP_TRACES_DAYS", "0", "greater than 0"),
        ("RSVP_TRACES_BYTES", "1000", "1048576"),
        ("RSVP_PORT", "abc", "integer"),
        ("RSVP_PADDING", "-1", "greater than or equal to 0"),
        ("RSVP_ZOOM", "on", "'off', 'auto' or 'always'"),
        ("RSVP_TEXT_ONLY", "yes", "'off' or 'noun-phrases'"),
        ("RSVP_MARKS_KIND", "dots", "'bands' or 'cells'"),
        ("RSVP_MARKS_ROWS", "51", "50"),
        ("RSVP_DTYPE", "int8", "'float16'"),
        ("RSVP_DEVICE", "gpu", "auto, cpu, cuda"),
        ("RSVP_LOG_LEVEL", "LOUD", "'WARNING'"),
        ("RSVP_REASONER", "gpt-4o", "openai:MODEL"),
        ("RSVP_REASONER", "http://host/v1", "#MODEL"),
        ("RSVP_REASONER_MAX_TOKENS", "63", "greater than or equal to 64"),
        ("RSVP_REASONER_CONSTRAINED", "perhaps", "boolean"),
        ("RSVP_REASONING", "long", "'full' or 'short'"),
        ("RSVP_REASONER_IMAGE_PX", "100", "greater than or equal to 256"),
        ("RSVP_REASONER_CONCURRENCY", "0", "greater than or equal to 1"),
        ("RSVP_MAX_REQUESTS", "0", "greater than or equal to 1"),
        ("RSVP_BACKLOG_TASKS", "-1", "greater than or equal to 0"),
        ("RSVP_REASONER_PRICE_IN", "-1", "greater than or equal to 0"),
        ("RSVP_REASONER_PRICE_OUT", "nan", "finite number"),
        ("RSVP_REASONER_BUDGET_PER_HOUR", "0", "greater than 0"),
        ("RSVP_REASONER_CALLS_PER_HOUR", "0", "greater than or equal to 1"),
        ("RSVP_ANSWER_CACHE_BYTES", "1", "greater than or equal to 65536"),
        ("RSVP_VLSM", "https://huggingface.co/YxZhang/evf-sam", "OWNER/NAME[@REVISION]"),
        ("RSVP_VLSM", "hf:YxZhang/evf-sam", "OWNER/NAME[@REVISION]"),
        ("RSVP_LABEL_STUDIO_URL", "localhost:8080", "http://localhost:8080"),
        ("RSVP_PREDICT_TIMEOUT_S", "0", "greater than 0"),
        ("RSVP_VLSM_VIEW", "full", "'crop' or 'full+box'"),
        ("RSVP_VLSM_MAX_BATCH", "0", "greater than or equal to 1"),
        ("RSVP_VLSM_CACHE_BYTES", "-1", "greater than or equal to 0"),
        ("RSVP_VLSM_COMPILE", "perhaps", "boolean"),
        ("RSVP_TRAIN_EVERY", "-1", "greater than or equal to 0"),
        ("RSVP_TRAIN_DEBOUNCE_S", "-1", "greater than or equal to 0"),
        ("RSVP_MASK_MIN_AREA_PX", "-1", "greater than or equal to 0"),
        ("RSVP_MASK_COMPONENTS", "biggest", "'all' or 'largest'"),
        ("RSVP_ALLOW_PRIVATE_ADDRESSES", "maybe", "boolean"),
        ("RSVP_IMAGE_HOSTS", "https://example.com/x", "*.DOMAIN[:PORT]"),
        ("RSVP_IMAGE_HOSTS", "a.example,,b.example", "HOST[:PORT]"),
        ("RSVP_MAX_BODY_BYTES", "1000", "greater than or equal to 65536"),
        ("RSVP_ALLOW_NO_AUTH", "perhaps", "boolean"),
        ("RSVP_LOG_FORMAT", "xml", "'text' or 'json'"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{variable} is {value!r}: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "value", ["demo", "openai:gpt-4o", "hf:Qwen/Qwen2-VL-2B-Instruct", "hf:./model", "https://host:8000/v1#org/model"]
)
def test_every_form_of_a_reasoner_is_taken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RSVP_REASONER", value)
    assert load_settings().reasoner == value


@pytest.mark.parametrize(
    "value",
    [
        "demo",
        "YxZhang/evf-sam@main",
        "/weights/evf",
        "~/m/model.safetensors",
        "sam.pth+b/beit3.pth",
        "sam3:facebook/sam3",
    ],
)
def test_every_form_of_a_vlsm_is_taken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RSVP_VLSM", value)
    assert load_settings().vlsm == value


def test_settings_that_need_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSVP_BASIC_AUTH_USER", "me")
    with pytest.raises(SettingsError, match="RSVP_BASIC_AUTH_PASSWORD"):
        load_settings()
    monkeypatch.delenv("RSVP_BASIC_AUTH_USER")
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", "a-secret-token")
    with pytest.raises(SettingsError, match="RSVP_LABEL_STUDIO_URL is not") as caught:
        load_settings()
    assert "a-secret-token" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("redis://localhost", True),
        ("redis://:pass:word@host.example:6379/3", True),
        ("rediss://user:password@[::1]:6380", True),
        ("localhost:6379", False),
        ("redis://", False),
        ("redis://:password@host:port", False),
    ],
)
def test_a_queue_is_a_redis_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str, taken: bool
) -> None:
    monkeypatch.setenv("RSVP_QUEUE", value)
    if taken:
        queue = load_settings().queue
        assert queue is not None
        assert queue.get_secret_value() == value
        assert value not in repr(load_settings())
        return
    with pytest.raises(SettingsError, match=r"RSVP_QUEUE is \*\*\*: redis://.* is expected"):
        load_settings()


def test_the_webhooks_secret_fits_a_header_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for short in ("short", "sixteen characters with spaces", "sixteen-characters-\u00e4"):
        monkeypatch.setenv("RSVP_WEBHOOK_SECRET", short)
        with pytest.raises(SettingsError, match=r"RSVP_WEBHOOK_SECRET is \*\*\*: 16 or more ASCII letters"):
            load_settings()
    monkeypatch.setenv("RSVP_WEBHOOK_SECRET", "0123456789abcdef")
    assert "0123456789abcdef" not in repr(load_settings())


def test_a_user_name_has_no_colon() -> None:
    with pytest.raises(SettingsError, match="RSVP_BASIC_AUTH_USER has a colon"):
        load_settings(basic_auth_user="a:b", basic_auth_password="secret")


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", "http://localhost:8080")
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", "a-secret-token")
    monkeypatch.setenv("RSVP_REASONER_API_KEY", "a-secret-key")
    assert "a-secret" not in repr(load_settings())


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_every_setting_has_a_meaning_and_the_readme_shows_the_same_table() -> None:
    assert all(meaning for _, _, meaning in settings_rows())
    shown = README.read_text(encoding="utf-8").split("<!-- settings -->")[1].split("<!-- /settings -->")[0]
    assert shown.strip() == settings_markdown()


def test_a_budget_needs_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSVP_REASONER_BUDGET_PER_HOUR", "2")
    monkeypatch.setenv("RSVP_REASONER_PRICE_IN", "2.5")
    with pytest.raises(SettingsError, match="RSVP_REASONER_PRICE_OUT"):
        load_settings()
    monkeypatch.setenv("RSVP_REASONER_PRICE_OUT", "0")
    assert load_settings().reasoner_budget_per_hour == 2


def test_the_remote_reasoners_settings_reach_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {
        "": "https://host/v1#org/model", "_API_KEY": "a-key", "_TIMEOUT_S": "7", "_MAX_TOKENS": "99",
        "_IMAGE_PX": "512", "_CONCURRENCY": "3", "_PRICE_IN": "2.5", "_PRICE_OUT": "10", "_BUDGET_PER_HOUR": "1.5",
        "_CALLS_PER_HOUR": "100",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"RSVP_REASONER{name}", value)
    monkeypatch.setenv("RSVP_ANSWER_CACHE", str(tmp_path))
    monkeypatch.setenv("RSVP_ANSWER_CACHE_BYTES", "70000")
    cached = presets.build(load_settings()).reasoner
    assert isinstance(cached, CachedReasoner)
    assert cached.store == AnswerStore(tmp_path, 70_000)
    assert isinstance(cached.inner, ChatReasoner)
    assert cached.inner.config == ChatConfig(
        "org/model",
        EndpointConfig("https://host/v1", "a-key", 7.0, concurrency=3),
        max_tokens=99,
        image_px=512,
        prices=Prices(2.5, 10.0),
        budget=Budget(1.5, 100),
    )


def test_the_local_reasoners_settings_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSVP_REASONER_CONSTRAINED", "false")
    monkeypatch.setenv("RSVP_REASONING", "short")
    local = presets.build(load_settings()).reasoner
    assert isinstance(local, LocalReasoner)
    assert local._decoding == Decoding(constrained=False, reasoning="short")
    assert local._grammars is None


def test_answers_are_kept_by_a_setting_only_and_never_the_demos(tmp_path: Path) -> None:
    remote = presets.build(load_settings(reasoner="http://host/v1#m")).reasoner
    assert isinstance(remote, CachedReasoner)
    assert remote.store is None
    assert not isinstance(presets.build(load_settings(answer_cache=tmp_path)).reasoner, CachedReasoner)


def test_a_query_in_a_base_address_is_refused() -> None:
    with pytest.raises(SettingsError, match="openai/v1#DEPLOYMENT"):
        presets.build(load_settings(reasoner="https://x.openai.azure.com/openai?api-version=2024-10-21#gpt-4o"))


def test_the_vlsms_settings_reach_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSVP_VLSM_VIEW", "full+box")
    monkeypatch.setenv("RSVP_VLSM_MAX_BATCH", "3")
    monkeypatch.setenv("RSVP_VLSM_CACHE_BYTES", "1000")
    monkeypatch.setenv("RSVP_MASK_MIN_AREA_PX", "9")
    monkeypatch.setenv("RSVP_MASK_COMPONENTS", "largest")
    rsvp = presets.build(load_settings())
    assert isinstance(rsvp.segmenter, VlsmSegmenter)
    assert rsvp.segmenter.options == SegmenterOptions(view="full+box", max_batch=3, cache_bytes=1000)
    assert rsvp.config.cleanup == Cleanup(9, "largest")
    assert presets.build(load_settings(mask_min_area_px=8)).version != rsvp.version


def test_zoom_and_text_only_reach_the_pipeline_and_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = presets.build(load_settings())
    assert (plain.config.zoom.mode, plain.config.text_only) == ("off", False)
    monkeypatch.setenv("RSVP_ZOOM", "always")
    monkeypatch.setenv("RSVP_TEXT_ONLY", "noun-phrases")
    both = presets.build(load_settings())
    assert (both.config.zoom.mode, both.config.text_only) == ("always", True)
    versions = {presets.build(load_settings(zoom=mode)).version for mode in ("off", "auto", "always")}
    assert both.version in versions
    assert len({plain.version, *versions}) == 4


def test_prompts_reach_remote_reasoners_and_their_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RSVP_REASONER", "http://localhost:1/v1#some-model")
    plain = presets.build(load_settings())
    (tmp_path / "prompts").mkdir()
    file = tmp_path / "prompts" / "rsvp_bands.txt"
    file.write_text("Where is {instruction_json}?\n{label_step}Answer like {example}\n")
    monkeypatch.setenv("RSVP_PROMPTS", str(tmp_path / "prompts"))
    replaced = presets.build(load_settings())
    assert replaced.reasoner.version != plain.reasoner.version
    assert replaced.version != plain.version
    file.write_text("Where is {instruction}?")
    with pytest.raises(SettingsError, match=r"rsvp_bands.txt holds the unknown placeholder {instruction}"):
        load_settings()


def test_learning_is_told_what_to_keep_and_how_much_to_predict_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_settings().replay, load_settings().repredict) == ("scenes", 100)
    refused = (("REPLAY", "all", "'scenes' or 'none'"), ("REPREDICT", "-1", "greater than or equal"))
    for name, value, expected in refused:
        with monkeypatch.context() as patch:
            patch.setenv(f"RSVP_{name}", value)
            with pytest.raises(SettingsError, match=rf"RSVP_{name} is '{value}': .*{expected}"):
                load_settings()


def test_versions_are_a_folder_over_a_vlsm_that_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RSVP_VERSIONS", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"RSVP_VERSIONS is '.*file': a folder"):
        load_settings()
    monkeypatch.setenv("RSVP_VERSIONS", str(tmp_path / "versions"))
    with pytest.raises(SettingsError, match="SAM 3 has no versions: unset it"):
        load_settings(vlsm="sam3:facebook/sam3")
    plain = presets.build(load_settings().model_copy(update={"versions": None}))
    empty = presets.build(load_settings())
    assert (empty.version, presets.updated(empty)) == (plain.version, None)
    assert presets.updated(plain) is None
    assert not (tmp_path / "versions").exists()


def test_reasoner_versions_are_a_folder_of_their_own_over_a_local_reasoner(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RSVP_REASONER_VERSIONS", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"RSVP_REASONER_VERSIONS is '.*file': a folder"):
        load_settings()
    monkeypatch.setenv("RSVP_REASONER_VERSIONS", str(tmp_path / "versions"))
    for server in ("openai:gpt-4o", "http://localhost:8000/v1#qwen"):
        with pytest.raises(SettingsError, match="a reasoner on a server has no versions: unset it"):
            load_settings(reasoner=server)
    with pytest.raises(SettingsError, match="are the same folder: give each its own"):
        load_settings(versions=tmp_path / "versions")
    plain = presets.build(load_settings(reasoner_versions=""))
    versioned = presets.build(load_settings())
    assert versioned.version == plain.version
    assert presets.updated(versioned) is None
    assert not (tmp_path / "versions").exists()


def test_traces_are_kept_where_and_as_long_as_the_settings_say(tmp_path: Path) -> None:
    settings = load_settings(traces=tmp_path, traces_days=3, traces_bytes=2**21, public_url="https://rsvp.example")
    log = make_traces(settings)
    assert log.address("x") == "https://rsvp.example/traces/x"
    assert log._files is not None
    assert (log._files._folder, log._files._limits) == (tmp_path, TraceLimits(3, 2**21))
