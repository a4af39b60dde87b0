"""Counts what masks cost, which does not depend on the machine's load: trie nodes visited and, under callgrind,
instructions.

    python benchmarks/count_masks.py
    CMAKE_ARGS=-DCMAKE_STRIP=/bin/true pip install -e .      # a core whose functions keep their names
    valgrind --tool=callgrind --toggle-collect='*quick_fill_mask*' --callgrind-out-file=/dev/null \\
        python benchmarks/count_masks.py first --schemas 10     # or: warm
    valgrind --tool=callgrind --toggle-collect='xgrammar::GrammarMatcher::FillNextTokenBitmask*' \\
        --callgrind-out-file=/dev/null python benchmarks/count_masks.py first --schemas 10 --engine xgrammar

Walks along the texts of `toolprm benchmark masks`. Without a task it prints, for each kind of state, how many nodes
were visited to find its mask, and how many prefixes its legal tokens have, which are the least that a plain walk over
the vocabulary reads. With one it only asks for the masks, each for the first time or all of them once more, and says
how many they were: callgrind's count over that is the instructions of a mask. What belongs to the vocabulary is found
before. Ten schemas take callgrind some minutes, most of them to load the tokenizer. Needs $TOOLPRM_DATA.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from toolprm_decode.benchmark.engines import Ours, XGrammar
from toolprm_decode.benchmark.masks import SCHEMAS, Case, read_cases
from toolprm_decode.benchmark.models import find_tokenizer
from toolprm_decode.benchmark.peer_grammar import bits
from toolprm_decode.grammar import CallGrammar

KINDS = ((1, 1), (2, 16), (17, 128), (129, 10_000), (10_001, 1_000_000))


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts what masks cost.")
    parser.add_argument("task", nargs="?", choices=("first", "warm"), help="what to ask for under callgrind")
    parser.add_argument("--schemas", type=int, default=SCHEMAS, metavar="N", help=f"default {SCHEMAS}")
    parser.add_argument("--engine", choices=("toolprm_decode", "xgrammar"), default="toolprm_decode", help="of first")
    options = parser.parse_args()
    data = Path(os.environ["TOOLPRM_DATA"])
    tokenizer, _ = find_tokenizer(str(data / "tokenizers" / "qwen2.5"))
    cases = list(read_cases(data, tokenizer, options.schemas))
    if options.task == "first":
        engine = XGrammar(tokenizer) if options.engine == "xgrammar" else Ours(tokenizer)
        read_free_strings(tokenizer)
        print(f"{sum(walk(engine, case) for case in cases)} masks")
        return
    grammars = [CallGrammar.for_schema(case.schema, tokenizer) for case in cases]
    if options.task == "warm":
        print(f"{sum(map(walk_again, grammars, cases))} masks")
    else:
        count_nodes(grammars, cases)


def read_free_strings(tokenizer: Any) -> None:
    """Finds, outside of what is counted, what all grammars of a vocabulary share."""
    matcher = CallGrammar.for_schema({"type": "string"}, tokenizer).matcher()
    for text in (b'"', b"a"):
        matcher.accept_bytes(text)
        _ = matcher.mask_nodes


def walk(engine: Ours | XGrammar, case: Case) -> int:
    """Asks for the masks along a text, and returns their number."""
    walker = engine.start(engine.compile(case.schema))
    for position, token in enumerate(case.tokens, 1):
        walker.fill()
        if not walker.accept(token):
            return position
    return len(case.tokens)


def walk_again(grammar: CallGrammar, case: Case) -> int:
    """The same, of masks that were found outside of what is counted."""
    row, matcher = np.zeros((grammar.vocabulary_size + 31) // 32, np.int32), grammar.matcher()
    for position, token in enumerate(case.tokens, 1):
        _ = matcher.mask_nodes  # finds the mask
        matcher.fill_mask(row)
        if matcher.try_accept(token) is None:
            return position
    return len(case.tokens)


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
    main()
