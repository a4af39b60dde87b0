"""Small arrays to a device and back, many at a time: each copy costs microseconds, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

_ALIGNMENT = 16


def to_device(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors on `device` with what `arrays` hold, under the same names, shapes and dtypes, sent in one copy."""
    if device.type == "cpu":
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    starts, total = {}, 0
    for name, array in arrays.items():
        starts[name] = total
        total += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(max(total, 1), dtype=torch.uint8, pin_memory=True)
    held = host.numpy()
    for name, array in arrays.items():
        held[starts[name] : starts[name] + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sent = host.to(device, non_blocking=True)
    tensors = {}
    for name, array in arrays.items():
        part = sent[starts[name] : starts[name] + array.nbytes]
        tensors[name] = part.view(torch.from_numpy(np.empty(0, array.dtype)).dtype).view(array.shape)
    return tensors
