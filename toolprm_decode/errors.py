"""Every error this package raises on purpose. Each says what was wrong, where, and what to do."""

from __future__ import annotations


class ToolprmError(Exception):
    """Base of all errors of toolprm_decode."""


class ToolSchemaError(ToolprmError, ValueError):
    """A tool or its JSON schema is malformed, impossible to satisfy, or uses what cannot be enforced.

    Attributes:
        tool: name of the tool, or None for a bare schema.
        pointer: JSON pointer into the tool's parameter schema ("" is its root).
        keyword: the schema keyword at fault, or None.
    """

    def __init__(self, message: str, *, tool: str | None = None, pointer: str = "", keyword: str | None = None):
        where = f"tool {tool!r}, " if tool is not None else ""
        at = f"at {pointer or '/'}" + (f", keyword {keyword!r}" if keyword else "")
        super().__init__(f"{where}{at}: {message}")
        self.message, self.tool, self.pointer, self.keyword = message, tool, pointer, keyword


class UnsupportedSchemaError(ToolSchemaError):
    """The schema is valid, but this keyword (or combination) cannot be enforced while decoding."""


class FormatError(ToolprmError, ValueError):
    """An unknown call format, or a text that is not written in the format."""


class TokenizerError(ToolprmError, ValueError):
    """The bytes of a tokenizer's tokens cannot be recovered, or it lacks a token that is needed."""


class ModelNotSupported(ToolprmError, ValueError):
    """The model's architecture is not covered by the attention hook, or it does not fit its tokenizer."""


class RequestError(ToolprmError, ValueError):
    """A prompt, a search setting or a text that cannot be used."""


class BudgetExceeded(ToolprmError, RuntimeError):
    """A limit was reached: compile states, max_tokens, or KV memory."""


class ContextExceeded(BudgetExceeded):
    """A prompt leaves no room in the model's context."""


class MemoryExceeded(BudgetExceeded):
    """A request does not fit into kv_memory, even alone."""


class DeadlineExceeded(ToolprmError, TimeoutError):
    """A request was not answered in the time that it was given."""


class ServerError(ToolprmError, ConnectionError):
    """A server that is needed does not answer, or not as it should."""


class DataError(ToolprmError, ValueError):
    """A file, line or record that cannot be used."""


class CheckpointError(ToolprmError, ValueError):
    """A run folder that cannot be used or gone on with: another base model, other settings, or someone else's."""
