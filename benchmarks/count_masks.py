"""Counts what masks cost, which does not depend on the machine's load: trie nodes visited and, under callgrind,
instructions.

    python benchmarks/count_masks.py
    valgrind --tool=callgrind --toggle-collect='*fill_mask*' --callgrind-out-file=/dev/null \\
        python benchmarks/count_masks.py first     # or: warm

Walks along the texts of `toolprm benchmark masks`. Without an argument it prints, for each kind of state, how many
nodes were visited to find its mask, and how many prefixes its legal tokens have, which are the least that a plain walk
over the vocabulary reads. With one it only asks for the masks, each for the first time or all of them once more, and
says how many they were: callgrind's count over that is the instructions of a mask. Needs $TOOLPRM_DATA.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from toolprm_decode.benchmark.masks import SCHEMAS, Case, read_cases
from toolprm_decode.benchmark.models import find_tokenizer
from toolprm_decode.benchmark.peer_grammar import bits
from toolprm_decode.grammar import CallGrammar

KINDS = ((1, 1), (2, 16), (17, 128), (129, 10_000), (10_001, 1_000_000))


def main(task: str | None) -> None:
    data = Path(os.environ["TOOLPRM_DATA"])
    tokenizer, _ = find_tokenizer(str(data / "tokenizers" / "qwen2.5"))
    cases = list(read_cases(data, tokenizer, SCHEMAS))
    grammars = [CallGrammar.for_schema(case.schema, tokenizer) for case in cases]
    if task is None:
        count_nodes(grammars, cases)
    else:
        walk(grammars, cases, warm=task == "warm")


def walk(grammars: list[CallGrammar], cases: list[Case], *, warm: bool) -> None:
    row, masks = np.zeros((grammars[0].vocabulary_size + 31) // 32, np.int32), 0
    for grammar, case in zip(grammars, cases, strict=True):
        matcher = grammar.matcher()
        for token in case.tokens:
            if warm:
                _ = matcher.mask_nodes  # finds the mask, outside of what is counted
            matcher.fill_mask(row)
            masks += 1
            if matcher.try_accept(token) is None:
                break
    print(f"{masks} masks")


def count_nodes(grammars: list[CallGrammar], cases: list[Case]) -> None:
    row = np.zeros((grammars[0].vocabulary_size + 31) // 32, np.int32)
    found: dict[tuple[int, int], list[tuple[int, int]]] = {kind: [] for kind in KINDS}
    for grammar, case in zip(grammars, cases, strict=True):
        matcher = grammar.matcher()
        for token in case.tokens:
            matcher.fill_mask(row)
            legal = bits(row, grammar.vocabulary_size)
            kind = next(kind for kind in KINDS if kind[0] <= len(legal) <= kind[1])
            found[kind].append((matcher.mask_nodes, plain_nodes(grammar, legal)))
            if matcher.try_accept(token) is None:
                break
    print("legal tokens, masks, nodes visited, prefixes of the legal tokens")
    for (low, high), counts in found.items():
        if counts:
            fast, plain = np.mean(counts, axis=0)
            print(f"{low:,} to {high:,}: {len(counts)} masks, {fast:,.1f} nodes, {plain:,.0f}")
    every = np.array([count for counts in found.values() for count in counts])
    print(f"all: {len(every)} masks, {every[:, 0].mean():,.1f} nodes, {every[:, 1].mean():,.0f}")


def plain_nodes(grammar: CallGrammar, legal: Any) -> int:
    """Prefixes of legal tokens: the least that a walk over the vocabulary reads."""
    vocabulary = grammar._vocabulary
    prefixes: set[bytes] = set()
    for token in legal:
        text = vocabulary.token(int(token))
        prefixes.update(text[:end] for end in range(1, len(text) + 1))
    return len(prefixes)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
