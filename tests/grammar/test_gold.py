"""BFCL's gold calls in every format: accepted where they fit their schemas, and cut into the right steps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from toolprm_decode.grammar import CallGrammar, Step
from toolprm_decode.grammar.vocabulary import token_bytes

from .bfcl import answered, misfits
from .cases import FORMATS
from .texts import Span, dumps_of, random_tokens, steps_of, write

# Questions whose gold calls break the schemas of their own tools.
MISFITS = [
    "live_multiple_87-38-4",
    "live_multiple_552-153-1",
    "live_multiple_595-158-1",
    "live_multiple_596-158-2",
    "live_multiple_731-167-2",
    "live_multiple_733-167-4",
    "live_multiple_735-167-6",
    "live_multiple_862-181-3",
    "live_multiple_871-182-8",
    "live_multiple_947-197-0",
    "live_multiple_964-207-0",
    "live_multiple_1038-265-0",
    "live_simple_106-63-0",
    "live_simple_112-68-0",
    "parallel_multiple_21",
    "simple_java_88",
    "simple_javascript_5",
    "simple_javascript_11",
    "simple_javascript_19",
    "simple_javascript_32",
    "simple_javascript_37",
    "simple_javascript_39",
]


def spans(steps: list[Step]) -> list[Span]:
    return [(step.kind, step.start, step.end, step.path) for step in steps]


def test_the_misfits_are_known(data_dir: Path) -> None:
    assert [entry.id for entry in answered(data_dir) if misfits(entry.calls, entry.tools)] == MISFITS


@pytest.mark.parametrize("format", FORMATS)
def test_gold_calls(format: str, data_dir: Path, qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(format)
    ids = {text: index for index, text in enumerate(token_bytes(qwen_tokenizer)) if text}
    for entry in answered(data_dir):
        grammar = CallGrammar(entry.tools, qwen_tokenizer, format)
        fits = entry.id not in MISFITS
        for text in {write(entry.calls, format, dumps) for dumps in dumps_of(format)}:
            assert grammar.accepts(text) == fits, (entry.id, text)
            if not fits:
                continue
            steps = grammar.steps(text)
            assert spans(steps) == steps_of(text, format, entry.calls), (entry.id, text)
            data = text.encode()
            assert all(step.text.encode() == data[step.start : step.end] for step in steps)
            if rng.random() < 0.5:
                for tokens in (
                    qwen_tokenizer(text, add_special_tokens=False).input_ids,
                    random_tokens(data, ids, rng),
                    random_tokens(data, ids, rng),
                ):
                    matcher = grammar.matcher()
                    written = [step for token in tokens for step in matcher.accept(token)]
                    assert matcher.is_complete
                    written += matcher.accept(qwen_tokenizer.eos_token_id)
                    assert written == matcher.steps == steps, (entry.id, tokens)
