"""Sequences packed into one row as a tree: what they share from the start is computed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TokenTree:
    """A trie of token sequences. A token sees its ancestors and itself, and its position is its depth.

    Run through a model as one row (tokens, positions and the mask as a boolean attention mask [1, 1, L, L]), each
    sequence gets the hidden states that it would get on its own.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int], parent: int = -1) -> list[int]:
        """Adds a sequence below a node (-1: from the start), and gives the node of each of its tokens."""
        path = []
        for token in tokens:
            node = self._children.get((parent, token))
            if node is None:
                node = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(parent)
                self._children[parent, token] = node
            path.append(node)
            parent = node
        return path

    def missing(self, tokens: Sequence[int], parent: int = -1) -> int:
        """How many nodes `add` would make."""
        for index, token in enumerate(tokens):
            node = self._children.get((parent, token))
            if node is None:
                return len(tokens) - index
            parent = node
        return 0

    def positions(self) -> np.ndarray:
        """Depths, int64 [L]."""
        depths = np.zeros(len(self), np.int64)
        for node, parent in enumerate(self.parents):
            depths[node] = depths[parent] + 1 if parent >= 0 else 0
        return depths

    def mask(self, length: int | None = None) -> np.ndarray:
        """Who sees whom, bool [length, length]; rows past the tree see themselves alone."""
        length = len(self) if length is None else length
        seen = np.eye(length, dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen
