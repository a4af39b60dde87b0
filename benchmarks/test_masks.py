"""Compile, mask, accept and fork: this grammar beside xgrammar and llguidance, one vocabulary, one set of texts.

    pytest benchmarks/test_masks.py

`toolprm benchmark masks` measures each mask by itself, tool sets, fresh processes and memory, and prints ratios. The
numbers of one run compare with each other and with nothing else: machines differ, and so do their loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.benchmark.engines import LLGuidance, Ours, XGrammar
from toolprm_decode.benchmark.masks import Case, accepts, read_cases
from toolprm_decode.errors import RequestError

SCHEMAS = 40


def made(kind: type[Ours | XGrammar | LLGuidance], tokenizer: Any) -> Any:
    """The engine, new; the test is skipped where it is not installed."""
    try:
        return kind(tokenizer)
    except RequestError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cases(data_dir: Path, qwen_tokenizer: Any) -> list[Case]:
    """Schemas of function calls that all of them compile, with texts that all of them accept."""
    engines = [made(kind, qwen_tokenizer) for kind in (Ours, XGrammar, LLGuidance)]
    read = read_cases(data_dir, qwen_tokenizer, 4 * SCHEMAS)
    return [case for case in read if all(accepts(engine, case) for engine in engines)][:SCHEMAS]


@pytest.fixture(scope="module", params=[Ours, XGrammar, LLGuidance], ids=lambda kind: kind.name)
def engine(request: pytest.FixtureRequest, qwen_tokenizer: Any) -> Any:
    return made(request.param, qwen_tokenizer)


@pytest.mark.benchmark(group=f"compile {SCHEMAS} schemas, in a process that has compiled others")
def test_compile(benchmark: Any, engine: Any, cases: list[Case], qwen_tokenizer: Any) -> None:
    # A new engine each round: xgrammar remembers schemas.
    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        return (type(engine)(qwen_tokenizer),), {}

    benchmark.pedantic(lambda fresh: [fresh.compile(case.schema) for case in cases], setup=setup, rounds=3)


def walk(engine: Any, compiled: Any, case: Case) -> None:
    """Asks for each mask along the text."""
    walker = engine.start(compiled)
    for token in case.tokens:
        walker.fill()
        assert walker.accept(token)


@pytest.mark.benchmark(group=f"mask and accept along {SCHEMAS} texts, masks seen before")
def test_walk(benchmark: Any, engine: Any, cases: list[Case]) -> None:
    grammars = [engine.compile(case.schema) for case in cases]
    benchmark.extra_info["masks"] = sum(len(case.tokens) for case in cases)
    benchmark(lambda: [walk(engine, *pair) for pair in zip(grammars, cases, strict=True)])


@pytest.mark.benchmark(group=f"mask and accept along {SCHEMAS} texts, first pass")
def test_first_walk(benchmark: Any, engine: Any, cases: list[Case]) -> None:
    def setup() -> tuple[tuple[list[Any]], dict[str, Any]]:
        return ([engine.compile(case.schema) for case in cases],), {}

    benchmark.pedantic(
        lambda grammars: [walk(engine, *pair) for pair in zip(grammars, cases, strict=True)], setup=setup, rounds=5
    )


@pytest.mark.benchmark(group="fork, at the end of a text")
def test_fork(benchmark: Any, engine: Any, cases: list[Case]) -> None:
    walker = engine.start(engine.compile(cases[0].schema))
    for token in cases[0].tokens:
        walker.accept(token)
    benchmark(walker.fork)
