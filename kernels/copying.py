"""Copies runs of slots inside KV pools, of all layers at once: what a fork of a partly filled block takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from toolprm_decode.kernels.staging import to_device

# Units that a program moves at a time.
_BLOCK = 256


@triton.jit
def _copy_kernel(pools, copies, pool_head, WIDTH: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Program (copy, pool, head). Bits are copied, whatever they mean, in the largest units that a slot is made of:
    the compiler knows nothing of the addresses, and loads one unit at a time."""
    if BITS == 8:
        pool = tl.load(pools + tl.program_id(1)).to(tl.pointer_type(tl.int8))
    elif BITS == 16:
        pool = tl.load(pools + tl.program_id(1)).to(tl.pointer_type(tl.int16))
    elif BITS == 32:
        pool = tl.load(pools + tl.program_id(1)).to(tl.pointer_type(tl.int32))
    else:
        pool = tl.load(pools + tl.program_id(1)).to(tl.pointer_type(tl.int64))
    pool += tl.program_id(2).to(tl.int64) * pool_head
    copy = copies + 3 * tl.program_id(0)
    source = tl.load(copy).to(tl.int64) * WIDTH
    target = tl.load(copy + 1).to(tl.int64) * WIDTH
    size = tl.load(copy + 2) * WIDTH
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        held = tl.load(pool + source + at, mask=at < size, other=0)
        tl.store(pool + target + at, held, mask=at < size)


def copy_slots(pools: Sequence[torch.Tensor], copies: np.ndarray) -> None:
    """Copy runs of slots in every pool.

    Args:
        pools: [Hk, slots, D] each, contiguous, all on one device; of any dtypes and shapes.
        copies: int32 [N, 3] of (source slot, target slot, count). No run may overlap the target of another one: which
            copy is first is not defined.
    """
    if not len(copies) or not pools:
        return
    alike: dict[tuple[int, int, int, int], list[torch.Tensor]] = {}
    for pool in pools:
        size = pool.element_size()
        head, slot = pool.stride(0) * size, pool.shape[2] * size
        unit = math.gcd(8, head, slot, pool.data_ptr())
        alike.setdefault((pool.shape[0], head // unit, slot // unit, unit), []).append(pool)
    arrays = {f"{i}": np.array([p.data_ptr() for p in group], np.int64) for i, group in enumerate(alike.values())}
    sent = to_device({"copies": copies.astype(np.int32), **arrays}, pools[0].device)
    with torch.cuda.device_of(pools[0]):  # kernels run on the current device, wherever their tensors are
        for i, ((heads, head, slot, unit), group) in enumerate(alike.items()):
            grid = (len(copies), len(group), heads)
            _copy_kernel[grid](sent[f"{i}"], sent["copies"], head, WIDTH=slot, BITS=8 * unit, BLOCK=_BLOCK)


def copy_slots_reference(pools: Sequence[torch.Tensor], copies: np.ndarray) -> None:
    """The same in torch, a run at a time."""
    for pool in pools:
        for source, target, count in copies.tolist():
            pool[:, target : target + count] = pool[:, source : source + count].clone()
