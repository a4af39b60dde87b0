"""Rows hold, token for token and label for label, what the trajectories say."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolprm_decode.errors import DataError
from toolprm_decode.formats import get_format
from toolprm_decode.learning.collation import (
    BatchPlan,
    Collator,
    Piece,
    Row,
    depth_first,
    fill_rows,
    read_pieces,
    tree_mask,
)
from toolprm_decode.learning.packing import TokenTree
from toolprm_decode.learning.training import KINDS, add_tags
from toolprm_decode.prompting import render
from toolprm_decode.rewards import STEP_KINDS, ToolPRM
from toolprm_decode.tools import read_tools

from .training_cases import TOOLS, many_answers, model, rows, tokenizer


def reward_model(kind: str = "toolprm") -> ToolPRM:
    return add_tags(model(), tokenizer(), kind)[0]


def sequence(prm: ToolPRM, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens that the reward model reads of a trajectory, and the places of its tags."""
    text, _ = render(prm.tokenizer, read_tools(TOOLS), json.loads(row["messages"]), get_format(row["format"]))
    tokens, tags = prm.encode_prompt(text), []
    for step in row["steps"]:
        tokens += prm.encode_text(step["text"])
        if step["kind"] in prm.tags:
            tokens += prm.tag_ids(step["kind"])
            tags.append(len(tokens) - 1)
    return tokens, tags


def seen(piece: Piece, node: int) -> list[int]:
    """The tokens that a node sees, by their positions."""
    visible = [i for i in range(node + 1) if node < piece.ends[i]]
    assert [int(piece.depths[i]) for i in visible] == list(range(len(visible)))
    return [int(piece.tokens[i]) for i in visible]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("packing", "row_tokens"), [(True, 10_000), (True, 150), (False, 1)])
def test_a_tag_sees_its_own_trajectory_and_weighs_its_labels(kind: str, packing: bool, row_tokens: int) -> None:
    prm, data = reward_model(kind), [*rows(5, 0), *many_answers(40)]
    pieces = read_pieces(data, prm, row_tokens=row_tokens, packing=packing)
    assert (pieces.queries, pieces.trajectories) == (6, len(data))
    cut = {10_000: len(pieces) == 6, 150: 6 < len(pieces) < 12, 1: len(pieces) == len(data)}
    assert cut[row_tokens]
    expected: defaultdict[tuple[int, ...], np.ndarray] = defaultdict(lambda: np.zeros(2))
    for row in data:
        tokens, tags = sequence(prm, row)
        labels = [step["label"] for step in row["steps"] if step["kind"] in prm.tags]
        for place, label in zip(tags, labels, strict=True):
            expected[tuple(tokens[: place + 1])][int(label == "-")] += row["count"]
    found: defaultdict[tuple[int, ...], np.ndarray] = defaultdict(lambda: np.zeros(2))
    for piece in pieces.pieces:
        for tag, node in enumerate(piece.nodes):
            assert prm.tag_ids(STEP_KINDS[piece.kinds[tag]]) == [piece.tokens[node]]
            found[tuple(seen(piece, node))] += [piece.plus[tag], piece.minus[tag]]
    assert found.keys() == expected.keys()
    for key, weights in expected.items():
        assert found[key].tolist() == weights.tolist()
    told = {t.number: (t.labels, t.times) for piece in pieces.pieces for t in piece.trajectories}
    for number, row in enumerate(data):
        labels = [step["label"] == "+" for step in row["steps"] if step["kind"] in prm.tags]
        assert told[number] == (labels, row["count"])


@pytest.mark.parametrize(("weighting", "weight"), [("count", 9.0), ("sqrt", 3.0), ("none", 1.0)])
def test_weights_of_repeated_draws(weighting: str, weight: float) -> None:
    row = {**rows(1, 0)[0], "count": 9}
    piece = read_pieces([row], reward_model(), row_tokens=999, weighting=weighting).pieces[0]
    assert (piece.plus + piece.minus).tolist() == [weight] * len(piece.nodes)


def test_trajectories_beyond_the_context_are_left_out_and_counted() -> None:
    prm, data = reward_model(), rows(3, 0)
    lengths = [len(sequence(prm, row)[0]) for row in data]
    limit = sorted(lengths)[len(lengths) // 2]
    pieces = read_pieces(data, prm, row_tokens=999, max_length=limit)
    assert pieces.too_long == sum(length > limit for length in lengths)
    assert pieces.longest == limit
    assert sum(len(piece.trajectories) for piece in pieces.pieces) == len(data) - pieces.too_long


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count of 0"),
        ({"tools": "[{"}, "trajectory 1"),
        ({"tools": "[]x"}, "q0-0"),
        ({"steps": [{"kind": "NAME", "text": "x", "label": "+"}]}, "unknown step kind 'NAME'"),
        ({"steps": [{"kind": "FUNC_NAME", "text": "x", "label": "yes"}]}, "neither"),
        ({"steps": [{"kind": "FUNC_NAME", "label": "+"}]}, "lacks 'text'"),
        ({"format": "xml"}, "unknown call format"),
    ],
)
def test_malformed_rows_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        read_pieces([{**rows(1, 0)[0], **change}], reward_model(), row_tokens=99)
    with pytest.raises(DataError, match="lacks 'id'"):
        read_pieces([{}], reward_model(), row_tokens=99)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_subtree_ends_say_who_sees_whom(sequences: list[list[int]]) -> None:
    tree = TokenTree()
    for tokens in sequences:
        tree.add(tokens)
    order, ends = depth_first(tree.parents)
    mask = tree_mask(torch.from_numpy(ends.astype(np.int64))[None])[0, 0].numpy()
    assert sorted(order.tolist()) == list(range(len(tree)))
    np.testing.assert_array_equal(mask, tree.mask()[order][:, order])


def test_trees_in_a_row_do_not_see_each_other() -> None:
    prm = reward_model()
    pieces = read_pieces(rows(3, 0), prm, row_tokens=10_000).pieces
    batch = Collator(pieces, 7)([Row([0, 2]), Row([1], active=False)])
    mask = tree_mask(batch["ends"])[:, 0].numpy()
    first, second = len(pieces[0]), len(pieces[0]) + len(pieces[2])
    assert not mask[0, first:second, :first].any() and not mask[0, :first, first:].any()
    alone = Collator(pieces, 7)([Row([2])])
    np.testing.assert_array_equal(mask[0, first:second, first:second], tree_mask(alone["ends"])[0, 0].numpy())
    np.testing.assert_array_equal(batch["position_ids"][0, first:second], alone["position_ids"][0])
    rest = slice(len(pieces[1]), None)
    np.testing.assert_array_equal(mask[1, rest], np.eye(mask.shape[1], dtype=bool)[rest])  # padding: itself alone
    assert set(batch["input_ids"][1, rest].tolist()) <= {7}
    tags = batch["input_ids"][batch["tag_rows"], batch["tag_columns"]].tolist()
    assert set(tags) == {prm.tag_ids(kind)[0] for kind in STEP_KINDS}
    idle = batch["tag_rows"] == 1
    assert not batch["plus"][idle].any() and not batch["minus"][idle].any() and batch["plus"][~idle].any()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 50), st.none() | st.integers(0, 3))
def test_rows_hold_every_piece_once(lengths: list[int], room: int, seed: int | None) -> None:
    empty = np.empty(0)
    pieces = [Piece(np.zeros(n), *(empty,) * 6, ()) for n in lengths]
    found = fill_rows(pieces, room, seed)
    assert sorted(i for row in found for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= room or len(row) == 1 for row in found)
    assert len(found) <= 2 * sum(lengths) / room + len(lengths) * any(n > room for n in lengths) + 1


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(1, 100),
    st.none() | st.integers(0, 3),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_processes_share_the_batches_of_one(
    lengths: list[int], tokens: int, seed: int | None, world: int, epoch: int
) -> None:
    def batches(rank: int, of: int) -> list[list[tuple[int, bool]]]:
        plan = BatchPlan(lengths, tokens, seed, rank, of)
        plan.set_epoch(epoch)
        found = list(plan)
        assert len(found) == len(plan)
        return found

    one = batches(0, 1)
    assert sorted(row for batch in one for row, _ in batch) == list(range(len(lengths)))
    assert all(active for batch in one for _, active in batch)
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row, _ in batch) <= tokens for batch in one)
    shared = [batches(rank, world) for rank in range(world)]
    assert len({len(part) for part in shared}) == 1
    turns = [batch for turn in zip(*shared, strict=True) for batch in turn]
    assert turns[: len(one)] == one
    assert not any(active for batch in turns[len(one) :] for _, active in batch)


def test_answers_to_a_long_prompt_share_it() -> None:
    prm, data = reward_model(), rows(1, 0)
    prompt = len(prm.encode_prompt(json.loads(data[0]["messages"])[0]["content"]))
    assert len(read_pieces(data, prm, row_tokens=prompt)) == 1
