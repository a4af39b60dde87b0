"""Copies of runs of slots against the same by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolprm_decode.kernels.copying import copy_slots, copy_slots_reference


@pytest.mark.parametrize("compute", [copy_slots, copy_slots_reference])
def test_all_pools_have_the_copies(compute: object, device: torch.device) -> None:
    """Pools of several shapes and dtypes, odd widths, an empty run, one longer than a program moves at a time."""
    random = np.random.default_rng(0)
    pools, expected = [], []
    copies = np.array([[0, 90, 5], [17, 40, 1], [7, 60, 0], [20, 100, 16], [64, 128, 64]], np.int32)
    for heads, slots, width, dtype in [
        (2, 200, 64, torch.float32),
        (2, 200, 64, torch.float32),
        (1, 192, 80, torch.bfloat16),
        (3, 300, 7, torch.float16),
        (2, 200, 24, torch.float64),
        (2, 192, 33, torch.uint8),
    ]:
        pool = torch.from_numpy(random.integers(0, 100, (heads, slots, width))).to(dtype).to(device)
        held = pool.cpu().double().numpy()
        for source, target, count in copies.tolist():
            held[:, target : target + count] = held[:, source : source + count].copy()
        pools.append(pool)
        expected.append(held)
    compute(pools, copies)  # type: ignore[operator]
    for pool, held in zip(pools, expected, strict=True):
        assert np.array_equal(pool.cpu().double().numpy(), held)


def test_nothing_to_copy(device: torch.device) -> None:
    pool = torch.ones(1, 4, 2, device=device)
    copy_slots([pool], np.zeros((0, 3), np.int32))
    copy_slots([], np.array([[0, 1, 1]], np.int32))
    assert pool.eq(1).all()
