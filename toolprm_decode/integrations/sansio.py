"""The search for engines of one's own: it says what to run and takes what came out, and never runs a model itself.

    search = sansio.Search()
    id = search.add(grammar.matcher(), Search(beams=2, width=8).core_options(max_tokens=256), prompt_ids)
    while (plan := search.plan()).kind != sansio.PlanKind.DONE:
        search.commit_tokens(*run_and_draw(plan))
    search.take(id).answers

These are the core's own classes, the ones that the package's engine runs on. `docs/custom_engines.md` has every array
of a plan by name, dtype, shape and meaning, and `examples/custom_engine.py` an engine.
"""

from __future__ import annotations

from toolprm_decode._core import (
    Answer,
    OutOfBlocks,
    PassFailed,
    Plan,
    PlanKind,
    PoolOptions,
    Result,
    RewardFormat,
    Scoring,
    Search,
    SearchOptions,
    Side,
    Step,
    sample_plan,
    uniform,
)

__all__ = [
    "Answer",
    "OutOfBlocks",
    "PassFailed",
    "Plan",
    "PlanKind",
    "PoolOptions",
    "Result",
    "RewardFormat",
    "Scoring",
    "Search",
    "SearchOptions",
    "Side",
    "Step",
    "sample_plan",
    "uniform",
]
