"""Draws under masks: our kernels against the bytes that they read, and beside torch and xgrammar."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Device, Peaks
from benchmarks.gpu.units import Unit, ratio
from toolprm_decode.engine.support import first_line
from toolprm_decode.kernels.sampling import DISTINCT, INDEPENDENT, Wanted, draw, prepare

ROWS, DTYPES, DRAWS = (64, 1, 8, 256), (torch.bfloat16, torch.float32), (1, 16)
LEGAL, TEMPERATURE = 0.9, 0.8


def units(device: Device, peaks: Callable[[], Peaks], vocabulary: int) -> Iterator[Unit]:
    """All cases; a draw each of 64 rows first, and at the end once more beside what has to be compiled."""
    rows, dtypes, several = ((2,), (torch.bfloat16,), (1, 2)) if device.dry else (ROWS, DTYPES, DRAWS)
    for count, dtype, draws, distinct in itertools.product(rows, dtypes, several, (False, True)):
        if distinct and draws == 1:
            continue
        headline = count == rows[0] and draws == 1
        name = f"{count} rows, {str(dtype)[6:]}, {draws} {'distinct ' if distinct else ''}draws"
        run = partial(_case, device, peaks, vocabulary, count, dtype, draws, distinct)
        if not device.dry:
            yield Unit("sampling", name, 1 if headline else 2 if count in rows[:2] else 3, partial(run, compiled=False))
        if headline or device.dry:
            yield Unit("sampling", name, 3, partial(run, compiled=headline))


@torch.inference_mode()
def _case(
    device: Device, peaks: Callable[[], Peaks], vocabulary: int, rows: int, dtype: torch.dtype, draws: int,
    distinct: bool, compiled: bool,
) -> dict[str, Any]:  # fmt: skip
    random = np.random.default_rng(0)
    legal = random.random((rows, -(-vocabulary // 32) * 32)) < LEGAL
    legal[:, vocabulary:] = False
    masks = np.packbits(legal, axis=1, bitorder="little").view(np.int32)
    logits = (3 * torch.randn(rows, vocabulary, device=device.torch)).to(dtype)
    wanted = Wanted(
        masks=masks,
        mask_index=np.arange(rows, dtype=np.int32),
        counts=np.full(rows, draws, np.int32),
        methods=np.full(rows, DISTINCT if distinct else INDEPENDENT, np.uint8),
        temperatures=np.full(rows, TEMPERATURE),
        uniforms=random.random(rows * draws),
        gumbel_uniforms=random.random(rows * draws),
        parents=np.zeros((rows, 2)),
    )
    drawn = draw(logits, wanted)
    if drawn.failures or not legal[np.repeat(np.arange(rows), draws), drawn.tokens].all():
        raise AssertionError(f"illegal tokens were drawn: {drawn.tokens.tolist()[:8]}, {drawn.failures}")
    ours = device.time(prepare(logits, wanted))
    floor = peaks().microseconds(logits.nbytes + masks.nbytes)
    row: dict[str, Any] = {
        "rows": rows,
        "dtype": str(dtype)[6:],
        "draws": draws,
        "distinct": distinct,
        "bytes": logits.nbytes + masks.nbytes,
        "roofline_us": floor,
        "ours_us": ours.us,
        "ours_over_roofline": ratio(ours.us, floor),
        "whole_call_us": device.wall(lambda: draw(logits, wanted)),
    }
    for name, make in _peers(device, logits, masks, torch.from_numpy(legal), draws, distinct, compiled).items():
        try:
            timed = device.time(make(), graph=name != "torch_multinomial")  # it waits for the device, unseen
            row[f"{name}_us"] = timed.us
            row[f"{name}_over_ours"] = ratio(timed.us, ours.us)
        except Exception as error:
            row[f"{name}_failed"] = first_line(error)
    return row


def _peers(
    device: Device,
    logits: torch.Tensor,
    masks: np.ndarray,
    legal: torch.Tensor,
    draws: int,
    distinct: bool,
    with_compiled: bool,
) -> dict[str, Callable[[], Callable[[], torch.Tensor]]]:
    """Other ways, to be made ready. Masks are where the logits are beforehand, for torch as booleans already."""
    kept = legal[:, : logits.shape[1]].to(device.torch)

    def multinomial() -> torch.Tensor:
        chances = (logits.float().masked_fill(~kept, -torch.inf) / TEMPERATURE).softmax(-1)
        return torch.multinomial(chances, draws, replacement=not distinct)

    def plain(masked: torch.Tensor) -> torch.Tensor:
        """Without waiting for the device, as multinomial does: by a race of exponentials, or by inversion."""
        chances = (masked.float() / TEMPERATURE).softmax(-1)
        if draws == 1:
            return (chances / torch.empty_like(chances).exponential_()).argmax(-1)
        if distinct:
            return (chances / torch.empty_like(chances).exponential_()).topk(draws).indices
        at = torch.rand(len(chances), draws, device=chances.device)
        return torch.searchsorted(chances.cumsum(-1), at)

    def chain(logits: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return plain(logits.masked_fill(~kept, -torch.inf))

    def compiled() -> Callable[[], torch.Tensor]:
        return partial(device.compiled(chain), logits, kept)

    def xgrammar() -> Callable[[], torch.Tensor]:
        from xgrammar import apply_token_bitmask_inplace

        own, bits = logits.clone(), torch.from_numpy(masks).to(device.torch)

        def run() -> torch.Tensor:
            apply_token_bitmask_inplace(own, bits, vocab_size=own.shape[1])
            return plain(own)

        return run

    ways = {"torch_multinomial": lambda: multinomial, "torch": lambda: partial(chain, logits, kept)}
    if with_compiled:  # which takes seconds
        ways["torch_compiled"] = compiled
    if find_spec("xgrammar"):
        ways["xgrammar"] = xgrammar
    return ways
