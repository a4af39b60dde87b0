"""A logits processor for generate() of transformers: every answer is legal for a grammar. Nothing is searched.

processor = GrammarLogitsProcessor(CallGrammar(tools, tokenizer))
model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), logits_processor=[processor])
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from toolprm_decode.errors import RequestError
from toolprm_decode.grammar import CallGrammar, Matcher
from toolprm_decode.integrations.masks import after, check_width, forbid, legal_tokens

# Calls whose states are kept: assisted generation goes back by the tokens of a draft.
_CALLS = 128


class GrammarLogitsProcessor(LogitsProcessor):
    """Lets generate() write legal answers only: greedy, sampled, with beams or assisted, alone or in batches.

    transformers tells a processor neither where a prompt ends nor which beam a row continues, and reorders rows as it
    likes. So the place in the grammar belongs to a row's tokens: a row is looked up by all but its last one. Rows that
    were not seen begin an answer, so that a processor may be used for one generate() after another. The states kept
    are bounded, whatever the length of the answers. It belongs to one thread; processors may share grammars.

    Args:
        grammars: the grammar of all prompts, or one a prompt, in the order of the batch; what generate() makes of a
            prompt (num_beams, num_return_sequences) has that prompt's grammar.

    Called with input_ids int64 [rows, length] and scores float [rows, vocabulary], it returns the scores with -inf
    where a token is not legal. A head with more rows than the tokenizer has tokens is fine. Where nothing but the end
    is legal, an answer ends, whatever min_new_tokens says.

    generate() needs as many rows as there are beams. Where fewer continuations are legal it fills up with illegal ones
    of score -inf, and where there are fewer legal answers than it shall return, with repeated or empty ones: their
    sequences_scores are below those of any answer, about -1e9 over the length.

    Raises:
        RequestError: there is no grammar; the rows cannot be shared out among the grammars; another thread calls; or
            the processors before this one forbid all that is legal.
        ModelNotSupported: the model has logits for fewer tokens than the tokenizer has.
        BudgetExceeded: as Matcher.fill_mask().
    """

    supports_continuous_batching = False

    def __init__(self, grammars: CallGrammar | Sequence[CallGrammar]):
        self.grammars = [grammars] if isinstance(grammars, CallGrammar) else list(grammars)
        if not self.grammars:
            raise RequestError("there is no grammar: give one for all prompts, or one a prompt")
        self._states: OrderedDict[bytes, Matcher | None] = OrderedDict()  # None after an illegal token
        self._length = 0  # of the rows of the last call
        self._thread: int | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._thread not in (None, threading.get_ident()):
            raise RequestError("a processor belongs to one thread: make another one, the grammar can be shared")
        self._thread = threading.get_ident()
        for grammar in self.grammars:
            check_width(grammar, scores.shape[1])
        grammars, matchers = self._read(input_ids.to("cpu", torch.int32).numpy())
        stops = [self.grammars[i].stop_ids for i in grammars]
        made = forbid(scores, legal_tokens(matchers, stops, scores.shape[1]))
        for row in torch.isneginf(made).all(1).nonzero().flatten().tolist():
            matcher = matchers[row]
            if matcher is not None and not matcher.is_complete:
                raise RequestError(
                    f"row {row}: other logits processors forbid every legal token after {matcher.text[-40:]!r}: "
                    "leave out bad_words_ids, suppress_tokens, forced_eos_token_id and the like"
                )
            made[row, stops[row]] = 0.0
        return made  # type: ignore[return-value]

    def _read(self, rows: np.ndarray) -> tuple[list[int], list[Matcher | None]]:
        """The index of each row's grammar, and where it stands there, kept for the rows that go on from it."""
        if len(rows) % len(self.grammars):
            raise RequestError(
                f"{len(rows)} rows cannot be shared out among {len(self.grammars)} grammars: give one grammar, or one "
                "for each prompt of the batch"
            )
        grammars = [i * len(self.grammars) // len(rows) for i in range(len(rows))]
        matchers = self._continued(grammars, rows)
        if matchers is None:
            self._states.clear()
            matchers = [self.grammars[i].matcher() for i in grammars]
        self._length = rows.shape[1]
        for i, row, matcher in zip(grammars, rows, matchers, strict=True):
            self._states[_key(i, row)] = matcher
            self._states.move_to_end(_key(i, row))
        while len(self._states) > _CALLS * len(rows):
            self._states.popitem(last=False)
        return grammars, matchers

    def _continued(self, grammars: Sequence[int], rows: np.ndarray) -> list[Matcher | None] | None:
        """The matchers after the last token of each row; None where the rows begin answers."""
        before = [_key(i, row[:-1]) for i, row in zip(grammars, rows, strict=True)]
        if not rows.shape[1] or not all(key in self._states for key in before):
            return None
        matchers = [after(self._states[key], int(row[-1])) for key, row in zip(before, rows, strict=True)]
        # Where generate() goes back behind a draft, it has chosen a legal token. Else it is the prompt of another call,
        # a token longer than what was seen before.
        follows = rows.shape[1] == self._length + 1
        return matchers if follows or None not in matchers else None


def _key(grammar: int, row: np.ndarray) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16, salt=grammar.to_bytes(8, "little")).digest()
