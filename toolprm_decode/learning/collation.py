"""Labelled trajectories as rows of token ids: the trajectories of a query as one tree, several trees in one row.

A tree is kept in depth-first order, where all that follows from a token stands right behind it. Who sees whom is then
one number a token: the end of its subtree. Token i sees token j where j <= i < end of j.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from toolprm_decode.errors import DataError, ToolprmError
from toolprm_decode.learning.packing import TokenTree
from toolprm_decode.rewards import STEP_KINDS, ToolPRM

# How often a trajectory counts that was drawn `count` times.
WEIGHTINGS = {"count": lambda count: float(count), "sqrt": lambda count: float(count) ** 0.5, "none": lambda count: 1.0}

# Pieces that are fitted into rows together: the more, the fuller the rows, and the less random their order.
_WINDOW = 512

# Batches whose rows are mixed: the more, the more random their rows, and the more unlike in length.
_BLOCK = 50


class Trajectory(NamedTuple):
    """One answer: of each judged step the tag (an index into Piece.nodes) and the label, and how often it was drawn.

    `number` tells the trajectories of a data set apart.
    """

    tags: list[int]
    labels: list[bool]
    times: int
    number: int


@dataclass(frozen=True)
class Piece:
    """Trajectories of one query as a tree in depth-first order.

    Attributes:
        tokens: int32 [L]. depths: int32 [L], the positions. ends: int32 [L], where the subtree of a token ends.
        nodes: int32 [T], the tags' places. kinds: int8 [T], indices into STEP_KINDS.
        plus, minus: float64 [T], the weight of the trajectories for which the step is right, and wrong.
        trajectories: what the weights are made of.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    nodes: np.ndarray
    kinds: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    trajectories: tuple[Trajectory, ...]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Pieces:
    """A split as pieces.

    Attributes:
        pieces: in the order of the split.
        queries, trajectories, steps: how many were read: different texts, not weighted by their counts.
        too_long: trajectories left out because they are longer than the model's context.
        longest: tokens of the longest trajectory kept.
    """

    pieces: list[Piece]
    queries: int = 0
    trajectories: int = 0
    steps: int = 0
    too_long: int = 0
    longest: int = 0

    def __len__(self) -> int:
        return len(self.pieces)


def read_pieces(
    rows: Iterable[Mapping[str, Any]],
    prm: ToolPRM,
    *,
    row_tokens: int,
    max_length: int | None = None,
    packing: bool = True,
    weighting: str = "count",
    where: Callable[[int], str] = "trajectory {} of the split".format,
) -> Pieces:
    """Turns trajectory rows into pieces, token for token what the reward model reads when it scores.

    Args:
        rows: of a labelled data set, those of one query in a row.
        prm: whose tokenizer and tags are used; steps of a kind that it has no tag for are read, not judged.
        row_tokens: trees are cut, at whole trajectories, so as not to be longer than that and twice the prompt; a
            single trajectory may be.
        max_length: longer trajectories are left out and counted.
        packing: else every trajectory is a piece of its own.
        weighting: a name of WEIGHTINGS.
        where: tells the place of a row by its number, 1 for the first.

    Raises:
        DataError: a row that is not of the shape, with its place.
    """
    weigh = WEIGHTINGS[weighting]
    result = Pieces([])
    builder: PieceBuilder | None = None
    query, prompt = None, []
    for number, row in enumerate(rows):
        try:
            asked = (row["id"], row["tools"], row["messages"], row["format"])
            if asked != query:
                query, prompt = asked, _prompt(prm, row)
                result.queries += 1
                if builder:
                    result.pieces.append(builder.finish())
                builder = None
            steps = [_step(step) for step in row["steps"]]
            count = int(row["count"])
            if count < 1:
                raise ValueError(f"a count of {count}")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            asker = f" (query {row['id']!r:.80})" if isinstance(row, Mapping) and "id" in row else ""
            raise DataError(f"{where(number + 1)}{asker}: the trajectory cannot be used: {reason}") from error
        if not any(kind in prm.tags for kind, _, _ in steps):
            continue
        result.trajectories += 1
        result.steps += sum(kind in prm.tags for kind, _, _ in steps)
        texts = [prm.encode_text(text) + (prm.tag_ids(kind) if kind in prm.tags else []) for kind, text, _ in steps]
        length = len(prompt) + sum(map(len, texts))
        if max_length is not None and length > max_length:
            result.too_long += 1
            continue
        result.longest = max(result.longest, length)
        room = max(row_tokens, 2 * len(prompt))  # or answers to a long prompt would not share it
        if builder and (not packing or builder.size_with(texts) > room):
            result.pieces.append(builder.finish())
            builder = None
        builder = builder or PieceBuilder(prompt)
        judged = [
            (STEP_KINDS.index(kind) if kind in prm.tags else None, text, label)
            for (kind, _, label), text in zip(steps, texts, strict=True)
        ]
        builder.add(judged, count, weigh(count), number)
    if builder:
        result.pieces.append(builder.finish())
    return result


class PieceBuilder:
    """Grows one piece from trajectories after one prompt."""

    def __init__(self, prompt: Sequence[int]):
        self.tree = TokenTree()
        self._root = self.tree.add(prompt)[-1]
        self._tags: dict[int, int] = {}  # node -> index of the tag
        self._kinds: list[int] = []
        self._weights: list[list[float]] = []
        self._trajectories: list[Trajectory] = []

    def size_with(self, texts: Sequence[list[int]]) -> int:
        """How long the tree were with these steps too."""
        return len(self.tree) + self.tree.missing([token for text in texts for token in text], self._root)

    def add(self, steps: Iterable[tuple[int | None, list[int], bool]], count: int, weight: float, number: int) -> None:
        """Adds a trajectory: of each step the kind (None: not judged), the tokens with the tag's, and the label."""
        node, tags, labels = self._root, [], []
        for kind, tokens, label in steps:
            node = self.tree.add(tokens, node)[-1] if tokens else node
            if kind is None:
                continue
            tag = self._tags.setdefault(node, len(self._tags))
            if tag == len(self._kinds):
                self._kinds.append(kind)
                self._weights.append([0.0, 0.0])
            self._weights[tag][not label] += weight
            tags.append(tag)
            labels.append(label)
        self._trajectories.append(Trajectory(tags, labels, count, number))

    def finish(self) -> Piece:
        order, ends = depth_first(self.tree.parents)
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        weights = np.array(self._weights)
        return Piece(
            tokens=np.array(self.tree.tokens, np.int32)[order],
            depths=self.tree.positions().astype(np.int32)[order],
            ends=ends,
            nodes=place[list(self._tags)],
            kinds=np.array(self._kinds, np.int8),
            plus=weights[:, 0],
            minus=weights[:, 1],
            trajectories=tuple(self._trajectories),
        )


def depth_first(parents: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of a forest in depth-first order, and where the subtree of each ends in it: int64 [L], int32 [L].

    parents: of each node, -1 for a root; a parent comes before its children.
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    sizes = np.ones(len(parents), np.int64)
    for node in range(len(parents) - 1, -1, -1):
        children[parents[node]].append(node)  # last child first, as a stack wants them
        if parents[node] >= 0:
            sizes[parents[node]] += sizes[node]
    order, stack = [], list(children[-1])
    while stack:
        node = stack.pop()
        order.append(node)
        stack += children.get(node, ())
    ordered = np.array(order, np.int64)
    return ordered, (np.arange(len(order)) + sizes[ordered]).astype(np.int32)


def fill_rows(pieces: Sequence[Piece], row_tokens: int, seed: int | None = 0) -> list[list[int]]:
    """Indices of the pieces of each row: first fit by falling length, within windows of a random order.

    seed: of the order; None for the order given.
    """
    order = np.arange(len(pieces)) if seed is None else np.random.default_rng(seed).permutation(len(pieces))
    rows: list[list[int]] = []
    for start in range(0, len(order), _WINDOW):
        window = sorted(order[start : start + _WINDOW].tolist(), key=lambda i: -len(pieces[i]))
        filled: list[list[int]] = []
        free: list[int] = []
        for index in window:
            size = len(pieces[index])
            row = next((r for r, room in enumerate(free) if room >= size), None)
            if row is None:
                filled.append([index])
                free.append(row_tokens - size)
            else:
                filled[row].append(index)
                free[row] -= size
        rows += filled
    return rows


class Collator:
    """Makes the tensors of a batch from rows of pieces.

    Args:
        pieces: what the rows' indices mean.
        pad: a token id for the room behind short rows.
        packing: give the subtree ends, from which `tree_mask` is made; else rows are single sequences, and an ordinary
            mask does.
        class_weights: factors of the weights of right and of wrong steps.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        pad: int,
        *,
        packing: bool = True,
        class_weights: tuple[float, float] = (1.0, 1.0),
    ):
        self.pieces, self.pad, self.packing, self.class_weights = pieces, pad, packing, class_weights

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """A batch.

        Returns:
            input_ids, position_ids: int64 [B, L].
            ends: int64 [B, L] (packed), or attention_mask: int64 [B, L] of ones and zeros.
            tag_rows, tag_columns: int64 [T], the places of the tags, row by row.
            plus, minus: float32 [T], the weights of the two labels; zero in rows that are not active.
        """
        taken = [[self.pieces[i] for i in row.pieces] for row in rows]
        length = max(sum(map(len, pieces)) for pieces in taken)
        ids = np.full((len(rows), length), self.pad, np.int64)
        positions = np.zeros((len(rows), length), np.int64)
        ends = np.tile(np.arange(1, length + 1), (len(rows), 1))  # padding sees itself alone
        mask = np.zeros((len(rows), length), np.int64)
        places, weights = [], []
        for r, (row, pieces) in enumerate(zip(rows, taken, strict=True)):
            start = 0
            for piece in pieces:
                span = slice(start, start + len(piece))
                ids[r, span], positions[r, span], ends[r, span] = piece.tokens, piece.depths, start + piece.ends
                mask[r, span] = 1
                places.append(np.stack([np.full(len(piece.nodes), r), start + piece.nodes]))
                weights.append(np.stack([piece.plus, piece.minus]) * row.active)
                start += len(piece)
        where = torch.from_numpy(np.concatenate(places, 1).astype(np.int64))
        plus, minus = np.concatenate(weights, 1) * np.array(self.class_weights)[:, None]
        batch = {
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(positions),
            "tag_rows": where[0],
            "tag_columns": where[1],
            "plus": torch.from_numpy(plus.astype(np.float32)),
            "minus": torch.from_numpy(minus.astype(np.float32)),
        }
        if self.packing:
            batch["ends"] = torch.from_numpy(ends)
        else:
            batch["attention_mask"] = torch.from_numpy(mask)
        return batch


class Row(NamedTuple):
    """Pieces side by side, and whether they count (a row that does not only keeps processes in step)."""

    pieces: Sequence[int]
    active: bool = True


class BatchPlan:
    """The batches of one process and epoch: rows of like length, the same number of batches for all processes.

    Read as a batch sampler, over a data set whose items are (row number, active) pairs themselves. Rows are sorted by
    length into blocks; within a block the rows of a batch, and all over the order of the batches, are random.

    Args:
        lengths: tokens of each row.
        tokens: most tokens of a batch, padding included; a longer row is a batch of its own.
        seed: of the order; None for that of the lengths.
        rank, world: which process of how many. The batches of an epoch go to the processes in turn; where they do not
            come out even, the rest get the first batch again, not active.
    """

    def __init__(self, lengths: Sequence[int], tokens: int, seed: int | None, rank: int = 0, world: int = 1):
        self._seed, self._rank, self._world = seed, rank, world
        self._epoch = 0
        self._blocks: list[tuple[list[int], int]] = []  # rows, and how many of them a batch takes
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        while order:
            size = max(1, tokens // lengths[order[0]])
            self._blocks.append((order[: _BLOCK * size], size))
            del order[: _BLOCK * size]
        self._count = sum(-(-len(rows) // size) for rows, size in self._blocks)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; the number of batches is the same in all."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._count // self._world)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        batches = self._batches()
        for turn in range(len(self)):
            index = turn * self._world + self._rank
            active = index < len(batches)
            yield [(row, active) for row in (batches[index] if active else batches[0])]

    def _batches(self) -> list[list[int]]:
        random = None if self._seed is None else np.random.default_rng([self._seed, self._epoch])
        batches: list[list[int]] = []
        for rows, size in self._blocks:
            mixed = rows if random is None else random.permutation(rows).tolist()
            batches += [mixed[start : start + size] for start in range(0, len(mixed), size)]
        return batches if random is None else [batches[i] for i in random.permutation(len(batches))]


def tree_mask(ends: torch.Tensor) -> torch.Tensor:
    """Who sees whom, bool [B, 1, L, L], of subtree ends [B, L]."""
    at = torch.arange(ends.shape[1], device=ends.device)
    return ((at[None, :] <= at[:, None]) & (at[None, :, None] < ends[:, None, :]))[:, None]


def _prompt(prm: ToolPRM, row: Mapping[str, Any]) -> list[int]:
    try:
        text = prm.prompt_text(json.loads(row["tools"]), json.loads(row["messages"]), row["format"])
    except ToolprmError as error:
        raise ValueError(str(error)) from error
    tokens = prm.encode_prompt(text)
    if not tokens:
        raise ValueError("its prompt has no tokens")
    return tokens


def _step(step: Mapping[str, Any]) -> tuple[str, str, bool]:
    kind, text, label = step["kind"], step["text"], step["label"]
    if kind not in STEP_KINDS:
        raise ValueError(f"unknown step kind {kind!r}; known: {', '.join(STEP_KINDS)}")
    if label not in ("+", "-"):
        raise ValueError(f"the label {label!r} of a step is neither '+' nor '-'")
    if not isinstance(text, str):
        raise ValueError(f"the text of a step is {text!r:.40}")
    return kind, text, label == "+"
