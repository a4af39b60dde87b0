"""The libraries that this package is compared with, and how they are told to write json.dumps' white space."""

from __future__ import annotations

import importlib
from typing import Any

from toolprm_decode.errors import RequestError

# Of GrammarCompiler.compile_json_schema(), by JSON Schema's own rule for additional properties.
XGRAMMAR_OPTIONS: dict[str, Any] = {"any_whitespace": False, "separators": (", ", ": "), "strict_mode": False}
# The defaults of LLMatcher.grammar_from_json_schema().
LLGUIDANCE_OPTIONS: dict[str, Any] = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


def library(name: str) -> Any:
    """A peer's module. Raises RequestError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"{name} is needed to compare with ({error}): pip install 'toolprm_decode[bench]'"
        raise RequestError(message) from error
