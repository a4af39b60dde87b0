"""The cost of many candidates: ours beside a careful and a plain loop over transformers, on a small shape.

    pytest benchmarks/test_forks.py

`toolprm benchmark forks` measures the same on the 0.5B shape and prints the ratios. The numbers of one run compare with
each other and with nothing else.
"""

from __future__ import annotations

from typing import Any

import pytest

from toolprm_decode.benchmark.careful_loop import CarefulLoop
from toolprm_decode.benchmark.forks import Forks, Settings
from toolprm_decode.benchmark.models import QUICK, find_tokenizer
from toolprm_decode.benchmark.peer_grammar import PeerGrammar
from toolprm_decode.benchmark.peers import PeerLoop
from toolprm_decode.benchmark.plain_loop import PlainLoop
from toolprm_decode.benchmark.workload import QUICK_TOOLS, REQUESTS

ROUNDS = 3


@pytest.fixture(scope="module")
def forks() -> Forks:
    tokenizer, _ = find_tokenizer(None)
    forks = Forks(Settings(QUICK, QUICK_TOOLS, REQUESTS), tokenizer, lambda stage, share: None)
    forks.calibrate()
    forks.warm_up()
    return forks


@pytest.mark.benchmark(group="one request, 4 beams of 8 candidates")
def test_ours(benchmark: Any, forks: Forks) -> None:
    run = benchmark.pedantic(lambda: forks.ours(REQUESTS[0]), rounds=ROUNDS)
    benchmark.extra_info["answers"] = [answer.text for answer in run.decoded.finished]


@pytest.mark.benchmark(group="one request, 4 beams of 8 candidates")
@pytest.mark.parametrize("loop", [CarefulLoop, PlainLoop], ids=lambda loop: loop.name)
def test_loop(benchmark: Any, forks: Forks, loop: type[PeerLoop]) -> None:
    pytest.importorskip("xgrammar")
    masks = PeerGrammar(forks.grammar.tools, forks.tokenizer, forks.policy.vocab_size)
    run = benchmark.pedantic(lambda: forks.peer(loop, masks), rounds=ROUNDS if loop is CarefulLoop else 1)
    benchmark.extra_info["answers"] = run.texts


@pytest.mark.benchmark(group="one request, one beam, a decided policy")
@pytest.mark.parametrize("width", [1, 4, 16])
def test_width(benchmark: Any, forks: Forks, width: int) -> None:
    benchmark.pedantic(lambda: forks.ours(REQUESTS[0], forks.one_beam(width)), rounds=ROUNDS)


@pytest.mark.benchmark(group=f"{len(REQUESTS)} requests over the same tools")
@pytest.mark.parametrize("together", [True, False], ids=["batch", "one-after-another"])
def test_batch(benchmark: Any, forks: Forks, together: bool) -> None:
    benchmark.pedantic(forks.together if together else forks.apart, rounds=1)
