"""Decode attention behind a shared prefix: our kernels against what they read, and beside what torch has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu.device import Device, Peaks, Timed
from benchmarks.gpu.units import Unit, ratio
from toolprm_decode.engine import Batch, KVStore
from toolprm_decode.engine.attention import Layer
from toolprm_decode.engine.batch import Rows
from toolprm_decode.engine.kernel_pass import KernelPass
from toolprm_decode.engine.support import first_line
from toolprm_decode.engine.tiles import cut
from toolprm_decode.engine.torch_pass import TorchPass
from toolprm_decode.kernels.attention import Tiles, attend
from toolprm_decode.kernels.staging import to_device

# Query heads, key heads, width: those of Qwen2.5.
HEADS = {"7B": (28, 4, 128), "1.5B": (12, 2, 128), "0.5B": (14, 2, 64)}
ROWS, PREFIXES, OWN = (64, 8, 1), (2000, 1000, 4000), 100
BLOCK = 16
# bfloat16 keeps 8 bits; the largest difference, as a share of the largest output.
TOLERANCE = 2e-2


def units(device: Device, peaks: Callable[[], Peaks]) -> Iterator[Unit]:
    """All cases; 64 rows behind 2,000 tokens first, and at the end once more beside what has to be compiled."""
    rows, prefixes, own = ((2,), (40,), 5) if device.dry else (ROWS, PREFIXES, OWN)
    heads = {"tiny": (3, 1, 16)} if device.dry else HEADS
    for (shape, of), count, prefix in itertools.product(heads.items(), rows, prefixes):
        headline = count == rows[0] and prefix == prefixes[0]
        name = f"{shape}: {count} rows, prefix {prefix:,}"
        run = partial(_case, device, peaks, shape, of, count, prefix, own)
        if not device.dry:
            yield Unit(
                "attention", name, 1 if headline else 2 if count == rows[0] else 3, partial(run, with_flex=False)
            )
        if headline:
            yield Unit("attention", name, 3, partial(run, with_flex=True))


@torch.inference_mode()
def _case(
    device: Device, peaks: Callable[[], Peaks], shape: str, heads: tuple[int, int, int], rows: int, prefix: int,
    own: int, with_flex: bool,
) -> dict[str, Any]:  # fmt: skip
    n_heads, kv_heads, dim = heads
    batch = _batch(rows, prefix, own)
    store = KVStore(BLOCK)
    store.reserve(batch.blocks)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device.torch).to(torch.bfloat16)

    keys, values = (random(kv_heads, batch.blocks * BLOCK, dim) for _ in range(2))
    store.pools[0] = keys, values
    query, slots = random(rows, n_heads, dim).transpose(0, 1), torch.from_numpy(batch.slots.astype(np.int64))
    key, value = (pool[:, slots.to(device.torch)] for pool in (keys, values))  # written where they lie already
    layer = Layer(0, dim**-0.5, None, None, None)
    arrays = cut(Rows(batch, BLOCK), n_heads // kv_heads)
    tiles = Tiles(**to_device(arrays.arrays(), device.torch), most_parts=len(arrays.readings))

    wide = _Wide(batch, query, keys, values)
    out = attend(query, keys, values, tiles, scale=layer.scale)
    expected = wide.sdpa(upcast=True)
    error = ((out.float() - expected).abs().max() / expected.abs().max()).item()
    if not error <= TOLERANCE:
        raise AssertionError(f"the outputs are off by {error:.2g} of the largest")

    moved = 2 * keys.element_size() * kv_heads * dim * (prefix + rows * own) + 2 * query.nbytes
    floor = peaks().microseconds(moved, 4.0 * rows * n_heads * dim * (prefix + own))
    ours = device.time(lambda: attend(query, keys, values, tiles, scale=layer.scale))
    passes = {"ours": KernelPass(store, batch, attend), "torch_pass": TorchPass(store, batch)}
    written = {name: device.time(partial(of.attend, layer, query, key, value)) for name, of in passes.items()}
    row: dict[str, Any] = {
        "shape": shape,
        "rows": rows,
        "prefix": prefix,
        "own": own,
        "bytes": moved,
        "error": error,
        "roofline_us": floor,
        "ours_us": ours.us,
        "share_of_roofline": ratio(floor, ours.us),
        "ours_with_writes_us": written["ours"].us,
        "torch_pass_us": written["torch_pass"].us,
        "cutting_tiles_host_us": device.wall(lambda: cut(Rows(batch, BLOCK), n_heads // kv_heads)),
    }
    # Against what only reads, our reading; against our own path in torch, which writes as well, both.
    speedups = [ratio(written["torch_pass"].us, written["ours"].us)]
    for name, make in wide.peers(device, with_flex).items():
        try:
            timed: Timed = device.time(make())
        except Exception as error_of_it:
            row[f"{name}_failed"] = first_line(error_of_it)
            continue
        row[f"{name}_us"] = timed.us
        speedups.append(ratio(timed.us, ours.us))
    row["best_torch_over_ours"] = min((s for s in speedups if s is not None), default=None)
    return row


def _batch(rows: int, prefix: int, own: int) -> Batch:
    """A token of each row, behind one prefix and `own` tokens, itself among them."""
    first, a_row = 1 + -(-prefix // BLOCK), -(-own // BLOCK)
    tables = first + np.arange(rows * a_row, dtype=np.int32).reshape(rows, a_row)
    each, none = np.arange(rows, dtype=np.int32), np.zeros(0, np.int32)
    return Batch(
        tokens=np.ones(rows, np.int32),
        positions=np.full(rows, prefix + own - 1, np.int32),
        rows=each,
        slots=(tables[:, -1] * BLOCK + (own - 1) % BLOCK).astype(np.int32),
        segments=np.array([[BLOCK, prefix]], np.int32),
        contexts=np.zeros((rows, 1), np.int32),
        block_tables=tables,
        lengths=np.full(rows, own, np.int32),
        outputs=each,
        few_outputs=none,
        few_ids=none,
        copies=np.zeros((0, 3), np.int32),
        blocks=first + rows * a_row,
    )


class _Wide:
    """What torch reads: each row's keys and values in a piece, the prefix as often as there are rows."""

    def __init__(self, batch: Batch, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor):
        (first, self.prefix), self.own, self.rows = batch.segments[0].tolist(), int(batch.lengths[0]), len(batch.rows)
        j = np.arange(self.own)
        own = batch.block_tables[:, j // BLOCK].astype(np.int64) * BLOCK + j % BLOCK
        self.shared = torch.arange(first, first + self.prefix, device=keys.device)
        self.apart = torch.from_numpy(own).to(keys.device)
        slots = torch.cat([self.shared.expand(self.rows, -1), self.apart], 1)
        self.query = query.transpose(0, 1)[:, :, None]  # [rows, H, 1, D]
        self.pools = keys, values
        self.keys, self.values = (pool[:, slots].transpose(0, 1).contiguous() for pool in (keys, values))
        self.group = query.shape[0] // keys.shape[0]

    def sdpa(self, *, upcast: bool = False) -> torch.Tensor:
        """[rows, H, D], heads of keys not repeated."""
        q, k, v = ((x.float() if upcast else x) for x in (self.query, self.keys, self.values))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)[:, :, 0]

    def peers(self, device: Device, with_flex: bool) -> dict[str, Callable[[], Callable[[], torch.Tensor]]]:
        """Torch's ways, to be made ready."""
        ways: dict[str, Callable[[], Callable[[], torch.Tensor]]] = {"sdpa_gqa": lambda: self.sdpa}
        for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            ways[f"sdpa_{name.split('_')[0].lower()}"] = partial(self._repeated, name)
        if with_flex:  # compiling takes many seconds
            ways["flex"] = partial(self._flex, device)
        return ways

    def _repeated(self, name: str) -> Callable[[], torch.Tensor]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = getattr(SDPBackend, name)
        keys, values = (x.repeat_interleave(self.group, 1) for x in (self.keys, self.values))

        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(self.query, keys, values)

        return run

    def _flex(self, device: Device) -> Callable[[], torch.Tensor]:
        """All rows as one sequence, behind one prefix: a mask says whose tokens are whose. Starts at whole blocks."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        block = 128
        prefix, own = self.prefix, self.own
        begin, step = -(-prefix // block) * block, -(-own // block) * block

        def visible(batch: Any, head: Any, row: Any, key: Any) -> Any:
            mine = (key - begin) // step == row
            return (key < prefix) | ((key >= begin) & mine & ((key - begin) % step < own))

        mask = create_block_mask(visible, None, None, self.rows, begin + self.rows * step, device=str(device.torch))

        def laid_out(pool: torch.Tensor) -> torch.Tensor:
            held = pool.new_zeros(1, pool.shape[0], begin + self.rows * step, pool.shape[2])
            held[0, :, :prefix] = pool[:, self.shared]
            for row in range(self.rows):
                held[0, :, begin + row * step : begin + row * step + own] = pool[:, self.apart[row]]
            return held

        keys, values = map(laid_out, self.pools)
        query = self.query[:, :, 0].transpose(0, 1)[None].contiguous()  # [1, H, rows, D]
        compiled = device.compiled(flex_attention)
        return lambda: compiled(query, keys, values, block_mask=mask, enable_gqa=True)
