"""The attention passes against a float64 softmax written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolprm_decode.engine.attention import Batch, DecodePass, KVStore, Layer, PrefillPass, Prefix
from toolprm_decode.errors import RequestError

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


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    prefixes=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    widths=st.sampled_from([(8, 8), (12, 8)]),
    window=st.sampled_from([None, 1, 3, 7]),
    softcap=st.sampled_from([None, 1.5]),
    with_sinks=st.booleans(),
    chunk=st.integers(1, 6),
)
def test_prefill_and_decode_equal_the_softmax(
    seed: int,
    prefixes: list[int],
    counts: list[int],
    widths: tuple[int, int],
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
    chunk: int,
) -> None:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    heads, group, (dim, width) = 2, 3, widths
    layer = Layer(0, dim**-0.5, window, softcap, torch.randn(heads * group) if with_sinks else None)
    store = KVStore(BLOCK)
    held = []
    for index, length in enumerate(prefixes):
        query, key, value = (
            torch.randn(*shape) for shape in ((heads, group, length, dim), (heads, length, dim), (heads, length, width))
        )
        held.append((key, value))
        store.prefixes[index] = Prefix(length)
        for start in range(0, length, chunk):
            part = slice(start, min(start + chunk, length))
            reading = PrefillPass(store.prefixes[index], start, part.stop - part.start)
            out = reading.attend(layer, query[:, :, part], key[:, part], value[:, part])
            for t in range(start, part.stop):
                expected = oracle(query[:, :, t], key, value, t, layer)
                torch.testing.assert_close(out[:, :, t - start].double(), expected, atol=1e-5, rtol=1e-5)

    of = random.integers(0, len(prefixes), len(counts))
    own = [[torch.zeros(heads, 0, dim), torch.zeros(heads, 0, width)] for _ in counts]
    table = random.permutation(len(counts) * 4).reshape(len(counts), 4).astype(np.int32)
    for _ in range(2):
        rows = np.repeat(np.arange(len(counts)), counts)
        before = np.array([keys.shape[1] for keys, _ in own])
        at = before[rows] + np.concatenate([np.arange(n) for n in counts])
        query = torch.randn(heads, group, len(rows), dim)
        key, value = torch.randn(heads, len(rows), dim), torch.randn(heads, len(rows), width)
        positions = np.array([prefixes[i] for i in of])[rows] + at
        batch = Batch(
            tokens=np.zeros(len(rows), np.int32),
            positions=positions,
            rows=rows,
            slots=table[rows, at // BLOCK] * BLOCK + at % BLOCK,
            prefixes=of,
            block_tables=table,
            lengths=before + counts,
            outputs=np.zeros(0, np.int32),
            copies=np.zeros((0, 3), np.int32),
            blocks=table.size,
        )
        out = DecodePass(store, batch).attend(layer, query, key, value)
        assert not out.isnan().any()
        for row in range(len(counts)):
            new = torch.from_numpy(np.flatnonzero(rows == row))
            own[row] = [torch.cat([own[row][0], key[:, new]], 1), torch.cat([own[row][1], value[:, new]], 1)]
        for t, row in enumerate(rows.tolist()):
            whole = [torch.cat([side, mine], 1) for side, mine in zip(held[of[row]], own[row], strict=True)]
            expected = oracle(query[:, :, t], *whole, int(positions[t]), layer)
            torch.testing.assert_close(out[:, :, t].double(), expected, atol=1e-5, rtol=1e-5)


def test_queries_are_cut_so_that_scores_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 9, 8), torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    layer = Layer(0, 0.3, 5, 2.0, None)
    whole = PrefillPass(Prefix(9), 0, 9).attend(layer, query, key, value)
    monkeypatch.setattr("toolprm_decode.engine.attention.MAX_SCORES", 100)
    cut = PrefillPass(Prefix(9), 0, 9).attend(layer, query, key, value)
    torch.testing.assert_close(cut, whole)


def test_growing_keeps_what_the_pool_holds() -> None:
    store = KVStore(BLOCK)
    store.reserve(1)
    store.write(0, torch.arange(4), torch.ones(4, 2, 3), torch.full((4, 2, 5), 2.0))
    store.reserve(9)
    store.copy(np.array([[1, 30, 2], [0, 8, 1]]))
    keys, values = store.pools[0]
    assert keys.shape == (36, 2, 3) and values.shape == (36, 2, 5)
    filled = [0, 1, 2, 3, 8, 30, 31]
    assert keys[filled].eq(1).all() and values[filled].eq(2).all()
    assert keys.sum() == len(filled) * 6


def test_copies_are_made_in_order() -> None:
    store = KVStore(BLOCK)
    store.reserve(2)
    store.write(0, torch.arange(8), torch.arange(8.0).view(8, 1, 1), torch.zeros(8, 1, 1))
    store.copy(np.array([[0, 4, 2], [4, 6, 2]]))
    assert store.pools[0][0].flatten().tolist() == [0, 1, 2, 3, 0, 1, 0, 1]


def test_an_unknown_prefix_is_refused() -> None:
    one = np.zeros(1, np.int32)
    batch = Batch(one, one, one, one, one + 3, one[None], one + 1, one, np.zeros((0, 3), np.int32), 1)
    with pytest.raises(RequestError, match="prefix 3"):
        DecodePass(KVStore(BLOCK), batch)
