"""SAM 3 folders for tests: a tiny one with random weights and a real processor, and a hub that serves or refuses it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import transformers as t
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

IMAGE_PX, MASK_PX, QUERIES, WIDTH = 56, 16, 4, 16
COMMIT = "a" * 40
PART = {"hidden_size": WIDTH, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "dropout": 0.0}


def save_random_sam3(folder: Path) -> Path:
    """Write a random SAM 3 as transformers does. The weights are large enough that every input matters."""
    torch.manual_seed(3)
    model = t.Sam3Model(_config())
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.ndim > 1):
            weight.normal_(std=1.5 / weight[0].numel() ** 0.5)
    model.save_pretrained(folder)
    t.Sam3Processor(_image_processor(), _tokenizer()).save_pretrained(folder)
    return folder


def save_as_published(source: Path, folder: Path) -> Path:
    """The same weights in the published folder's layout: the video model's, which has SAM 3 as its detector."""
    t.Sam3VideoConfig(detector_config=_config().to_dict()).save_pretrained(folder)
    state = {f"detector_model.{key}": value for key, value in load_file(source / "model.safetensors").items()}
    save_file({**state, "tracker_model.memory": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    video = t.Sam2VideoVideoProcessor()
    t.Sam3VideoProcessor(_image_processor(), video, _tokenizer()).save_pretrained(folder)
    return folder


def _config() -> t.Sam3Config:
    vit = {
        "model_type": "sam3_vit_model", "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": IMAGE_PX, "window_size": 2, "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", "vocab_size": 514, "hidden_size": WIDTH, "intermediate_size": 32,
        "projection_dim": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
        "hidden_act": "gelu", "bos_token_id": 512, "eos_token_id": 513,
    }  # fmt: skip
    sizes = [[MASK_PX, MASK_PX], [MASK_PX // 2, MASK_PX // 2], [MASK_PX // 4, MASK_PX // 4]]
    return t.Sam3Config(
        vision_config={"backbone_config": vit, "fpn_hidden_size": WIDTH, "backbone_feature_sizes": sizes},
        text_config=text,
        geometry_encoder_config=PART,
        detr_encoder_config=PART,
        detr_decoder_config={**PART, "num_queries": QUERIES},
        mask_decoder_config={"hidden_size": WIDTH, "num_attention_heads": 2},
    )


def _image_processor() -> t.Sam3ImageProcessor:
    size, mask_size = {"height": IMAGE_PX, "width": IMAGE_PX}, {"height": MASK_PX, "width": MASK_PX}
    return t.Sam3ImageProcessor(size=size, mask_size=mask_size)


def _tokenizer() -> t.CLIPTokenizer:
    """CLIP's BPE over single bytes: no merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return t.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=32)


@contextmanager
def hub(folder: Path | None, status: int = 200, error_code: str = "") -> Iterator[str]:
    """Hugging Face's routes for one repository, as far as a download needs them; gives the address.

    ``folder``: its files. Without one, or with a ``status`` other than 200, every file is refused; 404 hides the
    repository altogether.
    """
    files = sorted(folder.iterdir()) if folder else [Path("config.json")]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/") and status != 404:
                listed = [{"type": "file", "path": f.name, "size": 1, "oid": f.name} for f in files]
                data: Any = listed if "/tree/" in path else {"id": "facebook/sam3", "sha": COMMIT}
                self._send(200, json.dumps(data).encode(), body)
            elif status != 200:
                self._send(status, b"", body)
            else:
                name = path.rpartition("/")[2]
                self._send(200, next(f for f in files if f.name == name).read_bytes(), body, name)

        def _send(self, code: int, data: bytes, body: bool, etag: str = "") -> None:
            self.send_response(code)
            headers = {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
            if code != 200:
                headers["X-Error-Code"] = error_code
            for header, value in headers.items():
                self.send_header(header, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
