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
        ids, at = torch.tensor([tokens]).to(model.device), torch.arange(len(tokens)).to(model.device)[None]
        return model(input_ids=ids, position_ids=at, use_cache=False).logits[0].float()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, note: str = "", tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape, note
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    difference = (actual - expected).abs().max().item() if expected.numel() else 0.0
    assert difference <= tolerance * scale, f"off by {difference:.3g} of {scale:.3g}. {note}"


class Plan:
    """Random rows behind prompts, their blocks kept in the simplest way: forks share full blocks and copy the last.

    Prompts lie in two segments, and from the second on share the first one's first segment where they are longer; they
    are read a few tokens a pass, all at once, so that one may read what another one writes in the same pass.
    """

    def __init__(self, engine: Engine, seed: int, prompts: tuple[int, ...] = (11, 4, 0), chunk: int = 4):
        self.engine, self.random = engine, np.random.default_rng(seed)
        self.store = engine.new_store()
        self.blocks = 1  # block 0 is nobody's
        self.copies: list[tuple[int, int, int]] = []
        self.rows: list[tuple[int, list[int], list[int]]] = []  # prompt, own tokens, blocks
        shared = min(prompts[0], 2 * engine.block_size)
        self.prompts = [self.tokens(prompts[0])]
        self.prompts += [
            self.prompts[0][:shared] * (n > shared) + self.tokens(n - shared * (n > shared)) for n in prompts[1:]
        ]
        first = self.run(shared)
        self.segments: list[list[tuple[int, int]]] = []  # of each prompt
        for index, prompt in enumerate(self.prompts):
            head = first if index == 0 or len(prompt) > shared else self.run(0)
            self.segments.append([s for s in (head, self.run(len(prompt) - head[1])) if s[1]])
        self.read_prompts(chunk)

    def run(self, count: int) -> tuple[int, int]:
        """A segment of that many slots in blocks of its own."""
        first = self.blocks * self.engine.block_size
        self.blocks += -(-count // self.engine.block_size)
        return first, count

    def read_prompts(self, chunk: int) -> None:
        filled: dict[tuple[int, int], int] = {}
        while True:
            columns, contexts, lengths = self.columns(), [], []
            for prompt, segments in zip(self.prompts, self.segments, strict=True):
                at, context, left = 0, [], chunk
                for segment in segments:
                    slot, count = segment
                    before = filled.get(segment, 0)
                    taken = min(left, count - before)
                    if taken and left == chunk:  # the row begins here
                        contexts.append([*context, *([(slot, before)] if before else [])])
                        lengths.append(0)
                    for i in range(before, before + taken):
                        self.put(columns, prompt[at + i], at + i, len(contexts) - 1, slot + i)
                        lengths[-1] += 1
                    filled[segment] = before + taken
                    left -= taken
                    context.append(segment)
                    at += count
                    if left == 0 or before + taken < count:
                        break
            if not contexts:
                return
            self.engine.forward(self.store, self.batch(columns, contexts, [[] for _ in contexts], lengths))

    def tokens(self, count: int) -> list[int]:
        return self.random.integers(3, VOCABULARY, count).tolist()

    def block(self) -> int:
        self.blocks += 1
        return self.blocks - 1

    def add(self, prompt: int) -> None:
        self.rows.append((prompt, [], []))

    def fork(self, row: int) -> None:
        prompt, tokens, blocks = self.rows[row]
        size, blocks = self.engine.block_size, list(blocks)
        if len(tokens) % size:
            source, blocks[-1] = blocks[-1], self.block()
            self.copies.append((source * size, blocks[-1] * size, len(tokens) % size))
        self.rows.append((prompt, list(tokens), blocks))

    @staticmethod
    def columns() -> dict[str, list[int]]:
        return {name: [] for name in ("tokens", "positions", "rows", "slots", "outputs", "few_outputs", "few_ids")}

    @staticmethod
    def put(columns: dict[str, list[int]], token: int, position: int, row: int, slot: int) -> None:
        for name, value in (("tokens", token), ("positions", position), ("rows", row), ("slots", slot)):
            columns[name].append(value)

    def batch(
        self,
        columns: dict[str, list[int]],
        contexts: list[list[tuple[int, int]]],
        tables: list[list[int]],
        lengths: list[int],
    ) -> Batch:
        segments = sorted({segment for context in contexts for segment in context})
        copies, self.copies = self.copies, []
        return Batch(
            **{name: np.array(values, np.int32) for name, values in columns.items()},
            segments=np.array(segments, np.int32).reshape(-1, 2),
            contexts=padded([[segments.index(s) for s in context] for context in contexts]),
            block_tables=padded(tables),
            lengths=np.array(lengths, np.int32),
            copies=np.array(copies, np.int32).reshape(-1, 3),
            blocks=self.blocks,
        )

    def step(self, active: list[int], counts: list[int], ids: list[int] | None = None) -> tuple[Batch, list[list[int]]]:
        """Give each active row some tokens: the batch, and the whole sequence up to each wanted token.

        ids: of the logits that are wanted, None for all.
        """
        size = self.engine.block_size
        columns = self.columns()
        wanted = []
        for index, (row, count) in enumerate(zip(active, counts, strict=True)):
            prompt, own, blocks = self.rows[row]
            for token in self.tokens(count):
                if len(own) % size == 0:
                    blocks.append(self.block())
                position = len(self.prompts[prompt]) + len(own)
                self.put(columns, token, position, index, blocks[-1] * size + len(own) % size)
                own.append(token)
                if self.random.random() < 0.7:
                    columns["outputs" if ids is None else "few_outputs"].append(len(columns["tokens"]) - 1)
                    wanted.append([*self.prompts[prompt], *own])
        columns["few_ids"] = list(ids or [])
        rows = [self.rows[row] for row in active]
        batch = self.batch(
            columns,
            [self.segments[prompt] for prompt, *_ in rows],
            [blocks for *_, blocks in rows],
            [len(own) for _, own, _ in rows],
        )
        return batch, wanted

    def random_step(self, ids: list[int] | None = None) -> tuple[Batch, list[list[int]]]:
        for _ in range(int(self.random.integers(0, 3))):
            if self.rows and self.random.random() < 0.6:
                self.fork(int(self.random.integers(len(self.rows))))
            else:
                self.add(int(self.random.integers(len(self.prompts))))
        if not self.rows:
            self.add(0)
        active = [row for row in range(len(self.rows)) if self.random.random() < 0.8] or [0]
        self.random.shuffle(active)
        even = self.random.random() < 0.4
        counts = [1 if even else int(self.random.integers(1, 4)) for _ in active]
        return self.step(active, counts, ids)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The logits of the wanted tokens."""
        full, few = self.engine.forward(self.store, batch)
        return few if len(batch.few_ids) else full


def padded(lists: list[list[int]]) -> np.ndarray:
    table = np.full((len(lists), max(map(len, lists), default=0)), -1, np.int32)
    for row, values in enumerate(lists):
        table[row, : len(values)] = values
    return table
