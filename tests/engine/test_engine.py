"""What an engine promises besides its logits: the user's model untouched, limits, stop ids, loading."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from toolprm_decode.engine import Engine
from toolprm_decode.errors import BudgetExceeded, ModelNotSupported, RequestError, TokenizerError

from .plans import COMMON, FAMILIES, VOCABULARY, Plan, assert_close, make, recomputed

Copy = Callable[[PreTrainedModel], PreTrainedModel]


def test_the_users_model_is_as_before(family: str) -> None:
    model, tokens = make(family), list(range(3, 17))
    model.get_submodule("lm_head" if hasattr(model, "lm_head") else "decoder").train()
    flags = {name: module.training for name, module in model.named_modules()}
    implementation = model.config._attn_implementation
    before = recomputed(model, tokens)
    engine = Engine(model, block_size=4)
    plan = Plan(engine, seed=0)
    for _ in range(3):
        plan.forward(plan.random_step()[0])
    assert torch.equal(recomputed(model, tokens), before)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert model.config._attn_implementation == implementation
    assert not any(module._forward_hooks for module in model.modules())
    cached = model.generate(torch.tensor([tokens]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert cached.shape == (1, len(tokens) + 3)


def test_dropout_does_not_reach_an_engine() -> None:
    config = FAMILIES["gpt2"]()
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = 0.5
    model = hf.AutoModelForCausalLM.from_config(config).train()
    engine = Engine(model)
    tokens = list(range(3, 12))
    assert torch.equal(engine.logits(tokens, [8]), engine.logits(tokens, [8]))
    assert model.training
    assert_close(engine.logits(tokens, [8]), recomputed(model.eval(), tokens)[[8]])


def test_a_failing_pass_leaves_the_model_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama").train()
    engine = Engine(model)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("toolprm_decode.engine.torch_pass.TorchPass.attend", fail)
    with pytest.raises(KeyboardInterrupt):
        engine.logits([3, 4, 5], [2])
    assert model.training and model.config._attn_implementation == "sdpa"


def test_a_model_cannot_be_called_amid_an_engines_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    engine = Engine(model)
    monkeypatch.setattr("toolprm_decode.engine.torch_pass.TorchPass.attend", lambda *_: recomputed(model, [3, 4]))
    with pytest.raises(RuntimeError, match="running inside an Engine"):
        engine.logits([3, 4, 5], [2])


def test_engines_share_a_model_from_several_threads(plain: Copy) -> None:
    model = make("qwen2")
    oracle, shared_config = plain(model), hf.AutoModelForCausalLM.from_config(model.config).eval()
    shared_config.load_state_dict(model.state_dict())
    engines = [Engine(model, block_size=4), Engine(model, block_size=4), Engine(shared_config, block_size=4)]
    failures: list[BaseException] = []

    def work(seed: int, engine: Engine) -> None:
        try:
            plan = Plan(engine, seed)
            for _ in range(6):
                batch, sequences = plan.random_step()
                logits = plan.forward(batch)
                for row, sequence in zip(logits, sequences, strict=True):
                    assert_close(row, recomputed(oracle, sequence)[-1], f"seed {seed}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(engines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.parametrize("family", ["llama", "phi-bias", "gemma2", "cohere", "granite"])
def test_wanted_ids_spare_the_rest_of_the_head(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(family)
    engine, tokens = Engine(model), list(range(3, 12))
    expected = recomputed(model, tokens)[[4, 8]][:, [7, 7, 100]]

    def whole_head(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the whole head was computed")

    monkeypatch.setattr(model.lm_head, "forward", whole_head)
    assert_close(engine.logits(tokens, [4, 8], [7, 7, 100]), expected)
    assert engine.logits(tokens, [4, 8], []).shape == (2, 0)
    with pytest.raises(AssertionError, match="whole head"):
        engine.logits(tokens, [4, 8])


def test_a_head_that_is_no_plain_linear_layer_is_called() -> None:
    class Scaled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(x)

    model = make("llama")
    model.lm_head.__class__ = Scaled
    tokens = list(range(3, 12))
    expected = recomputed(model, tokens)
    assert_close(Engine(model).logits(tokens, [8], [5, 6]), expected[[8]][:, [5, 6]])


def test_logits_may_be_written_into() -> None:
    for family in ("llama", "opt"):
        engine = Engine(make(family))
        for ids in (None, [5, 6]):
            engine.logits([3, 4, 5], [2], ids).div_(0.8)


def test_a_soft_cap_counts_where_no_logit_came_near_it_before() -> None:
    model = make("gemma2")
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)
        engine, tokens = Engine(model), list(range(3, 12))
        model.lm_head.weight.mul_(100)
    expected = recomputed(model, tokens)[[8]]
    assert expected.abs().max() > 2
    assert_close(engine.logits(tokens, [8]), expected)


def test_an_engine_keeps_nothing_but_in_the_stores(plain: Copy) -> None:
    model = make("llama")
    engine = Engine(model, block_size=4)
    oracle, plans = plain(model), [Plan(engine, 1), Plan(engine, 2)]
    for plan in plans * 3:
        batch, sequences = plan.random_step()
        for row, sequence in zip(plan.forward(batch), sequences, strict=True):
            assert_close(row, recomputed(oracle, sequence)[-1])
    assert engine.kv_bytes == plans[0].store.bytes_per_slot == 3 * 2 * 2 * 16 * 4


def test_forward_tokens_are_counted() -> None:
    engine = Engine(make("llama"), block_size=4)
    assert engine.forward_tokens == 0
    plan = Plan(engine, seed=0, prompts=(7, 0))
    assert engine.forward_tokens == 7
    plan.add(0)
    plan.add(1)
    plan.forward(plan.step([0, 1], [3, 2])[0])
    assert engine.forward_tokens == 12
    engine.logits([3, 4], [1])
    assert engine.forward_tokens == 14


@pytest.mark.parametrize("tokens", [[3, VOCABULARY], [-1, 3]])
def test_a_token_outside_the_vocabulary_is_refused(tokens: list[int]) -> None:
    engine = Engine(make("llama"))
    with pytest.raises(RequestError, match="outside the model's vocabulary of 130"):
        engine.logits(tokens, [1])
    with pytest.raises(RequestError, match="outside the head's 130 rows"):
        engine.logits([3, 4], [1], tokens)


def test_positions_end_where_the_models_do() -> None:
    engine = Engine(make("gpt2"))
    assert engine.max_positions == 256 and Engine(make("llama")).max_positions is None
    assert engine.logits([5] * 256, [255]).shape == (1, VOCABULARY)
    with pytest.raises(BudgetExceeded, match="256 positions"):
        engine.logits([5] * 257, [])
    plan = Plan(engine, seed=0, prompts=(255,))
    plan.add(0)
    with pytest.raises(BudgetExceeded, match="257 are needed"):
        plan.forward(plan.step([0], [2])[0])


def test_frequencies_that_change_with_the_length_bound_it() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    }
    config = hf.Phi3Config(**COMMON, rope_parameters=rope, original_max_position_embeddings=32)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    engine, tokens = Engine(model), list(range(3, 35))
    assert_close(engine.logits(tokens, [31], chunk=5), recomputed(model, tokens)[[31]])
    with pytest.raises(BudgetExceeded, match="rotary frequencies"):
        engine.logits([*tokens, 5], [])


def test_stop_ids_come_from_the_generation_config_and_the_tokenizer(qwen_tokenizer: hf.PreTrainedTokenizerFast) -> None:
    model = hf.AutoModelForCausalLM.from_config(hf.Qwen2Config(**{**COMMON, "vocab_size": 151_936}, head_dim=16))
    model.generation_config.eos_token_id = [151645, 151643]
    engine = Engine(model, qwen_tokenizer)
    assert engine.vocab_size == 151_936
    assert engine.stop_ids == (151645, 151643)
    model.generation_config.eos_token_id = 151643
    assert Engine(model, qwen_tokenizer).stop_ids == (151643, qwen_tokenizer.eos_token_id)
    model.generation_config.eos_token_id = None
    assert Engine(model).stop_ids == ()


def test_a_head_must_fit_its_tokenizer(qwen_tokenizer: hf.PreTrainedTokenizerFast) -> None:
    engine = Engine(make("llama"))
    engine.check_head(VOCABULARY)
    engine.check_head(1)
    with pytest.raises(ModelNotSupported, match=r"130 rows.* 131 ids"):
        engine.check_head(VOCABULARY + 1)
    with pytest.raises(ModelNotSupported, match=r"130 rows.* 151665 ids"):
        Engine(make("llama"), qwen_tokenizer)
    large = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**{**COMMON, "vocab_size": 30_000}))
    Engine(large).check_head(28_500)
    with pytest.raises(ModelNotSupported, match="30000 rows"):
        Engine(large).check_head(28_499)


def test_a_saved_model_is_loaded_with_its_tokenizer(
    tmp_path: Path, gpt2_tokenizer: hf.PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**{**COMMON, "vocab_size": 50_257})).bfloat16()
    model.save_pretrained(tmp_path / "model")
    gpt2_tokenizer.save_pretrained(tmp_path / "model")
    engine = Engine.from_pretrained(tmp_path / "model", device="cpu")
    assert engine.model.dtype is torch.bfloat16
    assert len(engine.tokenizer) == 50_257
    engine = Engine.from_pretrained(str(tmp_path / "model"), device="cpu", dtype="float32", block_size=8)
    assert engine.model.dtype is torch.float32 and engine.block_size == 8
    monkeypatch.chdir(tmp_path)
    assert Engine.from_pretrained("model", device="cpu").vocab_size == 50_257


def test_what_cannot_be_loaded_is_said_in_a_line(tmp_path: Path) -> None:
    hf.T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=60).save_pretrained(tmp_path / "t5")
    hf.ViTConfig().save_pretrained(tmp_path / "vit")
    hf.LlamaConfig(**COMMON).save_pretrained(tmp_path / "bare")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    make("llama").save_pretrained(tmp_path / "no_tokenizer")
    cases = [
        (tmp_path / "absent", RequestError, "no folder"),
        ("./absent", RequestError, "no folder"),
        (tmp_path / "empty", RequestError, "holds no model"),
        (tmp_path / "bare" / "config.json", RequestError, "is a file"),
        (tmp_path / "broken", RequestError, "neither a model folder"),
        (tmp_path / "bare", RequestError, "weights"),
        ("nobody/has-this-model", RequestError, "neither a model folder"),
        (tmp_path / "t5", ModelNotSupported, "encoder-decoder"),
        (tmp_path / "vit", ModelNotSupported, "vit"),
        (tmp_path / "no_tokenizer", TokenizerError, "no tokenizer"),
    ]
    for path, kind, text in cases:
        with pytest.raises(kind, match=text) as caught:
            Engine.from_pretrained(path, device="cpu")
        assert "\n" not in str(caught.value)


def test_nothing_wanted_is_nothing_given() -> None:
    engine = Engine(make("llama"))
    assert engine.logits([], []).shape == (0, VOCABULARY)
    assert engine.logits([3, 4], []).shape == (0, VOCABULARY)
    assert engine.logits(np.array([3, 4]), np.array([1]), np.array([5])).shape == (1, 1)
