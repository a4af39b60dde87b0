"""Draws the samples of a plan from the policy's logits, wherever those are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from toolprm_decode import _core
from toolprm_decode.kernels.dispatch import backend

if TYPE_CHECKING:
    from toolprm_decode.kernels import sampling


@dataclass(frozen=True)
class Drawn:
    """A sample each, as commit_tokens() takes them.

    Attributes:
        tokens: int32. logprobs: float64. perturbed: float64 [samples, 2].
        failures: what is wrong with the logits of a request, by its id.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    perturbed: np.ndarray
    failures: dict[int, str]


def draw(plan: _core.Plan, full: torch.Tensor, few: torch.Tensor, device: torch.device) -> Drawn:
    """Draw from logits [full outputs, at least the vocabulary] and [other outputs, few ids] of a model on `device`."""
    computes = backend(device)
    if computes == "torch":
        return Drawn(*_core.sample_plan(plan, _host(full), _host(few)))
    from toolprm_decode.kernels import sampling  # triton may not be installed where torch computes

    draw_rows = sampling.draw if computes == "triton" else sampling.draw_reference
    n_full, requests = plan.full_outputs, plan.requests
    parts: list[sampling.Drawn] = []
    failures: dict[int, str] = {}
    for logits, first, last, ids in ((full, 0, n_full, None), (few, n_full, len(requests), plan.few_ids)):
        if first == last:
            continue
        drawn = draw_rows(logits.to(device), _wanted(plan, first, last, ids))
        parts.append(drawn)
        failures |= {requests[first + row]: reason for row, reason in drawn.failures.items()}
    return Drawn(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.perturbed for part in parts]),
        failures,
    )


def _wanted(plan: _core.Plan, first: int, last: int, ids: np.ndarray | None) -> sampling.Wanted:
    """Of the outputs first to last."""
    ends = np.cumsum(plan.draws)
    samples = slice(int(ends[first] - plan.draws[first]), int(ends[last - 1]))
    outputs = slice(first, last)
    used, mask_index = np.unique(plan.mask_index[outputs], return_inverse=True)
    from toolprm_decode.kernels.sampling import Wanted

    return Wanted(
        masks=plan.masks[used],
        mask_index=mask_index.astype(np.int32),
        counts=plan.draws[outputs],
        methods=plan.sampling[outputs],
        temperatures=plan.temperatures[outputs],
        uniforms=plan.uniforms[samples],
        gumbel_uniforms=plan.gumbel_uniforms[samples],
        parents=plan.parents[outputs],
        ids=ids,
    )


def _host(logits: torch.Tensor) -> np.ndarray:
    array: np.ndarray = logits.detach().float().cpu().numpy()
    return np.ascontiguousarray(array)
