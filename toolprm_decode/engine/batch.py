"""What a forward pass is asked for, in plain arrays, and what follows from them for its rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Batch:
    """One forward pass over many rows, as plain int32 arrays.

    A row reads the segments of its context, in order, then its own tokens: token j of its own lies at absolute position
    (tokens of the segments + j). Own tokens of earlier passes lie in pool slot
    ``block_tables[row, j // block_size] * block_size + j % block_size``. Keys and values of all tokens are written
    before any is read, so that a row may read a segment which another one writes in the same pass.

    Attributes:
        tokens: [T] token ids.
        positions: [T] absolute position of each token.
        rows: [T] row of each token, non-decreasing.
        slots: [T] pool slot that takes the token's key and value.
        segments: [K, 2] first slot and number of tokens of each segment.
        contexts: [R, C] segments of each row, in order, -1 padded.
        block_tables: [R, B] blocks of each row in order, -1 padded; not read for rows all of whose own tokens are of
            this pass.
        lengths: [R] own tokens of each row after this pass.
        outputs: [L] indices into `tokens` whose logits are wanted, of the whole vocabulary.
        few_outputs: [F] the same, of `few_ids` alone.
        few_ids: [U] token ids.
        copies: [N, 3] (source slot, destination slot, count) copied in every layer before the pass, in order: a copy
            may read what one before it wrote.
        blocks: blocks the store must have at least.
    """

    tokens: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    slots: np.ndarray
    segments: np.ndarray
    contexts: np.ndarray
    block_tables: np.ndarray
    lengths: np.ndarray
    outputs: np.ndarray
    few_outputs: np.ndarray
    few_ids: np.ndarray
    copies: np.ndarray
    blocks: int


class Rows:
    """The rows of a batch. R rows, C most segments of a row, K segments.

    Attributes:
        batch, block_size: as given.
        starts, counts: int64 [R], each row's tokens of the pass, from its first one on.
        segments: int64 [K, 2] as of the batch.
        before: int64 [R, C] position of each segment in its row.
        held: int64 [R] tokens of each row's segments together: where its own tokens begin.
    """

    def __init__(self, batch: Batch, block_size: int):
        self.batch, self.block_size = batch, block_size
        self.counts = np.bincount(batch.rows, minlength=len(batch.lengths)).astype(np.int64)
        self.starts = np.cumsum(self.counts) - self.counts
        self.segments = batch.segments.astype(np.int64)
        sizes = np.append(self.segments[:, 1], 0)[batch.contexts]  # -1, the padding, points at the zero
        self.before = np.cumsum(sizes, 1) - sizes
        self.held = sizes.sum(1)

    def places(self) -> np.ndarray:
        """Position of each segment, the same in all rows that read it: int64 [K]."""
        places = np.zeros(len(self.segments), np.int64)
        row, level = np.nonzero(self.batch.contexts >= 0)
        places[self.batch.contexts[row, level]] = self.before[row, level]
        return places

    def readers(self) -> list[np.ndarray]:
        """The tokens of the pass that read each segment, ascending."""
        read = self.batch.contexts[self.batch.rows]
        token, level = np.nonzero(read >= 0)
        segment = read[token, level]
        order = np.argsort(segment, kind="stable")
        bounds = np.searchsorted(segment[order], np.arange(len(self.segments) + 1))
        return [token[order[a:b]] for a, b in pairwise(bounds)]
