"""decode() and Decoder: limits, refusals, threads, and what an answer says of itself."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from toolprm_decode import Answer, Decoded, Decoder, Request, Search, Step, ToolPRM, decode
from toolprm_decode.engine import Engine
from toolprm_decode.errors import (
    BudgetExceeded,
    FormatError,
    ModelNotSupported,
    RequestError,
    TokenizerError,
    ToolprmError,
    ToolSchemaError,
)

from .search.models import (
    PROMPT,
    QUICK,
    SWAP,
    SWITCH,
    TOOLS,
    decoder,
    held,
    judge,
    partial_reward,
    policy,
    reward,
    tokenizer,
)


def engines(one: Decoder) -> list[Engine]:
    return [one._policy] + ([one._prm.engine] if one._prm else [])


def assert_nothing_held(one: Decoder) -> None:
    assert held(one) == (0, 0)


def plain(answer: Answer) -> Any:
    return answer.text, answer.tokens, [(s.kind, s.text, s.start, s.end, s.path) for s in answer.steps]


# ---------------------------------------------------------------------------------------------------------------------
# Limits


def answer_or_refusal(one: Decoder, search: Search) -> Decoded | BudgetExceeded:
    try:
        return one.decode(TOOLS, PROMPT, search)
    except BudgetExceeded as error:
        return error


@pytest.mark.parametrize("forced_runs", [True, False])
@pytest.mark.parametrize("format", ["json-list", "hammer", "hermes", "llama-json", "pythonic"])
def test_answers_are_closed_or_refused_but_never_cut_short(format: str, forced_runs: bool) -> None:
    one = decoder(format=format)
    answered = []
    for most in range(1, 55):
        strategy = ("step-beam", "sample", "greedy")[most % 3]
        search = Search(
            strategy, beams=2, width=3, seed=most, max_tokens=most, allow_no_call=False, forced_runs=forced_runs
        )
        decoded = answer_or_refusal(one, search)
        answered.append(isinstance(decoded, Decoded))
        if not isinstance(decoded, Decoded):
            assert "max_tokens" in str(decoded)
            continue
        grammar = one.grammar(TOOLS, search)
        for answer in decoded.finished:
            assert grammar.accepts(answer.text) and len(answer.tokens) <= most
            assert answer.calls
    first = answered.index(True)
    assert first > 0 and all(answered[first:]), "a larger budget is never refused where a smaller one was enough"
    assert_nothing_held(one)


def limited(positions: int) -> hf.LlamaForCausalLM:
    model = copy.deepcopy(policy())
    model.config.max_position_embeddings = positions
    return model


def test_the_context_bounds_the_answer() -> None:
    prompt_tokens = decoder().decode(TOOLS, PROMPT, QUICK).stats.prompt_tokens
    for room in (0, 1, 5, 30):
        one = Decoder(limited(prompt_tokens + room), None, tokenizer=tokenizer())
        decoded = answer_or_refusal(one, Search(width=2, max_tokens=500, allow_no_call=room < 30))
        if isinstance(decoded, Decoded):
            assert all(len(answer.tokens) <= room for answer in decoded.finished)
        else:
            assert room < 5 and ("context" in str(decoded) or "max_tokens" in str(decoded))
        assert_nothing_held(one)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(BudgetExceeded, match="the model's context is 50"):
        Decoder(limited(50), None, tokenizer=tokenizer()).decode(TOOLS, PROMPT)
    prompt_tokens = decoder().decode(TOOLS, PROMPT, QUICK).stats.prompt_tokens
    one = decoder(ToolPRM(limited(prompt_tokens + 1), tokenizer()))
    with pytest.raises(BudgetExceeded, match="reward model"):
        one.decode(TOOLS, PROMPT)
    assert_nothing_held(one)


def test_position_embeddings_bound_the_answer() -> None:
    config = hf.GPT2Config(vocab_size=len(tokenizer()), n_embd=32, n_layer=2, n_head=2, n_positions=420)
    torch.manual_seed(0)
    one = Decoder(hf.GPT2LMHeadModel(config).eval(), reward(), tokenizer=tokenizer())
    decoded = one.decode(TOOLS, PROMPT, Search(width=2, temperature=2, max_tokens=500, allow_no_call=False))
    room = 420 - decoded.stats.prompt_tokens
    assert 20 < room < 100
    assert all(len(answer.tokens) <= room for answer in decoded.finished)


# ---------------------------------------------------------------------------------------------------------------------
# Models and rewards that fail


def spoil(engine: Engine) -> None:
    with torch.no_grad():
        engine.model.lm_head.weight.fill_(math.nan)


def test_logits_that_are_not_numbers_are_refused() -> None:
    one = Decoder(copy.deepcopy(policy()), reward(), tokenizer=tokenizer())
    spoil(one._policy)
    with pytest.raises(ModelNotSupported, match="NaN"):
        one.decode(TOOLS, PROMPT, QUICK)
    assert_nothing_held(one)


def test_a_reward_model_without_numbers_is_refused() -> None:
    prm = ToolPRM(copy.deepcopy(reward().engine.model), tokenizer())
    spoil(prm.engine)
    one = decoder(prm)
    with pytest.raises(ModelNotSupported, match="reward model's logits are NaN"):
        one.decode(TOOLS, PROMPT, QUICK)
    assert_nothing_held(one)


class Unhappy(Exception):
    pass


@pytest.mark.parametrize("bad", [None, 2.0, -0.1, math.nan, "good", [1, 2], Unhappy("no")], ids=repr)
def test_a_callable_that_gives_no_score_is_refused_and_the_decoder_goes_on(bad: Any) -> None:
    answer: list[Any] = [bad]

    def score(prompt: str, steps: list[Step]) -> Any:
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    one = decoder(score)
    expected = Unhappy if isinstance(bad, Unhappy) else RequestError
    with pytest.raises(expected) as caught:
        one.decode_batch([Request(TOOLS, PROMPT, QUICK), Request([SWAP], PROMPT, QUICK)])
    if isinstance(bad, Unhappy):
        assert caught.value is bad
    else:
        assert "the reward callable must return" in str(caught.value)
    assert_nothing_held(one)
    answer[0] = 0.5
    assert plain(one.decode(TOOLS, PROMPT, QUICK)) == plain(decoder(lambda *_: 0.5).decode(TOOLS, PROMPT, QUICK))


def test_a_callable_sees_the_prompt_and_the_steps_up_to_the_one_to_score() -> None:
    seen: list[tuple[str, list[Step]]] = []

    def score(prompt: str, steps: list[Step]) -> float:
        seen.append((prompt, steps))
        return 1 / (1 + len(steps))

    decoded = decoder(score).decode(TOOLS, PROMPT, QUICK)
    assert all(PROMPT in prompt and steps for prompt, steps in seen)
    for index, step in enumerate(decoded.steps):
        assert step.score == 1 / (2 + index)
        before = [(s.kind, s.text, s.path) for s in decoded.steps[: index + 1]]
        assert any(before == [(s.kind, s.text, s.path) for s in steps] for _, steps in seen)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


class Endless:
    def __repr__(self) -> str:
        return "endless " * 1000


@pytest.mark.parametrize(
    "prompt",
    [None, 5, b"bytes", [], {}, [5], [{"content": "x"}], [{"role": 1}], "\ud800", [{"role": "\udfff"}], Endless()],
)
def test_prompts_that_cannot_be_used_are_refused(prompt: Any) -> None:
    one = decoder()
    with pytest.raises(RequestError) as caught:
        one.decode(TOOLS, prompt)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert_nothing_held(one)


@pytest.mark.parametrize(
    "tools",
    [
        None,
        "get_weather",
        [{"parameters": {}}],
        [{**SWAP, "name": "\ud800"}],
        [{**SWAP, "description": "\udc80"}],
        [{"name": "f", "parameters": {"properties": {"\ud800": {"type": "string"}}}}],
        [{"name": "f", "parameters": {"properties": {"x": {"enum": ["\ud800"]}}, "required": ["x"]}}],
        [{"name": "f", "parameters": {"properties": {"x": {"type": "string", "pattern": "("}}}}],
        [{"name": "f", "parameters": {"properties": {"x": False}, "required": ["x"]}}],
        [SWAP, SWAP],
    ],
)
def test_tools_that_cannot_be_used_are_refused(tools: Any) -> None:
    one = decoder()
    with pytest.raises(ToolSchemaError) as caught:
        one.decode(tools, PROMPT)
    assert "\n" not in str(caught.value)
    assert_nothing_held(one)


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "beam"},
        {"strategy": None},
        {"aggregate": "max"},
        {"aggregate": []},
        {"beams": 0},
        {"beams": 2.0},
        {"beams": True},
        {"width": 10_000},
        {"seed": -1},
        {"seed": 2**64},
        {"max_tokens": 0},
        {"max_calls": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": 1e-310},
        {"temperature": "1"},
        {"policy_weight": math.inf},
        {"policy_weight": 10**400},
        {"allow_no_call": None},
        {"forced_runs": 1},
        {"distinct": True, "temperature": 0.0},
        {"distinct": 1},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))):
        Search(**settings)


def test_requests_that_are_none_are_refused() -> None:
    one = decoder()
    assert one.decode_batch([]) == []
    for wrong in ({"tools": TOOLS}, (TOOLS, PROMPT), None):
        with pytest.raises(RequestError, match="Request"):
            one.decode_batch([wrong])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="Search"):
        one.decode(TOOLS, PROMPT, {"beams": 2})  # type: ignore[arg-type]


def encoder_decoder() -> hf.PreTrainedModel:
    config = hf.T5Config(vocab_size=len(tokenizer()), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return hf.T5ForConditionalGeneration(config)


def narrow() -> hf.PreTrainedModel:
    model = copy.deepcopy(policy())
    model.resize_token_embeddings(100)
    return model


REFUSED: dict[str, tuple[Callable[[], Any], type[ToolprmError], str]] = {
    "no model": (lambda: Decoder(5), RequestError, "must be a"),
    "missing folder": (lambda: Decoder("/no/such/folder"), RequestError, "no folder '/no/such/folder'"),
    "missing reward": (lambda: decoder("/no/such/folder"), RequestError, "no folder"),
    "no reward": (lambda: decoder(5), RequestError, "reward model must be"),
    "no tokenizer": (lambda: Decoder(policy()), TokenizerError, "tokenizer="),
    "bare tokenizer": (
        lambda: Decoder(policy(), tokenizer=tokenizer().backend_tokenizer),
        TokenizerError,
        "must be one of transformers",
    ),
    "missing tokenizer": (lambda: Decoder(policy(), tokenizer="/no/such"), TokenizerError, "/no/such"),
    "unknown format": (lambda: decoder(format="xml"), FormatError, "unknown call format 'xml'"),
    "narrow head": (lambda: Decoder(narrow(), tokenizer=tokenizer()), ModelNotSupported, "100 rows"),
    "narrow reward": (lambda: decoder(narrow()), ModelNotSupported, "100 rows"),
    "encoder-decoder": (lambda: Decoder(encoder_decoder(), tokenizer=tokenizer()), ModelNotSupported, "T5"),
    "nothing to call": (lambda: decoder().decode([], PROMPT, Search(allow_no_call=False)), ToolSchemaError, "no tool"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case: str) -> None:
    make, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Inputs that work


def test_a_lenient_decoder_says_what_it_does_not_enforce() -> None:
    listed = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    tools = [*TOOLS, {"name": "list_all", "parameters": {"type": "object", "properties": {"names": listed}}}]
    search = Search(width=2, max_tokens=40)
    with pytest.raises(ToolSchemaError, match="uniqueItems"):
        decoder().decode(tools, PROMPT, search)
    one = decoder(strict=False)
    found = one.decode(tools, PROMPT, search).warnings
    assert [(w.tool, w.pointer, w.keyword) for w in found] == [("list_all", "/properties/names", "uniqueItems")]
    assert one.decode(TOOLS, PROMPT, search).warnings == []


def test_models_may_be_objects_folders_or_engines(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    policy().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    judge_folder = tmp_path / "prm"
    reward().save_pretrained(judge_folder)
    expected = decoder(reward()).decode(TOOLS, PROMPT, QUICK)
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder)
    for model, prm in (
        (str(folder), str(judge_folder)),
        (folder, judge_folder),
        (loaded, hf.AutoModelForCausalLM.from_pretrained(judge_folder)),
        (Engine(policy(), tokenizer()), Engine(reward().engine.model, tokenizer())),
    ):
        found = decode(model, prm, TOOLS, PROMPT, QUICK)
        assert plain(found) == plain(expected)
        assert found.score == pytest.approx(expected.score, abs=1e-5)


def test_one_model_may_be_policy_and_reward() -> None:
    expected = decode(policy(), ToolPRM(policy(), tokenizer()), TOOLS, PROMPT, QUICK, tokenizer=tokenizer())
    shared = ToolPRM(policy(), tokenizer())
    assert plain(Decoder(shared.engine, shared).decode(TOOLS, PROMPT, QUICK)) == plain(expected)
    engine = Engine(policy(), tokenizer())
    assert plain(Decoder(engine, engine).decode(TOOLS, PROMPT, QUICK)) == plain(expected)


def get_time(zone: str, digits: int = 2) -> str:
    """The time of a zone.

    Args:
        zone: its name.
        digits: of the seconds.
    """
    return f"{zone} {digits}"


def test_tools_may_be_functions_and_prompts_chats() -> None:
    one = decoder()
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What time is it?"},
    ]
    decoded = one.decode([get_time], chat, Search(max_tokens=50, allow_no_call=False))
    assert {call["name"] for call in decoded.calls} == {"get_time"}
    assert all(isinstance(call["arguments"]["zone"], str) for call in decoded.calls)


def test_without_tools_nothing_is_called() -> None:
    decoded = decoder(reward()).decode([], PROMPT)
    assert (decoded.calls, decoded.text) == ([], "[]")
    assert [step.kind for step in decoded.steps] == ["TOTAL_FINISH"]
    assert decoded.to_openai() == {"role": "assistant", "content": ""}


def test_integers_written_as_decimals_come_out_as_integers() -> None:
    values = {"integer": {"type": "integer", "enum": [7.0]}, "number": {"type": "number", "enum": [7.0]}}
    nested = {"type": "object", "properties": dict(values), "required": list(values), "additionalProperties": False}
    schema = {
        "type": "object",
        "properties": {**values, "list": {"type": "array", "items": values["integer"], "minItems": 2, "maxItems": 2}},
        "required": [*values, "list"],
    }
    schema["properties"]["nested"] = nested
    schema["required"].append("nested")
    one = decoder()
    tool = {"name": "f", "parameters": schema}
    for seed in range(5):
        search = Search("sample", width=1, seed=seed, temperature=2, max_calls=1, allow_no_call=False)
        (call,) = one.decode([tool], PROMPT, search).calls
        arguments = call["arguments"]
        found = [arguments["integer"], *arguments["list"], arguments["nested"]["integer"]]
        assert found == [7] * 4 and all(isinstance(value, int) for value in found)


# ---------------------------------------------------------------------------------------------------------------------
# Threads


def test_threads_get_what_they_would_get_alone() -> None:
    requests = [
        Request(
            [TOOLS, [SWITCH], [SWAP], [get_time]][i % 4],
            f"{PROMPT} {i}",
            Search(beams=2, width=3, seed=i, max_tokens=36),
        )
        for i in range(24)
    ]
    serial = decoder(reward())
    expected = [plain(serial.decode(r.tools, r.prompt, r.search)) for r in requests]
    one = decoder(reward())
    found: dict[int, Any] = {}
    failed: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for i in range(first, len(requests), 8):
                found[i] = plain(one.decode(requests[i].tools, requests[i].prompt, requests[i].search))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [found[i] for i in range(len(requests))] == expected
    assert_nothing_held(one)


def test_all_blocks_are_given_back() -> None:
    one = decoder(reward())
    one.decode_batch([Request(TOOLS, PROMPT, QUICK), Request([SWAP], PROMPT, Search("sample", width=6))])
    assert_nothing_held(one)
    core = one._scheduler._core
    assert min(core.blocks_in_use) > 0  # the prompts, for requests to come
    one._scheduler.clear_cache()
    assert core.blocks_in_use == (0, 0)


# ---------------------------------------------------------------------------------------------------------------------
# What an answer says of itself


@pytest.fixture(scope="module", params=["none", "model", "partial", "callable"])
def decoded(request: pytest.FixtureRequest) -> Decoded:
    prm = {"none": None, "model": reward(), "partial": partial_reward(), "callable": judge}[request.param]
    search = Search(beams=3, width=5, temperature=1.4, seed=4, max_tokens=60, max_calls=2, allow_no_call=False)
    return decoder(prm).decode(TOOLS, PROMPT, search)


def test_steps_are_the_text(decoded: Decoded) -> None:
    for answer in decoded.finished:
        data = answer.text.encode()
        assert "".join(step.text for step in answer.steps) == answer.text
        assert all(data[step.start : step.end].decode() == step.text for step in answer.steps)
        assert [step.start for step in answer.steps] == [0, *(step.end for step in answer.steps[:-1])]
        assert answer.steps[-1].kind == "TOTAL_FINISH"
        assert "".join(tokenizer().convert_ids_to_tokens(answer.tokens)).replace("Ġ", " ").isprintable()


def test_log_probabilities_add_up(decoded: Decoded) -> None:
    for answer in decoded.finished:
        assert answer.logprob < 0
        assert sum(step.logprob or 0.0 for step in answer.steps) == pytest.approx(answer.logprob, abs=1e-9)


def test_calls_are_what_the_text_says(decoded: Decoded) -> None:
    for answer in decoded.finished:
        assert answer.calls == json.loads(answer.text)
        named = [step for step in answer.steps if step.kind == "FUNC_NAME"]
        assert [call["name"] for call in answer.calls] == [step.text.rpartition('": "')[2][:-1] for step in named]


def test_finished_answers_are_ranked_and_differ(decoded: Decoded) -> None:
    best = decoded.finished[0]
    assert (best.text, best.rank, best.steps) == (decoded.text, decoded.rank, decoded.steps)
    ranks = [answer.rank for answer in decoded.finished]
    assert all(a >= b - 1e-4 for a, b in pairwise(ranks))
    assert len({json.dumps(answer.calls, sort_keys=True) for answer in decoded.finished}) == len(decoded.finished)


def test_every_answer_is_a_path_of_the_tree(decoded: Decoded) -> None:
    tree = decoded.tree
    leaves = [index for index, node in enumerate(tree.nodes) if node.finished and node.kept]
    texts = {"".join(s.text for i in tree.path(leaf) for s in tree.nodes[i].steps): leaf for leaf in leaves}
    assert set(texts) == {answer.text for answer in decoded.finished}
    assert tree.best == texts[decoded.text]
    for answer in decoded.finished:
        path = tree.path(texts[answer.text])
        assert [step for i in path for step in tree.nodes[i].steps] == answer.steps
        assert tree.nodes[path[-1]].rank == answer.rank
        assert tree.nodes[path[-1]].multiplicity == answer.multiplicity
    for index, node in enumerate(tree.nodes):
        assert node.parent is None or (node.parent < index and tree.nodes[node.parent].kept)
        assert node.parent is None or not tree.nodes[node.parent].finished


def test_stats_count_what_was_run() -> None:
    for prm in (None, reward(), judge):
        one = decoder(prm)
        for search in (QUICK, Search("sample", width=5), Search("greedy"), Search(forced_runs=False, max_tokens=30)):
            before = [engine.forward_tokens for engine in engines(one)]
            one._scheduler.clear_cache()
            stats = one.decode(TOOLS, PROMPT, search).stats
            used = [engine.forward_tokens - b for engine, b in zip(engines(one), before, strict=True)]
            assert stats.policy_tokens == used[0]
            assert stats.prm_tokens == (used[1] if len(used) > 1 else 0)
            assert stats.distinct_candidates <= stats.candidates
            assert stats.forced_tokens > 0 or not search.forced_runs
            assert min(stats.seconds.values()) >= 0


def test_stats_of_a_batch_are_those_of_its_requests() -> None:
    requests = [
        Request(TOOLS, PROMPT, QUICK),
        Request(TOOLS, PROMPT, Search("sample", width=3)),
        Request([SWAP], "x", QUICK),
    ]
    one = decoder(reward())
    before = [engine.forward_tokens for engine in engines(one)]
    batched = [decoded.stats for decoded in one.decode_batch(requests)]
    used = [engine.forward_tokens - b for engine, b in zip(engines(one), before, strict=True)]
    assert [sum(s.policy_tokens for s in batched), sum(s.prm_tokens for s in batched)] == used
    for stats, request in zip(batched, requests, strict=True):
        one._scheduler.clear_cache()
        alone = one.decode(request.tools, request.prompt, request.search).stats
        for name in ("forced_tokens", "candidates", "distinct_candidates", "masks"):
            assert getattr(stats, name) == getattr(alone, name), name
        assert stats.policy_tokens + stats.cached_tokens == alone.policy_tokens
        assert stats.prm_tokens + stats.prm_cached_tokens == alone.prm_tokens


def test_openai_messages_carry_the_calls(decoded: Decoded) -> None:
    message = decoded.to_openai()
    assert message["role"] == "assistant" and message["content"] is None
    assert json.loads(json.dumps(message)) == message
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == len(ids)
    functions = [call["function"] for call in message["tool_calls"]]
    assert [{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions] == decoded.calls


def test_auto_says_which_format_it_picked() -> None:
    one = decoder()
    assert one.decode([], PROMPT).format == "json-list"
    assert one.grammar([]).format_reason == "there is no chat template: json-list"
    named = decoder(format="hermes")
    assert named.decode([], PROMPT).format == "hermes"
    assert "asked for" in named.grammar([]).format_reason
