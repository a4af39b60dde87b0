"""What a request of a serving stack may ask of the grammar, as JSON, and the grammars made of it.

    {"tools": [...], "format": "hermes", "max_calls": 1}     or     {"schema": {...}}

Beside them stand the options of CallGrammar, or of CallGrammar.for_schema().
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from toolprm_decode.errors import RequestError
from toolprm_decode.grammar import CallGrammar

_SHARED = {"strict": bool, "flexible_whitespace": bool}
_OF_CALLS = {"format": str, "max_calls": int, "allow_no_call": bool, **_SHARED}

# Grammars kept. One takes from kilobytes to a few megabytes.
_KEPT = 128


class Grammars:
    """The grammars of a tokenizer that were asked for last; for any number of threads.

    stop_ids: tokens that end an answer; default: the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int] | None = None):
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._made: OrderedDict[str, CallGrammar] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, wish: Any) -> CallGrammar:
        """The grammar of a wish: a dict, or its JSON text.

        Raises RequestError where it is no wish, and what CallGrammar raises.
        """
        asked = read_wish(wish)
        key = json.dumps(asked)  # members of a schema keep their order: it may be the one they are written in
        with self._guard:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        options: dict[str, Any] = {**asked, "stop_ids": self._stop_ids}
        if "schema" in options:
            grammar = CallGrammar.for_schema(options.pop("schema"), self._tokenizer, **options)
        else:
            grammar = CallGrammar(options.pop("tools"), self._tokenizer, **options)
        with self._guard:
            self._made[key] = grammar
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return grammar


def read_wish(wish: Any) -> dict[str, Any]:
    """A wish as a dict that names tools or a schema. Raises RequestError."""
    if isinstance(wish, str):
        try:
            wish = json.loads(wish)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the wish for a grammar is not JSON ({error})") from error
    if not isinstance(wish, dict) or ("tools" in wish) == ("schema" in wish):
        raise RequestError('a wish for a grammar is {"tools": [...]} or {"schema": {...}}, with options beside them')
    known = _OF_CALLS if "tools" in wish else _SHARED
    for name, value in wish.items():
        if name in ("tools", "schema"):
            continue
        if name not in known:
            raise RequestError(f"unknown option {name!r:.60} of a grammar: use {', '.join(known)}")
        if type(value) is not known[name] and not (name == "max_calls" and value is None):
            raise RequestError(f"{name} must be of type {known[name].__name__}, not {value!r:.60}")
    return wish


def check_wish(wish: Any) -> None:
    """Raises what making its grammar would, without the model's tokenizer. A grammar may still not suit that one."""
    _checked().get(wish)


@lru_cache
def _checked() -> Grammars:
    """Grammars over bytes: what is wrong with tools shows with any tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return Grammars(tokenizer)
