"""Copies of partly filled blocks in all layers at once: our kernel beside torch's index operations a layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Device, Peaks
from benchmarks.gpu.units import Unit, ratio
from toolprm_decode.engine import KVStore
from toolprm_decode.kernels.dispatch import VARIABLE

# Layers, key heads, width.
MODELS = {"7B": (28, 4, 128), "0.5B": (24, 2, 64)}
COPIES, SLOTS, BLOCK = 64, 8, 16


@contextmanager
def computing(name: str) -> Iterator[None]:
    """TOOLPRM_KERNELS for a while."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def units(device: Device, peaks: Callable[[], Peaks]) -> Iterator[Unit]:
    """One for each model."""
    copies, models = (2, {"tiny": (1, 1, 16)}) if device.dry else (COPIES, MODELS)
    for shape, of in models.items():
        name = f"{shape}: {copies} copies of {SLOTS} slots, {of[0]} layers"
        yield Unit("copies", name, 2, partial(_case, device, peaks, shape, of, copies))


@torch.inference_mode()
def _case(
    device: Device, peaks: Callable[[], Peaks], shape: str, of: tuple[int, int, int], count: int
) -> dict[str, Any]:
    layers, heads, dim = of
    copies = np.array([(BLOCK * (1 + i), BLOCK * (1 + count + i), SLOTS) for i in range(count)], np.int32)
    store = KVStore(BLOCK)
    store.reserve(1 + 2 * count)

    def random() -> torch.Tensor:
        return torch.randn(heads, BLOCK * (1 + 2 * count), dim, device=device.torch).to(torch.bfloat16)

    store.pools = {layer: (random(), random()) for layer in range(layers)}
    with computing("triton"):
        store.copy(copies)
    source, target = copies[:, :1] + np.arange(SLOTS), copies[:, 1:2] + np.arange(SLOTS)
    for pool in (x for pools in store.pools.values() for x in pools):
        if not torch.equal(pool[:, source.reshape(-1)], pool[:, target.reshape(-1)]):
            raise AssertionError("the copies are not what was to be copied")
    spent = {}
    for name in ("triton", "torch"):
        with computing(name):
            spent[name] = device.wall(lambda: store.copy(copies))
    moved = 2 * count * SLOTS * store.bytes_per_slot
    return {
        "shape": shape,
        "layers": layers,
        "bytes": moved,
        "roofline_us": peaks().microseconds(moved),
        "ours_whole_call_us": spent["triton"],
        "torch_whole_call_us": spent["torch"],
        "torch_over_ours": ratio(spent["torch"], spent["triton"]),
    }
