"""Why a state dict does not fit a model, in one message: the first five differences and what they look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from rsvp_backend.errors import WeightsError

_SHOWN = 5
_COMPOSE = "a whole model of official parts is written SAM.pth+BEIT3.pth"
# A fragment of a key -> what a state dict that holds such keys is.
_LOOKS_LIKE = (
    ("lora_", "an adapter: merge it into its base model first"),
    ("sam_mask_decoder", "EVF-SAM2, whose SAM 2 parts this module does not have: use an EVF-SAM (SAM 1) checkpoint"),
    ("image_encoder.trunk.", "SAM 2, which this module does not have: use a sam_vit_b, _l or _h checkpoint"),
    (
        "image_encoder.patch_embed.seq.",
        "MobileSAM: use a sam_vit_b, _l or _h checkpoint",
    ),
    ("shared_image_embedding.", "SAM under transformers' names: use the original sam_vit_*.pth"),
    ("detector_model.", "SAM 3, which is no part of this module"),
)
_LOOKS_LIKE_START = (
    ("module.", "a state dict saved from a data-parallel wrapper: strip the 'module.' prefix"),
    ("_orig_mod.", "a state dict saved from a compiled model: strip the '_orig_mod.' prefix"),
    ("image_encoder.", f"a SAM checkpoint alone: BEiT-3 and the projector are missing; {_COMPOSE}"),
    ("beit3.", f"a BEiT-3 checkpoint alone: SAM and the projector are missing; {_COMPOSE}"),
    ("backbone.", "a backbone or a detector of another library"),
)


def looks_like(keys: Iterable[str]) -> str | None:
    """What a state dict with such keys is, like ``this is EVF-SAM2, ...``; None where nothing tells."""
    names = list(keys)
    for fragment, kind in _LOOKS_LIKE:
        if any(fragment in key for key in names):
            return f"this is {kind}"
    for start, kind in _LOOKS_LIKE_START:
        if any(key.startswith(start) for key in names):
            return f"this is {kind}"
    return None


def check_state(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, inferred: bool = False
) -> None:
    """Raise `WeightsError` unless ``state`` has exactly the keys and shapes of ``expected`` (meta tensors do).

    ``inferred``: the config comes from ``state`` itself, so that no ``config.json`` can be at fault.
    """
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if not missing and not extra and not misshaped:
        return
    parts = [_listed("missing", missing), _listed("not expected", extra), _listed("of another shape", misshaped)]
    cause = looks_like(extra) or _likely_cause(len(expected), missing, extra, misshaped, inferred)
    raise WeightsError(f"{source} does not fit the model: {'; '.join(filter(None, parts))}. Likely cause: {cause}")


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"


def _likely_cause(
    expected: int, missing: Sequence[str], extra: Sequence[str], misshaped: Sequence[str], inferred: bool
) -> str:
    if len(missing) == expected:
        return "these are the weights of another model"
    if any(key.startswith("connector.") for key in extra):
        return "the model was trained with another connector: config.json must name it"
    if inferred and (misshaped or missing):
        return "the file is incomplete, or its parts belong to different models"
    if misshaped or (missing and extra):
        return "config.json describes a model of another size; take config.json and weights from the same place"
    if missing:
        return "the file is incomplete, or config.json asks for more layers than it holds"
    return "the file holds a larger model, or more than the model (optimizer state, heads)"
