"""Tiny random models of many families, and a plan of forked rows that is checked against full recomputation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers as hf
from transformers import PreTrainedModel

from toolprm_decode.engine import Batch, Engine

VOCABULARY = 130
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 6, "head_dim": 16}
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "vocab_size": VOCABULARY}

FAMILIES: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**COMMON),
    "qwen2": lambda: hf.Qwen2Config(**COMMON),
    "qwen3": lambda: hf.Qwen3Config(**COMMON, head_dim=24),
    "mistral-window": lambda: hf.MistralConfig(**COMMON, **WINDOW),
    "gemma2": lambda: hf.Gemma2Config(**COMMON, **WINDOW, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "phi3-window": lambda: hf.Phi3Config(**COMMON, sliding_window=6),
    "phi-bias": lambda: hf.PhiConfig(**COMMON),
    "gemma3": lambda: hf.Gemma3TextConfig(**COMMON, **WINDOW, **MIXED),
    "gemma3n": lambda: hf.Gemma3nTextConfig(
        **{**COMMON, "num_hidden_layers": 4},
        **WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gpt-oss": lambda: hf.GptOssConfig(**COMMON, **WINDOW, **MIXED, num_local_experts=4, num_experts_per_tok=2),
    "deepseek-v3": lambda: hf.DeepseekV3Config(**{**COMMON, **EXPERTS, **LATENT}),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(**COMMON, **EXPERTS, num_experts=4, head_dim=16),
    "glm4": lambda: hf.Glm4Config(**COMMON, head_dim=16),
    "cohere": lambda: hf.CohereConfig(**COMMON, logit_scale=0.25),
    "granite": lambda: hf.GraniteConfig(**COMMON, logits_scaling=8.0, attention_multiplier=0.3),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "opt": lambda: hf.OPTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=96,
        vocab_size=VOCABULARY,
        word_embed_proj_dim=64,
        max_position_embeddings=256,
    ),
    "modernbert-decoder": lambda: hf.ModernBertDecoderConfig(**{**COMMON, "local_attention": 12}),
}


def make(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of the family whose attention and logits vary strongly with the context."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 or "sinks" in name or name.endswith("bias"):
                parameter.normal_(0, 0.2)
    return model


def recomputed(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits [T, vocabulary] of a whole sequence by the model's plainest own forward."""
    with torch.no_grad():
        at = torch.arange(len(tokens))[None]
        return model(input_ids=torch.tensor([tokens]), position_ids=at, use_cache=False).logits[0].float()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, note: str = "", tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape, note
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    difference = (actual - expected).abs().max().item() if expected.numel() else 0.0
    assert difference <= tolerance * scale, f"off by {difference:.3g} of {scale:.3g}. {note}"


class Plan:
    """Random rows over prefixes, their blocks kept in the simplest way: forks share full blocks and copy the last."""

    def __init__(self, engine: Engine, seed: int, prefixes: tuple[int, ...] = (11, 4, 0)):
        self.engine, self.random = engine, np.random.default_rng(seed)
        self.prefixes = [self.tokens(n) for n in prefixes]
        self.ids = [engine.prefill(prefix, chunk=4) for prefix in self.prefixes]
        self.rows: list[tuple[int, list[int], list[int]]] = []  # prefix, own tokens, blocks
        self.blocks = 0
        self.copies: list[tuple[int, int, int]] = []

    def tokens(self, count: int) -> list[int]:
        return self.random.integers(3, VOCABULARY, count).tolist()

    def block(self) -> int:
        self.blocks += 1
        return self.blocks - 1

    def add(self, prefix: int) -> None:
        self.rows.append((prefix, [], []))

    def fork(self, row: int) -> None:
        prefix, tokens, blocks = self.rows[row]
        size, blocks = self.engine.block_size, list(blocks)
        if len(tokens) % size:
            source, blocks[-1] = blocks[-1], self.block()
            self.copies.append((source * size, blocks[-1] * size, len(tokens) % size))
        self.rows.append((prefix, list(tokens), blocks))

    def step(self, active: list[int], counts: list[int]) -> tuple[Batch, list[list[int]]]:
        """Give each active row some tokens: the batch, and the whole sequence up to each wanted token."""
        size = self.engine.block_size
        columns: dict[str, list[int]] = {name: [] for name in ("tokens", "positions", "rows", "slots", "outputs")}
        wanted = []
        for index, (row, count) in enumerate(zip(active, counts, strict=True)):
            prefix, own, blocks = self.rows[row]
            for token in self.tokens(count):
                if len(own) % size == 0:
                    blocks.append(self.block())
                columns["positions"].append(len(self.prefixes[prefix]) + len(own))
                columns["slots"].append(blocks[-1] * size + len(own) % size)
                own.append(token)
                columns["tokens"].append(token)
                columns["rows"].append(index)
                if self.random.random() < 0.7:
                    columns["outputs"].append(len(columns["tokens"]) - 1)
                    wanted.append([*self.prefixes[prefix], *own])
        rows = [self.rows[row] for row in active]
        table = np.full((len(rows), max(len(blocks) for *_, blocks in rows)), -1, np.int32)
        for index, (*_, blocks) in enumerate(rows):
            table[index, : len(blocks)] = blocks
        batch = Batch(
            **{name: np.array(values, np.int32) for name, values in columns.items()},
            prefixes=np.array([self.ids[prefix] for prefix, *_ in rows], np.int32),
            block_tables=table,
            lengths=np.array([len(own) for _, own, _ in rows], np.int32),
            copies=np.array(self.copies, np.int32).reshape(-1, 3),
            blocks=self.blocks,
        )
        self.copies = []
        return batch, wanted

    def random_step(self) -> tuple[Batch, list[list[int]]]:
        for _ in range(int(self.random.integers(0, 3))):
            if self.rows and self.random.random() < 0.6:
                self.fork(int(self.random.integers(len(self.rows))))
            else:
                self.add(int(self.random.integers(len(self.prefixes))))
        if not self.rows:
            self.add(0)
        active = [row for row in range(len(self.rows)) if self.random.random() < 0.8] or [0]
        self.random.shuffle(active)
        even = self.random.random() < 0.4
        counts = [1 if even else int(self.random.integers(1, 4)) for _ in active]
        return self.step(active, counts)
