"""Runs a transformers causal language model from plans: many rows at a time, which share what they have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from toolprm_decode.engine.batch import Batch
from toolprm_decode.engine.runner import ModelRunner
from toolprm_decode.engine.store import KVStore
from toolprm_decode.engine.support import (
    check_attention,
    check_forks,
    check_structure,
    first_line,
    position_limit,
    probe_tokens,
)
from toolprm_decode.errors import BudgetExceeded, ModelNotSupported, RequestError, TokenizerError

# Tokens of a sequence that are read in one pass. Longer passes gain nothing on a CPU and hold larger activations.
CHUNK = 512


class Engine:
    """A model and one forward pass for prompts and forked rows alike; what it reads is kept in a store of the caller's.

    The model object stays the caller's: between calls it behaves as before, and several engines may share it. An
    engine may be used from several threads; its passes then run one after another.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer, a path or hub id of one, or None.
        block_size: slots of a block of its stores.

    Raises:
        ModelNotSupported: the architecture cannot be run by our attention, or its head does not fit the tokenizer.
        TokenizerError: the tokenizer cannot be loaded.

    Attributes:
        model, tokenizer, block_size: as given.
        device: where token ids go.
        vocab_size: rows of the model's head, the width of full logits.
        stop_ids: ids that end a generation.
        max_positions: longest sequence that a pass takes; None where nothing but quality bounds it.
        kv_bytes: bytes of the keys and values of one token.
        forward_tokens: tokens run through the model so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        *,
        block_size: int = 16,
    ):
        if block_size < 1:
            raise RequestError(f"block_size must be positive, not {block_size}")
        check_structure(model)
        self.model = model
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer
        self.block_size = block_size
        self._runner = ModelRunner(model)
        self.device = self._runner.device
        self.vocab_size = self._runner.vocab_size
        if self.tokenizer is not None:
            self.check_head(len(self.tokenizer))
        with self._runner.locked():
            check_attention(self._runner)
            self._runner.calibrate(probe_tokens(self._runner, 4))
            self.kv_bytes = check_forks(self._runner)
        self.stop_ids = self._find_stop_ids()
        self._limit = position_limit(self._runner)
        self.max_positions = None if self._limit is None else self._limit[0]
        self.forward_tokens = 0

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        block_size: int = 16,
        **kwargs: Any,
    ) -> Engine:
        """Load a model folder or hub id, with its tokenizer.

        Args:
            device: None for the GPU where there is one, else the CPU.
            dtype: None for the one the weights are stored in.
            tokenizer: None for the model's own.
            kwargs: passed to ``AutoModelForCausalLM.from_pretrained``.

        Raises:
            RequestError: there is no model at the path.
            ModelNotSupported, TokenizerError: as for the constructor.
        """
        model = load_model(path_or_id, device=device, dtype=dtype, **kwargs)
        return cls(model, path_or_id if tokenizer is None else tokenizer, block_size=block_size)

    def new_store(self, capacity: int | None = None) -> KVStore:
        """A store for what this engine reads, of at most `capacity` blocks; it takes memory as it is needed."""
        return KVStore(self.block_size, capacity)

    def shares_model(self, other: Engine) -> bool:
        """Whether passes of both run one after another, since they run one model."""
        return self._runner.shares_lock(other._runner)

    def forward(self, store: KVStore, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one batch and write its keys and values into the store.

        Returns:
            float32 logits [L, vocab_size] of the outputs and [F, U] of the few outputs, on the head's device, with the
            model's own bias, scaling and soft cap. Of the few outputs only the rows of the head that are asked for are
            computed.

        Raises:
            RequestError: a token id outside the vocabulary.
            BudgetExceeded: a position beyond what the model can hold, or memory is out.
        """
        with self._runner.locked():
            if not len(batch.tokens):
                store.reserve(batch.blocks)
                store.copy(batch.copies)
                return torch.empty(0, self.vocab_size), torch.empty(0, len(batch.few_ids))
            self._check(batch.tokens, int(batch.positions.max()) + 1)
            logits = self._runner.run(store, batch)
            self.forward_tokens += len(batch.tokens)
        return logits

    def logits(
        self,
        tokens: Sequence[int],
        outputs: Sequence[int],
        vocab_ids: Sequence[int] | None = None,
        chunk: int = CHUNK,
    ) -> torch.Tensor:
        """Logits of one sequence from scratch, keeping nothing: float32 [len(outputs), vocab_size or len(vocab_ids)].

        Args:
            tokens: ids, not empty.
            outputs: indices into `tokens`, ascending, whose next-token logits are wanted.
            vocab_ids: ids whose logits are wanted; None for all.
            chunk: tokens of one forward pass.

        Raises:
            RequestError, BudgetExceeded: as `forward`.
        """
        if chunk < 1:
            raise RequestError(f"chunk must be positive, not {chunk}")
        ids, wanted = np.asarray(tokens, np.int32), np.asarray(outputs, np.int32)
        none = np.zeros(0, np.int32)
        store = KVStore(block_size=1)
        parts = [torch.empty(0, self.vocab_size if vocab_ids is None else len(vocab_ids))]
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            here = wanted[(wanted >= start) & (wanted < start + len(part))] - start
            positions = np.arange(start, start + len(part), dtype=np.int32)
            batch = Batch(
                tokens=part,
                positions=positions,
                rows=np.zeros_like(part),
                slots=1 + positions,
                segments=np.array([[1, start]], np.int32)[: min(start, 1)],
                contexts=np.zeros((1, min(start, 1)), np.int32),
                block_tables=np.zeros((1, 0), np.int32),
                lengths=np.array([len(part)], np.int32),
                outputs=here if vocab_ids is None else none,
                few_outputs=none if vocab_ids is None else here,
                few_ids=none if vocab_ids is None else np.asarray(vocab_ids, np.int32),
                copies=np.zeros((0, 3), np.int32),
                blocks=1 + len(ids),
            )
            full, few = self.forward(store, batch)
            if len(here):
                parts.append(full if vocab_ids is None else few)
        return torch.cat([part.to(parts[-1].device) for part in parts])

    def check_head(self, tokenizer_size: int) -> None:
        """Refuse a head that does not fit a tokenizer of that many ids. Raises ModelNotSupported with both numbers.

        A head may have more rows than the tokenizer has ids (padding), by 1,024 or 5 %, whichever is more.
        """
        rows = self.vocab_size
        if tokenizer_size > rows or rows - tokenizer_size > max(1024, 0.05 * rows):
            raise ModelNotSupported(
                f"{type(self.model).__name__} has a head of {rows} rows, but the tokenizer has {tokenizer_size} ids: "
                "load the tokenizer that belongs to the model, or call model.resize_token_embeddings(len(tokenizer))"
            )

    def _check(self, tokens: np.ndarray, length: int) -> None:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise RequestError(f"token id {wrong} is outside the model's vocabulary of {self.vocab_size}")
        if self._limit is not None and length > self._limit[0]:
            raise BudgetExceeded(
                f"{type(self.model).__name__} is limited to {self._limit[0]} positions ({self._limit[1]}), and "
                f"{length} are needed: shorten the prompt or the output"
            )

    def _find_stop_ids(self) -> tuple[int, ...]:
        generation = getattr(self.model, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        ids = list(eos) if isinstance(eos, (list, tuple)) else [eos]
        ids.append(getattr(self.tokenizer, "eos_token_id", None))
        return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def load_tokenizer(path_or_id: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. Raises TokenizerError."""
    try:
        return AutoTokenizer.from_pretrained(str(path_or_id))
    except Exception as error:
        raise TokenizerError(
            f"no tokenizer could be loaded from {str(path_or_id)!r} ({first_line(error)}): pass one as `tokenizer`"
        ) from error


def load_model(
    path_or_id: str | Path, *, device: str | torch.device | None, dtype: torch.dtype | str | None, **kwargs: Any
) -> PreTrainedModel:
    """The causal language model of a folder or hub id, on its device. Raises RequestError and ModelNotSupported."""
    name = os.path.expanduser(path_or_id)
    folder = Path(name)
    if folder.is_file():
        raise RequestError(f"{name!r} is a file: give the folder with config.json, or a hub id")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise RequestError(f"{name!r} holds no model: it has no config.json")
    if not folder.exists() and (folder.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise RequestError(f"there is no folder {name!r}")
    trust = {k: kwargs[k] for k in ("trust_remote_code", "revision", "token", "local_files_only") if k in kwargs}
    try:
        config = AutoConfig.from_pretrained(name, **trust)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{name!r} is neither a model folder nor a model of the hub ({first_line(error)})"
        ) from error
    architecture = ", ".join(config.architectures or [config.model_type])
    if config.is_encoder_decoder:
        raise ModelNotSupported(f"{architecture} is an encoder-decoder; use a decoder-only causal language model")
    if device is None and "device_map" not in kwargs:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype or "auto", output_loading_info=True, **kwargs
        )
        model, missing = found[0], sorted(found[1]["missing_keys"])
    except ValueError as error:
        raise ModelNotSupported(
            f"{architecture} cannot be loaded as a causal language model ({first_line(error)})"
        ) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors and torch raise errors of their own, transformers bare RuntimeErrors
        raise RequestError(f"the weights of {name!r} cannot be read, or do not fit ({first_line(error)})") from error
    if missing:  # transformers fills them with random numbers
        raise RequestError(f"the weights of {name!r} lack {len(missing)} tensors, such as {missing[0]}")
    return model if device is None else model.to(device)
