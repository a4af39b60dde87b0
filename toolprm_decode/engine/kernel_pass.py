"""Attention of a pass by the kernel of shared prefixes and paged tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from toolprm_decode.engine.attention import Layer
from toolprm_decode.engine.batch import Batch, Rows
from toolprm_decode.engine.store import KVStore
from toolprm_decode.engine.tiles import cut
from toolprm_decode.kernels import attention as kernel
from toolprm_decode.kernels.staging import to_device


class KernelPass:
    """A `Pass` over a batch whose copies are made, and for which the store has room.

    Args:
        compute: `kernels.attention.attend` or its reference.
    """

    def __init__(self, store: KVStore, batch: Batch, compute: Callable[..., torch.Tensor]):
        self._store, self._compute = store, compute
        self._rows = Rows(batch, store.block_size)
        self._held: dict[tuple[int, torch.device], tuple[kernel.Tiles, torch.Tensor]] = {}

    def attend(self, layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As of `Pass`."""
        tiles, slots = self._on_device(query.shape[0] // key.shape[0], query.device)
        return read(self._store, self._compute, tiles, slots, layer, query, key, value)

    @property
    def groups(self) -> set[int]:
        """Query heads a key head, of the layers that have attended."""
        return {group for group, _ in self._held}

    def _on_device(self, group: int, device: torch.device) -> tuple[kernel.Tiles, torch.Tensor]:
        """The same for all layers of a device, as long as they have as many query heads a key head."""
        if (group, device) not in self._held:
            arrays = cut(self._rows, group)
            sent = to_device({**arrays.arrays(), "slots": self._rows.batch.slots.astype(np.int64)}, device)
            slots = sent.pop("slots")
            self._held[group, device] = kernel.Tiles(**sent, most_parts=len(arrays.readings)), slots
        return self._held[group, device]


def read(
    store: KVStore,
    compute: Callable[..., torch.Tensor],
    tiles: kernel.Tiles,
    slots: torch.Tensor,
    layer: Layer,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """Write a layer's keys and values into their slots, then read what the tiles say."""
    pools = store.write(layer.index, slots, key, value)
    query = query if query.stride(-1) == 1 else query.contiguous()
    return compute(
        query, *pools, tiles, scale=layer.scale, window=layer.window, softcap=layer.softcap, sinks=layer.sinks
    )
