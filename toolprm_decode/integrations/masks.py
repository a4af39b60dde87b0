"""Masks of legal tokens on logits of torch: what the serving stacks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from toolprm_decode.errors import ModelNotSupported
from toolprm_decode.grammar import CallGrammar, Matcher, fill_masks


def after(matcher: Matcher | None, token: int) -> Matcher | None:
    """A fork that has read a token; None where that is not legal. An answer that has ended stays as it is."""
    if matcher is None or matcher.is_stopped:
        return matcher
    fork = matcher.fork()
    return None if fork.try_accept(token) is None else fork


def legal_tokens(matchers: Sequence[Matcher | None], stop_ids: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """The masks of rows of logits of that width: int32 [rows, words], bit = legal.

    Where an answer has ended, or has left its grammar (None), nothing but the row's stop ids is legal.
    Raises BudgetExceeded as Matcher.fill_mask().
    """
    masks = np.zeros((len(matchers), -(-width // 32)), np.int32)
    going_on = {i: matcher for i, matcher in enumerate(matchers) if matcher is not None and not matcher.is_stopped}
    legal = masks[list(going_on)]
    fill_masks(list(going_on.values()), legal)
    masks[list(going_on)] = legal
    for row in set(range(len(matchers))).difference(going_on):
        for stop in stop_ids[row]:
            masks[row].view(np.uint32)[stop // 32] |= np.uint32(1 << stop % 32)
    return masks


def check_width(grammar: CallGrammar, width: int) -> None:
    """Raises ModelNotSupported where a model with logits for that many tokens cannot write all that is legal."""
    if width < grammar.vocabulary_size:
        raise ModelNotSupported(
            f"the model has logits for {width} tokens, and the grammar's tokenizer has {grammar.vocabulary_size}: make "
            "the grammar with the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer))"
        )


def illegal(words: torch.Tensor, width: int) -> torch.Tensor:
    """Which tokens have no bit in masks int32 [rows, words]: bool [rows, width], on the masks' device.

    Masks travel to a device as they are, an eighth of what one of bools would be.
    """
    bits = (words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
    return bits.flatten(1)[:, :width] == 0


def forbid(logits: torch.Tensor, masks: np.ndarray) -> torch.Tensor:
    """The logits [rows, width], -inf where the row's mask, int32 [rows, words], has no bit. What is given stays."""
    words = torch.from_numpy(masks).to(logits.device)
    return logits.masked_fill(illegal(words, logits.shape[1]), -math.inf)
