"""The attention that replaces a transformers model's own while an Engine runs it.

A model built on transformers' ``AttentionInterface`` hands every layer's query, key and value to a function chosen by
name. The one registered here under `NAME` hands them on to the pass that is under way: it writes the new keys and
values into a `KVStore` and reads the context from it, as a `Batch` says: rows of tokens, each behind segments of the
store that other rows may share and behind tokens of its own.

No mask function is registered under the name, so the model builds no mask: the pass knows what each token sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from toolprm_decode.errors import ModelNotSupported

NAME = "toolprm"


@dataclass(frozen=True)
class Layer:
    """What a layer asks of its attention, beside query, key and value."""

    index: int
    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None  # [H], a logit per head that takes part in the softmax without a value


class Pass(Protocol):
    """One run of the model over a `Batch`, seen from its layers."""

    def attend(self, layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query [H, T, D], key [Hk, T, D] and value [Hk, T, Dv] of a layer to its output [T, H, Dv], contiguous."""
        ...


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    toolprm: Pass | None = None,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [1, H, T, D], key [1, Hk, T, D], value [1, Hk, T, Dv] to [1, T, H, Dv].

    Raises ModelNotSupported where the model made a mask of its own: it would be lost.
    """
    if toolprm is None:
        raise RuntimeError("this model is running inside an Engine in another thread: call it through that engine")
    if attention_mask is not None:
        raise ModelNotSupported(f"{type(module).__name__} builds an attention mask of its own, which would be lost")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer = Layer(int(module.layer_idx), scale, sliding_window or None, softcap or None, s_aux)
    return toolprm.attend(layer, query[0], key[0], value[0])[None], None


AttentionInterface.register(NAME, attention)
