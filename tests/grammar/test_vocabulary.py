"""Tokens as bytes, for each family of tokenizers, and the vocabulary that is made of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from toolprm_decode.errors import TokenizerError
from toolprm_decode.grammar.vocabulary import load_tokenizer, token_bytes, vocabulary

from .cases import small_tokenizer

TEXTS = [
    '[{"name": "get", "arguments": {"city": "Zürich 北京 😀"}}]',
    "a  b\n\n\tc",
    "<tool_call>\n'x'=1e-5\x7f",
    "naïve ŒÆ",
]
FAMILIES = ["qwen_tokenizer", "gpt2_tokenizer", "phi3_tokenizer"]


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_spell_the_text_that_they_encode(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(name)
    tokens = token_bytes(tokenizer)
    assert len(tokens) == max(tokenizer.get_vocab().values()) + 1
    for text in TEXTS:
        # Behind a line break, SentencePiece writes no space of its own.
        ids = tokenizer("\n" + text, add_special_tokens=False).input_ids
        assert b"".join(tokens[i] for i in ids).lstrip(b" ") == b"\n" + text.encode()
    assert all(tokens[i] == b"" for i in tokenizer.all_special_ids)
    assert {bytes([b]) for b in range(0x20, 0x7F)} <= set(tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_becomes_the_tokens_that_the_model_would_write(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(name)
    made = vocabulary(tokenizer)
    anchor = "\n" if name == "phi3_tokenizer" else ""  # behind it SentencePiece writes no space of its own
    skip = len(tokenizer(anchor, add_special_tokens=False).input_ids)
    for text in TEXTS:
        assert made.tokenize(text.encode()) == tokenizer(anchor + text, add_special_tokens=False).input_ids[skip:]
    half = "北".encode()[:2]  # no text: the longest tokens that there are
    assert b"".join(map(made.token, made.tokenize(half))) == half


def test_added_tokens_are_text_and_special_ones_are_not() -> None:
    tokenizer = copy.deepcopy(small_tokenizer())
    before = vocabulary(tokenizer)
    assert vocabulary(tokenizer) is before
    tokenizer.add_tokens([AddedToken("<call>", special=False), AddedToken("<|pad|>", special=True)])
    assert token_bytes(tokenizer)[-2:] == [b"<call>", b""]
    assert len(vocabulary(tokenizer)) == len(before) + 2, "what was made before the tokens came is not used again"


def byte_tokenizer(missing: str) -> Tokenizer:
    """A byte-level tokenizer of single bytes, without some."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(missing))
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_a_tokenizer_without_all_characters_of_json_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"no token writes '\[', '\{'"):
        token_bytes(byte_tokenizer("{["))


def test_without_all_bytes_no_token_ends_inside_a_character() -> None:
    assert set(token_bytes(byte_tokenizer(""))) == {bytes([b]) for b in range(256)}
    # The stand-in for the byte 0xC3 looks like its own character. Without it no letter such as é can be written.
    assert set(token_bytes(byte_tokenizer("Ã"))) == {b"", *(bytes([b]) for b in range(128))}


def test_tokenizers_from_files(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "tokenizers" / "gpt2"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the data has no tokenizers/gpt2/tokenizer.json")
    expected = token_bytes(load_tokenizer(folder))
    assert token_bytes(load_tokenizer(folder / "tokenizer.json")) == expected
    assert token_bytes(Tokenizer.from_file(str(folder / "tokenizer.json"))) == expected
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"broken\.json"):
        load_tokenizer(tmp_path / "broken.json")
