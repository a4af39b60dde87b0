"""Keys and values of a model, by slot."""

from __future__ import annotations

import numpy as np
import torch

from toolprm_decode.errors import BudgetExceeded
from toolprm_decode.kernels.dispatch import backend


class Layout:
    """Where the pools of a store lie. Another one whenever a pool has moved; what goes by one may end with it."""


class KVStore:
    """Keys and values of a model by slot, per layer: [Hk, slots, D] and [Hk, slots, Dv].

    Which slots belong to whom is decided elsewhere (the core's block pool). Slot 0 to `block_size` - 1 belong to nobody
    and hold zeros: what stands for nothing reads them, since a masked-out NaN would still spoil a product.

    Args:
        block_size: slots of a block.
        capacity: most blocks that are ever asked for, block 0 aside; None for any number. Memory is taken as needed.
    """

    def __init__(self, block_size: int, capacity: int | None = None):
        self.block_size = block_size
        self.capacity = capacity
        self.pools: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.layout = Layout()
        self._needed = 0  # slots

    @property
    def settled(self) -> bool:
        """Whether the layers that were written so far have what is needed."""
        return bool(self.pools) and all(keys.shape[1] >= self._needed for keys, _ in self.pools.values())

    @property
    def bytes_per_slot(self) -> int:
        """Of all layers that were written so far."""
        return sum(x.shape[0] * x.shape[2] * x.element_size() for pools in self.pools.values() for x in pools)

    def reserve(self, blocks: int) -> None:
        """Have at least `blocks` blocks. The layers' pools follow when they are next written, by doubling."""
        self._needed = blocks * self.block_size

    @torch.inference_mode()
    def copy(self, copies: np.ndarray) -> None:
        """Copy runs of slots in every layer, in order; `copies` [N, 3] as in `Batch`."""
        if not len(copies):
            return
        count = copies[:, 2]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        source, target = np.repeat(copies[:, 0], count) + within, np.repeat(copies[:, 1], count) + within
        if len(copies) > 1 and (len(np.intersect1d(source, target)) or len(np.unique(target)) < len(target)):
            for one in range(len(copies)):
                self.copy(copies[one : one + 1])
            return
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for layer, pools in list(self.pools.items()):
            for pool in self._grown(layer, *pools):
                by_device.setdefault(pool.device, []).append(pool)
        for device, held in by_device.items():
            computes = backend(device)
            if computes == "torch":
                to, of = (torch.from_numpy(slots).to(device) for slots in (target, source))
                for pool in held:
                    pool[:, to] = pool[:, of]
                continue
            from toolprm_decode.kernels.copying import copy_slots, copy_slots_reference

            (copy_slots if computes == "triton" else copy_slots_reference)(held, copies)

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put `key` [Hk, T, D] and `value` [Hk, T, Dv] into `slots` [T] and return the layer's two pools."""
        keys, values = self._grown(layer, *self.pools.get(layer, (key[:, :0], value[:, :0])))
        keys.index_copy_(1, slots, key)
        values.index_copy_(1, slots, value)
        return keys, values

    def _grown(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if keys.shape[1] < self._needed:
            doubled = 2 * keys.shape[1]
            if self.capacity is not None:
                doubled = min(doubled, (self.capacity + 1) * self.block_size)
            try:
                pools = self._larger(keys, max(doubled, self._needed)), self._larger(values, max(doubled, self._needed))
            except RuntimeError:  # no memory for twice as many: for as many as are needed, then
                pools = self._larger(keys, self._needed), self._larger(values, self._needed)
            self.pools[layer] = keys, values = pools
            self.layout = Layout()
        return keys, values

    def _larger(self, old: torch.Tensor, slots: int) -> torch.Tensor:
        try:
            new = old.new_empty(old.shape[0], slots, old.shape[2])
        except RuntimeError as error:
            size = old.shape[0] * slots * old.shape[2] * old.element_size()
            raise BudgetExceeded(
                f"no memory for {size / 2**20:.0f} MiB of keys and values of a layer on {old.device}: "
                "set a smaller kv_memory, use fewer beams, a smaller width, or a shorter prompt"
            ) from error
        new[:, : old.shape[1]] = old
        new[:, : self.block_size] = 0
        return new
