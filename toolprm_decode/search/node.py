"""A candidate of a search."""

from __future__ import annotations

from dataclasses import dataclass

from toolprm_decode.grammar.call_grammar import Step


@dataclass(frozen=True)
class Node:
    """A distinct candidate.

    Attributes:
        parent: index of the candidate it continues, None at the start.
        steps: the steps that it added.
        rank: what it was ranked by.
        multiplicity: how many draws ended here.
        kept: it was among the best and went on, or became an answer.
        finished: it is a whole answer. closed: max_tokens ended it.
    """

    parent: int | None
    steps: tuple[Step, ...]
    rank: float
    multiplicity: int
    kept: bool
    finished: bool
    closed: bool
