"""A grammar backend for SGLang: its structured outputs by our grammar. Nothing is searched.

SGLang finds it by itself where this package is installed (entry points `sglang.srt.plugins`), and uses it when it is
started with --grammar-backend toolprm. Then `json_schema` of a request is

- a JSON schema: one value, with any white space unless --constrained-json-disable-any-whitespace is set; or
- {"toolprm": {"tools": [...], "format": "hermes"}}: calls of tools, a wish as in `toolprm_decode.integrations.wishes`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.constrained.base_grammar_backend import (
    BaseGrammarBackend,
    BaseGrammarObject,
    InvalidGrammarObject,
    register_grammar_backend,
)

from toolprm_decode.errors import RequestError, ToolprmError
from toolprm_decode.grammar import Matcher, fill_masks
from toolprm_decode.integrations.masks import check_width, illegal
from toolprm_decode.integrations.wishes import Grammars

log = logging.getLogger(__name__)

NAME = "toolprm"

# How SGLang asks for any JSON at all.
_ANY = "$$ANY$$"


def register() -> None:
    """Makes the backend known to SGLang under its name."""
    register_grammar_backend(NAME, make_backend)
    from sglang.srt.server_args import GRAMMAR_BACKEND_CHOICES, add_grammar_backend_choices

    if NAME not in GRAMMAR_BACKEND_CHOICES:
        add_grammar_backend_choices([NAME])


def make_backend(
    server_args: Any, tokenizer: Any, vocab_size: int, eos_token_ids: set[int] | None = None
) -> GrammarBackend:
    """The backend of a server. Raises RequestError where the server reasons: it does not tell when that is over."""
    if getattr(server_args, "reasoning_parser", None):
        raise RequestError(
            f"--grammar-backend {NAME} does not go with --reasoning-parser: the grammar would begin before the answer"
        )
    flexible = not getattr(server_args, "constrained_json_disable_any_whitespace", False)
    return GrammarBackend(Grammars(tokenizer, sorted(eos_token_ids) if eos_token_ids else None), vocab_size, flexible)


class GrammarBackend(BaseGrammarBackend):
    """Makes the grammars that requests ask for; SGLang keeps them and copies them for each request.

    Args:
        grammars: of the model's tokenizer. vocab_size: of its logits. flexible_whitespace: of values for a schema.
    """

    def __init__(self, grammars: Grammars, vocab_size: int, flexible_whitespace: bool):
        super().__init__()
        self._grammars, self._vocab_size, self._flexible = grammars, vocab_size, flexible_whitespace

    def dispatch_json(self, key_string: str) -> BaseGrammarObject:
        """A grammar for `json_schema`; what is wrong with it goes to the request that has it."""
        try:
            grammar = self._grammars.get(self._wish(key_string))
            check_width(grammar, self._vocab_size)
        except ToolprmError as error:
            return InvalidGrammarObject(str(error))
        return GrammarObject(grammar.matcher())

    def _wish(self, text: str) -> Any:
        if text == _ANY:
            schema: Any = True
        else:
            try:
                schema = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"json_schema is not JSON ({error})") from error
            if isinstance(schema, dict) and schema.keys() == {NAME}:
                return schema[NAME]
        return {"schema": schema, "flexible_whitespace": self._flexible}

    def dispatch_regex(self, key_string: str) -> BaseGrammarObject:
        return self._refused("regex")

    def dispatch_ebnf(self, key_string: str) -> BaseGrammarObject:
        return self._refused("ebnf")

    def dispatch_structural_tag(self, key_string: str) -> BaseGrammarObject:
        return self._refused("structural_tag")

    def _refused(self, kind: str) -> BaseGrammarObject:
        return InvalidGrammarObject(
            f"the grammar backend {NAME} knows no {kind}: ask with json_schema, which may also be a wish for calls"
        )


class GrammarObject(BaseGrammarObject):
    """A request's place in its grammar. Masks are int32 tensors [rows, words] on the CPU, bit = legal."""

    def __init__(self, matcher: Matcher):
        super().__init__()
        self._matcher = matcher

    def accept_token(self, token: int) -> None:
        """Reads a token; what comes after the end is ignored. Raises ValueError where it is not legal."""
        if not self._matcher.is_stopped:
            self._matcher.accept(token)

    def rollback(self, k: int) -> None:
        """Takes the last k tokens back."""
        self._matcher.rollback(k)

    def is_terminated(self) -> bool:
        """Whether the token that ends an answer was read."""
        return self._matcher.is_stopped

    def copy(self) -> GrammarObject:
        """An independent one, in the same place."""
        return GrammarObject(self._matcher.fork())

    def allocate_vocab_mask(self, vocab_size: int, batch_size: int, device: Any) -> torch.Tensor:
        """Masks that allow everything."""
        return torch.full((batch_size, -(-vocab_size // 32)), -1, dtype=torch.int32)

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        """Writes what is legal into a row."""
        self._matcher.fill_mask(vocab_mask[idx].numpy())

    @staticmethod
    def fill_vocab_mask_batched(entries: Sequence[Any], vocab_mask: torch.Tensor) -> None:
        """The rows of several requests at once, on the cores that there are; other rows stay as they are."""
        if not entries or not all(type(entry.grammar) is GrammarObject for entry in entries):
            BaseGrammarObject.fill_vocab_mask_batched(entries, vocab_mask)
            return
        rows = [entry.row for entry in entries]
        legal = vocab_mask.numpy()[rows]
        fill_masks([entry.grammar._matcher for entry in entries], legal)
        vocab_mask.numpy()[rows] = legal

    @staticmethod
    def reset_vocab_mask(vocab_mask: torch.Tensor) -> None:
        """Allows everything again."""
        vocab_mask.fill_(-1)

    @staticmethod
    def move_vocab_mask(vocab_mask: torch.Tensor, device: Any) -> torch.Tensor:
        """The masks on the logits' device."""
        return vocab_mask.to(device, non_blocking=True)

    @staticmethod
    def apply_vocab_mask(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
        """Writes -inf into logits [rows, vocabulary] where a token is not legal."""
        logits.masked_fill_(illegal(vocab_mask, logits.shape[1]), float("-inf"))
