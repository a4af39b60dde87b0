"""The bytes of a tokenizer's tokens, and the compiled vocabulary made of them."""

from __future__ import annotations

import json
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toolprm_decode import _core
from toolprm_decode.errors import TokenizerError
from toolprm_decode.grammar import scalars
from toolprm_decode.grammar.automata import regex_dfa

log = logging.getLogger(__name__)

# Ends of an answer, for tokenizers that do not name their own.
_STOP_NAMES = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_lock = threading.Lock()
_Key = tuple[int, ...]  # the vocabulary's size and the stop tokens: a tokenizer may be given more tokens later
_known: weakref.WeakKeyDictionary[Any, dict[_Key, _core.Vocabulary]] = weakref.WeakKeyDictionary()


def load_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer from itself, from a transformers folder or hub id, or from a tokenizer.json file."""
    if not isinstance(tokenizer, str | os.PathLike):
        return tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if Path(tokenizer).is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
        return AutoTokenizer.from_pretrained(str(tokenizer))
    except Exception as error:  # a broken file is a bare Exception of the tokenizers library
        raise TokenizerError(f"no tokenizer at {str(tokenizer)!r}: {error}") from error


def vocabulary(tokenizer: Any, stop_ids: Sequence[int] | None = None) -> _core.Vocabulary:
    """The compiled vocabulary of a fast tokenizer (transformers or tokenizers), made once and kept with it.

    stop_ids: tokens that end an answer; default: the tokenizer's end-of-sequence token.
    Raises TokenizerError when the bytes of the tokens cannot be recovered, or no stop token is known.
    """
    size = _backend(tokenizer).get_vocab_size(with_added_tokens=True)
    stops = _default_stop_ids(tokenizer) if stop_ids is None else list(stop_ids)
    key = (size, *stops)
    with _lock:
        made = _known.get(tokenizer, {}).get(key)
    if made is None:
        made = _compile(tokenizer, stops)
        with _lock:
            _known.setdefault(tokenizer, {})[key] = made
    return made


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes each token id writes; empty for special tokens and unused ids. Raises TokenizerError."""
    backend = _backend(tokenizer)
    spec = json.loads(backend.to_str())
    added = {token["id"]: token for token in spec.get("added_tokens", [])}
    known = backend.get_vocab(with_added_tokens=True)
    tokens = [b""] * (max(known.values(), default=-1) + 1)
    to_bytes = _byte_reader(spec)
    unreadable = []
    for text, index in known.items():
        if index in added:
            tokens[index] = b"" if added[index]["special"] else added[index]["content"].encode()
        elif (content := to_bytes(text)) is not None:
            tokens[index] = content
        else:
            unreadable.append(text)
    if unreadable:
        raise TokenizerError(
            f"the bytes of {len(unreadable)} tokens cannot be recovered (such as {unreadable[0]!r}): "
            "use a byte-level BPE tokenizer or one with byte fallback"
        )
    return _writable(tokens)


def _writable(tokens: list[bytes]) -> list[bytes]:
    single = {token[0] for token in tokens if len(token) == 1}
    missing = [chr(b) for b in range(0x20, 0x7F) if b not in single]
    if missing:
        raise TokenizerError(
            f"no token writes {', '.join(map(repr, missing[:8]))}{' ...' if len(missing) > 8 else ''}: "
            "calls cannot be written with this tokenizer"
        )
    if single.issuperset(range(0x80, 0xF5)):
        return tokens
    # Without all the bytes, a token that ends inside a character might have nothing to go on with.
    return [token if _is_whole(token) else b"" for token in tokens]


def _is_whole(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _backend(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None) or getattr(tokenizer, "_tokenizer", None) or tokenizer
    if not hasattr(backend, "to_str"):
        raise TokenizerError(
            f"the bytes of a {type(tokenizer).__name__} cannot be recovered: use a fast tokenizer "
            "(transformers' AutoTokenizer with use_fast=True, or tokenizers.Tokenizer)"
        )
    return backend


def _parts(component: Any) -> list[dict[str, Any]]:
    """A pipeline component of tokenizer.json and, of a sequence, its members."""
    if not isinstance(component, dict):
        return []
    members = component.get("decoders") or component.get("pretokenizers") or component.get("normalizers")
    return [part for member in members for part in _parts(member)] if members else [component]


def _byte_reader(spec: dict[str, Any]) -> Callable[[str], bytes | None]:
    decoders = _parts(spec.get("decoder"))
    kinds = {part["type"] for part in decoders}
    if "ByteLevel" in kinds:
        alphabet = _byte_level_alphabet()
        return lambda text: bytes(alphabet[c] for c in text) if all(c in alphabet for c in text) else None
    spaces = [p["pattern"].get("String") for p in decoders if p["type"] == "Replace" and p.get("content") == " "]
    if "Metaspace" in kinds:
        spaces.append(next(p.get("replacement", "▁") for p in decoders if p["type"] == "Metaspace"))
    if not spaces:
        found = ", ".join(sorted(kinds)) or "no decoder"
        raise TokenizerError(
            f"the bytes of this tokenizer's tokens cannot be recovered ({found}): "
            "use a byte-level BPE tokenizer or a SentencePiece one"
        )

    def read(text: str) -> bytes | None:
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes.fromhex(text[3:5])
        for space in spaces:
            text = text.replace(space, " ")
        return text.encode()

    return read


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _compile(tokenizer: Any, stops: list[int]) -> _core.Vocabulary:
    tokens = token_bytes(tokenizer)
    outside = [i for i in stops if not 0 <= i < len(tokens)]
    if outside or not stops:
        raise TokenizerError(f"stop ids {outside or stops} do not name tokens of the vocabulary of {len(tokens)}")
    vocabulary = _core.Vocabulary(tokens, stops, _text_tokenizer(tokenizer))
    for regex in (scalars.STRING, scalars.number(), scalars.integer()):  # what nearly every schema has in it
        vocabulary.prepare(regex_dfa(regex))
    return vocabulary


def _default_stop_ids(tokenizer: Any) -> list[int]:
    own = getattr(tokenizer, "eos_token_id", None)
    if own is not None:
        return [own] if isinstance(own, int) else list(own)
    backend = _backend(tokenizer)
    for name in _STOP_NAMES:
        if (found := backend.token_to_id(name)) is not None:
            log.info("the tokenizer names no end-of-sequence token: %s ends an answer", name)
            return [found]
    raise TokenizerError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token, or pass stop_ids")


def _text_tokenizer(tokenizer: Any) -> Callable[[bytes], list[int]]:
    """Token ids of a piece of text in the middle of a longer one; the core checks that they spell it."""
    backend = _backend(tokenizer)
    # SentencePiece puts a space before the first word of a text: it goes to an anchor in front, which is cut off.
    anchor = "\n" if "ByteLevel" not in {p["type"] for p in _parts(json.loads(backend.to_str()).get("decoder"))} else ""
    skip = len(backend.encode(anchor, add_special_tokens=False).ids) if anchor else 0

    def tokenize(piece: bytes) -> list[int]:
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            return []
        ids: list[int] = backend.encode(anchor + text, add_special_tokens=False).ids
        return ids[skip:]

    return tokenize
