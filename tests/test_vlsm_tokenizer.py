"""The XLM-R rule over sentencepiece, against transformers' own tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import XLMRobertaTokenizer
from vlsm_models import tokenizer_model

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm.tokenizer import Tokenizer

PROBES = [
    "the red ball",
    "the thing that shows the time",
    "the   cup ",
    "",
    "Ünïcode ✂ 漢字",
    "ＦＵＬＬ width",
    "a,b; c.",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_model())


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> XLMRobertaTokenizer:
    folder = tmp_path_factory.mktemp("xlmr")
    (folder / "sentencepiece.bpe.model").write_bytes(tokenizer_model())
    return XLMRobertaTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", PROBES)
def test_ids_equal_transformers(tokenizer: Tokenizer, public: XLMRobertaTokenizer, text: str) -> None:
    assert tokenizer.encode(text) == public(text)["input_ids"]


def test_unknown_pieces_get_the_unknown_id(tokenizer: Tokenizer) -> None:
    assert 3 in tokenizer.encode("漢")


def test_a_batch_is_padded_on_the_right_and_equals_its_rows(tokenizer: Tokenizer) -> None:
    texts = ["the red ball", "", "the largest key on the wooden table"]
    ids, pads = tokenizer.batch(texts)
    assert pads is not None
    assert ids.dtype == torch.int64
    assert pads.tolist() == ids.eq(1).tolist()
    for row, pad, text in zip(ids, pads, texts, strict=True):
        assert row[~pad].tolist() == tokenizer.encode(text)


def test_equal_lengths_need_no_mask(tokenizer: Tokenizer) -> None:
    assert tokenizer.batch(["the cup", "the cup"])[1] is None


@given(st.text(max_size=80))
def test_any_text_gives_ids_in_range_between_its_ends(text: str) -> None:
    tokenizer = Tokenizer(tokenizer_model(), max_tokens=16)
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (0, 2)
    assert 2 <= len(ids) <= 16
    assert all(3 <= i < tokenizer.vocab_size for i in ids[1:-1])


def test_a_long_text_loses_its_end_only(tokenizer: Tokenizer) -> None:
    text = "the red ball left of the cup"
    short = Tokenizer(tokenizer_model(), max_tokens=6).encode(text)
    assert short == [*tokenizer.encode(text)[:5], 2]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no sentencepiece model"):
        Tokenizer(b"not a model")
    with pytest.raises(WeightsError, match="cannot be read"):
        Tokenizer.from_file(tmp_path / "none.model")
