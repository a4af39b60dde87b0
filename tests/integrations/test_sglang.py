"""The grammar backend for SGLang, driven as its scheduler does.

Without SGLang its base classes are stand-ins with what is used of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from toolprm_decode import CallGrammar
from toolprm_decode.errors import RequestError

from ..search.models import SWITCH, tokenizer

SIZE = len(tokenizer())
END = tokenizer().eos_token_id
BASE = "sglang.srt.constrained.base_grammar_backend"
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", 12]}},
    "required": ["on"],
}
SCHEMA["additionalProperties"] = False
WISH = {"tools": [SWITCH], "format": "json-list", "allow_no_call": False, "max_calls": 1}


class GrammarRow(NamedTuple):
    row: int
    grammar: Any


class BaseGrammarObject:
    def __init__(self) -> None:
        self.finished, self.grammar_stats = False, None

    @staticmethod
    def fill_vocab_mask_batched(entries: Any, vocab_mask: torch.Tensor) -> None:
        for entry in entries:
            entry.grammar.fill_vocab_mask(vocab_mask, entry.row)


class InvalidGrammarObject(BaseGrammarObject):
    def __init__(self, error_message: str):
        super().__init__()
        self.error_message = error_message


class BaseGrammarBackend:
    def __init__(self) -> None:
        self.executor, self.cache = ThreadPoolExecutor(), {}  # type: ignore[var-annotated]

    def get_cached_or_future_value(self, key: tuple[str, str], require_reasoning: bool) -> tuple[Any, bool]:
        if key in self.cache:
            return self.cache[key].copy(), True
        return self.executor.submit(getattr(self, f"dispatch_{key[0]}"), key[1]), False

    def set_cache(self, key: tuple[str, str], value: Any) -> None:
        self.cache[key] = value


@pytest.fixture(scope="module")
def sglang() -> Iterator[Any]:
    """Our module, over SGLang or the stand-ins."""
    before = dict(sys.modules)
    if importlib.util.find_spec("sglang") is None:
        for name in (BASE, "sglang.srt.server_args"):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        registry: dict[str, Any] = {}
        vars(sys.modules[BASE]).update(
            BaseGrammarObject=BaseGrammarObject,
            BaseGrammarBackend=BaseGrammarBackend,
            InvalidGrammarObject=InvalidGrammarObject,
            GrammarRow=GrammarRow,
            GRAMMAR_BACKEND_REGISTRY=registry,
            register_grammar_backend=registry.__setitem__,
        )
        choices = ["xgrammar"]
        vars(sys.modules["sglang.srt.server_args"]).update(
            GRAMMAR_BACKEND_CHOICES=choices, add_grammar_backend_choices=choices.extend
        )
    yield importlib.import_module("toolprm_decode.integrations.sglang")
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] == "sglang" or name == "toolprm_decode.integrations.sglang":
            del sys.modules[name]


@pytest.fixture
def base(sglang: Any) -> Any:
    return sys.modules[BASE]


def backend(sglang: Any, **arguments: Any) -> Any:
    return sglang.make_backend(SimpleNamespace(**arguments), tokenizer(), SIZE + 5, {END})


def begun(one: Any, key: tuple[str, str]) -> Any:
    """A request's grammar, the way SGLang gets it: made in the background, kept, copied."""
    value, hit = one.get_cached_or_future_value(key, False)
    if hit:
        return value
    value = value.result(30)
    one.set_cache(key, value.copy())
    return value


def legal(matcher: Any) -> set[int]:
    row = np.zeros(-(-SIZE // 32), np.int32)
    matcher.fill_mask(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def test_it_registers_once(sglang: Any, base: Any) -> None:
    sglang.register()
    sglang.register()
    choices = sys.modules["sglang.srt.server_args"].GRAMMAR_BACKEND_CHOICES  # type: ignore[attr-defined]
    assert choices.count("toolprm") == 1 and base.GRAMMAR_BACKEND_REGISTRY["toolprm"] is sglang.make_backend


@pytest.mark.parametrize("seed", range(4))
def test_requests_write_what_is_legal(sglang: Any, base: Any, seed: int) -> None:
    """Steps of a batch in which requests come and go, some without a grammar, some finished."""
    chance, one = random.Random(seed), backend(sglang)
    oracles = {
        ("json", json.dumps(SCHEMA)): CallGrammar.for_schema(SCHEMA, tokenizer(), flexible_whitespace=True),
        ("json", json.dumps({"toolprm": WISH})): CallGrammar(
            [SWITCH], tokenizer(), "json-list", allow_no_call=False, max_calls=1
        ),
    }
    batch: list[list[Any]] = []
    waiting, answers = 12, 0
    while waiting or batch:
        while waiting and len(batch) < 4:
            key = chance.choice([*oracles, None])
            batch.append([begun(one, key), oracles[key].matcher()] if key else [None, None])
            waiting -= 1
        grammars = [grammar for grammar, _ in batch]
        logits = torch.randn(len(batch), SIZE + 5)
        made = logits.clone()
        if first := next((grammar for grammar in grammars if grammar), None):
            mask = first.allocate_vocab_mask(vocab_size=SIZE + 5, batch_size=len(batch), device="cpu")
            entries = [
                base.GrammarRow(row, grammar)
                for row, grammar in enumerate(grammars)
                if grammar and not grammar.finished and not grammar.is_terminated()
            ]
            first.fill_vocab_mask_batched(entries, mask)
            single = first.allocate_vocab_mask(SIZE + 5, len(batch), "cpu")
            for entry in entries:
                entry.grammar.fill_vocab_mask(single, entry.row)
            assert torch.equal(mask, single)
            first.apply_vocab_mask(logits=made, vocab_mask=first.move_vocab_mask(mask, made.device))
        for row, (grammar, matcher) in enumerate(batch):
            allowed = set(range(SIZE + 5)) if grammar is None else legal(matcher)
            assert set((~torch.isneginf(made[row])).nonzero().flatten().tolist()) == allowed, f"seed {seed}"
            if grammar is None:
                token = END if chance.random() < 0.3 else 5
            else:
                token = END if END in allowed else chance.choice(sorted(allowed))
                if chance.random() < 0.2:  # a draft that is taken back
                    grammar.accept_token(token)
                    grammar.rollback(1)
                grammar.accept_token(token)
                matcher.accept(token)
                assert grammar.is_terminated() == (token == END)
            if token == END:
                answers += 1
                batch[row] = []
        batch = [pair for pair in batch if pair]
    assert answers == 12


def test_an_illegal_token_is_an_error_of_its_request(sglang: Any) -> None:
    grammar = begun(backend(sglang), ("json", json.dumps(SCHEMA)))
    with pytest.raises(ValueError, match="not legal"):
        grammar.accept_token(tokenizer()("]").input_ids[0])


def test_what_comes_after_the_end_is_ignored(sglang: Any) -> None:
    grammar = begun(backend(sglang), ("json", '{"const": 1}'))
    for token in [*tokenizer()("1").input_ids, END, END, 7]:
        grammar.accept_token(token)
    assert grammar.is_terminated()
    grammar.rollback(1)
    assert not grammar.is_terminated()


def test_copies_go_their_own_ways(sglang: Any) -> None:
    one = backend(sglang)
    first, second = (begun(one, ("json", '{"enum": ["a", 1]}')) for _ in range(2))
    for token in tokenizer()("1").input_ids:
        first.accept_token(token)
    first.accept_token(END)
    third = begun(one, ("json", '{"enum": ["a", 1]}'))
    assert [grammar.is_terminated() for grammar in (first, second, third)] == [True, False, False]


def test_white_space_is_as_the_server_was_told(sglang: Any) -> None:
    for fixed in (False, True):
        one = backend(sglang, constrained_json_disable_any_whitespace=fixed)
        grammar = begun(one, ("json", json.dumps(SCHEMA)))
        mask = grammar.allocate_vocab_mask(SIZE + 5, 1, "cpu")
        grammar.accept_token(tokenizer()("{").input_ids[0])
        grammar.fill_vocab_mask(mask, 0)
        newline = tokenizer()("\n").input_ids[0]
        assert bool(int(mask[0, newline // 32]) >> newline % 32 & 1) != fixed


def test_any_json_is_a_schema(sglang: Any) -> None:
    grammar = begun(backend(sglang), ("json", "$$ANY$$"))
    for token in [*tokenizer()('[1, {"a": null}]').input_ids, END]:
        grammar.accept_token(token)
    assert grammar.is_terminated()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (("json", "{"), "not JSON"),
        (("json", '{"type": "objekt"}'), "objekt"),
        (("json", '{"toolprm": {"tools": 3}}'), "tools"),
        (("json", '{"toolprm": {}}'), "a wish for a grammar"),
        (("regex", "a+"), "knows no regex"),
        (("ebnf", "root ::= 1"), "knows no ebnf"),
        (("structural_tag", "{}"), "knows no structural_tag"),
    ],
)
def test_what_cannot_be_had_is_said_to_its_request(sglang: Any, base: Any, key: tuple[str, str], said: str) -> None:
    value, _ = backend(sglang).get_cached_or_future_value(key, False)
    found = value.result(30)
    assert isinstance(found, base.InvalidGrammarObject) and said in found.error_message


def test_a_model_with_too_few_logits_and_a_server_that_reasons_are_refused(sglang: Any, base: Any) -> None:
    small = sglang.make_backend(SimpleNamespace(), tokenizer(), SIZE - 1, None)
    assert f"logits for {SIZE - 1} tokens" in small.dispatch_json("{}").error_message
    with pytest.raises(RequestError, match="reasoning-parser"):
        backend(sglang, reasoning_parser="qwen3")
