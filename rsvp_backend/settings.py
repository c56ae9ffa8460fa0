"""All settings, read once from the environment (``RSVP_*``) and a file ``.env``; nothing else reads either of them.

An unknown ``RSVP_*`` name or a value that is not allowed raises `SettingsError` with the name and what is expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from rsvp_backend.errors import SettingsError
from rsvp_backend.labelstudio.hosts import allowed_hosts
from rsvp_backend.reasoner.prompts import check_folder

PREFIX = "RSVP_"
ENV_FILE = Path(".env")
REASONER_FORMS = "demo, openai:MODEL, hf:ID-OR-FOLDER or http(s)://HOST/v1#MODEL"
VLSM_FORMS = "demo, OWNER/NAME[@REVISION] on Hugging Face, a folder, a file, SAM.pth+BEIT3.pth[+PROJECTOR] or sam3:ID"
_REASONER = re.compile(r"demo|openai:\S+|hf:\S+|https?://[^\s#]+#\S+")
# Any path may be meant; a web address or the prefix of another setting is not one.
_NO_VLSM = re.compile(r"[a-z]+://.*|(hf|openai):.*|.*\n.*", re.DOTALL)
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?|mps")
_REDIS = re.compile(r"rediss?://([^\s/@]*@)?([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?(/\d*)?(\?\S*)?")
_WEBHOOK_SECRET = re.compile(r"[!-~]{16,}")
_SHOWN_CHARS = 100

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseSettings):
    """One frozen object for the whole process. The descriptions are the rows of the README's table."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    preset: Literal["demo"] = Field("demo", description="reasoner and VLSM by one name: `demo`")
    reasoner: str | None = Field(
        None,
        description="stage 1 in place of the preset's: `demo`, `openai:MODEL`, `hf:ID-OR-FOLDER` (transformers), or "
        "`http(s)://HOST/v1#MODEL` (any OpenAI-compatible server)",
    )
    reasoner_constrained: bool = Field(
        True, description="a local reasoner can only write answers of the asked form (grammar-constrained decoding)"
    )
    reasoning: Literal["full", "short"] = Field(
        "full",
        description="a local reasoner's rationale: `full`, or `short` (about ten words, which is faster; the bound "
        "needs `RSVP_REASONER_CONSTRAINED`)",
    )
    reasoner_api_key: SecretStr | None = Field(None, description="API key of a remote reasoner")
    reasoner_timeout_s: Seconds = Field(60.0, description="time for one answer of a remote reasoner, seconds")
    reasoner_max_tokens: int = Field(
        2048, ge=64, le=131072, description="longest answer of a remote reasoner, its thinking included, tokens"
    )
    reasoner_image_px: int = Field(
        1024, ge=256, le=8192, description="longest side of the images sent to a remote reasoner, pixels"
    )
    reasoner_concurrency: int = Field(4, ge=1, le=256, description="calls to a remote reasoner at a time")
    reasoner_price_in: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="price of a remote reasoner's million input tokens, any currency"
    )
    reasoner_price_out: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="price of its million output tokens, same currency"
    )
    reasoner_budget_per_hour: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="cost of a remote reasoner in any 60 minutes, in the prices' currency, that stops further calls",
    )
    reasoner_calls_per_hour: int | None = Field(
        None, ge=1, description="calls to a remote reasoner in any 60 minutes that stop further ones"
    )
    answer_cache: Path | None = Field(
        None, description="folder where answers of a reasoner (other than `demo`) are kept; none: not kept"
    )
    answer_cache_bytes: int = Field(
        256 * 2**20, ge=2**16, description="answers kept there, bytes; the oldest are dropped"
    )
    vlsm: str | None = Field(
        None,
        description="stage 2 in place of the preset's: `demo`; `OWNER/NAME[@REVISION]` on Hugging Face "
        "(`YxZhang/evf-sam`, `YxZhang/evf-sam-multitask`); a folder or file with weights; official parts, "
        "`SAM.pth+BEIT3.pth[+PROJECTOR.safetensors]`; or `sam3:ID-OR-FOLDER`",
    )
    vlsm_view: Literal["crop", "full+box"] = Field(
        "crop",
        description="what SAM sees: `crop` (the paper's), or `full+box` (the whole image, once for all instructions, "
        "with the crop as a box prompt)",
    )
    vlsm_max_batch: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="pictures or prompts per forward pass of the VLSM; default 8 on a GPU, 1 on a CPU",
    )
    vlsm_cache_bytes: int = Field(
        256 * 2**20, ge=0, description="image embeddings kept for further instructions and clicks, bytes; 0 keeps none"
    )
    vlsm_compile: bool = Field(
        False, description="compile SAM's image encoder while loading (`torch.compile`, CUDA graphs on a GPU)"
    )
    versions: Path | None = Field(
        None,
        description="folder of the VLSM's fine-tuned versions; the current one is served, a newly promoted one within "
        "seconds; none: the base weights only",
    )
    reasoner_versions: Path | None = Field(
        None,
        description="folder of a local reasoner's distilled versions, served as the VLSM's are; none: its base weights",
    )
    replay: Literal["scenes", "none"] = Field(
        "scenes",
        description="earlier data that fine-tuning sees again, so that nothing is forgotten: generated `scenes`, or "
        "`none`",
    )
    repredict: int = Field(
        100, ge=0, le=100_000, description="open tasks predicted again after a promotion, the most doubtful first"
    )
    train_every: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="submitted corrections of a project that make a training job; 0: jobs are started by hand",
    )
    train_debounce_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="time until a job that corrections made begins, so that more come into it, seconds",
    )
    queue: SecretStr | None = Field(
        None,
        description="queue of training jobs: `redis://[:PASSWORD@]HOST[:PORT][/DB]`; none: a file beside the versions",
    )
    device: str = Field("auto", description="`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:N` or `mps`")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto` (bfloat16 on CUDA, else float32), `float32`, `bfloat16` or `float16`"
    )

    marks_kind: Literal["bands", "cells"] = Field(
        "bands", description="marks on the image: `bands` (numbered rows and columns) or `cells` (numbered grid)"
    )
    marks_rows: int = Field(9, ge=1, le=50, description="rows of marks, 1 to 50")
    marks_columns: int = Field(9, ge=1, le=50, description="columns of marks, 1 to 50")
    padding: float = Field(0.2, ge=0, le=2, description="share of the crop's size that is added to it, 0 to 2")
    zoom: Literal["off", "auto", "always"] = Field(
        "off",
        description="ask again about the marked surroundings of a target: `off`, `auto` (a small one, or after a "
        "repaired answer), or `always`",
    )
    text_only: Literal["off", "noun-phrases"] = Field(
        "off",
        description="segment plain names (`red mug`) in the whole image without asking the reasoner: `noun-phrases`",
    )
    prompts: Path | None = Field(
        None,
        description="folder whose `rsvp_bands.txt`, `rsvp_cells.txt` and `repair.txt` replace the package's prompts; "
        "the demo reasoner keeps its own",
    )

    mask_min_area_px: int = Field(
        64, ge=0, description="specks and holes with fewer pixels than this are removed from masks; 0 keeps all"
    )
    mask_components: Literal["all", "largest"] = Field(
        "all", description="parts of a mask to keep: `all`, or the `largest` one"
    )

    label_studio_url: str | None = Field(
        None, description="Label Studio's address as seen from here; needed for uploaded, local and cloud images"
    )
    label_studio_public_url: str | None = Field(
        None, description="Label Studio's address in task data (its `LABEL_STUDIO_HOST`), where that differs"
    )
    label_studio_token: SecretStr | None = Field(
        None, description="personal access token (or legacy token); sent to `RSVP_LABEL_STUDIO_URL` only"
    )
    instruction_field: str | None = Field(
        None, description="field of the task's data that holds the instruction; else what the labeling config shows"
    )
    default_instruction: str | None = Field(None, description="instruction of tasks that have none")

    image_max_bytes: int = Field(64 * 2**20, ge=1024, description="largest image file, bytes")
    image_max_pixels: int = Field(89_000_000, ge=1024, description="largest image, pixels; checked before decoding")
    image_timeout_s: Seconds = Field(30.0, description="time to fetch one image, seconds")
    image_hosts: str | None = Field(
        None,
        description="hosts that images may come from besides Label Studio, with commas between: `HOST[:PORT]` or "
        "`*.DOMAIN[:PORT]`, redirects included; none: all public ones",
    )
    allow_private_addresses: bool = Field(
        False, description="fetch images from private addresses besides Label Studio's own"
    )

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; `0.0.0.0` for all")
    port: int = Field(9090, ge=1, le=65535, description="port to listen on")
    predict_timeout_s: Seconds = Field(
        90.0, description="time for one `/predict`, seconds; keep it below Label Studio's (100)"
    )
    max_requests: int = Field(
        64,
        ge=1,
        le=10_000,
        description="`/predict` requests that are answered or wait at a time, and as many interactive ones; further "
        "ones get 503 with `Retry-After`",
    )
    backlog: Path | None = Field(
        None,
        description="folder for the tasks that did not fit into a `/predict` and are answered later; none: beside "
        "`RSVP_VERSIONS`, else `~/.local/state/rsvp-backend`",
    )
    backlog_tasks: int = Field(
        100_000, ge=0, le=10_000_000, description="tasks that it holds at most; 0: nothing is answered later"
    )
    max_body_bytes: int = Field(
        256 * 2**20,
        ge=2**16,
        description="largest body of a `/predict`, bytes; other requests may bring a 16th of it. Larger ones get 413",
    )
    basic_auth_user: str | None = Field(
        None,
        description="user name that Label Studio must send (basic auth); needed, as the two below, where `RSVP_HOST` "
        "is not this machine only",
    )
    basic_auth_password: SecretStr | None = Field(None, description="password that goes with it")
    webhook_secret: SecretStr | None = Field(
        None,
        description="what Label Studio's webhooks must send, as the header `X-RSVP-Webhook-Secret` or as a password in "
        "the backend's address; 16 or more characters",
    )
    allow_no_auth: bool = Field(
        False, description="listen for other machines without passwords, behind a proxy that checks who asks"
    )
    public_url: str | None = Field(
        None, description="this server's address as people's browsers reach it: masks then carry a link to their trace"
    )
    traces: Path | None = Field(
        None,
        description="folder for traces (JSON, the image, the visual prompt, the masks); none: the last 200, in memory",
    )
    traces_days: float = Field(30.0, gt=0, le=36_500, description="age at which traces there are dropped, days")
    traces_bytes: int = Field(2**30, ge=2**20, description="traces kept there, bytes; the oldest are dropped")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`text`, or `json` (one object a line); secrets are masked in both"
    )

    @property
    def work_folder(self) -> Path | None:
        """Beside the versions: checkpoints, cached crops and embeddings, jobs. None without versions."""
        return None if self.versions is None else self.versions.with_name(f"{self.versions.name}-work")

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: Any) -> Any:
        """An empty variable means the default: compose files pass unset variables on as empty ones."""
        return cls.model_fields[info.field_name].default if value == "" else value

    @field_validator("reasoner")
    @classmethod
    def _known_form(cls, value: str | None) -> str | None:
        if value is not None and not _REASONER.fullmatch(value):
            raise ValueError(f"{REASONER_FORMS} is expected")
        return value

    @field_validator("vlsm")
    @classmethod
    def _no_address(cls, value: str | None) -> str | None:
        if value is not None and _NO_VLSM.fullmatch(value):
            raise ValueError(f"{VLSM_FORMS} is expected")
        return value

    @field_validator("prompts")
    @classmethod
    def _whole_prompts(cls, value: Path | None) -> Path | None:
        if value is not None:
            check_folder(value.expanduser())
        return value.expanduser() if value is not None else None

    @field_validator("versions", "reasoner_versions", "backlog")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        if value is not None and value.expanduser().exists() and not value.expanduser().is_dir():
            raise ValueError("a folder, or a path where one can be made, is expected")
        return value.expanduser() if value is not None else None

    @field_validator("queue")
    @classmethod
    def _redis_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _REDIS.fullmatch(value.get_secret_value()):
            raise ValueError("redis://[:PASSWORD@]HOST[:PORT][/DB] is expected (rediss:// with TLS)")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _WEBHOOK_SECRET.fullmatch(value.get_secret_value()):
            raise ValueError("16 or more ASCII letters, digits and marks without spaces are expected")
        return value

    @field_validator("image_hosts")
    @classmethod
    def _known_hosts(cls, value: str | None) -> str | None:
        allowed_hosts(value)
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError("auto, cpu, cuda, cuda:N or mps is expected")
        return value

    @field_validator("label_studio_url", "label_studio_public_url", "public_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/]+\S*", value):
            raise ValueError("an address like http://localhost:8080 is expected")
        return value

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> Self:
        if self.label_studio_token is not None and self.label_studio_url is None:
            raise ValueError("RSVP_LABEL_STUDIO_TOKEN is set, RSVP_LABEL_STUDIO_URL is not: set whose token it is")
        if self.versions is not None and (self.vlsm or "").startswith("sam3:"):
            raise ValueError("RSVP_VERSIONS is set, but SAM 3 has no versions: unset it, or choose another RSVP_VLSM")
        if self.reasoner_versions is not None and re.match("openai:|https?://", self.reasoner or ""):
            raise ValueError(
                "RSVP_REASONER_VERSIONS is set, but a reasoner on a server has no versions: unset it, or set "
                "RSVP_REASONER to demo or hf:ID-OR-FOLDER"
            )
        if self.reasoner_versions is not None and self.reasoner_versions == self.versions:
            raise ValueError("RSVP_VERSIONS and RSVP_REASONER_VERSIONS are the same folder: give each its own")
        if self.reasoner_budget_per_hour is not None and None in (self.reasoner_price_in, self.reasoner_price_out):
            raise ValueError(
                "RSVP_REASONER_BUDGET_PER_HOUR is set, a price is not: set RSVP_REASONER_PRICE_IN and "
                "RSVP_REASONER_PRICE_OUT, or limit RSVP_REASONER_CALLS_PER_HOUR"
            )
        if (self.basic_auth_user is None) != (self.basic_auth_password is None):
            raise ValueError("RSVP_BASIC_AUTH_USER and RSVP_BASIC_AUTH_PASSWORD go together: set both or none")
        if ":" in (self.basic_auth_user or ""):
            raise ValueError("RSVP_BASIC_AUTH_USER has a colon: basic auth takes none in a user name")
        return self


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and ``.env``; ``overrides`` (None: not given) win. Raises `SettingsError`."""
    _refuse_unknown()
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        values = _read_values() | {f"{PREFIX}{name.upper()}": str(value) for name, value in given.items()}
        raise SettingsError("; ".join(_complaint(detail, values) for detail in error.errors())) from None


def settings_rows() -> list[tuple[str, str, str]]:
    """(variable, default, meaning) of every setting, in the order of the README's table."""
    rows = []
    for name, field in Settings.model_fields.items():
        rows.append((f"{PREFIX}{name.upper()}", _shown(field.default), field.description or ""))
    return rows


def settings_markdown() -> str:
    """The README's table."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for variable, default, meaning in settings_rows():
        lines.append(f"| `{variable}` | {f'`{default}`' if default else ''} | {meaning} |")
    return "\n".join(lines)


def _shown(default: object) -> str:
    if default is None:
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default).removesuffix(".0")


def _read_values() -> dict[str, str]:
    """Every ``RSVP_*`` variable, upper case; the environment wins over the file."""
    sources: list[Mapping[str, str | None]] = [dotenv_values(ENV_FILE), os.environ]
    return {
        name.upper(): value or ""
        for source in sources
        for name, value in source.items()
        if name.upper().startswith(PREFIX)
    }


def _refuse_unknown() -> None:
    known = [variable for variable, _, _ in settings_rows()]
    unknown = sorted(set(_read_values()) - set(known))
    if unknown:
        close = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise SettingsError(f"unknown setting {', '.join(unknown)}: {hint}Known are {', '.join(known)}")


def _complaint(detail: ErrorDetails, values: Mapping[str, str]) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    variable = f"{PREFIX}{str(detail['loc'][0]).upper()}"
    secret = "SecretStr" in str(Settings.model_fields[str(detail["loc"][0])].annotation)
    seen = "***" if secret else repr(values.get(variable, "")[:_SHOWN_CHARS])
    return f"{variable} is {seen}: {message}"
