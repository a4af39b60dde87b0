"""Attention of a pass by torch's own products, on any device; on a CPU by its fused kernel where that can be.

Each segment is one product for all the rows that read it; the parts are merged by log-sum-exp.

Shapes: T tokens of the pass, H query heads, Hk key/value heads, G = H / Hk, D and Dv head widths of keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolprm_decode.engine.attention import Layer
from toolprm_decode.engine.batch import Batch, Rows
from toolprm_decode.engine.store import KVStore

# Scores of one plain (unfused) product are held whole: queries are taken in runs that keep them under this many.
MAX_SCORES = 1 << 24

# Segments of at least this many tokens are read where they lie. Shorter ones are gathered, so that many of them (the
# ends of as many prompts) take one product instead of one each.
LONG_SEGMENT = 256


@dataclass(frozen=True, eq=False)
class _Part:
    """Tokens that read one kind of context together, as a grid: items with N queries and M keys each, both padded.

    Attributes:
        tokens: [I, N] indices of the queries in the pass.
        filled: bool [I, N], which of them are no padding; None where all are.
        keys: [I, M] slots of the keys; of a causal part indices into the pass.
        exists: bool [I, M], which keys are no padding; None where all are, or where `ordered` hides the others.
        places, key_places: [I, N] and [I, M] positions, from a common origin.
        ordered: a query sees no keys of later places.
        causal: the keys are the queries' own tokens, in order.
        run: the keys of the one item are the slots from run[0] to run[1].
    """

    tokens: np.ndarray
    filled: np.ndarray | None
    keys: np.ndarray
    exists: np.ndarray | None
    places: np.ndarray
    key_places: np.ndarray
    ordered: bool = False
    causal: bool = False
    run: tuple[int, int] | None = None

    def covers(self, count: int) -> bool:
        """Whether the queries are all tokens of a pass of that many, in order."""
        return self.filled is None and np.array_equal(self.tokens.reshape(-1), np.arange(count))

    def visible(self, window: int | None) -> np.ndarray | None:
        """Which keys each query sees, bool [I, N, M] or broadcastable; None for all."""
        seen = []
        if self.ordered:
            seen.append(self.key_places[:, None] <= self.places[:, :, None])
        if self.exists is not None:
            seen.append(self.exists[:, None])
        if window is not None and self.places.max() - self.key_places.min() >= window:
            seen.append(self.places[:, :, None] - self.key_places[:, None] < window)
        visible = None
        for condition in seen:
            visible = condition if visible is None else visible & condition
        return None if visible is None or visible.all() else visible


class TorchPass:
    """A `Pass` over a batch whose copies are made, and for which the store has room."""

    def __init__(self, store: KVStore, batch: Batch):
        self._store = store
        rows = _PartsOfRows(batch, store.block_size)
        self._own, self._segments = list(rows.own_parts()), list(rows.segment_parts())
        self._whole = {part: part.covers(len(batch.tokens)) for part in (*self._own, *self._segments)}
        self._slots = batch.slots
        self._on_device: dict[tuple[Any, ...], Any] = {}

    def attend(self, layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query [H, T, D], key [Hk, T, D] and value [Hk, T, Dv] of a layer to its output [T, H, Dv]."""
        query = query.reshape(key.shape[0], -1, *query.shape[1:])  # [Hk, G, T, D]
        pools = self._store.write(layer.index, self._table(self, "slots", self._slots, query.device), key, value)
        out = lse = None
        for part in self._own:
            where, part_out, part_lse = self._read(layer, part, query, (key, value) if part.causal else pools)
            if where is None:
                out, lse = part_out, part_lse
                continue
            if out is None or lse is None:
                out = part_out.new_empty(*query.shape[:-1], value.shape[-1])
                lse = part_lse.new_empty(query.shape[:-1])
            out[:, :, where], lse[:, :, where] = part_out, part_lse
        assert out is not None and lse is not None
        # A token sees at least itself: its log-sum-exp is finite, and no weight below is NaN.
        for part in self._segments:
            if layer.window is not None and part.places.min() - part.key_places.max() >= layer.window:
                continue  # all of it lies before the window
            where, part_out, part_lse = self._read(layer, part, query, pools)
            if where is None:
                out = torch.lerp(out, part_out, torch.sigmoid(part_lse - lse)[..., None])
                lse = torch.logaddexp(lse, part_lse)
            else:
                here = lse[:, :, where]
                out[:, :, where] = torch.lerp(out[:, :, where], part_out, torch.sigmoid(part_lse - here)[..., None])
                lse[:, :, where] = torch.logaddexp(here, part_lse)
        if layer.sinks is not None:
            total = torch.logaddexp(lse, layer.sinks.float().view(*lse.shape[:2], 1))
            out = out * (lse - total).exp()[..., None]
        return out.to(query.dtype).flatten(0, 1).transpose(0, 1).contiguous()

    def _read(
        self, layer: Layer, part: _Part, query: torch.Tensor, pools: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Output [Hk, G, n, Dv] and log-sum-exp [Hk, G, n], in float32, of tokens [n] of the pass (None: of all).

        pools: keys and values by slot; of a causal part by token.
        """
        heads, group = query.shape[:2]
        items, most = part.tokens.shape
        where = None if self._whole[part] else self._table(part, "tokens", part.tokens, query.device)
        rows = query if where is None else query[:, :, where]
        if part.run is not None:
            keys, values = (pool[None, :, part.run[0] : part.run[1]] for pool in pools)
        else:
            if part.causal and where is None:
                held = pools
            else:
                at = self._table(part, "keys", part.keys, query.device)
                held = pools[0].index_select(1, at), pools[1].index_select(1, at)
            keys, values = (pool.reshape(heads, items, -1, pool.shape[-1]).transpose(0, 1) for pool in held)
        rows = rows.reshape(heads, group, items, most, -1).permute(2, 0, 1, 3, 4)  # [I, Hk, G, N, D]
        if part.causal and most == 1:  # a token by itself
            lse = _capped((rows.float() * keys.float()[:, :, None]).sum(-1) * layer.scale, layer.softcap)
            out = values.float()[:, :, None].repeat(1, 1, group, 1, 1)
        elif part.causal and most <= (layer.window or most) and _fused(layer, rows, values):
            # Half the work of the product below, and no mask. Expanded heads have stride 0: they are read in place.
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                rows.flatten(0, 1),
                keys.flatten(0, 1)[:, None].expand(-1, group, -1, -1),
                values.flatten(0, 1)[:, None].expand(-1, group, -1, -1),
                is_causal=True,
                scale=layer.scale,
            )
            out, lse = out.float(), lse.float()
        else:  # groups and tokens of a key head are one product
            bias, dead = self._bias(layer.window, part, group, query)
            out, lse = _partial(rows.flatten(2, 3), keys, values, bias, dead, layer)
        out = out.reshape(items, heads, group, most, -1).permute(1, 2, 0, 3, 4).flatten(2, 3)
        lse = lse.reshape(items, heads, group, most).permute(1, 2, 0, 3).flatten(2, 3)
        if part.filled is not None:
            filled = self._table(part, "filled", np.flatnonzero(part.filled), query.device)
            where = self._table(part, "real", part.tokens[part.filled], query.device)
            out, lse = out[:, :, filled], lse[:, :, filled]
        return where, out, lse

    def _bias(
        self, window: int | None, part: _Part, group: int, query: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """0 and -inf [I, 1, G * N or 1, M], and which queries see no key [I, 1, G * N]; None where there is no such."""
        cached = (part, "bias", window, group, query.dtype, query.device)
        if cached not in self._on_device:
            visible, bias, dead = part.visible(window), None, None
            if visible is not None:
                keep = torch.from_numpy(np.ascontiguousarray(visible)).to(query.device)
                if keep.shape[1] > 1:
                    keep = keep[:, None].expand(-1, group, -1, -1).flatten(1, 2)
                bias = torch.zeros(keep.shape, dtype=query.dtype, device=query.device).masked_fill_(~keep, -math.inf)
                bias, none = bias[:, None], ~keep.any(-1)[:, None]
                dead = none if none.any() else None
            self._on_device[cached] = (bias, dead)
        found: tuple[torch.Tensor | None, torch.Tensor | None] = self._on_device[cached]
        return found

    def _table(self, of: object, name: str, values: np.ndarray, device: torch.device) -> torch.Tensor:
        cached = (of, name, device)
        if cached not in self._on_device:
            self._on_device[cached] = torch.from_numpy(values.reshape(-1).astype(np.int64)).to(device)
        found: torch.Tensor = self._on_device[cached]
        return found


class _PartsOfRows(Rows):
    """The rows of a batch, sorted into parts."""

    def own_parts(self) -> Iterator[_Part]:
        """What rows read of their own tokens. Together these parts cover every token once."""
        lengths = self.batch.lengths.astype(np.int64)
        busy = self.counts > 0
        for rows in _alike(np.flatnonzero(busy & (lengths == self.counts)), self.counts):
            tokens, filled = self._grid(rows)
            places = np.arange(tokens.shape[1])[None]
            yield _Part(tokens, filled, tokens, None, places, places, ordered=True, causal=True)
        # Short ones are cheaper padded than called for one by one.
        for rows in _alike(np.flatnonzero(busy & (lengths > self.counts)), self.counts, np.maximum(lengths, 64)):
            tokens, filled = self._grid(rows)
            own = np.arange(lengths[rows].max())
            blocks = self.batch.block_tables[rows].astype(np.int64)[:, own // self.block_size]
            slots = np.where(own < lengths[rows, None], blocks * self.block_size + own % self.block_size, 0)
            places = self.batch.positions[tokens] - self.held[rows, None]
            yield _Part(tokens, filled, slots, None, places, own[None], ordered=True)

    def segment_parts(self) -> Iterator[_Part]:
        """What rows read of segments that others may read too."""
        contexts = self.batch.contexts
        if not contexts.size or not len(self.batch.tokens):
            return
        places, readers = self.places(), self.readers()
        keys = [first + np.arange(count) for first, count in self.segments]
        key_places = [place + np.arange(count) for place, count in zip(places, self.segments[:, 1], strict=True)]
        short: dict[bytes, list[int]] = {}  # those that the same tokens read are one item
        for k in np.flatnonzero(self.segments[:, 1] > 0).tolist():
            if not len(readers[k]):
                continue
            if self.segments[k, 1] < LONG_SEGMENT:
                short.setdefault(readers[k].tobytes(), []).append(k)
                continue
            first, count = self.segments[k].tolist()
            yield self._segment_part([readers[k]], [keys[k]], [key_places[k]], run=(first, first + count))
        items = list(short.values())
        item_keys = [np.concatenate([keys[k] for k in item]) for item in items]
        item_places = [np.concatenate([key_places[k] for k in item]) for item in items]
        # A token may read several items, but is in each part once: they are apart by how many it read before.
        turns, before = np.zeros(len(items), np.int64), np.zeros(len(self.batch.tokens), np.int64)
        for number, item in enumerate(items):
            turns[number] = before[readers[item[0]]].max()
            before[readers[item[0]]] = turns[number] + 1
        work = np.array([len(readers[item[0]]) for item in items], np.int64)
        sizes = np.array([len(of) for of in item_keys], np.int64)
        for turn in np.unique(turns):
            for group in _alike(np.flatnonzero(turns == turn), work, np.maximum(sizes, 64)):
                yield self._segment_part(
                    [readers[items[i][0]] for i in group],
                    [item_keys[i] for i in group],
                    [item_places[i] for i in group],
                    run=None,
                )

    def _segment_part(
        self,
        readers: Sequence[np.ndarray],
        keys: Sequence[np.ndarray],
        places: Sequence[np.ndarray],
        run: tuple[int, int] | None,
    ) -> _Part:
        tokens, filled = _padded(readers)
        slots, exists = _padded(keys)
        return _Part(
            tokens,
            filled,
            slots if exists is None else np.where(exists, slots, 0),
            exists,
            self.batch.positions[tokens].astype(np.int64),
            _padded(places)[0],
            run=run,
        )

    def _grid(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return _padded([np.arange(self.starts[row], self.starts[row] + self.counts[row]) for row in rows])


def _padded(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """A grid [I, N] of the lists, padded by their first elements, and which cells are no padding (None: all)."""
    sizes = np.array([len(one) for one in lists])
    most = int(sizes.max())
    if (sizes == most).all():
        return np.stack(lists), None
    grid = np.stack([np.concatenate([one, np.full(most - len(one), one[0])]) for one in lists])
    return grid, np.arange(most) < sizes[:, None]


def _alike(items: np.ndarray, *sizes: np.ndarray) -> list[np.ndarray]:
    """Items in groups in which each size is the same up to a factor of two: padding at most doubles the work."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for item in items.tolist():
        groups.setdefault(tuple(int(size[item]).bit_length() for size in sizes), []).append(item)
    return [np.array(group, np.int64) for group in groups.values()]


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _fused(layer: Layer, query: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether torch's fused kernel can do it."""
    return query.device.type == "cpu" and layer.softcap is None and query.shape[-1] == values.shape[-1]


def _partial(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    dead: torch.Tensor | None,
    layer: Layer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to one part of the context.

    Args:
        query: [A, B, M, D]; keys [A, B, N, D] and values [A, B, N, Dv] with N > 0.
        bias: added to the scores, broadcastable to [A, B, M, N], or None.
        dead: queries that see no key at all, broadcastable to [A, B, M], or None.

    Returns:
        The normalised output in float32 [A, B, M, Dv] and the log-sum-exp of its scores in float32 [A, B, M]; where a
        query sees nothing, zero and -inf.
    """
    if _fused(layer, query, values):
        # 1.3 to 3 times the plain product, and its scores stay in float32 for bfloat16 inputs. The public function of
        # torch does not return the log-sum-exp. It crashes on N = 0, and gives a query that sees nothing lse 0.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=bias, scale=layer.scale
        )
        out, lse = out.float(), lse.float()
        return out, (lse if dead is None else lse.masked_fill(dead, -math.inf))
    step = max(1, MAX_SCORES // (query.shape[0] * query.shape[1] * keys.shape[2]))
    if query.shape[2] <= step:
        return _plain_partial(query, keys, values, bias, layer.scale, layer.softcap)
    parts = [
        _plain_partial(
            query[:, :, i : i + step],
            keys,
            values,
            None if bias is None else bias[:, :, i : i + step],
            layer.scale,
            layer.softcap,
        )
        for i in range(0, query.shape[2], step)
    ]
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _plain_partial(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_partial` by two matrix products, on any device and for any head widths."""
    scores = _capped((query @ keys.mT).float() * scale, softcap)
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp_min(torch.finfo(lse.dtype).min)[..., None]).exp()  # -inf - -inf would be NaN
    return (weights.to(values.dtype) @ values).float(), lse
