"""Linear layers in the layout of the processor's products, while an engine runs a model.

torch lays a weight out anew for every product on a CPU, which a pass of few rows pays for in full. A copy in oneDNN's
own layout makes passes of the 0.5B Qwen2 shape faster by a third in bfloat16 (with the same results), and by half in
float32 from three rows on, so that a pass of sixteen rows costs little more than one of a single row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

# Weights smaller than this stay in the processor's cache: there is nothing to gain.
LEAST_WEIGHTS = 1 << 16
# Rows that the layout is chosen for. It serves any number of them.
_ROWS = 16
# In float32 a pass of fewer rows is faster without.
_LEAST_ROWS = {torch.bfloat16: 1, torch.float32: 3}


@dataclass
class _Packed:
    """A copy of a layer's weight, and the state of the weight that it was made of."""

    weight: torch.Tensor
    version: int
    address: int
    sample: float
    copy: torch.Tensor

    def current(self, weight: torch.Tensor) -> bool:
        same = weight is self.weight and weight._version == self.version and weight.data_ptr() == self.address
        return same and _sample(weight) == self.sample


def packed_linears(model: nn.Module, head: nn.Module) -> PackedLinears:
    """Those of a model, which all that run it share."""
    with _GUARD:
        if model not in _KNOWN:
            _KNOWN[model] = PackedLinears(model, head)
        return _KNOWN[model]


class PackedLinears:
    """The linear layers of a model that gain by it, but for its head. They are copied at their first use, and again
    after their weights have changed.

    Args:
        model: any module. head: its head, which is read row by row.
        memory: bytes that the copies may take; None for a quarter of what is free. Beyond it nothing is copied.
    """

    def __init__(self, model: nn.Module, head: nn.Module, memory: int | None = None):
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head and _gains(m)]
        size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
        if size > (psutil.virtual_memory().available // 4 if memory is None else memory):
            layers = []
        self._layers = layers
        self._packed: dict[nn.Linear, _Packed] = {}

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def applied(self, rows: int) -> Iterator[None]:
        """The layers compute with their copies, for a pass of so many rows. Not for two threads at once."""
        changed: list[nn.Linear] = []
        try:
            for layer in self._layers:
                if _gains(layer) and rows >= _LEAST_ROWS[layer.weight.dtype]:
                    layer.forward = partial(_product, self._copy(layer), layer.bias)  # type: ignore[method-assign]
                    changed.append(layer)
            yield
        finally:
            for layer in changed:
                del layer.forward

    def _copy(self, layer: nn.Linear) -> torch.Tensor:
        packed = self._packed.get(layer)
        if packed is None or not packed.current(layer.weight):
            weight = layer.weight
            copy = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
            packed = self._packed[layer] = _Packed(weight, weight._version, weight.data_ptr(), _sample(weight), copy)
        return packed.copy


def _sample(weight: torch.Tensor) -> float:
    """One of the weights: what is written through `.data`, as merging adapters does, leaves the version as it was."""
    return float(weight[weight.shape[0] // 2, weight.shape[1] // 2])


def _product(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _gains(layer: nn.Linear) -> bool:
    """An ordinary linear layer of enough weights on a CPU, without hooks, in a precision that oneDNN has products for.

    A quantised, adapted or offloaded one is called as it is.
    """
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or "forward" in vars(layer):
        return False
    if layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "_hf_hook"):
        return False
    weight = layer.weight
    if weight.device.type != "cpu" or weight.numel() < LEAST_WEIGHTS or weight.is_inference():
        return False
    if weight.dtype is torch.bfloat16:
        return _available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32 and _available()


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


_KNOWN: WeakKeyDictionary[nn.Module, PackedLinears] = WeakKeyDictionary()
_GUARD = threading.Lock()
