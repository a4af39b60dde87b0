"""The attention passes against a float64 softmax written out here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolprm_decode.engine import Batch, KVStore
from toolprm_decode.engine.attention import Layer, Pass
from toolprm_decode.engine.kernel_pass import KernelPass
from toolprm_decode.engine.torch_pass import TorchPass
from toolprm_decode.errors import BudgetExceeded
from toolprm_decode.kernels.attention import attend, attend_reference
from toolprm_decode.kernels.dispatch import Backend

from .plans import padded

torch.set_num_threads(1)
BLOCK = 4


def oracle(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, layer: Layer) -> torch.Tensor:
    """query [Hk, G, D] at `position` over keys [Hk, N, D] at 0..N-1: output [Hk, G, Dv] in float64."""
    scores = torch.einsum("hgd,hnd->hgn", query.double(), keys.double()) * layer.scale
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    ago = position - torch.arange(keys.shape[1])
    seen = (ago >= 0) & (ago < (layer.window or math.inf))
    scores = scores.masked_fill(~seen, -math.inf)
    if layer.sinks is not None:
        sinks = layer.sinks.double().view(query.shape[0], query.shape[1], 1)
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.einsum("hgn,hnd->hgd", weights, values.double())


class Segment:
    """A run of slots that is filled from its front."""

    def __init__(self, slot: int, count: int, heads: int, dim: int, width: int):
        self.slot, self.count = slot, count
        self.keys, self.values = torch.zeros(heads, 0, dim), torch.zeros(heads, 0, width)

    @property
    def filled(self) -> int:
        return self.keys.shape[1]

    def write(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.keys, self.values = torch.cat([self.keys, key], 1), torch.cat([self.values, value], 1)


def begin(computes: Backend, store: KVStore, batch: Batch) -> Pass:
    store.reserve(batch.blocks)
    if computes == "torch":
        return TorchPass(store, batch)
    return KernelPass(store, batch, attend if computes == "triton" else attend_reference)


CASES: dict[str, Any] = {
    "seed": st.integers(0, 10**6),
    "prompts": st.lists(st.lists(st.integers(1, 12), max_size=3), min_size=1, max_size=4),
    "counts": st.lists(st.integers(1, 5), min_size=1, max_size=6),
    "widths": st.sampled_from([(8, 8), (12, 8)]),
    "window": st.sampled_from([None, 1, 3, 7]),
    "softcap": st.sampled_from([None, 1.5]),
    "with_sinks": st.booleans(),
    "chunk": st.integers(1, 30),
}


@settings(max_examples=80)
@given(**CASES, long=st.sampled_from([1, 6, 100]))
def test_every_torch_pass_equals_the_softmax(long: int, **case: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolprm_decode.engine.torch_pass.LONG_SEGMENT", long)
        check_passes("torch", **case)


@settings(max_examples=8)
@given(**CASES, keys=st.sampled_from([5, 16, 512]))
def test_every_kernel_pass_equals_the_softmax(keys: int, **case: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolprm_decode.engine.tiles.KEYS_OF_TILE", keys)
        check_passes("triton", **case)


@settings(max_examples=25)
@given(**CASES)
def test_every_reference_pass_equals_the_softmax(**case: Any) -> None:
    check_passes("reference", **case)


def check_passes(
    computes: Backend,
    seed: int,
    prompts: list[list[int]],
    counts: list[int],
    widths: tuple[int, int],
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
    chunk: int,
) -> None:
    """Prompts of segments are read in chunks, all of a pass at once, and rows behind them write beside that."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    heads, group, (dim, width) = 2, 3, widths
    layer = Layer(0, dim**-0.5, window, softcap, torch.randn(heads * group) if with_sinks else None)
    store = KVStore(BLOCK)
    slot = BLOCK
    chains: list[list[Segment]] = []  # the second prompt shares the first one's first segment, and so on
    for lengths in prompts:
        chain = chains[-1][:1] if chains and random.random() < 0.5 else []
        for length in lengths:
            chain = [*chain, Segment(slot, length, heads, dim, width)]
            slot += length
        chains.append(chain)
    of = random.integers(0, len(chains), len(counts)).tolist()
    first_block = -(-slot // BLOCK)
    table = (first_block + random.permutation(len(counts) * 4).reshape(len(counts), 4)).astype(np.int32)
    own = [Segment(0, 0, heads, dim, width) for _ in counts]

    for _ in range(40):
        tokens: list[tuple[int, int, int]] = []  # row, slot, position
        contexts: list[list[tuple[int, int]]] = []
        before: list[list[Segment]] = []  # what the row's tokens come after, and are added to
        lengths, tables = [], []
        snapshots = []
        for chain in chains:
            left = chunk
            at = 0
            for index, segment in enumerate(chain):
                filled = segment.filled
                taken = min(left, segment.count - filled)
                if taken:
                    if left == chunk:
                        contexts.append(
                            [(s.slot, s.count) for s in chain[:index]] + [(segment.slot, filled)] * (filled > 0)
                        )
                        before.append(chain)
                        lengths.append(0)
                        tables.append([])
                    tokens += [(len(contexts) - 1, segment.slot + i, at + i) for i in range(filled, filled + taken)]
                    lengths[-1] += taken
                    segment.write(torch.randn(heads, taken, dim), torch.randn(heads, taken, width))
                    left -= taken
                at += segment.count
                if left == 0:
                    break
        for row, count in enumerate(counts):
            chain = chains[of[row]]
            if any(s.filled < s.count for s in chain) or random.random() < 0.3 or own[row].filled + count > 16:
                continue
            held, filled = sum(s.count for s in chain), own[row].filled
            contexts.append([(s.slot, s.count) for s in chain])
            before.append([*chain, own[row]])
            for i in range(filled, filled + count):
                tokens.append((len(contexts) - 1, int(table[row, i // BLOCK]) * BLOCK + i % BLOCK, held + i))
            own[row].write(torch.randn(heads, count, dim), torch.randn(heads, count, width))
            lengths.append(filled + count)
            tables.append(table[row].tolist())
        if not tokens:
            break
        segments = sorted({segment for context in contexts for segment in context})
        snapshots = [
            (torch.cat([s.keys for s in chain], 1), torch.cat([s.values for s in chain], 1)) for chain in before
        ]
        rows, slots, positions = (np.array(column, np.int32) for column in zip(*tokens, strict=True))
        none = np.zeros(0, np.int32)
        batch = Batch(
            tokens=np.zeros(len(rows), np.int32),
            positions=positions,
            rows=rows,
            slots=slots,
            segments=np.array(segments, np.int32).reshape(-1, 2),
            contexts=padded([[segments.index(s) for s in context] for context in contexts]),
            block_tables=padded(tables),
            lengths=np.array(lengths, np.int32),
            outputs=none,
            few_outputs=none,
            few_ids=none,
            copies=np.zeros((0, 3), np.int32),
            blocks=first_block + table.size,
        )
        query = torch.randn(heads * group, len(rows), dim)
        key = torch.stack([snapshots[r][0][:, p] for r, p in zip(rows, positions, strict=True)], 1)
        value = torch.stack([snapshots[r][1][:, p] for r, p in zip(rows, positions, strict=True)], 1)
        out = begin(computes, store, batch).attend(layer, query, key, value)
        assert not out.isnan().any()
        for t, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            expected = oracle(query[:, t].view(heads, group, dim), *snapshots[row], position, layer)
            torch.testing.assert_close(out[t].view(heads, group, width).double(), expected, atol=1e-5, rtol=1e-5)


def test_a_context_may_lie_in_any_number_of_segments() -> None:
    torch.manual_seed(0)
    heads, group, dim, pieces = 2, 3, 8, 150
    layer, store, none = Layer(0, 0.4, 100, None, None), KVStore(BLOCK), np.zeros(0, np.int32)
    keys, values = torch.randn(heads, 2 * pieces, dim), torch.randn(heads, 2 * pieces, dim)
    order = np.random.default_rng(0).permutation(pieces)  # the slots of a piece of two tokens
    store.reserve(1 + pieces)
    slots = np.concatenate([BLOCK * (1 + order[i]) + np.arange(2) for i in range(pieces)])
    store.write(0, torch.from_numpy(slots), keys, values)
    # Two rows read all of it, a third one only the first half.
    contexts = np.stack([np.arange(pieces)] * 2 + [np.where(np.arange(pieces) < pieces // 2, np.arange(pieces), -1)])
    positions = np.array([2 * pieces, 2 * pieces, pieces], np.int32)
    batch = Batch(
        tokens=np.zeros(3, np.int32),
        positions=positions,
        rows=np.arange(3, dtype=np.int32),
        slots=BLOCK * (1 + pieces) + np.arange(3, dtype=np.int32),
        segments=np.stack([BLOCK * (1 + order), np.full(pieces, 2)], 1).astype(np.int32),
        contexts=contexts.astype(np.int32),
        block_tables=np.zeros((3, 0), np.int32),
        lengths=np.ones(3, np.int32),
        outputs=none,
        few_outputs=none,
        few_ids=none,
        copies=np.zeros((0, 3), np.int32),
        blocks=2 + pieces,
    )
    query, key, value = torch.randn(heads * group, 3, dim), torch.randn(heads, 3, dim), torch.randn(heads, 3, dim)
    pass_ = begin("torch", store, batch)
    assert isinstance(pass_, TorchPass)
    assert len(pass_._segments) <= 2  # however many there are, what the same rows read is one product
    out = pass_.attend(layer, query, key, value)
    for t, position in enumerate(positions.tolist()):
        whole = [torch.cat([side[:, :position], own[:, t : t + 1]], 1) for side, own in ((keys, key), (values, value))]
        expected = oracle(query[:, t].view(heads, group, dim), whole[0], whole[1], position, layer)
        torch.testing.assert_close(out[t].view(heads, group, dim).double(), expected, atol=1e-5, rtol=1e-5)


def test_memory_for_what_is_needed_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    store = KVStore(BLOCK)
    store.reserve(2)
    key = torch.ones(2, 1, 3)
    store.write(0, torch.tensor([4]), key, key)
    allocate = torch.Tensor.new_empty

    def scarce(self: torch.Tensor, *shape: int) -> torch.Tensor:
        if shape[1] > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return allocate(self, *shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", scarce)
    most = 3 * BLOCK
    store.reserve(3)
    assert store.write(0, torch.tensor([8]), key, key)[0].shape[1] == 3 * BLOCK
    store.reserve(20)
    with pytest.raises(BudgetExceeded, match="no memory"):
        store.write(0, torch.tensor([8]), key, key)
    store.reserve(3)  # what needs less goes on
    assert store.write(0, torch.tensor([9]), key, key)[0][:, [4, 8, 9]].eq(1).all()


def one_row(count: int) -> Batch:
    """A row without a context."""
    own, none = np.arange(count, dtype=np.int32), np.zeros(0, np.int32)
    table = np.zeros((1, 0), np.int32)
    copies = np.zeros((0, 3), np.int32)
    lengths = np.array([count], np.int32)
    return Batch(
        own, own, own * 0, own + BLOCK, none.reshape(0, 2), table, table, lengths, none, none, none, copies, count + 1
    )


def test_queries_are_cut_so_that_scores_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(6, 9, 8), torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    layer = Layer(0, 0.3, 5, 2.0, None)
    whole = begin("torch", KVStore(BLOCK), one_row(9)).attend(layer, query, key, value)
    monkeypatch.setattr("toolprm_decode.engine.torch_pass.MAX_SCORES", 100)
    cut = begin("torch", KVStore(BLOCK), one_row(9)).attend(layer, query, key, value)
    torch.testing.assert_close(cut, whole)


def test_growing_keeps_what_the_store_holds() -> None:
    store = KVStore(BLOCK, capacity=11)
    store.reserve(2)
    store.write(0, torch.arange(4, 8), torch.ones(2, 4, 3), torch.full((2, 4, 5), 2.0))
    store.reserve(9)
    store.copy(np.array([[5, 30, 2], [4, 12, 1]]))
    keys, values = store.pools[0]
    assert keys.shape == (2, 36, 3) and values.shape == (2, 36, 5)
    for filled in (0, 1, 2, 3):
        assert keys[:, filled].eq(0).all() and values[:, filled].eq(0).all()
    for filled in (4, 5, 6, 7, 12, 30, 31):
        assert keys[:, filled].eq(1).all() and values[:, filled].eq(2).all()
    store.reserve(10)
    store.copy(np.array([[4, 12, 1]]))
    assert store.pools[0][0].shape[1] == 12 * BLOCK  # no more than it was promised
    assert store.bytes_per_slot == 2 * (3 + 5) * 4


def test_copies_are_made_in_order() -> None:
    store = KVStore(BLOCK)
    store.reserve(3)
    store.write(0, torch.arange(4, 12), torch.arange(8.0).view(1, 8, 1), torch.zeros(1, 8, 1))
    store.copy(np.array([[4, 8, 2], [8, 10, 2]]))
    assert store.pools[0][0].flatten().tolist()[4:] == [0, 1, 2, 3, 0, 1, 0, 1]
