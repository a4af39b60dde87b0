"""The attention that replaces a transformers model's own while an Engine runs it.

A model built on transformers' ``AttentionInterface`` hands every layer's query, key and value to a function chosen by
name. The one registered here under `NAME` writes the new keys and values into a `KVStore` and reads the context from
it. Two kinds of pass exist: `PrefillPass` reads one sequence into a shared prefix, and `DecodePass` runs tokens of many
rows, each row being a shared prefix followed by its own tokens in a block-paged pool.

No mask function is registered under the name, so the model builds no mask: the passes know what each token may see.

Shapes: T tokens of the pass, H query heads, Hk key/value heads, G = H / Hk, D and Dv head widths of keys and values,
P tokens of a prefix, R rows, Q most tokens of a row in the pass, S most own tokens of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from toolprm_decode.errors import BudgetExceeded, ModelNotSupported, RequestError

NAME = "toolprm"

# Scores of one plain (unfused) product are held whole: queries are taken in runs that keep them under this many.
MAX_SCORES = 1 << 24


@dataclass(frozen=True)
class Batch:
    """One forward pass over many rows, as plain int32 arrays.

    A row is a prefix plus its own tokens: token j of the row's own lies at absolute position (prefix length + j), and
    in pool slot ``block_tables[row, j // block_size] * block_size + j % block_size``.

    Attributes:
        tokens: [T] token ids.
        positions: [T] absolute position of each token, prefix included.
        rows: [T] row of each token, non-decreasing.
        slots: [T] pool slot that takes the token's key and value.
        prefixes: [R] prefix id of each row, from `Engine.prefill`.
        block_tables: [R, B] blocks of each row in order, -1 padded.
        lengths: [R] own tokens of each row after this pass.
        outputs: [L] indices into `tokens` whose logits are wanted.
        copies: [C, 3] (source slot, destination slot, count) copied in every layer before the pass, in order: a copy
            may read what one before it wrote.
        blocks: blocks the pool must have at least.
    """

    tokens: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    slots: np.ndarray
    prefixes: np.ndarray
    block_tables: np.ndarray
    lengths: np.ndarray
    outputs: np.ndarray
    copies: np.ndarray
    blocks: int


@dataclass(frozen=True)
class Layer:
    """What a layer asks of its attention, beside query, key and value."""

    index: int
    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None  # [H], a logit per head that takes part in the softmax without a value


class Prefix:
    """Keys [Hk, P, D] and values [Hk, P, Dv] of a token sequence that rows share, per layer."""

    def __init__(self, length: int):
        self.length = length
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(
        self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put `key` [Hk, T, D] and `value` [Hk, T, Dv] at `start`; return what the layer holds up to their end."""
        end = start + key.shape[1]
        if layer not in self.layers:
            self.layers[layer] = (
                _allocate(key, key.shape[0], self.length),
                _allocate(value, value.shape[0], self.length),
            )
        keys, values = self.layers[layer]
        keys[:, start:end] = key
        values[:, start:end] = value
        return keys[:, :end], values[:, :end]


class KVStore:
    """Every key and value an engine keeps: prefixes by id, and per layer a pool of slots [slots, Hk, D]."""

    def __init__(self, block_size: int):
        self.block_size = block_size
        self.prefixes: dict[int, Prefix] = {}
        self.slots = 0
        self.pools: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def reserve(self, blocks: int) -> None:
        """Have at least `blocks` blocks. Grows by doubling; the layers' pools follow when they are next written."""
        if blocks * self.block_size > self.slots:
            self.slots = max(blocks * self.block_size, 2 * self.slots)

    @torch.inference_mode()
    def copy(self, copies: np.ndarray) -> None:
        """Copy runs of slots in every layer, in order; `copies` [C, 3] as in `Batch`."""
        if not len(copies):
            return
        count = copies[:, 2]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        source, target = np.repeat(copies[:, 0], count) + within, np.repeat(copies[:, 1], count) + within
        if len(copies) > 1 and (len(np.intersect1d(source, target)) or len(np.unique(target)) < len(target)):
            for one in range(len(copies)):
                self.copy(copies[one : one + 1])
            return
        for layer, pools in self.pools.items():
            for pool in self._grown(layer, *pools):
                device = pool.device
                pool[torch.from_numpy(target).to(device)] = pool[torch.from_numpy(source).to(device)]

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put `key` [T, Hk, D] and `value` [T, Hk, Dv] into `slots` [T] and return the layer's two pools."""
        keys, values = self._grown(layer, *self.pools.get(layer, (key[:0], value[:0])))
        keys[slots] = key
        values[slots] = value
        return keys, values

    def _grown(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if keys.shape[0] < self.slots:
            old = (keys, values)
            keys, values = (_allocate(x, self.slots, *x.shape[1:-1]) for x in old)
            keys[: len(old[0])], values[: len(old[1])] = old
            self.pools[layer] = (keys, values)
        return keys, values


def _allocate(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Zeros of `shape` plus the last dimension of `like`. Zeros, since a masked-out NaN would still spoil a product."""
    try:
        return like.new_zeros(*shape, like.shape[-1])
    except RuntimeError as error:
        size = math.prod(shape) * like.shape[-1] * like.element_size()
        raise BudgetExceeded(
            f"no memory for {size / 2**20:.0f} MiB more of keys and values on {like.device}: "
            "use fewer beams, a smaller width, fewer requests at once, or a shorter prompt"
        ) from error


class Pass(Protocol):
    """One run of the model, seen from a layer."""

    calls: int

    def attend(self, layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query [Hk, G, T, D], key [Hk, T, D] and value [Hk, T, Dv] of a layer to its output [Hk, G, T, Dv]."""
        ...


class PrefillPass:
    """Tokens start, start + 1, ... of one sequence, read into `prefix`, which holds those before them."""

    def __init__(self, prefix: Prefix, start: int, count: int):
        self.prefix, self.start, self.count = prefix, start, count
        self.calls = 0
        self._biases: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}

    def attend(self, layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        keys, values = self.prefix.write(layer.index, self.start, key, value)
        first = 0 if layer.window is None else max(0, self.start - layer.window + 1)
        keys, values = keys[:, None, first:], values[:, None, first:]
        group = query.shape[1]
        masked = self.start > 0 or (layer.window is not None and self.count > layer.window)
        if layer.softcap is None and layer.sinks is None:
            # Expanded heads have stride 0: torch's fused kernels read them in place, where enable_gqa copies.
            return F.scaled_dot_product_attention(
                query,
                keys.expand(-1, group, -1, -1),
                values.expand(-1, group, -1, -1),
                attn_mask=self._bias(layer.window, first, query) if masked else None,
                is_causal=not masked,
                scale=layer.scale,
            )
        bias = self._bias(layer.window, first, query)
        out = query.new_empty(*query.shape[:-1], values.shape[-1])
        step = max(1, MAX_SCORES // (query.shape[0] * group * keys.shape[2]))
        for begin in range(0, self.count, step):
            run = slice(begin, begin + step)
            part, lse = _plain_partial(query[:, :, run], keys, values, bias[run], layer.scale, layer.softcap)
            out[:, :, run] = _merge([(part, lse)], layer.sinks).to(out.dtype)
        return out

    def _bias(self, window: int | None, first: int, query: torch.Tensor) -> torch.Tensor:
        """0 where a query may see a key and -inf elsewhere: [T, keys from `first`]."""
        cached = (-1 if window is None else window, query.dtype, query.device)
        if cached not in self._biases:
            at = torch.arange(first, self.start + self.count, device=query.device)
            ago = at[self.start - first :, None] - at
            keep = ago >= 0 if window is None else (ago >= 0) & (ago < window)
            self._biases[cached] = _bias(keep, query.dtype)
        return self._biases[cached]


class DecodePass:
    """The tokens of a `Batch`: each row's shared prefix and its own slots, merged by log-sum-exp."""

    def __init__(self, store: KVStore, batch: Batch):
        self.store, self.batch = store, batch
        self.calls = 0
        store.reserve(batch.blocks)
        store.copy(batch.copies)
        unknown = set(batch.prefixes.tolist()) - store.prefixes.keys()
        if unknown:
            raise RequestError(f"prefix {min(unknown)} is not held by this engine: it was released, or never read")

        rows = batch.rows.astype(np.int64)
        n_rows, n_tokens = len(batch.prefixes), len(rows)
        held = np.array([store.prefixes[i].length for i in batch.prefixes.tolist()], np.int64)
        counts = np.bincount(rows, minlength=n_rows)
        most = int(counts.max(initial=0))
        place = np.arange(n_tokens) - (np.cumsum(counts) - counts)[rows]

        # A grid [R, Q] of the rows' tokens. Cells beyond a row's count repeat token 0 and are never read back.
        grid = np.zeros((n_rows, most), np.int64)
        grid[rows, place] = np.arange(n_tokens)
        positions = np.repeat((held + batch.lengths - 1)[:, None], most, 1)
        positions[rows, place] = batch.positions
        self._even = n_tokens == n_rows * most
        self._shape = (n_rows, most)

        # Own keys [R, S], those beyond a row's length pointing at slot 0 and masked.
        reach = int(batch.lengths.max(initial=0))
        own = np.arange(reach)
        exists = own < batch.lengths[:, None]
        blocks = batch.block_tables.astype(np.int64)[:, own // store.block_size]
        gather = np.where(exists, blocks * store.block_size + own % store.block_size, 0)
        self._ago = positions[:, :, None] - (held[:, None] + own)[:, None]  # [R, Q, S], negative beyond a row's length

        self._groups = [(i, np.flatnonzero(batch.prefixes[rows] == i)) for i in np.unique(batch.prefixes).tolist()]
        self._groups = [(i, tokens) for i, tokens in self._groups if len(tokens) and store.prefixes[i].length]

        self._tables = {
            "slots": batch.slots.astype(np.int64),
            "grid": grid.reshape(-1),
            "back": rows * most + place,
            "gather": gather.reshape(-1),
            **{f"prefix {i}": tokens for i, tokens in self._groups},
        }
        self._on_device: dict[tuple[Any, ...], Any] = {}

    def attend(self, layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        slots = self._table("slots", query.device)
        keys, values = self.store.write(layer.index, slots, key.transpose(0, 1), value.transpose(0, 1))
        sides = []
        if self._groups:
            sides.append(self._prefix_side(layer, query, values.shape[-1]))
        if self._ago.shape[-1]:
            sides.append(self._own_side(layer, query, keys, values))
        return _merge(sides, layer.sinks).to(query.dtype)

    def _prefix_side(self, layer: Layer, query: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to the prefixes: one product per prefix and KV head, with groups and tokens folded together."""
        n_tokens = query.shape[2]
        out = lse = None
        for prefix, tokens in self._groups:
            keys, values = self.store.prefixes[prefix].layers[layer.index]
            positions = self.batch.positions[tokens].astype(np.int64)
            first = 0 if layer.window is None else max(0, int(positions.min()) - layer.window + 1)
            if first >= keys.shape[1]:
                continue
            whole = len(tokens) == n_tokens
            where = self._table(f"prefix {prefix}", query.device)
            rows = query if whole else query[:, :, where]
            bias = dead = None
            if layer.window is not None and int(positions.max()) - first >= layer.window:
                bias, dead = self._prefix_bias(prefix, positions, layer.window, first, query)
            part, part_lse = _partial(
                rows.flatten(1, 2)[None], keys[None, :, first:], values[None, :, first:], bias, dead, layer
            )
            part, part_lse = part.view(*rows.shape[:-1], width), part_lse.view(rows.shape[:-1])
            if whole:
                return part, part_lse
            if out is None or lse is None:
                out = part.new_zeros(*query.shape[:-1], width)
                lse = part_lse.new_full(query.shape[:-1], -math.inf)
            out[:, :, where] = part
            lse[:, :, where] = part_lse
        if out is None or lse is None:  # every prefix lies before the window
            out = torch.zeros(*query.shape[:-1], width, device=query.device)
            lse = torch.full(query.shape[:-1], -math.inf, device=query.device)
        return out, lse

    def _own_side(
        self, layer: Layer, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of each row to its own slots: a batched product over KV heads and rows."""
        n_rows, most = self._shape
        heads, group = query.shape[:2]
        gather = self._table("gather", query.device)
        keys = keys[gather].view(n_rows, -1, *keys.shape[1:]).permute(2, 0, 1, 3)  # [Hk, R, S, D]
        values = values[gather].view(n_rows, -1, *values.shape[1:]).permute(2, 0, 1, 3)
        if not self._even:
            query = query[:, :, self._table("grid", query.device)]
        rows = query.reshape(heads, group, n_rows, most, -1).transpose(1, 2).reshape(heads, n_rows, group * most, -1)
        out, lse = _partial(rows, keys, values, self._own_bias(layer.window, group, query), None, layer)
        out = out.view(heads, n_rows, group, most, -1).transpose(1, 2).reshape(heads, group, n_rows * most, -1)
        lse = lse.view(heads, n_rows, group, most).transpose(1, 2).reshape(heads, group, n_rows * most)
        if not self._even:
            back = self._table("back", query.device)
            out, lse = out[:, :, back], lse[:, :, back]
        return out, lse

    def _own_bias(self, window: int | None, group: int, query: torch.Tensor) -> torch.Tensor | None:
        """0 and -inf, [1, R, G * Q, S]; None where every cell is visible."""
        cached = ("own", window, group, query.dtype, query.device)
        if cached not in self._on_device:
            visible = self._ago >= 0 if window is None else (self._ago >= 0) & (self._ago < window)
            bias = None
            if not visible.all():
                keep = torch.from_numpy(visible).to(query.device)
                bias = _bias(keep, query.dtype)[:, None].expand(-1, group, -1, -1).flatten(1, 2)[None]
            self._on_device[cached] = bias
        return self._on_device[cached]

    def _prefix_bias(
        self, prefix: int, positions: np.ndarray, window: int, first: int, query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sliding window over a prefix from `first` on: 0 and -inf [1, 1, G * T, keys], and who sees no key."""
        cached = ("prefix", prefix, window, query.shape[1], query.dtype, query.device)
        if cached not in self._on_device:
            at = torch.arange(first, self.store.prefixes[prefix].length, device=query.device)
            keep = torch.from_numpy(positions).to(query.device)[:, None] - at < window
            keep = keep.repeat(query.shape[1], 1)[None, None]
            self._on_device[cached] = (_bias(keep, query.dtype), ~keep.any(-1))
        return self._on_device[cached]

    def _table(self, name: str, device: torch.device) -> torch.Tensor:
        cached = (name, device)
        if cached not in self._on_device:
            self._on_device[cached] = torch.from_numpy(self._tables[name]).to(device)
        return self._on_device[cached]


def _bias(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, -math.inf)


def _partial(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    dead: torch.Tensor | None,
    layer: Layer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to one side of the context.

    Args:
        query: [A, B, M, D]; keys [A, B, N, D] and values [A, B, N, Dv] with N > 0.
        bias: added to the scores, broadcastable to [A, B, M, N], or None.
        dead: queries that see no key at all, broadcastable to [A, B, M], or None.

    Returns:
        The normalised output in float32 [A, B, M, Dv] and the log-sum-exp of its scores in float32 [A, B, M]; where a
        query sees nothing, zero and -inf.
    """
    if query.device.type == "cpu" and layer.softcap is None and keys.shape[-1] == values.shape[-1]:
        # 1.3 to 3 times the plain product, and its scores stay in float32 for bfloat16 inputs. The public function of
        # torch does not return the log-sum-exp. It crashes on N = 0, and gives a query that sees nothing lse 0.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=bias, scale=layer.scale
        )
        out = out.float()
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
    scores = (query @ keys.mT).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp_min(torch.finfo(lse.dtype).min)[..., None]).exp()  # -inf - -inf would be NaN
    return (weights.to(values.dtype) @ values).float(), lse


def _merge(sides: list[tuple[torch.Tensor, torch.Tensor]], sinks: torch.Tensor | None) -> torch.Tensor:
    """Join partial results [Hk, G, T, Dv] by their log-sum-exp [Hk, G, T]; `sinks` [H] add to the denominator only."""
    total = sides[0][1] if len(sides) == 1 else torch.logaddexp(sides[0][1], sides[1][1])
    if sinks is not None:
        total = torch.logaddexp(total, sinks.float().view(*total.shape[:2], 1))
    elif len(sides) == 1:
        return sides[0][0]
    total = total.clamp_min(torch.finfo(total.dtype).min)
    return torch.stack([out * (lse - total).exp()[..., None] for out, lse in sides]).sum(0)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    toolprm: Pass | None = None,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [1, H, T, D], key [1, Hk, T, D], value [1, Hk, T, Dv] to [1, T, H, Dv].

    Raises ModelNotSupported where the model made a mask of its own: it would be lost.
    """
    if toolprm is None:
        raise RuntimeError("this model is running inside an Engine in another thread: call it through that engine")
    if attention_mask is not None:
        raise ModelNotSupported(f"{type(module).__name__} builds an attention mask of its own, which would be lost")
    _, heads, n_tokens, dim = query.shape
    kv_heads = key.shape[1]
    scale = dim**-0.5 if scaling is None else float(scaling)
    layer = Layer(int(module.layer_idx), scale, sliding_window or None, softcap or None, s_aux)
    out = toolprm.attend(layer, query.reshape(kv_heads, heads // kv_heads, n_tokens, dim), key[0], value[0])
    return out.reshape(1, heads, n_tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
