"""Masks of legal tokens on logits of torch: what the serving stacks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from toolprm_decode.errors import ModelNotSupported
from toolprm_decode.grammar import CallGrammar, Matcher, fill_masks

# An answer on its way: its grammar, and where it stands; None once it is not legal any more.
Place = tuple[CallGrammar, Matcher | None]


def legal_tokens(places: Sequence[Place], width: int) -> np.ndarray:
    """The masks of rows of logits of that width: int32 [rows, words], bit = legal.

    Where an answer has ended, or has left the grammar, nothing but the end is legal.
    Raises ModelNotSupported where the grammar's tokenizer has more tokens than the model has logits, BudgetExceeded as
    Matcher.fill_mask().
    """
    masks = np.zeros((len(places), -(-width // 32)), np.int32)
    for grammar, _ in places:
        check_width(grammar, width)
    open_rows = [row for row, (_, matcher) in enumerate(places) if matcher is not None and not matcher.is_stopped]
    legal = masks[open_rows]
    fill_masks([places[row][1] for row in open_rows], legal)  # type: ignore[misc]  # None is left out above
    masks[open_rows] = legal
    for row in set(range(len(places))).difference(open_rows):
        for stop in places[row][0].stop_ids:
            masks[row].view(np.uint32)[stop // 32] |= np.uint32(1 << stop % 32)
    return masks


def check_width(grammar: CallGrammar, width: int) -> None:
    """Raises ModelNotSupported where a model with logits for that many tokens cannot write all that is legal."""
    if width < grammar.vocabulary_size:
        raise ModelNotSupported(
            f"the model has logits for {width} tokens, and the grammar's tokenizer has {grammar.vocabulary_size}: make "
            "the grammar with the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer))"
        )


def forbid(logits: torch.Tensor, masks: np.ndarray) -> torch.Tensor:
    """The logits [rows, width], -inf where the row's mask has no bit. What is given stays as it is.

    The words travel to the logits' device as they are: a 32nd of a mask of floats, an eighth of one of bools.
    """
    words = torch.from_numpy(masks).to(logits.device)
    bits = (words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device)) & 1
    return logits.masked_fill(bits.flatten(1)[:, : logits.shape[1]] == 0, -math.inf)
