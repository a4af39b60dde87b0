"""The models of the package: small, loaded offline, and right about their world often enough to show something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from toolprm_decode import Decoder, ToolPRM, decode, load_demo
from toolprm_decode.demo import held_out
from toolprm_decode.evaluation.evaluate import Models, evaluate
from toolprm_decode.evaluation.strategies import read_strategies
from toolprm_decode.evaluation.suites import load_suite
from toolprm_decode.learning.training import KINDS
from toolprm_decode.learning.world.tokenizer import build_tokenizer
from toolprm_decode.models import MODELS
from toolprm_decode.rewards import DEFAULT_TAGS

NAMES = ("policy", *KINDS)


def test_they_fit_into_the_package() -> None:
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) < 24_000_000
    for name in NAMES:
        with safe_open(MODELS / name / "model.safetensors", "pt") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"BF16"}  # noqa: SIM118
        card = (MODELS / name / "README.md").read_text(encoding="utf-8")
        assert all(word in card for word in ("Data", "make models", "hours", "## On held-out questions", "## Limits"))


@pytest.mark.parametrize("kind", KINDS)
def test_reward_models_judge_their_kinds_of_steps(kind: str) -> None:
    demo = load_demo(kind)
    assert demo.prm.tags == {step: DEFAULT_TAGS[step] for step in DEFAULT_TAGS if step in KINDS[kind]}
    decoded = decode(demo.model, demo.prm, demo.tools, demo.request, demo.search, tokenizer=demo.tokenizer)
    assert {step.kind for step in decoded.steps if step.score is not None} == set(KINDS[kind])


def test_they_were_made_for_the_tokenizer_of_the_world() -> None:
    demo, own = load_demo(), build_tokenizer()
    for tokenizer in (demo.tokenizer, demo.prm.tokenizer):
        assert tokenizer.get_vocab() == own.get_vocab()
        assert tokenizer.chat_template == own.chat_template


def test_the_demo_answers_its_request_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    demo = load_demo()
    decoded = decode(demo.model, demo.prm, demo.tools, demo.request, demo.search, tokenizer=demo.tokenizer)
    assert decoded.calls == [{"name": "find_flight", "arguments": {"from": "Oslo", "to": "Lima", "date": "March 14"}}]
    assert torch.equal(torch.rand(1), expected)


def test_held_out_questions_are_those_of_the_seed() -> None:
    assert held_out(3) == held_out(3) != held_out(4)


def test_the_policy_is_right_about_half_of_the_time_and_the_search_more_often() -> None:
    """The figures are in the cards; here on fewer questions, far enough from the edges not to depend on them."""
    demo = load_demo()
    suite = load_suite("built-in", limit=120)
    models = Models(MODELS / "policy", {"toolprm": MODELS / "toolprm"})
    outcomes = evaluate(suite, read_strategies("greedy,step-beam", demo.search, ["toolprm"]), models)
    greedy, beam = (outcome.right.mean() for outcome in outcomes)
    assert 0.35 < greedy < 0.85
    assert beam > greedy


def test_they_load_from_their_folders(tmp_path: Path) -> None:
    prm = ToolPRM.from_pretrained(MODELS / "toolprm")
    prm.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["toolprm"] == prm.record
    steps = [("FUNC_NAME", '[{"name": "find_flight"'), ("ARG_VALUE", ', "arguments": {"to": "Lima"')]
    again = ToolPRM.from_pretrained(tmp_path)
    assert again.score("<|user|> to Lima<|assistant|>", steps) == prm.score("<|user|> to Lima<|assistant|>", steps)


def test_the_reward_model_reads_at_most_twice_what_the_policy_does() -> None:
    demo = load_demo()
    search = replace(demo.search, width=8)
    decoder = Decoder(demo.model, demo.prm, tokenizer=demo.tokenizer, search=search, prefix_memory=0)
    engines = (decoder._policy, demo.prm.engine)
    run = [0, 0]
    for sample in held_out(0, 8):
        before = [engine.forward_tokens for engine in engines]
        stats = decoder.decode(sample.tools, sample.messages).stats
        counted = (stats.policy_tokens, stats.prm_tokens)
        assert counted == tuple(engine.forward_tokens - b for engine, b in zip(engines, before, strict=True))
        assert counted[1] <= 2 * counted[0]
        run = [total + own - stats.prompt_tokens for total, own in zip(run, counted, strict=True)]
    print(run, run[1] / run[0])
    assert run[1] <= 2.5 * run[0]  # the prompts, which both read, left out
