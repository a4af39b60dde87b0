"""Compile, mask, accept, fork and memory of grammar engines, on the same schemas, texts and vocabulary in one run."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from toolprm_decode.benchmark.engines import ENGINES, LLGuidance, Ours, OutlinesCore, XGrammar
from toolprm_decode.benchmark.suites import Group, read_suite
from toolprm_decode.errors import RequestError, ToolprmError
from toolprm_decode.machine import describe_machine, package_versions
from toolprm_decode.tools import Tool, read_tools

Engine = Ours | XGrammar | LLGuidance | OutlinesCore
Report = Callable[[str, float], None]

SCHEMAS = 60
OUTLINES_SCHEMAS = 8  # it takes seconds for each
PASSES = 5
TOOL_COUNTS = (1, 10, 100, 500)
MEMORY_SETS = 1000
# Beside the best of its peers, what this package asks of itself.
TARGETS = {
    "compile": 0.5,
    "compile_500_tools": 0.25,
    "warm_mean": 0.3,
    "warm_median": 0.6,
    "warm_p99": 0.3,
    "first_pass_median": 0.75,
    "first_pass_p99": 0.5,
    "first_mask": 0.5,
    "fork": 0.1,
    "memory": 1.0,
}


@dataclass(frozen=True)
class Case:
    """A schema of a function call's arguments, and a text that fits it."""

    schema: dict[str, Any]
    text: str
    tokens: tuple[int, ...]


def read_cases(data: Path, tokenizer: Any, count: int) -> Iterator[Case]:
    """Schemas of MaskBench's function calls (BFCL's and Glaive's in turn) with the first valid instance each.

    Members stand in the order of the schema, which xgrammar insists on; instances with other members are left out.
    Raises DataError where the folder of the public data lacks them.
    """
    suites = [read_suite(name, data).groups for name in ("maskbench-bfcl", "maskbench-glaive")]
    groups = (group for turn in zip_longest(*suites) for group in turn if group is not None)
    cases = (case for group in groups if (case := _case(group, tokenizer)) is not None)
    return islice(cases, count)


def _case(group: Group, tokenizer: Any) -> Case | None:
    order = list(group.schema.get("properties", {}))
    for test in group.tests:
        value = test.value
        if test.valid and isinstance(value, dict) and set(value) <= set(order):
            text = json.dumps({key: value[key] for key in order if key in value}, ensure_ascii=False)
            return Case(_closed(group.schema), text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return None


def _closed(schema: Any) -> Any:
    """The schema whose objects take no other members than they declare, as those of tools do."""
    if isinstance(schema, list):
        return [_closed(member) for member in schema]
    if not isinstance(schema, dict):
        return schema
    own = {key: value if key in ("enum", "const", "default") else _closed(value) for key, value in schema.items()}
    is_schema = isinstance(schema.get("properties"), dict) and "type" in schema
    return {"additionalProperties": False, **own} if is_schema else own


def accepts(engine: Engine, case: Case) -> bool:
    """Whether the engine compiles the schema and reads the whole text."""
    try:
        walker = engine.start(engine.compile(case.schema))
        return all(walker.accept(token) for token in case.tokens)
    except (ToolprmError, ValueError, RuntimeError):
        return False


# ---------------------------------------------------------------- one process, all engines


def measure_walks(engine: Engine, cases: Sequence[Case], passes: int = PASSES) -> dict[str, np.ndarray]:
    """Microseconds of compiling each schema, of each mask along each text on the first pass and on later ones (the
    best of them), of each accepted token, and of a fork in the middle and at the end of each text.

    Each schema is compiled for the first time in this process, with the texts of the others read before it.
    """
    spent: dict[str, list[float]] = {name: [] for name in ("compile", "first_pass", "warm", "accept", "fork")}
    clock = time.perf_counter_ns
    for case in cases:
        began = clock()
        compiled = engine.compile(case.schema)
        spent["compile"].append(clock() - began)
        warm = np.full(len(case.tokens), np.inf)
        for turn in range(passes + 1):
            walker, times = engine.start(compiled), []
            fill, accept = walker.fill, walker.accept
            for token in case.tokens:
                began = clock()
                fill()
                masked = clock()
                accept(token)
                spent["accept"].append(clock() - masked)
                times.append(masked - began)
            if turn == 0:
                spent["first_pass"] += times
            else:
                warm = np.minimum(warm, times)
        spent["warm"] += list(warm)
        for length in (len(case.tokens) // 2, len(case.tokens)):
            walker = engine.start(compiled)
            for token in case.tokens[:length]:
                walker.accept(token)
            if walker.fork is not None:
                spent["fork"].append(_best(walker.fork, 300))
    return {name: np.array(values) / 1e3 for name, values in spent.items()}


def _best(call: Callable[[], Any], times: int) -> float:
    """Nanoseconds of a call, the best of three averages."""
    clock, best = time.perf_counter_ns, float("inf")
    for _ in range(3):
        began = clock()
        for _ in range(times):
            call()
        best = min(best, (clock() - began) / times)
    return best


def measure_tools(engine: Engine, tools: Sequence[Tool], counts: Sequence[int]) -> dict[str, float | None]:
    """Milliseconds of compiling the grammar of the first so many tools; None where the engine cannot."""
    found: dict[str, float | None] = {}
    for count in counts:
        gc.collect()
        began = time.perf_counter()
        try:
            engine.compile_calls(tools[:count])
        except (ToolprmError, ValueError, RuntimeError):
            found[str(count)] = None
        else:
            found[str(count)] = (time.perf_counter() - began) * 1e3
    return found


def read_tool_sets(folder: Path, count: int) -> list[Tool]:
    """Different tools of BFCL, each valid by itself."""
    tools: dict[str, Tool] = {}
    for path in sorted(folder.glob("BFCL_v4_*.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            for definition in entry.get("function", []):
                try:
                    tool = read_tools([definition])[0]
                except ToolprmError:
                    continue
                tools.setdefault(tool.name, tool)
        if len(tools) >= 4 * count:
            break
    return list(tools.values())


# ---------------------------------------------------------------- a process an engine


def in_process(engine: str, task: str, data: Path, tokenizer: str, count: int) -> dict[str, float]:
    """What a fresh process measures of one engine: "first" (microseconds) or "memory" (bytes)."""
    command = [sys.executable, "-m", "toolprm_decode.benchmark.masks", engine, task, str(data), tokenizer, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RequestError(f"{engine} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def first_of_process(engine: type[Engine], tokenizer: Any, cases: Sequence[Case]) -> dict[str, float]:
    """Microseconds until an engine is ready, of its first grammar and mask, and of the first mask of a free string."""
    clock = time.perf_counter_ns
    began = clock()
    made = engine(tokenizer)
    ready = clock()
    compiled = made.compile(cases[0].schema)
    compiled_at = clock()
    walker = made.start(compiled)
    filling = clock()
    walker.fill()
    filled = clock()
    slowest = 0
    for token in cases[0].tokens:
        walker.accept(token)
        at = clock()
        walker.fill()
        slowest = max(slowest, clock() - at)
    found = {
        "ready": ready - began,
        "first_compile": compiled_at - ready,
        "first_mask": filled - filling,
        "slowest_mask": slowest,
    }
    return {name: value / 1e3 for name, value in found.items()}


def memory_of(engine: type[Engine], tokenizer: Any, cases: Sequence[Case], sets: int) -> dict[str, float]:
    """Bytes a compiled tool set takes: fresh, and after the masks along a text were asked for."""
    made = engine(tokenizer)
    warm = made.start(made.compile(cases[0].schema))
    for token in cases[0].tokens:
        warm.fill()
        warm.accept(token)
    before, kept = _resident(), []
    for number in range(sets):
        case = cases[number % len(cases)]
        schema = {**case.schema, "properties": dict(case.schema["properties"])}
        schema["properties"][f"extra_{number}"] = {"type": "string"}  # each a grammar of its own
        kept.append(made.compile(schema))
    compiled = _resident()
    for number, grammar in enumerate(kept):
        walker = made.start(grammar)
        for token in cases[number % len(cases)].tokens:
            walker.fill()
            if not walker.accept(token):
                break
    return {"compiled": (compiled - before) / sets, "walked": (_resident() - before) / sets}


def _resident() -> int:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- the record


@dataclass(frozen=True)
class MaskSettings:
    """What `toolprm benchmark masks` measures."""

    schemas: int = SCHEMAS
    counts: tuple[int, ...] = TOOL_COUNTS
    memory_sets: int = MEMORY_SETS
    engines: tuple[type[Engine], ...] = ENGINES


def measure(settings: MaskSettings, data: Path, tokenizer: Any, tokenizer_path: str, report: Report) -> dict[str, Any]:
    """Measures all engines and returns the record: ratios beside the best peer, and the figures of each engine.

    Raises RequestError where data or a peer is missing.
    """
    judges = [kind(tokenizer) for kind in settings.engines if kind is not OutlinesCore]
    cases: list[Case] = []
    for case in read_cases(data, tokenizer, 10 * settings.schemas):
        report("schemas that all engines accept", len(cases) / settings.schemas)
        if all(accepts(engine, case) for engine in judges):
            cases.append(case)
        if len(cases) == settings.schemas:
            break
    if not cases:
        raise RequestError(f"{data}: no schema that all engines accept")
    tools = [tool for tool in read_tool_sets(data / "bfcl", max(settings.counts)) if _compiles(judges[0], tool)]

    figures: dict[str, dict[str, Any]] = {}
    walked = _measure_in_turn(settings.engines, cases, tokenizer, report)
    for number, kind in enumerate(settings.engines):
        spent, schemas = walked[kind.name]
        figures[kind.name] = {name: _summary(us) for name, us in spent.items() if us.size}
        figures[kind.name]["schemas"] = schemas
        if kind is not OutlinesCore:
            report(f"{kind.name}: many tools", number / len(settings.engines))
            figures[kind.name]["tools_ms"] = measure_tools(kind(tokenizer), tools, settings.counts)
            report(f"{kind.name}: a fresh process", number / len(settings.engines))
            runs = [in_process(kind.name, "first", data, tokenizer_path, 1) for _ in range(3)]
            figures[kind.name]["process"] = {name: min(run[name] for run in runs) for name in runs[0]}
            report(f"{kind.name}: memory", number / len(settings.engines))
            figures[kind.name]["memory"] = in_process(kind.name, "memory", data, tokenizer_path, settings.memory_sets)
    return {
        "ratios": ratios(figures),
        "targets": TARGETS,
        "engines": figures,
        "config": {
            "schemas": len(cases),
            "masks": sum(len(case.tokens) for case in cases),
            "passes": PASSES,
            "tools": len(tools),
            "memory_sets": settings.memory_sets,
            "vocabulary": len(tokenizer),
            "tokenizer": Path(tokenizer_path).name,
        },
        "versions": package_versions("toolprm_decode", "xgrammar", "llguidance", "outlines_core"),
        "machine": describe_machine(),
    }


def _measure_in_turn(
    kinds: Sequence[type[Engine]], cases: Sequence[Case], tokenizer: Any, report: Report
) -> dict[str, tuple[dict[str, np.ndarray], int]]:
    """measure_walks() of each engine, a few schemas at a time: other load falls on all alike."""
    engines = [kind(tokenizer) for kind in kinds]  # anew: nothing is cached of the schemas
    for engine in engines:
        accepts(engine, _warm_up(tokenizer))
    runs: dict[str, list[dict[str, np.ndarray]]] = {kind.name: [] for kind in kinds}
    counts = dict.fromkeys(runs, 0)
    for begin in range(0, len(cases), OUTLINES_SCHEMAS):
        some = cases[begin : begin + OUTLINES_SCHEMAS]
        report("masks", begin / len(cases))
        for engine in engines:
            own = some
            if isinstance(engine, OutlinesCore):
                own = [case for case in some if begin == 0 and accepts(engine, case)]
            counts[engine.name] += len(own)
            runs[engine.name].append(measure_walks(engine, own))
    return {
        name: ({what: np.concatenate([run[what] for run in turns]) for what in turns[0]}, counts[name])
        for name, turns in runs.items()
    }


def _compiles(engine: Any, tool: Tool) -> bool:
    try:
        engine.compile_calls([tool])
    except ToolprmError:
        return False
    return True


def _warm_up(tokenizer: Any) -> Case:
    schema = {"type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"}}}
    text = json.dumps({"text": "Some words, then é.", "n": 12})
    return Case(schema, text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _summary(us: np.ndarray) -> dict[str, float]:
    p50, p90, p99 = np.percentile(us, [50, 90, 99])
    return {"mean": float(us.mean()), "median": p50, "p90": p90, "p99": p99, "max": float(us.max())}


def ratios(figures: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """This package's figure over that of the best peer, for each; fork's over the least of all, memory's over
    llguidance's."""

    def get(name: str, path: Sequence[str]) -> float | None:
        value: Any = figures.get(name, {})
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    places: dict[str, tuple[str, ...]] = {
        "compile": ("compile", "median"),
        **{f"compile_{count}_tools": ("tools_ms", str(count)) for count in TOOL_COUNTS},
        **{f"warm_{what}": ("warm", what) for what in ("mean", "median", "p90", "p99")},
        **{f"first_pass_{what}": ("first_pass", what) for what in ("mean", "median", "p90", "p99")},
        "first_mask": ("process", "first_mask"),
        "slowest_mask_of_first_text": ("process", "slowest_mask"),
        "accept": ("accept", "median"),
        "fork": ("fork", "median"),
        "memory": ("memory", "compiled"),
        "memory_walked": ("memory", "walked"),
    }
    found: dict[str, float | None] = {}
    for name, path in places.items():
        peers = ["llguidance"] if name.startswith("memory") else [n for n in figures if n != Ours.name]
        values = [value for peer in peers if (value := get(peer, path)) is not None]
        own = get(Ours.name, path)
        found[name] = own / min(values) if own is not None and values else None
    return found


def _main(name: str, task: str, data: str, tokenizer_path: str, count: str) -> None:
    from toolprm_decode.benchmark.models import find_tokenizer

    tokenizer, _ = find_tokenizer(tokenizer_path)
    engine = next(kind for kind in ENGINES if kind.name == name)
    cases = list(read_cases(Path(data), tokenizer, SCHEMAS))
    if task == "first":
        print(json.dumps(first_of_process(engine, tokenizer, cases)))
    else:
        judge = engine(tokenizer)
        usable = [case for case in cases if accepts(judge, case)]
        print(json.dumps(memory_of(engine, tokenizer, usable, int(count))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
