"""The VLSM of RSVP's stage 2: BEiT-3 reads crop and text together, SAM turns what it read into a mask.

    pixels (SAM) -------------------------------> image encoder --> image embedding --.
    pixels (224 px) + text --> BEiT-3 --> connector --> projector --> prompt ---------+--> mask decoder --> logits

The connector is the CLS feature unless the config says otherwise (see `connector`).
State-dict names are those of the public EVF-SAM checkpoints (arXiv 2406.20076), so those load with ``strict=True``.
"""

from __future__ import annotations

from torch import Tensor, nn

from rsvp_backend.vlsm.beit3 import Beit3
from rsvp_backend.vlsm.config import VlsmConfig
from rsvp_backend.vlsm.connector import make_connector, make_projector
from rsvp_backend.vlsm.sam import Sam

__all__ = ["Vlsm", "VlsmConfig"]


class _MultimodalExtractor(nn.Module):
    """Gives BEiT-3 its public prefix ``mm_extractor.beit3``."""

    def __init__(self, config: VlsmConfig) -> None:
        super().__init__()
        self.beit3 = Beit3(config.beit3)


class Vlsm(nn.Module):
    """Stage 2 as one module; each method is a stage that can be run, cached or trained by itself."""

    def __init__(self, config: VlsmConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_model = Sam(config.sam)
        self.mm_extractor = _MultimodalExtractor(config)
        self.text_hidden_fcs = nn.ModuleList([make_projector(config)])
        self.connector = make_connector(config)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """SAM's image embedding: pixels ``(B, 3, S, S)``, SAM-normalised and padded -> ``(B, C, h, w)``."""
        embedding: Tensor = self.visual_model.image_encoder(pixels)
        return embedding

    def beit3(self, pixels_224: Tensor | None, input_ids: Tensor | None, padding_mask: Tensor | None = None) -> Tensor:
        """Features of all tokens, ``(B, V + T, C)``: CLS, patches, then text. Inputs as in `encode_prompt`."""
        features: Tensor = self.mm_extractor.beit3(pixels_224, input_ids, padding_mask)
        return features

    def project(self, features: Tensor) -> Tensor:
        """The projector alone, token by token: ``(B, N, beit3.embed_dim)`` -> ``(B, N, C)``."""
        tokens: Tensor = self.text_hidden_fcs[0](features)
        return tokens

    def prompt_tokens(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """All that `beit3` gave for pixels and text -> prompt tokens ``(B, N, C)``, whatever the connector.

        ``features``: ``(B, V + T, beit3.embed_dim)``; ``padding_mask``: the bool ``(B, T)`` that `beit3` got. N is 1
        for ``cls``, ``queries`` for ``cross_attention``, 1 + ``text_tokens`` for ``concat``.
        """
        return self.project(self.connector(features, padding_mask))

    def encode_prompt(self, pixels_224: Tensor, input_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Crop and text -> prompt tokens ``(B, N, C)``; N is 1 for the connector ``cls``, see `prompt_tokens`.

        ``pixels_224``: ``(B, 3, img_size, img_size)``, normalised to [-1, 1]; ``input_ids``: int64 ``(B, T)``;
        ``padding_mask``: bool ``(B, T)``, True on pads. None attends to pads too, as the public code does at inference;
        training masks them.
        """
        return self.prompt_tokens(self.beit3(pixels_224, input_ids, padding_mask), padding_mask)

    def decode(self, image_embedding: Tensor, prompt: Tensor, multimask: bool = False) -> tuple[Tensor, Tensor]:
        """Low-resolution logits ``(B, M, 4h, 4w)`` and predicted IoU ``(B, M)``; M is 1, or 3 with ``multimask``.

        ``image_embedding``: ``(B, C, h, w)``, each with its own prompt, or ``(1, C, h, w)`` shared by all prompts;
        ``prompt``: ``(B, N, C)``.
        """
        logits, predicted_iou = self.visual_model.decode(image_embedding, prompt, multimask)
        return logits, predicted_iou
