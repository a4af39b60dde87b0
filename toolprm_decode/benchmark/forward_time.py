"""Times the forward passes of engines from outside, so that what a search spends beside them can be told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from toolprm_decode.engine import Batch, KVStore
from toolprm_decode.engine.runner import ModelRunner


@dataclass(frozen=True)
class ForwardPass:
    """One pass of a model.

    Attributes:
        model: whose. tokens: how many it read. outputs: of how many the logits were wanted.
        start, end: of time.perf_counter(), from token ids to float32 logits, the head included.
    """

    model: Any
    tokens: int
    outputs: int
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
        outputs = len(batch.outputs) + len(batch.few_outputs)
        passes.append(ForwardPass(self.model, len(batch.tokens), outputs, start, time.perf_counter()))
        return result

    with patch.object(ModelRunner, "run", timed):
        yield passes
