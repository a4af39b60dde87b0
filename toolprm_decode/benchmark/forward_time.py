"""Times the forward passes of engines from outside, so that what a search spends beside them can be told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from toolprm_decode.engine import Batch, KVStore
from toolprm_decode.engine.runner import ModelRunner


@dataclass(frozen=True)
class ForwardPass:
    """One pass of a model.

    Attributes:
        model: whose. tokens: how many it read. outputs: of how many the logits were wanted, and for how many ids.
        rows: sequences that they belong to.
        keys: tokens whose keys and values it read, those of a segment once however many rows read it.
        start, end: of time.perf_counter(), from token ids to float32 logits, the head included; on a GPU until it is
            done.
    """

    model: Any
    tokens: int
    outputs: int
    ids: int
    rows: int
    keys: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@contextmanager
def timed_forwards() -> Iterator[list[ForwardPass]]:
    """Fills the list with the passes of all engines until the context ends."""
    passes: list[ForwardPass] = []
    run = ModelRunner.run

    def timed(self: ModelRunner, store: KVStore, batch: Batch) -> Any:
        start = time.perf_counter()
        result = run(self, store, batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        end = time.perf_counter()
        outputs = len(batch.outputs) + len(batch.few_outputs)
        ids = self.vocab_size if len(batch.outputs) else len(batch.few_ids)
        read = np.unique(batch.contexts[batch.contexts >= 0])
        keys = int(batch.segments[read, 1].sum()) + int(batch.lengths.sum())
        counts = (len(batch.tokens), outputs, ids, len(batch.lengths), keys)
        passes.append(ForwardPass(self.model, *counts, start, end))
        return result

    with patch.object(ModelRunner, "run", timed):
        yield passes
