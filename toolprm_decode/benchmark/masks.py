"""Compile, mask, accept, fork and memory of grammar engines, on the same schemas, texts and vocabulary in one run."""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
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
TOGETHER = 8  # schemas of one engine before it is the next one's turn
TURNS = 5
PASSES = 2
PROCESSES = 3
ENOUGH_MS = 5_000  # of one compilation: a best of several would decide nothing
OUTLINES_SECONDS = 10.0
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


def measure_walks(engine: Engine, cases: Sequence[Case], turn: int, passes: int = PASSES) -> dict[str, np.ndarray]:
    """Microseconds of compiling each schema, of each mask along each text on the first pass and on later ones (the
    best of them), of each accepted token, and of a fork in the middle and at the end of each text.

    What is compiled has names and listed strings, and what is walked a description, that no other turn has: no engine
    knows the schema. Patterns, and numbers' bounds, are those of the other turns. Raises ValueError where the engine
    cannot compile a schema or refuses a text.
    """
    spent: dict[str, list[float]] = {name: [] for name in ("compile", "first_pass", "warm", "accept", "fork")}
    clock = time.perf_counter_ns
    for case in cases:
        new = renamed(case.schema, f"_{turn}")
        began = clock()
        kept = engine.compile(new)
        spent["compile"].append(clock() - began)
        del kept
        compiled = engine.compile({**case.schema, "description": f"turn {turn}"})
        warm = np.full(len(case.tokens), np.inf)
        for number in range(passes + 1):
            walker, times = engine.start(compiled), []
            fill, accept = walker.fill, walker.accept
            for token in case.tokens:
                began = clock()
                fill()
                masked = clock()
                accepted = accept(token)
                spent["accept"].append(clock() - masked)
                times.append(masked - began)
                if not accepted:
                    raise ValueError(f"{engine.name} refuses {case.text!r}")
            if number == 0:
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


def renamed(schema: Any, mark: str) -> Any:
    """The schema with a mark behind the names of its properties, the strings it lists, and what it says."""
    if isinstance(schema, list):
        return [renamed(member, mark) for member in schema]
    if not isinstance(schema, dict):
        return schema
    own: dict[str, Any] = {}
    for word, value in schema.items():
        if word == "properties" and isinstance(value, dict):
            own[word] = {name + mark: renamed(member, mark) for name, member in value.items()}
        elif word in ("required", "enum") and isinstance(value, list):
            own[word] = [one + mark if isinstance(one, str) else one for one in value]
        elif word in ("description", "const") and isinstance(value, str):
            own[word] = value + mark
        elif word not in ("const", "default"):
            own[word] = renamed(value, mark)
        else:
            own[word] = value
    return own


def _best(call: Callable[[], Any], times: int) -> float:
    """Nanoseconds of a call, the best of three averages."""
    clock, best = time.perf_counter_ns, float("inf")
    for _ in range(3):
        began = clock()
        for _ in range(times):
            call()
        best = min(best, (clock() - began) / times)
    return best


def measure_tools(
    engines: Sequence[Engine], tools: Sequence[Tool], counts: Sequence[int], turns: int = TURNS
) -> dict[str, dict[str, float | None]]:
    """Milliseconds of compiling the grammar of the first so many tools, by engine; None where one cannot.

    The least of some turns, in each of which every engine is given tools with names, parameters and listed strings
    that are new to it: what else runs on the machine then falls on all alike, or on none. Those of the processor, all
    threads together: in so long a time others have the core as well. What took ENOUGH_MS is not repeated.
    """
    found: dict[str, dict[str, float | None]] = {engine.name: {str(c): None for c in counts} for engine in engines}
    for turn in range(turns):
        for count in counts:
            mark = f"_{count}_{turn}"
            new = [
                replace(tool, name=tool.name + mark, parameters=renamed(tool.parameters, mark))
                for tool in tools[:count]
            ]
            for engine in engines:
                least = found[engine.name][str(count)]
                if least is not None and least > ENOUGH_MS:
                    continue
                gc.collect()
                with suppress(ToolprmError, ValueError, RuntimeError):
                    began = time.process_time_ns()
                    kept = engine.compile_calls(new)
                    spent = (time.process_time_ns() - began) / 1e6
                    del kept
                    found[engine.name][str(count)] = spent if least is None else min(least, spent)
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
    kept: list[Any] = []
    before = _resident()
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
    """Bytes of memory that this process holds, less what it has freed where the C library is glibc."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else grammars lie in what building the vocabulary left behind, for nothing
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- the record


@dataclass(frozen=True)
class MaskSettings:
    """What `toolprm benchmark masks` measures."""

    schemas: int = SCHEMAS
    counts: tuple[int, ...] = TOOL_COUNTS
    memory_sets: int = MEMORY_SETS
    turns: int = TURNS
    outlines_seconds: float = OUTLINES_SECONDS
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

    engines = [kind(tokenizer) for kind in settings.engines]  # anew: nothing is cached of the schemas
    for engine in engines:
        accepts(engine, _warm_up(tokenizer))
    many = [engine for engine in engines if not isinstance(engine, OutlinesCore)]
    figures: dict[str, dict[str, Any]] = {engine.name: {} for engine in engines}
    for engine in engines:
        if isinstance(engine, OutlinesCore):
            figures[engine.name] = _measure_outlines(engine, cases, settings.outlines_seconds, report)
    for name, spent in _measure_in_turn(many, cases, settings.turns, report).items():
        figures[name] = {"schemas": len(cases), **{what: _summary(us) for what, us in spent.items() if us.size}}
    report("many tools", 0.0)
    for name, least in measure_tools(many, tools, settings.counts, settings.turns).items():
        figures[name]["tools_ms"] = least
    del engines, many
    names = [kind.name for kind in settings.engines if kind is not OutlinesCore]
    firsts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(PROCESSES):
        report("fresh processes", turn / PROCESSES)
        for name in names:
            firsts[name].append(in_process(name, "first", data, tokenizer_path, 1))
    for name, runs in firsts.items():
        report(f"memory of {name}", 0.0)
        figures[name]["process"] = {what: min(run[what] for run in runs) for what in runs[0]}
        figures[name]["memory"] = in_process(name, "memory", data, tokenizer_path, settings.memory_sets)
    return {
        "ratios": ratios(figures),
        "targets": TARGETS,
        "engines": figures,
        "config": {
            "schemas": len(cases),
            "masks": sum(len(case.tokens) for case in cases),
            "turns": settings.turns,
            "passes": PASSES,
            "processes": PROCESSES,
            "tools": len(tools),
            "memory_sets": settings.memory_sets,
            "vocabulary": len(tokenizer),
            "tokenizer": Path(tokenizer_path).name,
        },
        "versions": package_versions("toolprm_decode", "xgrammar", "llguidance", "outlines_core"),
        "machine": describe_machine(),
    }


def _measure_in_turn(
    engines: Sequence[Engine], cases: Sequence[Case], turns: int, report: Report
) -> dict[str, dict[str, np.ndarray]]:
    """The least of some turns of measure_walks(), by engine: a few schemas of each engine at a time, so that other load
    falls on all alike."""
    least: dict[str, dict[str, np.ndarray]] = {}
    for turn in range(turns):
        runs: dict[str, list[dict[str, np.ndarray]]] = {engine.name: [] for engine in engines}
        for begin in range(0, len(cases), TOGETHER):
            report("masks", (turn + begin / len(cases)) / turns)
            for engine in engines:
                runs[engine.name].append(measure_walks(engine, cases[begin : begin + TOGETHER], turn))
        for name, parts in runs.items():
            spent = {what: np.concatenate([part[what] for part in parts]) for what in parts[0]}
            before = least.get(name, spent)
            least[name] = {what: np.minimum(us, before[what]) for what, us in spent.items()}
    return least


def _measure_outlines(engine: OutlinesCore, cases: Sequence[Case], seconds: float, report: Report) -> dict[str, Any]:
    """What was measured of outlines_core with the schemas that it finishes in so many seconds each, once."""
    finished: list[dict[str, np.ndarray]] = []
    over = refused = 0
    for number, case in enumerate(cases):
        report(f"{engine.name}", number / len(cases))
        try:
            spent = _within(seconds, partial(measure_walks, engine, [case], 0))
        except RuntimeError:
            refused += 1
            continue
        if spent is None:
            over += 1
        else:
            finished.append(spent)
    found: dict[str, Any] = {"schemas": len(finished), "refused": refused, "over_time": over}
    found["seconds_a_schema"] = seconds
    for what in finished[0] if finished else ():
        us = np.concatenate([spent[what] for spent in finished])
        if us.size:
            found[what] = _summary(us)
    return found


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns in a copy of this process; None where it takes longer. Raises RuntimeError where it fails."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def work() -> None:
        with suppress(Exception):  # that nothing comes is enough to say so
            sending.send(call())

    copy = context.Process(target=work, daemon=True)
    copy.start()
    sending.close()
    try:
        return receiving.recv() if receiving.poll(seconds) else None
    except EOFError as error:
        raise RuntimeError("the call failed in a copy of this process") from error
    finally:
        copy.kill()
        copy.join()
        receiving.close()


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
