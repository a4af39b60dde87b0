"""Grammar-constrained function calls with process-reward search.

decode(model, prm, tools, prompt) writes calls that are legal for the tools, each decision inside them scored.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolprm_decode.decoding import Answer, Decoded, Decoder, Request, decode
    from toolprm_decode.demo import load_demo
    from toolprm_decode.engine import Engine
    from toolprm_decode.grammar import CallGrammar, Matcher, Step
    from toolprm_decode.rewards import ToolPRM
    from toolprm_decode.search import Search, SearchTree

_PLACES = {
    "Answer": "decoding",
    "CallGrammar": "grammar",
    "Decoded": "decoding",
    "Decoder": "decoding",
    "Engine": "engine",
    "Matcher": "grammar",
    "Request": "decoding",
    "Search": "search",
    "SearchTree": "search",
    "Step": "grammar",
    "ToolPRM": "rewards",
    "decode": "decoding",
    "load_demo": "demo",
}

__all__ = [
    "Answer",
    "CallGrammar",
    "Decoded",
    "Decoder",
    "Engine",
    "Matcher",
    "Request",
    "Search",
    "SearchTree",
    "Step",
    "ToolPRM",
    "decode",
    "load_demo",
]


def __getattr__(name: str) -> Any:
    # On first use: importing torch and transformers takes seconds, and the grammar needs neither.
    if name in _PLACES:
        return getattr(import_module(f"toolprm_decode.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
