"""Answers to real requests with a real tokenizer: legal whatever the policy writes, the same whatever runs beside."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from toolprm_decode import Answer, Decoded, Decoder, Engine, Request, Search
from toolprm_decode.tools import read_tools

from .grammar.bfcl import lines, misfits
from .grammar.judge import judge

FORMATS = ("json-list", "hammer", "hermes", "llama-json", "pythonic")


@pytest.fixture(scope="module")
def engine(qwen_tokenizer: PreTrainedTokenizerFast) -> Engine:
    """A random policy over a real vocabulary, with some taste for ending what it began."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=151_936,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32_768,
        )
    ).eval()
    ends = [token for text, token in qwen_tokenizer.get_vocab().items() if set(text) & set('"]}')]
    ids = torch.tensor([qwen_tokenizer('The quick brown fox {"name": [1, 2]}')["input_ids"]])
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        usual = model.model(ids).last_hidden_state[0].mean(0)
        model.lm_head.weight[ends] += 4 * usual / (usual @ usual)
    return Engine(model, qwen_tokenizer)


@pytest.fixture(scope="module")
def questions(data_dir: Path) -> list[tuple[list[Any], Any]]:
    """Tools and chat messages of BFCL's single-turn questions, shuffled."""
    rows = [
        row
        for path in sorted((data_dir / "bfcl").glob("BFCL_v4_*.json"))
        if "multi_turn" not in path.name
        for row in lines(path)
        if row["function"]
    ]
    random.Random(0).shuffle(rows)
    return [(row["function"], row["question"][0]) for row in rows]


def said(text: str, format: str) -> list[Any]:
    """The calls of a text, in a plain reading of each JSON format."""
    if format == "json-list":
        return json.loads(text)
    if format == "hammer":
        return json.loads(text.removeprefix("```\n").removesuffix("\n```"))
    if format == "hermes":
        return [json.loads(part.rpartition("\n</tool_call>")[0]) for part in text.split("<tool_call>\n")[1:]]
    calls, decoder = [], json.JSONDecoder()
    while text:
        call, end = decoder.raw_decode(text)
        calls.append({"name": call["name"], "arguments": call["parameters"]})
        text = text[end:].removeprefix("; ")
    return calls


def test_every_answer_is_legal(engine: Engine, questions: list[tuple[list[Any], Any]]) -> None:
    decoders = {format: Decoder(engine, format=format) for format in FORMATS}
    kinds: Counter[str] = Counter()
    for index, (tools, messages) in enumerate(questions[:300]):
        format = FORMATS[index % len(FORMATS)]
        decoded = decoders[format].decode(tools, messages, Search(beams=2, width=4, seed=index, max_tokens=40))
        read = read_tools(tools)
        for answer in decoded.finished:
            assert judge(answer.text, format, read).legal, answer.text
            assert not misfits(answer.calls, read), answer.text
            assert len(answer.tokens) <= 40
            if format != "pythonic":
                assert answer.calls == said(answer.text, format)
        assert decoded.format == format
        kinds["no call" if not decoded.calls else "closed" if decoded.closed else "ended by itself"] += 1
    print(kinds)
    assert min(kinds["no call"], kinds["closed"], kinds["ended by itself"]) >= 5


def written(decoded: Decoded) -> list[Any]:
    def plain(answer: Answer) -> Any:
        steps = [(step.kind, step.start, step.end, step.path) for step in answer.steps]
        return answer.text, answer.tokens, answer.calls, steps, answer.multiplicity, answer.closed

    return [plain(answer) for answer in decoded.finished]


def test_the_same_seed_gives_the_same_bytes(engine: Engine, questions: list[tuple[list[Any], Any]]) -> None:
    searches = [Search(beams=2, width=4, seed=i, max_tokens=24) for i in range(12)]
    requests = [Request(t, m, search) for (t, m), search in zip(questions[300:312], searches, strict=True)]
    cold = [written(Decoder(engine).decode(r.tools, r.prompt, r.search)) for r in requests]
    one = Decoder(engine)
    first, second = [[written(one.decode(r.tools, r.prompt, r.search)) for r in requests] for _ in range(2)]
    assert first == second == cold
    order = random.Random(1).sample(range(12), 12)
    batched = one.decode_batch([requests[i] for i in order])
    assert [written(decoded) for decoded in batched] == [cold[i] for i in order]

    beside: list[Any] = []
    others = Decoder(engine.model, tokenizer=engine.tokenizer)
    thread = threading.Thread(target=lambda: beside.extend(map(written, others.decode_batch(requests[::-1]))))
    thread.start()
    assert [written(decoded) for decoded in one.decode_batch(requests)] == cold
    thread.join()
    assert beside == cold[::-1]
