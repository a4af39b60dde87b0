"""The OpenAI-compatible server, driven by OpenAI's own client: answers, refusals, and requests that come and go."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from toolprm_decode import Answer, Decoded, Search
from toolprm_decode.integrations.server.gate import Limits

from ..search.models import SWAP, SWITCH, decoder, reward
from .servers import KEY, MESSAGES, MODEL, TOOLS, Running, gathered, hold, wait_for

# The random reward model cannot tell the two tools apart: with the policy's word no rank hangs on how floats round.
QUICK = Search(beams=2, width=3, temperature=1.2, max_tokens=40, policy_weight=0.3)
SETTINGS = {"beams": 2, "width": 3, "temperature": 1.2, "max_tokens": 40, "policy_weight": 0.3}


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """A server for tests that leave it as it was."""
    running = Running(decoder(reward()), Limits(request_bytes=100_000, candidates=64))
    yield running
    running.wait_until_idle()
    running.stop()


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server of the test's own, with the limits that it is parametrized by."""
    running = Running(decoder(reward()), getattr(request, "param", Limits()))
    yield running
    running.stop()


def ask(client: openai.OpenAI, settings: dict[str, Any] = SETTINGS, *, extra: Any = None, **fields: Any) -> Any:
    fields = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, **fields}
    return client.chat.completions.create(**fields, extra_body={"search": settings, **(extra or {})})


def calls(answer: Answer) -> list[tuple[str, str]]:
    """As the server must write them."""
    return [(call["name"], json.dumps(call["arguments"], ensure_ascii=False)) for call in answer.calls]


def assert_same(choice: Any, answer: Answer) -> None:
    """A choice of a whole answer is the decoder's own."""
    told = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    assert told == calls(answer)
    assert choice.message.content == (None if answer.calls else "")
    assert choice.message.role == "assistant"
    assert choice.finish_reason == ("length" if answer.closed else "tool_calls" if answer.calls else "stop")
    extra = choice.model_extra["toolprm"]
    assert extra["text"] == answer.text and extra["multiplicity"] == answer.multiplicity
    assert [(s["kind"], s["text"], s["start"], s["end"], s["path"]) for s in extra["steps"]] == [
        (s.kind, s.text, s.start, s.end, s.path) for s in answer.steps
    ]
    assert [s["score"] for s in extra["steps"]] == pytest.approx([s.score for s in answer.steps], rel=1e-4)
    assert (extra["score"], extra["logprob"]) == pytest.approx((answer.score, answer.logprob), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Answers


@pytest.mark.parametrize(
    ("fields", "tools", "changed"),
    [
        ({}, (SWITCH, SWAP), {}),
        ({"seed": 5, "temperature": 1.0, "max_tokens": 30}, (SWITCH, SWAP), {"seed": 5, "max_tokens": 30}),
        ({"max_completion_tokens": 20, "tool_choice": "auto"}, (SWITCH, SWAP), {"max_tokens": 20}),
        ({"tool_choice": "required"}, (SWITCH, SWAP), {"allow_no_call": False}),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            (SWITCH, SWAP),
            {"allow_no_call": False, "max_calls": 1},
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "swap"}}},
            (SWAP,),
            {"allow_no_call": False, "max_calls": 1},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [TOOLS[0]]},
                }
            },
            (SWITCH,),
            {"allow_no_call": False},
        ),
    ],
    ids=["plain", "seed", "max", "required", "one", "named", "allowed"],
)
def test_answers_are_those_of_decode(
    shared: Running, fields: dict[str, Any], tools: tuple[Any, ...], changed: dict[str, Any]
) -> None:
    search = replace(QUICK, **changed)
    settings = {**SETTINGS, "max_tokens": search.max_tokens}
    if "temperature" in fields:
        search = replace(search, temperature=fields["temperature"])
        del settings["temperature"]
    got = ask(shared.client(), settings, **fields)
    expected = shared.decoder.decode(tools, MESSAGES, search)
    (choice,) = got.choices
    assert_same(choice, expected)
    assert got.model == MODEL and got.object == "chat.completion" and got.id.startswith("chatcmpl-")
    assert got.usage.prompt_tokens == expected.stats.prompt_tokens
    assert got.usage.completion_tokens == len(expected.tokens)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    stats = got.usage.model_extra["toolprm"]
    for name in ("candidates", "distinct_candidates", "forced_tokens", "prm_prompt_tokens"):
        assert stats[name] == getattr(expected.stats, name)
    assert stats["policy_tokens"] > 0 and stats["prm_tokens"] > 0


@pytest.mark.parametrize("strategy", ["greedy", "sample", "token-beam", "step-beam"])
def test_alternatives_come_ranked(shared: Running, strategy: str) -> None:
    search = replace(QUICK, strategy=strategy, beams=4, width=4)
    got = ask(shared.client(), {**SETTINGS, "strategy": strategy, "beams": 4, "width": 4}, n=3)
    expected = shared.decoder.decode([SWITCH, SWAP], MESSAGES, search)
    assert [choice.index for choice in got.choices] == list(range(min(3, len(expected.finished))))
    for choice, answer in zip(got.choices, expected.finished, strict=False):
        assert_same(choice, answer)
    assert got.usage.completion_tokens == sum(len(a.tokens) for a in expected.finished[:3])


def test_a_lenient_server_says_what_it_does_not_enforce(shared: Running) -> None:
    listed = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    parameters = {"type": "object", "properties": {"names": listed}}
    tools = [*TOOLS, {"type": "function", "function": {"name": "list_all", "parameters": parameters}}]
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(shared.client(), tools=tools)
    lenient = Running(decoder(strict=False), Limits())
    try:
        (warning,) = ask(lenient.client(), tools=tools).usage.toolprm["warnings"]
        assert "warnings" not in ask(lenient.client()).usage.toolprm
    finally:
        lenient.stop()
    assert (warning["tool"], warning["pointer"], warning["keyword"]) == ("list_all", "/properties/names", "uniqueItems")


def test_the_same_calls_have_ids_of_their_own(shared: Running) -> None:
    answers = [ask(shared.client(), tool_choice="required", n=2) for _ in range(2)]
    ids = [call.id for got in answers for choice in got.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids) > 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 3])
def test_the_pieces_of_a_stream_make_the_whole_answer(shared: Running, seed: int, count: int) -> None:
    settings = {**SETTINGS, "temperature": 1.5, "max_tokens": 80}
    fields = {"seed": seed, "n": count, "tool_choice": "required" if seed else "auto"}
    whole = ask(shared.client(), settings, **fields)
    chunks = list(ask(shared.client(), settings, **fields, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.model_extra["toolprm"]["candidates"] == whole.usage.model_extra["toolprm"]["candidates"]
    messages = gathered(chunks)
    assert sorted(messages) == [choice.index for choice in whole.choices]
    for choice in whole.choices:
        message = messages[choice.index]
        assert message["role"] == "assistant" and message["content"] == choice.message.content
        assert message["reason"] == choice.finish_reason
        assert [(c["name"], c["arguments"]) for c in message["calls"]] == [
            (c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()
        ]
        assert message["toolprm"]["text"] == choice.model_extra["toolprm"]["text"]


def test_the_client_puts_streams_together_itself(shared: Running) -> None:
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    with shared.client().chat.completions.stream(
        model=MODEL, messages=MESSAGES, tools=strict, tool_choice="required", extra_body={"search": SETTINGS}
    ) as stream:
        final = stream.get_final_completion().choices[0].message
    whole = ask(shared.client(), tool_choice="required").choices[0].message
    assert [(c.function.name, c.function.arguments) for c in final.tool_calls] == [
        (c.function.name, c.function.arguments) for c in whole.tool_calls
    ]


def test_steps_are_told_before_the_answer_is_there(own: Running) -> None:
    with hold(own.decoder, after=2) as passes:
        settings = {"beams": 1, "width": 1, "temperature": 1.2, "max_tokens": 60}
        stream = ask(own.client(), settings, tool_choice="required", stream=True)
        seen = []
        for chunk in stream:
            seen.append(chunk)
            if chunk.choices[0].delta.tool_calls:
                break
        assert seen[-1].choices[0].delta.tool_calls[0].function.name in ("switch", "swap")
        assert passes.waiting.wait(60)
        assert own.service.gate.running == 1, "the answer is not there"
        passes.let_go()
        seen += list(stream)
    assert seen[-1].choices[0].finish_reason in ("tool_calls", "length")


def test_earlier_turns_reach_the_model(shared: Running) -> None:
    arguments = {"on": True, "room": "hall"}
    call = {"id": "c1", "type": "function", "function": {"name": "switch", "arguments": json.dumps(arguments)}}
    asked = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Light"}, {"type": "text", "text": "in the hall"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
        {"role": "user", "content": "Now the attic"},
    ]
    read = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Light\nin the hall"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "switch", "arguments": arguments}}],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "switch", "content": "done"},
        {"role": "user", "content": "Now the attic"},
    ]
    got = ask(shared.client(), messages=asked)
    expected = shared.decoder.decode([SWITCH, SWAP], read, QUICK)
    assert_same(got.choices[0], expected)
    assert got.usage.prompt_tokens == expected.stats.prompt_tokens
    shorter = shared.decoder.decode([SWITCH, SWAP], [*read[:2], read[4]], QUICK).stats.prompt_tokens
    assert got.usage.prompt_tokens > shorter, "the calls are a part of the prompt"


def test_an_answer_goes_back_into_the_conversation(shared: Running) -> None:
    message = ask(shared.client(), tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls]
    again = ask(shared.client(), messages=[*MESSAGES, message.model_dump(), *results])
    assert again.choices


def test_each_of_many_clients_gets_its_own_answer(shared: Running) -> None:
    async def all_of_them() -> list[Any]:
        async with shared.async_client() as client:

            async def one(index: int) -> Any:
                fields: dict[str, Any] = {"model": MODEL, "messages": request(index), "tools": TOOLS, "seed": index}
                if index % 2:
                    chunks = await client.chat.completions.create(
                        **fields, stream=True, extra_body={"search": SETTINGS}
                    )
                    message = gathered([chunk async for chunk in chunks])[0]
                    return [(call["name"], call["arguments"]) for call in message["calls"]]
                got = await client.chat.completions.create(**fields, extra_body={"search": SETTINGS})
                return [(c.function.name, c.function.arguments) for c in got.choices[0].message.tool_calls or ()]

            return await asyncio.gather(*map(one, range(40)))

    def request(index: int) -> Any:
        return [{"role": "user", "content": f"Light in room {index} " + "please " * (index % 7)}]

    told = asyncio.run(all_of_them())
    expected = [
        calls(shared.decoder.decode([SWITCH, SWAP], request(i), replace(QUICK, seed=i))) for i in range(len(told))
    ]
    assert told == expected
    assert len({str(answer) for answer in expected}) > 10, "they differ, so a mixed-up one would show"


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, which must be as OpenAI writes it."""
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Light"}, "messages"),
        ({"messages": [5]}, "messages.0"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages.0.tool_calls.0"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "swap", "arguments": '{"tag": '}}]}
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
        ({"tools": None}, "tools"),
        ({"tools": [SWITCH]}, "tools.0"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "strin"}}}]}, "tools"),
        ({"tool_choice": "none"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "switsh"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"parallel_tool_calls": False, "search": {"max_calls": 2}}, "parallel_tool_calls"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"seed": -1}, "seed"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1, "search": {"temperature": 2}}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_all": True}}, "stream_options.include_all"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "long"}, "timeout"),
        ({"search": []}, "search"),
        ({"search": {"beam": 2}}, "search.beam"),
        ({"search": {"beams": 0}}, "search.beams"),
        ({"search": {"beams": 65, "width": 1}}, "search.beams"),
        ({"search": {"strategy": "sample", "width": 65}}, "search.width"),
        ({"search": {"strategy": "best"}}, "search.strategy"),
        ({"beams": 2}, "beams"),
        ({"temprature": 1}, "temprature"),
        ({"stop": ["\n"]}, "stop"),
        ({"top_p": 0.9}, "top_p"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": []}, "functions"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
    ids=str,
)
def test_fields_that_cannot_be_honoured_are_named(shared: Running, fields: dict[str, Any], param: str) -> None:
    error = refused(shared.post(**fields), 400)
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert param.rpartition(".")[2] in error["message"] or param in ("tools", "messages")


def test_fields_that_ask_for_nothing_are_taken(shared: Running) -> None:
    neutral = {
        **dict.fromkeys(("stop", "top_p", "logprobs", "functions", "tool_choice", "seed", "stream_options")),
        "top_p": 1,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "stop": [],
        "logprobs": False,
        "n": 1,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "prompt_cache_key": "x",
        "parallel_tool_calls": True,
    }
    plain, same = (shared.post(search=SETTINGS, **fields).json()["choices"] for fields in ({}, neutral))
    assert plain[0]["toolprm"]["text"] == same[0]["toolprm"]["text"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "a JSON object"),
        (b'{"n": NaN}', "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
    ids=["empty", "cut", "list", "nan", "bytes", "deep", "digits"],
)
def test_bodies_that_are_no_objects_are_refused(shared: Running, body: bytes, words: str) -> None:
    assert words in refused(shared.post(body), 400)["message"]


@pytest.mark.parametrize("depth", [300, 450, *range(900, 1000, 7), 3000])
def test_whatever_is_nested_too_deeply_is_refused(shared: Running, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    call = {"type": "function", "id": "1", "function": {"name": "swap", "arguments": f'{{"tag": {deep}}}'}}
    spoken = shared.post(messages=[{"role": "assistant", "tool_calls": [call]}], search=SETTINGS)
    assert spoken.status_code == 200 or refused(spoken, 400)
    tools = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {"const": "DEEP"}}}])
    for field, value in (("n", deep), ("tools", tools.replace('"DEEP"', deep)), ("search", f'{{"seed": {deep}}}')):
        body = json.dumps({"model": MODEL, "messages": MESSAGES, "tools": TOOLS, field: "HERE"})
        refused(shared.post(body.replace('"HERE"', value).encode()), 400)


def test_a_prompt_that_leaves_no_room_says_so(shared: Running) -> None:
    error = refused(shared.post(messages=[{"role": "user", "content": "light " * 9000}]), 400)
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_does_not_fit_is_refused_before_a_stream_begins(shared: Running, stream: bool) -> None:
    error = refused(shared.post(tool_choice="required", max_tokens=1, stream=stream), 400)
    assert error["code"] == "budget_exceeded" and "max_tokens" in error["message"]


def test_large_bodies_are_refused(shared: Running) -> None:
    for content in (b" " * 100_001, b" " * 5_000_000, iter([b" " * 1000] * 200)):
        assert refused(shared.post(content), 413)["code"] == "request_too_large"
    assert shared.post(b" " * 100_000).status_code == 400


@pytest.mark.parametrize("key", [None, "another key", "Ключ".encode()])
def test_a_key_is_asked_for(shared: Running, key: Any) -> None:
    headers = {} if key is None else {"authorization": b"Bearer " + (key if isinstance(key, bytes) else key.encode())}
    for path in ("/v1/models", "/v1/chat/completions", "/v1/else", "/", "//v1/models", "/openapi.json"):
        response = httpx.get(shared.root + path, headers=headers)
        assert refused(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/ready", "/metrics"):
        assert httpx.get(shared.root + path, headers=headers).status_code == 200


def test_the_client_raises_its_own_errors(shared: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        shared.client(api_key="another").models.list()
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(shared.client(), model="gpt-4o")
    assert unknown.value.code == "model_not_found" and MODEL in unknown.value.message
    with pytest.raises(openai.NotFoundError):
        shared.client().models.retrieve("gpt-4o")
    with pytest.raises(openai.BadRequestError) as bad:
        ask(shared.client(), stop="x")
    assert bad.value.param == "stop"
    with pytest.raises(openai.NotFoundError):
        shared.client().completions.create(model=MODEL, prompt="x")


def test_models_and_routes(shared: Running) -> None:
    assert [model.id for model in shared.client().models.list()] == [MODEL]
    assert shared.client().models.retrieve(MODEL).id == MODEL
    headers = {"authorization": f"Bearer {KEY}"}
    assert "/v1/chat" in refused(httpx.get(f"{shared.root}/v1/chat", headers=headers), 404)["message"]
    response = httpx.get(f"{shared.root}/v1/chat/completions", headers=headers)
    assert "GET" in refused(response, 405)["message"]
    assert response.headers["x-request-id"].startswith("req_") and response.headers["allow"] == "POST"


# ---------------------------------------------------------------------------------------------------------------------
# Queues, deadlines, clients that leave, a server that ends


@pytest.mark.parametrize("own", [Limits(running=1, queue=2)], indirect=True)
def test_more_requests_than_may_wait_are_refused(own: Running) -> None:
    with ThreadPoolExecutor(3) as clients:
        with hold(own.decoder) as passes:
            first = [clients.submit(ask, own.client(), seed=seed) for seed in range(3)]
            wait_for(lambda: own.service.gate.inside == 3 and own.service.gate.waiting == 2)
            assert passes.waiting.wait(60)
            assert own.metric("toolprm_queue_length") == 2 and own.metric("toolprm_requests_running") == 1
            with pytest.raises(openai.RateLimitError) as full:
                ask(own.client())
            assert full.value.code == "queue_full" and int(full.value.response.headers["retry-after"]) >= 1
            assert httpx.get(f"{own.root}/health").status_code == 200, "the loop does not wait for the decoder"
        for seed, answer in enumerate(first):
            expected = own.decoder.decode([SWITCH, SWAP], MESSAGES, replace(QUICK, seed=seed))
            assert_same(answer.result().choices[0], expected)
    own.wait_until_idle()
    assert own.metric('toolprm_requests_total{path="/v1/chat/completions",status="429"}') == 1
    assert own.metric('toolprm_requests_total{path="/v1/chat/completions",status="200"}') == 3


@pytest.mark.parametrize("own", [Limits(running=1)], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_requests_that_run_and_that_wait(own: Running, stream: bool) -> None:
    with hold(own.decoder), ThreadPoolExecutor(1) as clients:
        running = clients.submit(ask, own.client(), stream=stream, extra={"timeout": 1.5})
        wait_for(lambda: own.service.gate.running == 1)
        waiting = own.post(timeout=0.05)
        assert refused(waiting, 504)["code"] == "timeout" and waiting.headers["x-should-retry"] == "false"
        with pytest.raises(openai.APIError) as late:
            list(running.result())
        assert late.value.code == "timeout" and "time was up" in late.value.message
    own.wait_until_idle()
    assert own.metric('toolprm_requests_total{path="/v1/chat/completions",status="504"}') == 2


def raw_request(body: Any) -> bytes:
    """A request as it goes over the wire; its body never comes where there is none."""
    text = json.dumps(body) if body is not None else ""
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"authorization: Bearer {KEY}"]
    return "\r\n".join([*lines, f"content-length: {len(text) or 9}", "", text]).encode()


@pytest.mark.parametrize("own", [Limits(timeout=0.2)], indirect=True)
def test_a_body_that_does_not_come_is_not_waited_for(own: Running) -> None:
    with socket.create_connection(own.address) as client:
        client.sendall(raw_request(None))
        assert client.recv(100).startswith(b"HTTP/1.1 408")
    own.wait_until_idle()


@pytest.mark.parametrize("own", [Limits(running=1)], indirect=True)
def test_a_client_that_leaves_while_its_grammar_is_made_is_forgotten(
    own: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, made = threading.Event(), threading.Event()
    submit = own.decoder.submit

    def slow(*arguments: Any) -> Any:
        making.set()
        assert made.wait(60)
        pending.append(submit(*arguments))
        return pending[0]

    pending: list[Any] = []
    monkeypatch.setattr(own.decoder, "submit", slow)
    with hold(own.decoder):
        with socket.create_connection(own.address) as client:
            client.sendall(raw_request({"model": MODEL, "messages": MESSAGES, "tools": TOOLS}))
            assert making.wait(60)
        wait_for(lambda: own.service.gate.inside == 0)
        made.set()
        wait_for(lambda: bool(pending) and pending[0].cancelled())
    own.wait_until_idle()


@pytest.mark.parametrize("when", ["waiting", "running", "streaming"])
@pytest.mark.parametrize("own", [Limits(running=1)], indirect=True)
def test_a_client_that_leaves_frees_what_its_request_held(own: Running, when: str) -> None:
    gate = own.service.gate
    search = {"beams": 2, "width": 4, "temperature": 1.2, "max_tokens": 300}
    body = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "search": search}
    body["stream"] = when == "streaming"
    leavers = 2 if when == "waiting" else 1

    async def come_and_go() -> None:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=None) as client:
            url = f"{own.root}/v1/chat/completions"
            if when == "streaming":
                async with client.stream("POST", url, json=body) as response:
                    async for line in response.aiter_lines():
                        if "tool_calls" in line:
                            return
            tasks = [asyncio.create_task(client.post(url, json=body)) for _ in range(leavers)]
            while (gate.running, gate.waiting) != (1, leavers - 1):
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with hold(own.decoder, after=2) as passes:
        asyncio.run(come_and_go())
        if when != "streaming":
            wait_for(lambda: gate.inside == 0)  # at once, though a pass is under way
        passes.let_go()
    own.wait_until_idle()
    assert own.metric("toolprm_requests_cancelled_total") == leavers
    assert own.metric('toolprm_requests_total{path="/v1/chat/completions",status="499"}') == leavers
    assert own.metric("toolprm_kv_blocks_policy") == own.metric("toolprm_kv_blocks_prm") == 0
    assert_same(ask(own.client()).choices[0], own.decoder.decode([SWITCH, SWAP], MESSAGES, QUICK))


def in_flight(own: Running, clients: ThreadPoolExecutor) -> list[Any]:
    """Two requests that wait for the decoder, one of them a stream that has begun."""
    whole = clients.submit(ask, own.client())
    begun = threading.Event()

    def read() -> Any:
        stream = ask(own.client(), stream=True)
        first = next(stream)
        begun.set()
        return gathered([first, *stream])

    streamed = clients.submit(read)
    assert begun.wait(60)
    wait_for(lambda: own.service.gate.running == 2)
    return [whole, streamed]


def test_a_server_that_is_to_end_answers_what_is_in_flight(own: Running) -> None:
    expected = own.decoder.decode([SWITCH, SWAP], MESSAGES, QUICK)
    with ThreadPoolExecutor(2) as clients:
        with hold(own.decoder):
            whole, streamed = in_flight(own, clients)
            own.tell_to_stop()
            wait_for(lambda: own.service.gate.draining)
            with pytest.raises(httpx.TransportError):
                wait_for(lambda: httpx.get(f"{own.root}/ready").status_code != 503)
        assert_same(whole.result().choices[0], expected)
        assert [(c["name"], c["arguments"]) for c in streamed.result()[0]["calls"]] == calls(expected)
    own.join()


@pytest.mark.parametrize(("own", "signals"), [(Limits(drain=0.0), 1), (Limits(), 2)], indirect=["own"])
def test_a_server_that_must_end_sends_away_what_is_in_flight(own: Running, signals: int) -> None:
    with ThreadPoolExecutor(2) as clients, hold(own.decoder) as passes:
        whole, streamed = in_flight(own, clients)
        for _ in range(signals):
            own.tell_to_stop()
        with pytest.raises(openai.InternalServerError) as sent_away:
            whole.result()
        assert sent_away.value.status_code == 503 and sent_away.value.code == "stopping"
        with pytest.raises(openai.APIError, match="stopping"):
            streamed.result()
        passes.let_go()
    own.join()
    wait_for(lambda: own.decoder.blocks_in_use == (0, 0))


def test_what_breaks_inside_is_not_told_to_clients(own: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("secret")

    monkeypatch.setattr(own.decoder, "submit", broken)
    for stream in (False, True):
        response = own.post(stream=stream)
        assert refused(response, 500)["code"] == "internal_error" and "secret" not in response.text
    own.wait_until_idle()
    assert own.metric('toolprm_requests_total{path="/v1/chat/completions",status="500"}') == 2


def test_metrics_count_what_answers_took(own: Running) -> None:
    answers: list[Decoded] = [own.decoder.decode([SWITCH, SWAP], MESSAGES, replace(QUICK, seed=s)) for s in range(3)]
    got = [ask(own.client(), seed=seed, stream=seed == 2) for seed in range(3)]
    list(got[2])
    for kind, expected in (
        ("forced", sum(a.stats.forced_tokens for a in answers)),
        ("prompt", sum(a.stats.prompt_tokens for a in answers)),
        ("completion", sum(len(a.tokens) for a in answers)),
    ):
        assert own.metric(f'toolprm_tokens_total{{kind="{kind}"}}') == expected
    for kind in ("policy", "prm", "policy_cached"):
        assert own.metric(f'toolprm_tokens_total{{kind="{kind}"}}') > 0
    own.wait_until_idle()
    assert own.metric("toolprm_request_seconds_count") == 3 and own.metric("toolprm_first_step_seconds_count") == 1
    assert own.metric("toolprm_requests_in_flight") == 0
