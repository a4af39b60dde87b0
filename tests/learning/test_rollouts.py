"""Rollouts: legal answers of the policy, the same whatever is asked beside."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode import CallGrammar, Decoder
from toolprm_decode.errors import FormatError, RequestError
from toolprm_decode.formats import FORMATS
from toolprm_decode.learning.rollouts import Rollout, RolloutSettings, calls_so_far, roll_out
from toolprm_decode.questions.samples import Sample, gold_call

from ..search.models import small

QUICK = RolloutSettings(samples=6, max_tokens=48, seed=3)
SWITCH = {
    "name": "home.switch",
    "parameters": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "attic"]}, "levels": {"type": "array"}},
        "required": ["on"],
    },
}
IMPOSSIBLE = {"name": "never", "parameters": {"type": "object", "properties": {"a": False}, "required": ["a"]}}


def sample(number: int, tools: list[Any] | None = None) -> Sample:
    content = f"Switch number {number} on in the hall"
    gold = [gold_call("home.switch", {"on": True, "room": "hall"})]
    return Sample(f"q{number}", tools or [SWITCH], [{"role": "user", "content": content}], gold)


SAMPLES = [sample(number) for number in range(7)]


@lru_cache
def decoder(format: str = "json-list") -> Decoder:
    demo = small()
    return Decoder(demo.model, None, tokenizer=demo.tokenizer, format=format)


def drawn(samples: list[Sample], settings: RolloutSettings = QUICK, one: Decoder | None = None) -> dict[str, Any]:
    """Texts with their counts, by query."""
    return {
        s.id: {rollout.text: rollout.count for rollout in rollouts}
        for s, rollouts in roll_out(samples, one or decoder(), settings)
    }


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_rollouts_are_legal_and_complete(format: str) -> None:
    one = decoder(format)
    rolled = roll_out(SAMPLES, one, QUICK)
    found = list(rolled)
    assert [s for s, _ in found] == SAMPLES
    assert not rolled.skipped and rolled.policy_tokens > 0 and rolled.format == format
    for s, rollouts in found:
        grammar = one.grammar(s.tools)
        assert sum(rollout.count for rollout in rollouts) == QUICK.samples
        assert len({rollout.text for rollout in rollouts}) == len(rollouts)
        for rollout in rollouts:
            assert rollout.finished
            assert [(t.kind, t.text, t.path) for t in rollout.steps] == [
                (t.kind, t.text, t.path) for t in grammar.steps(rollout.text)
            ]
            assert rollout.calls == FORMATS[format].parse(rollout.text, ["home.switch"])
            assert rollout.logprob == pytest.approx(sum(t.logprob or 0.0 for t in rollout.steps), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_change_nothing(batch_size: int) -> None:
    expected = drawn(SAMPLES)
    assert drawn(SAMPLES, dataclasses.replace(QUICK, batch_size=batch_size)) == expected
    few = SAMPLES[4:1:-1]
    assert drawn(few, dataclasses.replace(QUICK, batch_size=batch_size)) == {s.id: expected[s.id] for s in few}


def test_the_seed_and_the_query_s_id_decide_what_is_drawn() -> None:
    first = drawn(SAMPLES)
    assert drawn(SAMPLES) == first
    assert drawn(SAMPLES, dataclasses.replace(QUICK, seed=4)) != first
    again = dataclasses.replace(SAMPLES[0], id="another")
    assert list(drawn([again]).values()) != [first["q0"]]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_queries_that_cannot_be_asked_are_left_out_and_noted(batch_size: int) -> None:
    expected = drawn(SAMPLES)
    long = dataclasses.replace(sample(50), messages=[{"role": "user", "content": "so long " * 5000}])
    mixed = [sample(51, [IMPOSSIBLE]), *SAMPLES[:3], long, *SAMPLES[3:], dataclasses.replace(sample(52), messages=[])]
    rolled = roll_out(mixed, decoder(), dataclasses.replace(QUICK, batch_size=batch_size))
    assert {s.id: {r.text: r.count for r in rollouts} for s, rollouts in rolled} == expected
    assert [name for name, _ in rolled.skipped] == ["q51", "q50", "q52"]
    for (_, reason), words in zip(rolled.skipped, ["never", "context", "prompt"], strict=True):
        assert words in reason and "\n" not in reason


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_a_search_leaves_all_its_candidates(format: str) -> None:
    settings = dataclasses.replace(QUICK, strategy="search", beams=2, samples=3)
    one, starts = decoder(format), 0
    for s, rollouts in roll_out(SAMPLES, one, settings):
        decoded = one.decode(s.tools, s.messages, settings.search(s.id))
        texts = {r.text for r in rollouts if r.finished}
        assert texts >= {answer.text for answer in decoded.finished}
        nodes = decoded.tree.nodes
        leaves = [node for i, node in enumerate(nodes) if i not in {n.parent for n in nodes}]
        assert sum(r.count for r in rollouts) == sum(node.multiplicity for node in leaves)
        grammar = one.grammar(s.tools)
        for r in rollouts:
            if r.finished:
                assert [(t.kind, t.path) for t in grammar.steps(r.text)] == [(t.kind, t.path) for t in r.steps]
                assert r.calls == FORMATS[format].parse(r.text, ["home.switch"])
                continue
            starts += 1
            matcher = grammar.matcher()
            ends = [(t.kind, t.path, t.end) for t in matcher.accept_bytes(r.text.encode())]
            # The core sees a number's end only with the byte after it.
            assert [(t.kind, t.path, t.end) for t in r.steps][: len(ends)] == ends
            assert len(r.steps) - len(ends) <= 1 and r.steps[-1].end == len(r.text.encode())
            assert r.calls == begun(r.steps, r.calls) and r.tokens == []
    assert starts > 3


def begun(steps: list[Any], calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls that some steps have begun, out of those that they lead to."""
    made: list[dict[str, Any]] = []
    for step in steps:
        if step.kind == "FUNC_NAME":
            made.append({"name": calls[len(made)]["name"], "arguments": {}})
        elif step.kind == "ARG_VALUE":
            key = step.path.rsplit("/", 1)[1].replace("~1", "/").replace("~0", "~")
            made[-1]["arguments"][key] = calls[len(made) - 1]["arguments"][key]
    return made


@pytest.mark.parametrize("format", sorted(FORMATS))
@pytest.mark.parametrize(
    "calls",
    [
        [],
        [{"name": "home.switch", "arguments": {"on": True}}],
        [{"name": "noop", "arguments": {}}],
        [
            {"name": "home.switch", "arguments": {"room": "hall", "levels": [1, {"a": "]}"}], "on": False}},
            {"name": "noop", "arguments": {}},
            {"name": "home.switch", "arguments": {"levels": [], "on": True}},
        ],
    ],
    ids=len,
)
def test_the_calls_of_a_start_are_those_begun(format: str, calls: list[dict[str, Any]]) -> None:
    form = FORMATS[format]
    tools = [SWITCH, {"name": "noop", "parameters": {"type": "object", "properties": {}}}]
    text = form.render(calls)
    steps = CallGrammar(tools, small().tokenizer, format).steps(text)
    names = ["home.switch", "noop"]
    for number in range(1, len(steps) + 1):
        start = text.encode()[: steps[number - 1].end].decode()
        if steps[number - 1].kind == "TOTAL_FINISH":
            start = text
        assert calls_so_far(start, steps[number - 1].kind, form, names) == begun(steps[:number], calls)


def test_rollouts_survive_json() -> None:
    settings = dataclasses.replace(QUICK, strategy="search", samples=3)
    for _, rollouts in roll_out(SAMPLES[:3], decoder(), settings):
        for rollout in rollouts:
            back = Rollout.from_json(json.loads(json.dumps(rollout.to_json())))
            assert Rollout.from_json(back.to_json()) == back
            assert [s.text for s in back.steps] == [s.text for s in rollout.steps]
            assert (back.text, back.calls, back.count) == (rollout.text, rollout.calls, rollout.count)
            assert back.logprob == pytest.approx(rollout.logprob, abs=1e-6)


def test_a_search_may_rank_by_a_reward_model(tmp_path: Path) -> None:
    demo = small()
    demo.model.save_pretrained(tmp_path / "policy")
    demo.tokenizer.save_pretrained(tmp_path / "policy")
    demo.prm.save_pretrained(tmp_path / "prm")
    plain = dataclasses.replace(QUICK, strategy="search", samples=3, policy=str(tmp_path / "policy"))
    judged = dataclasses.replace(plain, prm=str(tmp_path / "prm"))
    scores = [s.score for _, found in roll_out(SAMPLES, judged.decoder(), judged) for r in found for s in r.steps]
    assert scores and None not in scores
    assert drawn(SAMPLES, judged, judged.decoder()) != drawn(SAMPLES, plain, plain.decoder())


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"temperature": -1.0},
        {"seed": -1},
        {"batch_size": 0},
        {"batch_size": True},
        {"max_tokens": 0},
        {"strategy": "guess"},
        {"prm": "somewhere"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        RolloutSettings(**wrong)


def test_an_unknown_format_and_a_missing_policy_are_refused() -> None:
    with pytest.raises(FormatError):
        RolloutSettings(format="morse")
    with pytest.raises(RequestError, match="name the policy"):
        RolloutSettings().decoder()
