"""What is legal at every byte of an answer, and where each decision inside a call ends."""

from __future__ import annotations

from toolprm_decode.grammar.call_grammar import CallGrammar, Matcher, Step, fill_masks

__all__ = ["CallGrammar", "Matcher", "Step", "fill_masks"]
