"""The shape of a VLSM as one value: enough to rebuild the module that a checkpoint belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

from rsvp_backend.errors import WeightsError


@dataclass(frozen=True, slots=True)
class SamConfig:
    """SAM's parts. ``image_size`` and ``patch_size`` in pixels, ``window_size`` in patches."""

    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4
    global_attn_indexes: tuple[int, ...] = (7, 15, 23, 31)
    window_size: int = 14
    prompt_embed_dim: int = 256
    mask_in_chans: int = 16
    decoder_mlp_dim: int = 2048
    decoder_num_heads: int = 8
    iou_head_hidden_dim: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_attn_indexes", tuple(self.global_attn_indexes))
        _expect_multiple("sam.image_size", self.image_size, "sam.patch_size", self.patch_size)
        _expect_multiple("sam.embed_dim", self.embed_dim, "sam.num_heads", self.num_heads)
        # SAM's cross attention halves the channels before it splits them into heads; its upscaling needs eighths.
        _expect_multiple(
            "sam.prompt_embed_dim", self.prompt_embed_dim, "2 x sam.decoder_num_heads", 2 * self.decoder_num_heads
        )
        _expect_multiple("sam.prompt_embed_dim", self.prompt_embed_dim, "SAM's upscaling factor", 8)

    @property
    def grid_size(self) -> int:
        """Side of the image embedding, in patches."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True)
class Beit3Config:
    """The multiway encoder. ``img_size`` and ``patch_size`` in pixels; ``max_source_positions`` counts table rows."""

    img_size: int = 224
    patch_size: int = 16
    vocab_size: int = 64010
    embed_dim: int = 1024
    num_heads: int = 16
    ffn_dim: int = 4096
    layers: int = 24
    max_source_positions: int = 1024

    def __post_init__(self) -> None:
        _expect_multiple("beit3.img_size", self.img_size, "beit3.patch_size", self.patch_size)
        _expect_multiple("beit3.embed_dim", self.embed_dim, "beit3.num_heads", self.num_heads)

    @property
    def vision_tokens(self) -> int:
        """CLS and patches."""
        return 1 + (self.img_size // self.patch_size) ** 2

    @property
    def max_text_tokens(self) -> int:
        """Longest text, start and end tokens included; the first two rows of the position table are never used."""
        return self.max_source_positions - 2


ConnectorKind = Literal["cls", "cross_attention", "concat"]
# Each kind that gives several prompt tokens: the field that sets their number, and its default.
_TOKEN_COUNTS = {"cross_attention": ("queries", 8), "concat": ("text_tokens", 32)}


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """What SAM is prompted with (see `connector`); the default is EVF-SAM's, the CLS feature through two layers.

    ``depth``: linear layers of the projector, or blocks of ``cross_attention``; ``width``: channels inside them, 0 for
    BEiT-3's own; ``queries``: prompt tokens of ``cross_attention``; ``text_tokens``: text tokens that ``concat`` keeps.
    The last two may be left at 0, which is the kind's default, and must be where they do not belong to the kind.
    """

    kind: ConnectorKind = "cls"
    depth: int = 2
    width: int = 0
    queries: int = 0
    text_tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConnectorKind):
            raise WeightsError(f"connector.kind is {self.kind!r}: one of {', '.join(get_args(ConnectorKind))} expected")
        for name, least in (("depth", 1), ("width", 0), ("queries", 0), ("text_tokens", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise WeightsError(f"connector.{name} is {value!r}: a whole number of {least} or more is expected")
        if self.width and self.depth == 1 and self.kind != "cross_attention":
            raise WeightsError(f"connector.width is {self.width}, but depth 1 has no hidden layer: leave width out")
        for kind, (name, default) in _TOKEN_COUNTS.items():
            value = getattr(self, name)
            if value and kind != self.kind:
                raise WeightsError(f"connector.{name} is {value}: expected with kind {kind!r} only, not {self.kind!r}")
            if kind == self.kind:
                object.__setattr__(self, name, value or default)


@dataclass(frozen=True, slots=True)
class VlsmConfig:
    """The whole module; the projector maps ``beit3.embed_dim`` to ``sam.prompt_embed_dim``."""

    sam: SamConfig
    beit3: Beit3Config
    connector: ConnectorConfig = ConnectorConfig()

    def __post_init__(self) -> None:
        connector, beit3 = self.connector, self.beit3
        if connector.kind == "cross_attention" and connector.width:
            _expect_multiple("connector.width", connector.width, "beit3.num_heads", beit3.num_heads)
        if connector.text_tokens > beit3.max_text_tokens:
            raise WeightsError(
                f"connector.text_tokens is {connector.text_tokens}: at most {beit3.max_text_tokens}, BEiT-3's longest "
                f"text, expected"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VlsmConfig:
        """Read ``{"sam": {...}, "beit3": {...}}``; may have ``connector`` and ``name``. Raises `WeightsError`."""
        _expect_keys("the VLSM config", data, {"sam", "beit3"}, optional={"name", "connector"})
        sections = _section(SamConfig, "sam", data["sam"]), _section(Beit3Config, "beit3", data["beit3"])
        return cls(*sections, _connector(data["connector"]) if "connector" in data else ConnectorConfig())

    @classmethod
    def evf_sam_huge(cls) -> VlsmConfig:
        """SAM ViT-H + BEiT-3 large, the size of the public EVF-SAM checkpoints (1.3 G parameters)."""
        return cls(SamConfig(), Beit3Config())

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, made of JSON types only; the default connector is left out."""
        sam = asdict(self.sam)
        sam["global_attn_indexes"] = list(self.sam.global_attn_indexes)
        sections = {"sam": sam, "beit3": asdict(self.beit3)}
        if self.connector != ConnectorConfig():
            sections["connector"] = {name: value for name, value in asdict(self.connector).items() if value}
        return sections


_Section = TypeVar("_Section", SamConfig, Beit3Config)


def _section(kind: type[_Section], name: str, data: object) -> _Section:
    if not isinstance(data, Mapping):
        raise WeightsError(f"the VLSM config's {name!r} is {type(data).__name__}: an object is expected")
    fields = dataclasses.fields(kind)
    _expect_keys(f"the VLSM config's {name!r}", data, {field.name for field in fields})
    for field in fields:
        value = data[field.name]
        if field.name == "global_attn_indexes":
            if not isinstance(value, list | tuple) or not all(type(index) is int for index in value):
                raise WeightsError(f"{name}.{field.name} is {value!r}: a list of block numbers is expected")
        elif not _is_positive(value, whole=field.type == "int"):
            raise WeightsError(f"{name}.{field.name} is {value!r}: a positive {field.type} is expected")
    return kind(**data)


def _connector(data: object) -> ConnectorConfig:
    if not isinstance(data, Mapping):
        raise WeightsError(f"the VLSM config's 'connector' is {type(data).__name__}: an object is expected")
    fields = {field.name for field in dataclasses.fields(ConnectorConfig)} - {"kind"}
    _expect_keys("the VLSM config's 'connector'", data, {"kind"}, optional=fields)
    values: dict[str, Any] = {key: 0 if key == "width" and value is None else value for key, value in data.items()}
    return ConnectorConfig(**values)


def _is_positive(value: object, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _expect_keys(
    what: str, data: Mapping[str, Any], required: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> None:
    missing, unknown = sorted(required - set(data)), sorted(set(data) - required - optional)
    if missing or unknown:
        allowed = f", {sorted(optional)} allowed" if optional else ""
        raise WeightsError(
            f"{what} lacks {missing} and has unknown {unknown}: exactly {sorted(required)} are expected{allowed}"
        )


def _expect_multiple(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        raise WeightsError(f"{name} is {value}: a multiple of {divisor_name} ({divisor}) is expected")
