"""What is legal at every byte of an answer, and where each decision inside a call ends."""

from __future__ import annotations

from toolprm_decode.grammar.call_grammar import CallGrammar, Matcher, Step, fill_masks
from toolprm_decode.grammar.leniency import SchemaWarning

__all__ = ["CallGrammar", "Matcher", "SchemaWarning", "Step", "fill_masks"]
