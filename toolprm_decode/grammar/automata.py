"""Compiled automata, shared by all grammars, and the error for what no value satisfies."""

from __future__ import annotations

from functools import lru_cache

from toolprm_decode import _core
from toolprm_decode.errors import ToolSchemaError
from toolprm_decode.grammar.fsm import STATE_BUDGET, ByteFSM, byte_fsm, from_strings

__all__ = ["Impossible", "fsm_dfa", "regex_dfa", "strings_dfa"]


class Impossible(ToolSchemaError):
    """No value satisfies the schema."""


@lru_cache(maxsize=4096)
def regex_dfa(regex: str) -> _core.Dfa:
    """The compiled automaton of a regex, shared by all grammars."""
    fsm = byte_fsm(regex)
    return _core.Dfa(fsm.transitions, fsm.accepting)


@lru_cache(maxsize=4096)
def strings_dfa(strings: tuple[bytes, ...]) -> _core.Dfa:
    """The compiled automaton of exactly these strings."""
    try:
        return _core.strings_dfa(strings, STATE_BUDGET)
    except (ValueError, _core.BudgetError):  # none, or many: this one says what is wrong, if anything is
        fsm = from_strings(strings)
    return _core.Dfa(fsm.transitions, fsm.accepting)


@lru_cache(maxsize=1024)
def fsm_dfa(fsm: ByteFSM) -> _core.Dfa:
    """The compiled form of an automaton, shared by equal ones."""
    return _core.Dfa(fsm.transitions, fsm.accepting)
