"""The XLM-R rule over sentencepiece, against transformers' own tokenizer."""

from __future__ import annotations

import json
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


SEMANTIC_PROBES = [
    "[semantic] the red ball",
    "[semantic]the red ball",
    "the [semantic] ball",
    "the ball [semantic]",
    "[semantic]",
    "  [semantic]  the cup",
    "x[semantic]y",
    "[semantic][semantic] a",
    "[Semantic] the cup",
    "[semantic",
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


@pytest.fixture(scope="module")
def multitask_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """As ``evf-sam-multitask`` has it: the id after ``<mask>``, which is the one after the pieces."""
    folder = tmp_path_factory.mktemp("multitask")
    (folder / "sentencepiece.bpe.model").write_bytes(tokenizer_model())
    (folder / "added_tokens.json").write_text(json.dumps({"[semantic]": tokenizer.vocab_size + 1}))
    return folder


@pytest.mark.parametrize("text", SEMANTIC_PROBES)
def test_an_added_token_is_one_id_wherever_it_stands(multitask_folder: Path, text: str) -> None:
    ours = Tokenizer.from_file(multitask_folder / "sentencepiece.bpe.model")
    assert ours.encode(text) == XLMRobertaTokenizer.from_pretrained(multitask_folder)(text)["input_ids"]
    assert ours.encode(text).count(ours.vocab_size - 1) == text.count("[semantic]")


def test_without_the_file_it_is_plain_text(tokenizer: Tokenizer, multitask_folder: Path) -> None:
    ids = tokenizer.encode("[semantic] the red ball")
    assert max(ids) < tokenizer.vocab_size
    assert len(ids) > len(
        Tokenizer.from_file(multitask_folder / "sentencepiece.bpe.model").encode("[semantic] the red ball")
    )


def test_the_longer_of_two_added_tokens_wins() -> None:
    tokenizer = Tokenizer(tokenizer_model(), added={"[a]": 100, "[a][b]": 101})
    assert tokenizer.encode("[a][b][a]") == [0, 101, 100, 2]
    assert tokenizer.vocab_size == 102


@pytest.mark.parametrize("content", ["{", "[]", '{"[semantic]": "64002"}', '{"": 7}', '{"a": -1}', '{"a": true}'])
def test_a_bad_added_tokens_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(tokenizer_model())
    (tmp_path / "added_tokens.json").write_text(content)
    with pytest.raises(WeightsError, match=r"added_tokens\.json"):
        Tokenizer.from_file(tmp_path / "sentencepiece.bpe.model")
