"""How this package and its peers judge public suites of schemas, and what that takes.

    pytest benchmarks/test_conformance.py
    python -m toolprm_decode.benchmark.conformance --markdown FILE    # the same as a table, with --json as counts

The tables are printed at the end; the counts are in the extra_info of --benchmark-json too. Nothing is asserted: what
may not get worse is kept by tests/grammar/test_conformance.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.benchmark.conformance import Results, markdown, run
from toolprm_decode.benchmark.schema_engines import engines
from toolprm_decode.benchmark.suites import SUITES, read_suite
from toolprm_decode.errors import DataError, RequestError


@pytest.fixture(scope="module")
def collected(request: pytest.FixtureRequest) -> Iterator[list[Results]]:
    results: list[Results] = []
    yield results
    if results:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n\n{markdown(results, 'pytest benchmarks/test_conformance.py')}")


@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("suite", SUITES)
def test_conformance(benchmark: Any, collected: list[Results], suite: str, engine: str, data_dir: Path) -> None:
    benchmark.group = f"compile and judge all of {suite}"
    try:
        cases, made = read_suite(suite, data_dir), engines()[engine]()
    except (DataError, RequestError) as error:
        pytest.skip(str(error))
    results = benchmark.pedantic(run, (made, cases), rounds=1)
    benchmark.extra_info.update(results.counts())
    collected.append(results)
