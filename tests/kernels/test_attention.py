"""Attention over tiles against a softmax in float64 written out here, for sizes that models have, or have not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolprm_decode.kernels.attention import Tiles, attend, attend_reference, rows_of_tiles

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}  # relative to the largest output
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass
class Case:
    """Tiles, and what they mean: the (slot, position) of all keys of each token."""

    tiles: dict[str, torch.Tensor]
    keys: list[list[tuple[int, int]]] = field(default_factory=list)

    def on(self, device: torch.device) -> Tiles:
        parts = int(self.tiles["parts"][-1])
        return Tiles(**{name: x.to(device) for name, x in self.tiles.items()}, most_parts=parts)


def random_case(random: np.random.Generator, n_tokens: int, group: int, slots: int, sources: int) -> Case:
    """Runs and tables of blocks of random sizes, each read by some tokens in tiles that end anywhere."""
    small_rows, large_rows = rows_of_tiles(group)
    positions = random.integers(0, 60, n_tokens)
    keys: list[list[tuple[int, int]]] = [[] for _ in range(n_tokens)]
    tiles: dict[bool, list[list[int]]] = {False: [], True: []}
    readings: list[int] = []
    tables: list[int] = []
    for _ in range(sources):
        count, place = int(random.integers(1, 50)), int(random.integers(0, 40))
        block = int(random.choice([1, 3, 16]))
        run = int(random.integers(0, slots - count)) if random.random() < 0.5 else -1
        table = len(tables)
        if run < 0:
            tables += random.permutation(slots // block)[: -(-count // block)].tolist()
            at = [tables[table + j // block] * block + j % block for j in range(count)]
        else:
            at = list(range(run, run + count))
        large = bool(random.random() < 0.5)
        most = (large_rows if large else small_rows) // group
        readers = random.permutation(n_tokens)[: int(random.integers(1, n_tokens + 1))].tolist()
        for first in range(0, len(readers), most):
            some = readers[first : first + most]
            for token in some:
                keys[token] += [(slot, place + j) for j, slot in enumerate(at)]
            start = 0
            while start < count:
                size = min(int(random.integers(1, 40)), count - start)
                tiles[large].append([len(readings), len(some), start, size, run, table, block, place])
                readings += some
                start += size
    tiles[False].append([0, 0, 0, 0, -1, 0, 1, 0])  # as padding has it
    order = np.argsort(readings, kind="stable")
    part = np.empty(len(readings), np.int64)
    part[order] = np.arange(len(readings))
    arrays = {
        "small": np.array(tiles[False]).reshape(-1, 8),
        "large": np.array(tiles[True]).reshape(-1, 8),
        "readings": np.stack([readings, part], 1),
        "tables": np.array(tables or [0]),
        "positions": positions,
        "parts": np.concatenate([[0], np.cumsum(np.bincount(readings, minlength=n_tokens))]),
    }
    return Case({name: torch.from_numpy(x.astype(np.int32)) for name, x in arrays.items()}, keys)


@pytest.mark.parametrize("compute", [attend, attend_reference], ids=["triton", "reference"])
@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    n_tokens=st.sampled_from([1, 2, 7]),
    heads=st.sampled_from([(1, 1), (2, 7), (3, 1), (1, 20)]),
    widths=st.sampled_from([(64, 64), (80, 80), (128, 128), (192, 128), (5, 3)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    window=st.sampled_from([None, 1, 20]),
    softcap=st.sampled_from([None, 5.0]),
    with_sinks=st.booleans(),
)
def test_tiles_equal_the_softmax(
    compute: object, device: torch.device, seed: int, n_tokens: int, heads: tuple[int, int], widths: tuple[int, int],
    dtype: torch.dtype, window: int | None, softcap: float | None, with_sinks: bool,
) -> None:  # fmt: skip
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    (kv_heads, group), (dim, dim_v), slots = heads, widths, 100
    case = random_case(random, n_tokens, group, slots, int(random.integers(1, 4)))
    query = torch.randn(n_tokens, kv_heads * group, dim).to(dtype).transpose(0, 1)  # as models have it
    keys, values = torch.randn(kv_heads, slots, dim).to(dtype), torch.randn(kv_heads, slots, dim_v).to(dtype)
    sinks = torch.randn(kv_heads * group) if with_sinks else None
    out = compute(  # type: ignore[operator]
        query.to(device), keys.to(device), values.to(device), case.on(device),
        scale=dim**-0.5, window=window, softcap=softcap, sinks=None if sinks is None else sinks.to(device),
    )  # fmt: skip
    assert out.shape == (n_tokens, kv_heads * group, dim_v) and out.dtype == dtype and out.is_contiguous()
    expected = torch.zeros(n_tokens, kv_heads * group, dim_v, dtype=torch.float64)
    rounded = torch.zeros_like(expected)  # what is rounded to the dtype: the output, and on a GPU the weights
    for token, position in enumerate(case.tiles["positions"].tolist()):
        seen = [slot for slot, at in case.keys[token] if 0 <= position - at < (window or math.inf)]
        if not seen:
            continue
        for head in range(kv_heads * group):
            k, v = keys[head // group, seen].double(), values[head // group, seen].double()
            scores = k @ query[head, token].double() * dim**-0.5
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            total = weights.sum() + (0.0 if sinks is None else sinks[head].double().exp())
            expected[token, head] = weights @ v / total
            rounded[token, head] = expected[token, head].abs()
            if device.type == "cuda":
                rounded[token, head] += weights @ v.abs() / total
    bound = TOLERANCE[dtype] * max(1.0, expected.abs().max().item()) + ROUNDING[dtype] * rounded
    assert ((out.cpu().double() - expected).abs() <= bound).all()
