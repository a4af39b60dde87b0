"""Decode attention over shared prefixes and paged tokens, in tiles that are merged by log-sum-exp.

What a pass reads is cut into tiles: some tokens of the pass, with all query heads of a key head, and a run of the keys
that they read together. The keys of a prefix that many rows share are so read once for all of them (the cascade of
Juravsky et al. 2024, "Hydragen", and of FlashInfer), and a row's own tokens from its blocks. Each tile leaves a
normalised part of the output and the log-sum-exp of its scores; a second kernel merges the parts of each token.

Runs of keys are cut at fixed places, whatever else is in the pass: what a token gets does not depend on its company.

Shapes: T tokens of the pass, H query heads, Hk key/value heads, G = H / Hk, D and Dv head widths, S slots of the pools,
N tiles, E readings, P parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from toolprm_decode.kernels.dispatch import interpreted

# Keys of a tile, unless a run would make more than this many tiles of them: enough to fill a GPU from a prefix of 1,000
# tokens, few enough to merge.
KEYS_OF_TILE, MOST_PARTS = 512, 16


def rows_of_tiles(group: int) -> tuple[int, int]:
    """Most rows of a small tile and of a large one, where `group` query heads share a key head. A row is a token and
    one of those heads."""
    return max(16, triton.next_power_of_2(group)), max(64, triton.next_power_of_2(group))


# Fields of a tile. Key j of its source lies in slot `run` + j; where run is -1, in slot j % block of block
# tables[table + j // block].
FIELDS = ("first_reading", "readings", "first_key", "keys", "run", "table", "block", "place")


@dataclass(frozen=True)
class Tiles:
    """What the tokens of a pass read: int32 tensors on the device of the pools.

    Attributes:
        small, large: [N, 8] tiles of as many rows as `rows_of_tiles` says, with `FIELDS` in that order: the readings,
            then keys first_key to first_key + keys of a source, of which key j has position place + j. Tiles of no keys
            or no readings do nothing.
        readings: [E, 2] the token of each, and the part that it makes.
        tables: block numbers (blocks of any size), one after another.
        positions: [T] of the tokens. A token sees keys up to its own position.
        parts: [T + 1] where the parts of each token begin; they lie one after another.
        most_parts: room for parts, at least parts[T].
    """

    small: torch.Tensor
    large: torch.Tensor
    readings: torch.Tensor
    tables: torch.Tensor
    positions: torch.Tensor
    parts: torch.Tensor
    most_parts: int


@triton.jit
def _tiles_kernel(
    query,
    keys,
    values,
    out,
    lse,
    tiles,
    readings,
    tables,
    positions,
    scale,
    softcap,
    window,
    query_head,
    query_token,
    key_head,
    key_slot,
    value_head,
    value_slot,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, key head)."""
    tile = tiles + tl.program_id(0) * 8
    head = tl.program_id(1)
    first_reading, n_readings = tl.load(tile), tl.load(tile + 1)
    first_key, n_keys = tl.load(tile + 2), tl.load(tile + 3)
    run, table, block, place = tl.load(tile + 4), tl.load(tile + 5), tl.load(tile + 6), tl.load(tile + 7)

    row = tl.arange(0, ROWS)
    filled = row // GROUP < n_readings
    reading = readings + 2 * (first_reading + row // GROUP)
    token = tl.load(reading, mask=filled, other=0)
    part = tl.load(reading + 1, mask=filled, other=0).to(tl.int64)
    position = tl.load(positions + token, mask=filled, other=-1)
    query_head_of = head * GROUP + row % GROUP

    d = tl.arange(0, BLOCK_D)
    at = query_head_of.to(tl.int64) * query_head + token.to(tl.int64) * query_token
    q = tl.load(query + at[:, None] + d[None, :], mask=filled[:, None] & (d < D)[None, :], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)

    # Keys that any row sees: up to the last token's own, from the first one's window on.
    last = tl.minimum(first_key + n_keys, tl.max(position) + 1 - place)
    first = first_key
    if WINDOW:
        earliest = tl.min(tl.where(filled, position, 0x7FFFFFFF))
        first = tl.maximum(first, earliest - window + 1 - place)

    dv = tl.arange(0, BLOCK_DV)
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    keys += head.to(tl.int64) * key_head
    values += head.to(tl.int64) * value_head
    for start in range(first, last, KEYS):
        j = start + tl.arange(0, KEYS)
        exists = j < last
        number = tl.load(tables + table + j // block, mask=exists & (run < 0), other=0)
        slot = tl.where(run < 0, number * block + j % block, run + j).to(tl.int64)
        k = tl.load(keys + slot[:, None] * key_slot + d[None, :], mask=exists[:, None] & (d < D)[None, :], other=0.0)
        v = tl.load(
            values + slot[:, None] * value_slot + dv[None, :], mask=exists[:, None] & (dv < DV)[None, :], other=0.0
        )
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if SOFTCAP:
            # softcap * tanh(scores / softcap), without overflow
            decay = tl.exp(-2.0 * tl.abs(scores) / softcap)
            scores = tl.where(scores < 0, -softcap, softcap) * (1 - decay) / (1 + decay)
        distance = position[:, None] - (place + j)[None, :]
        visible = exists[None, :] & (distance >= 0)
        if WINDOW:
            visible = visible & (distance < window)
        scores = tl.where(visible, scores * 1.4426950408889634, -float("inf"))
        new = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(new == -float("inf"), 0.0, new)  # nothing seen yet: -inf - -inf would be NaN
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(highest - base)
        total = total * fade + tl.sum(weights, 1)
        sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        highest = new

    seen = total > 0
    share = tl.where(seen, total, 1.0)
    to = part * (tl.num_programs(1) * GROUP) + query_head_of
    tl.store(lse + to, tl.where(seen, highest * 0.6931471805599453 + tl.log(share), -float("inf")), mask=filled)
    tl.store(out + to[:, None] * DV + dv[None, :], sums / share[:, None], mask=filled[:, None] & (dv < DV)[None, :])


@triton.jit
def _merge_kernel(
    parts_out, parts_lse, parts, sinks, out, heads,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, HEADS: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Program (token, some of the query heads)."""
    token = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    there = head < heads
    dv = tl.arange(0, BLOCK_DV)
    held = there[:, None] & (dv < DV)[None, :]
    highest = tl.full([HEADS], -float("inf"), tl.float32)
    if SINKS:
        highest = tl.load(sinks + head, mask=there, other=0.0).to(tl.float32)
    total = tl.where(highest == -float("inf"), 0.0, 1.0)
    sums = tl.zeros([HEADS, BLOCK_DV], tl.float32)
    first = tl.load(parts + token).to(tl.int64)
    for part in range(tl.load(parts + token + 1) - tl.load(parts + token)):
        at = (first + part) * heads + head
        lse = tl.load(parts_lse + at, mask=there, other=-float("inf"))
        new = tl.maximum(highest, lse)
        base = tl.where(new == -float("inf"), 0.0, new)
        fade, weight = tl.exp(highest - base), tl.exp(lse - base)
        own = tl.load(parts_out + at[:, None] * DV + dv[None, :], mask=held, other=0.0)
        total = total * fade + weight
        sums = sums * fade[:, None] + weight[:, None] * own
        highest = new
    total = tl.where(total > 0, total, 1.0)
    at = token.to(tl.int64) * heads + head
    tl.store(out + at[:, None] * DV + dv[None, :], (sums / total[:, None]).to(out.dtype.element_ty), mask=held)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tiles: Tiles,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """What every token of a pass gets from the keys and values that its tiles name.

    Args:
        query: [H, T, D]; keys [Hk, S, D] and values [Hk, S, Dv], of one dtype; the last dimension lies in order. Query
            head h reads key head h // G.
        scale: of the scores.
        window: a token sees that many keys up to itself; None for all.
        softcap: scores are softcap * tanh(score / softcap); None for as they are.
        sinks: [H] a score per head that takes part in the softmax without a value, or None.

    Returns:
        [T, H, Dv] in the dtype of the query; zeros where a token sees nothing.
    """
    heads, n_tokens, dim = query.shape
    kv_heads, _, dim_v = values.shape
    group = heads // kv_heads
    part_out = torch.empty(tiles.most_parts, heads, dim_v, dtype=torch.float32, device=query.device)
    part_lse = torch.empty(tiles.most_parts, heads, dtype=torch.float32, device=query.device)
    with torch.cuda.device_of(query):  # kernels run on the current device, wherever their tensors are
        for some, rows in zip((tiles.small, tiles.large), rows_of_tiles(group), strict=True):
            if not len(some):
                continue
            _tiles_kernel[(len(some), kv_heads)](
                query,
                keys,
                values,
                part_out,
                part_lse,
                some,
                tiles.readings,
                tiles.tables,
                tiles.positions,
                scale,
                softcap or 1.0,
                window or 0,
                query.stride(0),
                query.stride(1),
                keys.stride(0),
                keys.stride(1),
                values.stride(0),
                values.stride(1),
                **tile_options(group, dim, dim_v, rows, query.element_size()),
                SOFTCAP=softcap is not None,
                WINDOW=window is not None,
                UPCAST=interpreted(),  # it computes wrongly in bfloat16
            )
        # The interpreter rounds to bfloat16 by cutting off.
        kind = torch.float32 if interpreted() else query.dtype
        out = torch.empty(n_tokens, heads, dim_v, dtype=kind, device=query.device)
        heads_at_once = 32 if interpreted() else 4  # its time goes by programs
        _merge_kernel[(n_tokens, triton.cdiv(heads, heads_at_once))](
            part_out, part_lse, tiles.parts, sinks, out, heads,
            DV=dim_v, BLOCK_DV=_padded(dim_v), HEADS=heads_at_once, SINKS=sinks is not None,
        )  # fmt: skip
    return out.to(query.dtype)


def tile_options(group: int, dim: int, dim_v: int, rows: int, item_size: int) -> dict[str, Any]:
    """How the kernel of the tiles is compiled for heads of these widths, of elements of that many bytes."""
    bytes_of_key = (_padded(dim) + _padded(dim_v)) * item_size
    keys = 64
    while keys > 16 and keys * bytes_of_key > 1 << 15:  # two stages of 32 KiB fit every GPU of the last years
        keys //= 2
    return {
        "GROUP": group,
        "D": dim,
        "DV": dim_v,
        "ROWS": rows,
        "KEYS": keys,
        "BLOCK_D": _padded(dim),
        "BLOCK_DV": _padded(dim_v),
        "num_warps": 4 if rows <= 64 else 8,
        "num_stages": 2,
        # Of float32: three products of tensor cores for one, exact to the last bits. AMD's have no such.
        "PRECISION": "ieee" if torch.version.hip else "tf32x3",
    }


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def attend_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tiles: Tiles,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in torch, in float64: all keys of a token at once, one token after another."""
    heads, n_tokens, dim = query.shape
    kv_heads, _, dim_v = values.shape
    slots: list[list[torch.Tensor]] = [[] for _ in range(n_tokens)]
    places: list[list[torch.Tensor]] = [[] for _ in range(n_tokens)]
    for tile in (*tiles.small.tolist(), *tiles.large.tolist()):
        first_reading, n_readings, first_key, n_keys, run, table, block, place = tile
        j = torch.arange(first_key, first_key + n_keys, device=query.device)
        slot = run + j if run >= 0 else tiles.tables[table + j // block].long() * block + j % block
        for token in tiles.readings[first_reading : first_reading + n_readings, 0].tolist():
            slots[token].append(slot)
            places[token].append(place + j)
    out = query.new_zeros(n_tokens, heads, dim_v)
    for token in range(n_tokens):
        if not slots[token]:
            continue
        position = tiles.positions[token]
        place = torch.cat(places[token])
        seen = (place <= position) & (position - place < (window or place.shape[0] + int(position) + 1))
        slot = torch.cat(slots[token])[seen]
        q = query[:, token].double().view(kv_heads, -1, dim)
        scores = q @ keys[:, slot].double().mT * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if sinks is not None:
            scores = torch.cat([scores, sinks.double().view(kv_heads, -1, 1)], -1)
        weights = scores.softmax(-1)[..., : slot.shape[0]]
        out[token] = (weights @ values[:, slot].double()).reshape(heads, dim_v).to(out.dtype)
    return out
