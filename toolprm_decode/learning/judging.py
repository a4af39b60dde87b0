"""What a reward model says of labelled trajectories: the trees of several queries in one pass of its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolprm_decode.engine import Batch
from toolprm_decode.errors import ModelNotSupported, RequestError
from toolprm_decode.learning.collation import Piece, Pieces
from toolprm_decode.learning.metrics import Judged
from toolprm_decode.rewards import ToolPRM

# Tokens of one pass. From 512 to 8,192 the models of the package take the same time on a CPU; 128 take half as much
# again, since what a call costs shows.
PASS_TOKENS = 2048


def judge(
    prm: ToolPRM,
    data: Pieces,
    *,
    pass_tokens: int = PASS_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """All judged steps, with the margins that `prm.score` would find for each trajectory alone.

    Args:
        data: made for this reward model.
        pass_tokens: tokens of one forward pass; more change nothing but time and memory.
        progress: called with how many trajectories are done, and how many there are.

    Raises:
        RequestError: pass_tokens below 1. ModelNotSupported: the logits are not numbers.
        BudgetExceeded: a trajectory longer than the model can hold.
    """
    if pass_tokens < 1:
        raise RequestError(f"pass_tokens must be positive, not {pass_tokens}")
    margins: dict[int, np.ndarray] = {}
    store = prm.engine.new_store()
    done, total = 0, sum(len(piece.trajectories) for piece in data.pieces)
    for group in _groups(data.pieces, pass_tokens):
        pieces = [data.pieces[index] for index in group]
        found = []
        for batch in _Forest(pieces, pass_tokens).batches(prm.label_ids, store.block_size):
            logits = prm.engine.forward(store, batch)[1].double().cpu().numpy()
            found.append(logits[:, 0] - logits[:, 1])
        values = np.concatenate(found)
        if np.isnan(values).any():
            raise ModelNotSupported(f"{type(prm.engine.model).__name__}: the reward model's logits are NaN")
        start = 0
        for index, piece in zip(group, pieces, strict=True):
            # Outputs come in the order of their places.
            margins[index] = np.empty(len(piece.nodes))
            margins[index][np.argsort(piece.nodes)] = values[start : start + len(piece.nodes)]
            start += len(piece.nodes)
            done += len(piece.trajectories)
        if progress is not None:
            progress(done, total)
    return judged(data, margins)


def judged(data: Pieces, margins: Mapping[int, np.ndarray]) -> Judged:
    """The judged steps of all trajectories. margins: by piece, float64 [T], the labels' difference at each tag."""
    columns: list[list[float]] = [[], [], [], [], []]
    for index, piece in enumerate(data.pieces):
        for trajectory in piece.trajectories:
            for tag, label in zip(trajectory.tags, trajectory.labels, strict=True):
                entry = (margins[index][tag], label, piece.kinds[tag], trajectory.number, trajectory.times)
                for column, value in zip(columns, entry, strict=True):
                    column.append(value)
    types = (np.float64, bool, np.int64, np.int64, np.float64)
    return Judged(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))


def _groups(pieces: Sequence[Piece], tokens: int) -> Iterator[list[int]]:
    """Indices of pieces, in order, of so many tokens together; a longer piece is alone."""
    group: list[int] = []
    size = 0
    for index, piece in enumerate(pieces):
        if group and size + len(piece) > tokens:
            yield group
            group, size = [], 0
        group.append(index)
        size += len(piece)
    if group:
        yield group


@dataclass(frozen=True)
class _Run:
    """Tokens of a forest that follow one another without a fork, `first` to `end`, behind the runs of `context`."""

    first: int
    end: int
    context: list[int]


class _Forest:
    """Trees side by side, as passes of an engine: each run of tokens is a row, the runs above it are its segments.

    A row may read what another one writes in the same pass, so that a whole tree takes one. Where it is longer than
    `limit` tokens, what comes behind them reads the store.
    """

    def __init__(self, pieces: Sequence[Piece], limit: int):
        sizes = [len(piece) for piece in pieces]
        starts = np.cumsum([0, *sizes[:-1]])
        self._tokens = np.concatenate([piece.tokens for piece in pieces])
        self._depths = np.concatenate([piece.depths for piece in pieces])
        self._ends = np.concatenate([s + piece.ends for s, piece in zip(starts, pieces, strict=True)])
        self._wanted = np.sort(np.concatenate([s + piece.nodes for s, piece in zip(starts, pieces, strict=True)]))
        self._limit = limit
        self._runs = self._find_runs()

    def batches(self, few_ids: Sequence[int], block_size: int) -> Iterator[Batch]:
        """Of each pass, in order; its few outputs are the tags in it, by their places."""
        none = np.zeros(0, np.int32)
        length = len(self._tokens)
        for first in range(0, length, self._limit):
            end = min(first + self._limit, length)
            runs = [run for run in self._runs if first <= run.first < end]
            read = {index: place for place, index in enumerate(sorted({i for run in runs for i in run.context}))}
            segments = [(block_size + self._runs[i].first, self._runs[i].end - self._runs[i].first) for i in read]
            contexts = np.full((len(runs), max(len(run.context) for run in runs)), -1, np.int32)
            for row, run in enumerate(runs):
                contexts[row, : len(run.context)] = [read[i] for i in run.context]
            lengths = np.array([run.end - run.first for run in runs], np.int32)
            wanted = self._wanted[(first <= self._wanted) & (self._wanted < end)]
            yield Batch(
                tokens=self._tokens[first:end],
                positions=self._depths[first:end],
                rows=np.repeat(np.arange(len(runs), dtype=np.int32), lengths),
                slots=np.arange(block_size + first, block_size + end, dtype=np.int32),
                segments=np.array(segments, np.int32).reshape(-1, 2),
                contexts=contexts,
                block_tables=np.zeros((len(runs), 0), np.int32),
                lengths=lengths,
                outputs=none,
                few_outputs=(wanted - first).astype(np.int32),
                few_ids=np.asarray(few_ids, np.int32),
                copies=np.zeros((0, 3), np.int32),
                blocks=1 + -(-length // block_size),
            )

    def _find_runs(self) -> list[_Run]:
        ends = self._ends
        # A token with one child ends where the child ends.
        fresh = np.append(True, ends[1:] != ends[:-1]) | (np.arange(len(ends)) % self._limit == 0)
        firsts = np.flatnonzero(fresh)
        runs: list[_Run] = []
        above: list[int] = []
        for first, end in zip(firsts.tolist(), [*firsts[1:].tolist(), len(ends)], strict=True):
            while above and ends[runs[above[-1]].end - 1] <= first:
                above.pop()
            runs.append(_Run(first, end, list(above)))
            above.append(len(runs) - 1)
        return runs
