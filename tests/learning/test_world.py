"""The built-in world: questions that are legal, readable, reproducible, and kept apart by split."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch

from toolprm_decode.errors import CheckpointError, RequestError
from toolprm_decode.formats import FORMATS
from toolprm_decode.grammar.call_grammar import CallGrammar
from toolprm_decode.learning.world import pretraining
from toolprm_decode.learning.world.lexicon import MASKS, NAMES, OBJECTS, SLOTS
from toolprm_decode.learning.world.tokenizer import build_tokenizer
from toolprm_decode.learning.world.world import KINDS, LEVELS, SPLITS, World, part_of, tool_kinds
from toolprm_decode.prompting import render
from toolprm_decode.questions.samples import Sample
from toolprm_decode.tools import read_tools

TOKENIZER = build_tokenizer()
FORMAT = FORMATS["json-list"]


def questions(level: int, count: int = 60, **options: object) -> list[Sample]:
    return World(3, level, **options).samples(count)  # type: ignore[arg-type]


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for member in value.values() for leaf in leaves(member)]
    if isinstance(value, list):
        return [leaf for member in value for leaf in leaves(member)]
    return [value]


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_gold_calls_fit_their_tools_and_the_grammar_takes_them(level: int) -> None:
    for sample in questions(level):
        tools = {tool.name: tool for tool in read_tools(sample.tools)}
        for call in sample.gold:
            values = {key: allowed[0] for key, allowed in call["arguments"].items()}
            jsonschema.validate(values, tools[call["name"]].parameters)
        assert CallGrammar(list(tools.values()), TOKENIZER, FORMAT).accepts(pretraining.answer_of(sample))


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_requests_say_every_value_that_the_answer_holds(level: int) -> None:
    for sample in questions(level):
        text = sample.messages[0]["content"]
        for leaf in leaves([call["arguments"] for call in sample.gold]):
            assert isinstance(leaf, bool) or str(leaf) in text


def test_levels_bring_what_they_promise() -> None:
    easy, standard, hard = ([s.gold for s in questions(level, 300)] for level in (0, 4, 5))
    assert {len(gold) for gold in easy} == {1}
    assert {len(gold) for gold in standard} == {0, 1, 2}
    kinds = {type(allowed[0]) for gold in hard for call in gold for allowed in call["arguments"].values()}
    assert kinds == {str, int, float, bool, list, dict}


def test_the_same_seed_draws_the_same_questions() -> None:
    assert questions(4, 5) == questions(4, 5)
    assert World(4).samples(5) != World(3).samples(5)
    assert questions(4, 5, split="test") != questions(4, 5, split="validation")


def test_splits_share_no_unseen_tool_and_no_value_of_several_words() -> None:
    kinds = [set(tool_kinds(split)) for split in SPLITS]
    assert set().union(*kinds) == set(KINDS) and sum(map(len, kinds)) == len(KINDS)
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        samples = World(1, split=split).samples(200)
        values = {str(leaf) for s in samples for leaf in leaves([c["arguments"] for c in s.gold])}
        seen[split] = {value for value in values if not value.isalpha() and len(value) > 2}
        assert seen[split] and all(part_of(value) == split for value in seen[split])
        described = {s for sample in samples for s in (t["function"]["description"] for t in sample.tools)}
        assert described <= {" ".join(kind) for kind in tool_kinds("train")}
    assert not seen["train"] & seen["test"] and not seen["validation"] & seen["test"]


@pytest.mark.parametrize("unseen", [False, True])
def test_every_answer_to_a_test_question_holds_a_value_that_training_never_held(unseen: bool) -> None:
    for sample in World(2, split="test", unseen_tools=unseen).samples(100):
        values = [str(leaf) for leaf in leaves([call["arguments"] for call in sample.gold])]
        assert not sample.gold or any(
            part_of(v) == "test" and not v.isalpha() and len(v) > 2 and v not in ("True", "False") for v in values
        )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_unseen_tools_are_asked_for(split: str) -> None:
    unseen = {" ".join(kind) for kind in tool_kinds(split)}
    for sample in World(1, 2, split, unseen_tools=True).samples(100):
        described = {tool["function"]["name"]: tool["function"]["description"] for tool in sample.tools}
        assert all(described[call["name"]] in unseen for call in sample.gold)


def test_masked_tool_sets_hold_no_natural_name() -> None:
    natural = {slot.name for slot in SLOTS.values()} | {f"{a}_{b}" for a, b in KINDS}
    names = []
    for sample in questions(5, 200):
        for tool in read_tools(sample.tools):
            names.append({tool.name, *tool.parameters["properties"]})
    masked = [group for group in names if group <= set(MASKS)]
    assert len(masked) > len(names) / 2
    assert all(group <= natural for group in names if not group <= set(MASKS))


def test_one_cue_means_one_thing_in_a_tool() -> None:
    """Else nobody could tell which parameter a request means."""
    for _, slots in OBJECTS.values():
        words = [word for slot in slots for word in (SLOTS[slot].cue, SLOTS[slot].synonym)]
        assert len(set(words)) == len(words)


def test_unknown_levels_and_splits_are_refused() -> None:
    with pytest.raises(RequestError, match="unknown level 9"):
        World(0, 9)
    with pytest.raises(RequestError, match="unknown split 'dev'"):
        World(0, split="dev")


class TestTokenizer:
    def test_every_text_comes_back(self) -> None:
        for text in ('a "b" {c}\n  d', "Zürich 東京 🙂", '{"x": [1, 2.5], "y": null}', "foo_bar(baz=12345)"):
            assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text

    def test_every_word_of_the_world_is_one_token(self) -> None:
        for word in (*NAMES, *MASKS, *(slot.name for slot in SLOTS.values())):
            assert len(TOKENIZER(word)["input_ids"]) == len(TOKENIZER(f" {word}")["input_ids"]) == 1

    def test_the_steps_of_an_answer_are_whole_tokens(self) -> None:
        """The reward model reads each step on its own: what it learnt of whole answers holds for them."""
        for sample in questions(5):
            text = pretraining.answer_of(sample)
            steps = CallGrammar(read_tools(sample.tools), TOKENIZER, FORMAT).steps(text)
            pieces = [token for step in steps for token in TOKENIZER(step.text)["input_ids"]]
            assert pieces == TOKENIZER(text)["input_ids"]

    def test_it_is_saved_and_loaded_unchanged(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        build_tokenizer().save_pretrained(tmp_path)
        pretraining.build_model(TOKENIZER, pretraining.Pretraining(32, 3, 4, 48)).save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert len(loaded) == len(TOKENIZER)
        assert loaded.chat_template == TOKENIZER.chat_template
        assert loaded('[{"name": "Oslo 12')["input_ids"] == TOKENIZER('[{"name": "Oslo 12')["input_ids"]

    def test_prompts_name_all_that_a_tool_has(self) -> None:
        schema = {
            "type": "object",
            "properties": {
                "when": {"type": ["string", "null"], "description": "day"},
                "where": {"type": "object", "properties": {"city": {"enum": ["Oslo", 5]}}},
                "how": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "boolean"}]},
                "rest": {},
            },
            "required": ["when"],
        }
        tools = read_tools([{"name": "go", "description": "Go there", "parameters": schema}, {"name": "bare"}])
        text, _ = render(TOKENIZER, tools, [{"role": "user", "content": "Now!"}], FORMAT)
        assert text == (
            "<|tool|> Go there go\n day when string null\n where object (\n city enum Oslo 5? )?\n"
            " how list number boolean?\n rest any?<|tool|> bare<|user|> Now!<|assistant|>"
        )


class TestPretraining:
    SMALL = pretraining.Pretraining(32, 3, 4, 48, tokens=9000, batch=400, tagged=0.5, threshold=-1.0)

    def weights(self, folder: Path) -> dict[str, torch.Tensor]:
        return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]

    def test_an_interrupted_training_ends_with_the_same_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pretraining, "teacher_forced_accuracy", lambda *_: 0.5)
        pretraining.pretrain(tmp_path / "whole", self.SMALL, evaluate_every=0.0)

        def stop(*_: object) -> float:
            raise KeyboardInterrupt

        monkeypatch.setattr(pretraining, "teacher_forced_accuracy", stop)
        with pytest.raises(KeyboardInterrupt):
            pretraining.pretrain(tmp_path / "parts", self.SMALL, evaluate_every=0.0)
        monkeypatch.setattr(pretraining, "teacher_forced_accuracy", lambda *_: 0.5)
        pretraining.pretrain(tmp_path / "parts", self.SMALL, evaluate_every=0.0)
        whole, parts = (self.weights(tmp_path / name) for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
        with pytest.raises(CheckpointError, match="other settings"):
            pretraining.pretrain(tmp_path / "whole", replace(self.SMALL, learning_rate=1e-4))
        lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
        assert lines[-1]["tokens"] >= self.SMALL.tokens

    def test_rows_are_what_the_model_reads_when_it_decodes(self) -> None:
        samples = World(2, 5).group(3, "x")
        row = pretraining._Rows(TOKENIZER, 0.0).row(samples, random.Random(0))
        for index, sample in enumerate(samples):
            prompt, _ = render(TOKENIZER, read_tools(sample.tools), sample.messages, FORMAT)
            whole = TOKENIZER(prompt)["input_ids"] + TOKENIZER(pretraining.answer_of(sample))["input_ids"]
            chosen = [i for i, answer in enumerate(row.answers) if answer == index]
            node, path = row.nodes[chosen[-1]], []
            while node >= 0:
                path.append(row.tree.tokens[node])
                node = row.tree.parents[node]
            assert path[::-1] == whole
            assert row.targets[chosen[-1]] == TOKENIZER.eos_token_id

    def test_a_grown_model_starts_as_the_one_it_grew_from(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pretraining, "teacher_forced_accuracy", lambda *_: 0.5)
        small = pretraining.build_model(TOKENIZER, self.SMALL)
        deeper = replace(self.SMALL, layers=5, seed=9)
        grown = pretraining.build_model(TOKENIZER, deeper)
        tokens = torch.tensor([TOKENIZER("find flight to Oslo")["input_ids"]])
        pretraining._grow(grown, small.state_dict())
        with torch.inference_mode():
            assert torch.allclose(small(tokens).logits, grown(tokens).logits, atol=1e-5)
        with pytest.raises(RequestError, match="shallower"):
            pretraining._grow(small, grown.state_dict())
