"""A ToolPRM scores steps as the plain model does, and keeps its tags with its checkpoint."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from toolprm_decode import Decoder
from toolprm_decode.engine import Engine
from toolprm_decode.errors import ModelNotSupported, RequestError, TokenizerError
from toolprm_decode.rewards import DEFAULT_TAGS, STEP_KINDS, ToolPRM

from ..search import models

STEPS = [
    ("FUNC_NAME", '[{"name": "get_weather"'),
    ("ARG_VALUE", ', "arguments": {"city": "Zürich"'),
    ("PARAM_FINISH", "}"),
    ("FUNC_FINISH", "}"),
    ("TOTAL_FINISH", "]"),
]
PROMPT = "Tools: get_weather(city)\nUser: what is the weather in Zürich?\n"


def random_model(rows: int) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=rows
    )
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    return model


@pytest.fixture
def tagged(gpt2_tokenizer: hf.PreTrainedTokenizerFast) -> hf.PreTrainedTokenizerFast:
    """A tokenizer with one special token a tag."""
    tokenizer = copy.deepcopy(gpt2_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(DEFAULT_TAGS.values())})
    return tokenizer


@pytest.fixture(params=["special", "text", "sentencepiece"])
def prm(request: pytest.FixtureRequest) -> ToolPRM:
    """Tags as special tokens; as ordinary text of several tokens; and the latter with another kind of tokenizer."""
    name = {"special": "tagged", "text": "gpt2_tokenizer", "sentencepiece": "phi3_tokenizer"}[request.param]
    tokenizer = request.getfixturevalue(name)
    return ToolPRM(random_model(len(tokenizer)), tokenizer)


def expected_scores(prm: ToolPRM, prompt: str, steps: list[tuple[str, str]]) -> list[float]:
    """Each step's probability of plus against minus, by a whole forward of the plain model a step."""
    tokens, scores = prm.encode_prompt(prompt), []
    plus, minus = (prm.tokenizer.encode(label, add_special_tokens=False)[0] for label in "+-")
    for kind, text in steps:
        tokens = tokens + prm.tokenizer.encode(text, add_special_tokens=False)
        tokens = tokens + prm.tokenizer.encode(f"<{kind}>", add_special_tokens=False)
        with torch.no_grad():
            logits = prm.engine.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].double()
        scores.append(logits[[plus, minus]].softmax(0)[0].item())
    return scores


def test_scores_are_the_plain_models(prm: ToolPRM) -> None:
    scores = prm.score(PROMPT, STEPS)
    assert scores == pytest.approx(expected_scores(prm, PROMPT, STEPS), abs=1e-5)
    assert len({round(score, 4) for score in scores}) == len(STEPS)
    assert prm.score(PROMPT, STEPS[:2]) == pytest.approx(scores[:2], abs=1e-5)
    assert prm.score(PROMPT, []) == []


def test_a_tag_is_one_special_token_or_text(
    tagged: hf.PreTrainedTokenizerFast, gpt2_tokenizer: hf.PreTrainedTokenizerFast
) -> None:
    special = ToolPRM(random_model(len(tagged)), tagged)
    assert [special.tag_ids(kind) for kind in STEP_KINDS] == [[50_257 + i] for i in range(5)]
    text = ToolPRM(random_model(len(gpt2_tokenizer)), gpt2_tokenizer)
    assert all(len(text.tag_ids(kind)) > 1 for kind in STEP_KINDS)
    assert text.label_ids == (gpt2_tokenizer.convert_tokens_to_ids("+"), gpt2_tokenizer.convert_tokens_to_ids("-"))


def test_scores_are_a_sigmoid_of_the_margin() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-500.0, 500.0], [500.0, -500.0]])
    scores = ToolPRM.scores(object.__new__(ToolPRM), logits)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [0.5, 1 / (1 + math.exp(-2)), 0.0, 1.0], atol=1e-12)


def test_a_temperature_divides_the_margin(gpt2_tokenizer: hf.PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = random_model(len(gpt2_tokenizer))
    plain, warm = ToolPRM(model, gpt2_tokenizer), ToolPRM(model, gpt2_tokenizer, temperature=2.5)
    odds = [math.log(score / (1 - score)) for score in plain.score(PROMPT, STEPS)]
    expected = [1 / (1 + math.exp(-margin / 2.5)) for margin in odds]
    assert warm.score(PROMPT, STEPS) == pytest.approx(expected, abs=1e-6)
    warm.save_pretrained(tmp_path)
    assert ToolPRM.from_pretrained(tmp_path, device="cpu").temperature == 2.5
    assert ToolPRM.from_pretrained(tmp_path, device="cpu", temperature=1.0).temperature == 1.0
    for wrong in (0, -1.0, math.inf, math.nan, "1", True):
        with pytest.raises(RequestError, match="above zero"):
            ToolPRM(model, gpt2_tokenizer, temperature=wrong)  # type: ignore[arg-type]


def test_steps_without_a_tag_are_read_but_not_judged(tagged: hf.PreTrainedTokenizerFast) -> None:
    tags = {"TOTAL_FINISH": "<TOTAL_FINISH>"}
    prm = ToolPRM(random_model(len(tagged)), tagged, tags)
    scores = prm.score(PROMPT, STEPS)
    assert np.isnan(scores[:4]).all()
    tokens = prm.encode_prompt(PROMPT) + [i for _, text in STEPS for i in prm.encode_text(text)]
    with torch.no_grad():
        ids = torch.tensor([tokens + prm.tag_ids("TOTAL_FINISH")])
        logits = prm.engine.model(ids, use_cache=False).logits[0, -1, list(prm.label_ids)]
    assert scores[4] == pytest.approx(logits.softmax(0)[0].item(), abs=1e-5)
    with pytest.raises(RequestError, match="no tag for 'FUNC_NAME'"):
        prm.tag_ids("FUNC_NAME")


def test_a_step_cannot_spell_a_tag(tagged: hf.PreTrainedTokenizerFast) -> None:
    prm = ToolPRM(random_model(len(tagged)), tagged)
    text = 'x<TOTAL_FINISH>"<|endoftext|>'
    ids = prm.encode_text(text)
    assert not set(ids) & set(tagged.get_added_vocab().values())
    assert tagged.decode(ids) == text
    assert tagged.encode("<TOTAL_FINISH>") == prm.tag_ids("TOTAL_FINISH")  # the user's tokenizer is as before


def test_encoded_texts_are_the_callers_own(prm: ToolPRM) -> None:
    first = prm.encode_text("abc def")
    first.append(7)
    prm.tag_ids("ARG_VALUE").append(7)
    assert prm.encode_text("abc def") == first[:-1]
    assert 7 not in prm.tag_ids("ARG_VALUE")


def test_a_prompt_begins_once_and_does_not_end(phi3_tokenizer: hf.PreTrainedTokenizerFast) -> None:
    prm = ToolPRM(random_model(len(phi3_tokenizer)), phi3_tokenizer)
    bos = phi3_tokenizer.bos_token
    assert prm.encode_prompt(f"{bos}hello").count(phi3_tokenizer.bos_token_id) == 1
    assert prm.encode_text("hello").count(phi3_tokenizer.bos_token_id) == 0


def test_a_checkpoint_keeps_its_tags(tagged: hf.PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = random_model(len(tagged))
    tags = {"FUNC_NAME": "<TOTAL_FINISH>", "TOTAL_FINISH": "<FUNC_NAME>"}
    prm = ToolPRM(model, tagged, tags, plus="yes", minus="no")
    prm.save_pretrained(tmp_path)
    assert not hasattr(model.config, "toolprm")
    assert json.loads((tmp_path / "config.json").read_text())["toolprm"]["tags"] == tags
    loaded = ToolPRM.from_pretrained(tmp_path, device="cpu")
    assert loaded.record == prm.record
    assert dict(loaded.tags) == tags
    steps = [STEPS[0], STEPS[4]]
    assert loaded.score(PROMPT, steps) == pytest.approx(prm.score(PROMPT, steps), abs=1e-6)
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path)  # an ordinary folder
    assert ToolPRM(plain, tagged).label_ids == prm.label_ids
    assert dict(ToolPRM.from_pretrained(tmp_path, device="cpu", tags=DEFAULT_TAGS).tags) == dict(DEFAULT_TAGS)


def test_a_plain_models_checkpoint_is_loaded_too(gpt2_tokenizer: hf.PreTrainedTokenizerFast, tmp_path: Path) -> None:
    prm = ToolPRM(random_model(len(gpt2_tokenizer)), gpt2_tokenizer)
    prm.save_pretrained(tmp_path)
    assert ToolPRM.from_pretrained(tmp_path, device="cpu").record == prm.record


def test_a_tokenizer_without_the_recorded_tags_is_refused(
    tagged: hf.PreTrainedTokenizerFast, gpt2_tokenizer: hf.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    ToolPRM(random_model(len(tagged)), tagged).save_pretrained(tmp_path)
    gpt2_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"'<FUNC_NAME>' as the tag of FUNC_NAME \(id 50257\).*saved with"):
        ToolPRM.from_pretrained(tmp_path, device="cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["toolprm"]["tag_ids"]  # a record written by hand
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"\(one token\)"):
        ToolPRM.from_pretrained(tmp_path, device="cpu")
    tagged.save_pretrained(tmp_path)
    assert dict(ToolPRM.from_pretrained(tmp_path, device="cpu").tags) == dict(DEFAULT_TAGS)


def test_labels_are_single_tokens(gpt2_tokenizer: hf.PreTrainedTokenizerFast) -> None:
    model = random_model(len(gpt2_tokenizer))
    with pytest.raises(TokenizerError, match=r"label 'certainly not' is 3 tokens.*one token each"):
        ToolPRM(model, gpt2_tokenizer, minus="certainly not")
    with pytest.raises(RequestError, match="same token"):
        ToolPRM(model, gpt2_tokenizer, minus="+")


def test_what_makes_no_reward_model_is_refused(gpt2_tokenizer: hf.PreTrainedTokenizerFast) -> None:
    model = random_model(len(gpt2_tokenizer))
    with pytest.raises(RequestError, match="unknown step kind 'NAME'"):
        ToolPRM(model, gpt2_tokenizer, {"NAME": "<N>"})
    with pytest.raises(RequestError, match="no tags"):
        ToolPRM(model, gpt2_tokenizer, {})
    with pytest.raises(TokenizerError, match="has no tokens"):
        ToolPRM(model, gpt2_tokenizer, {"FUNC_NAME": ""})
    with pytest.raises(TokenizerError, match="needs its tokenizer"):
        ToolPRM(model)
    with pytest.raises(RequestError, match="unknown step kind"):
        ToolPRM(model, gpt2_tokenizer).score(PROMPT, [("NAME", "x")])
    for small in (random_model(99), Engine(random_model(99))):
        with pytest.raises(ModelNotSupported, match="head of 99 rows"):
            ToolPRM(small, gpt2_tokenizer)


def test_a_policy_is_its_own_reward_model(gpt2_tokenizer: hf.PreTrainedTokenizerFast) -> None:
    engine = Engine(random_model(len(gpt2_tokenizer)), gpt2_tokenizer)
    prm, second = ToolPRM(engine), ToolPRM(engine.model, gpt2_tokenizer)
    assert prm.engine.model is engine.model
    assert prm.engine is engine and prm.engine.shares_model(second.engine)
    assert second.score(PROMPT, STEPS) == pytest.approx(prm.score(PROMPT, STEPS), abs=1e-6)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<{{ m.content }}>{% endfor %}{{ tools | length }}"])
def test_a_prompts_text_is_what_a_search_reads(template: str | None) -> None:
    small = models.small()
    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.chat_template = template
    prm = ToolPRM(small.prm.engine, tokenizer)
    decoded = Decoder(small.model, prm, tokenizer=small.tokenizer).decode(models.TOOLS, "Light", models.QUICK)
    text = prm.prompt_text(models.TOOLS, "Light", decoded.format)
    scores = prm.score(text, [(step.kind, step.text) for step in decoded.steps])
    assert [step.score for step in decoded.steps] == pytest.approx(scores, abs=1e-5)
    assert text == "<Light>2" if template else "switch" in text
