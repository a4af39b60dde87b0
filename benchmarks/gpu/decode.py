"""Whole decodes of random models of Qwen2's shapes: time a step, beside greedy decoding and beside what it has to read.

The grammar is that of the benchmark's tools, whose strings are short: random weights would not end the free ones of
public tools.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.device import Device, Peaks
from benchmarks.gpu.units import Unit, ratio
from toolprm_decode.benchmark.calibration import calibrate
from toolprm_decode.benchmark.forks import FORMAT, OurRun
from toolprm_decode.benchmark.forward_time import ForwardPass, timed_forwards
from toolprm_decode.benchmark.models import FULL, VOCABULARY, Shape, random_model, with_tags
from toolprm_decode.benchmark.workload import QUICK_TOOLS, REQUESTS, TOOLS
from toolprm_decode.decoding import Decoder
from toolprm_decode.engine import Engine, graphs
from toolprm_decode.formats import get_format
from toolprm_decode.grammar.call_grammar import CallGrammar
from toolprm_decode.prompting import render, to_messages
from toolprm_decode.rewards import ToolPRM
from toolprm_decode.search import Search
from toolprm_decode.tools import read_tools

SHAPES = {"0.5B": FULL, "1.5B": Shape(28, 1536, 8960, 12, 2), "7B": Shape(28, 3584, 18944, 28, 4)}
TINY = {"tiny": Shape(1, 32, 32, 2, 1)}
BEAMS, WIDTHS, PROMPTS = (1, 4, 16), (1, 4, 16, 64), (1000, 4000)
# For dry runs.
SMALL = [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}}}]
SMALL_LEAST = (1, 1, 1, 1, 1)  # the interpreter pays for padding
FILLER = " Mind what was said before."
# Of an answer; those to the tools here are shorter.
MOST_TOKENS = 128


@dataclass(frozen=True)
class Setting:
    """One configuration.

    Attributes:
        policy, prm: names of shapes; None for no reward model.
        prompt: tokens, about. beams, width: of the search, all its candidates different where `distinct`; None for
            greedy decoding.
        graphs: whether passes are recorded.
    """

    policy: str
    prm: str | None
    prompt: int
    beams: int | None
    width: int | None
    distinct: bool = False
    graphs: bool = True

    def __str__(self) -> str:
        search = "greedy" if self.beams is None else f"beams {self.beams}, width {self.width}"
        told = [self.policy, f"PRM {self.prm}" if self.prm else "no PRM", f"prompt {self.prompt:,}", search]
        return ", ".join([*told, *["distinct"] * self.distinct, *["without graphs"] * (not self.graphs)])


def settings(*, dry: bool) -> Iterator[tuple[int, Setting]]:
    """All with their importance."""
    if dry:
        yield 1, Setting("tiny", None, 50, None, None)
        yield 1, Setting("tiny", "tiny", 50, 2, 2, distinct=True, graphs=False)
        return
    for policy, prm in (("7B", "0.5B"), ("0.5B", "0.5B"), ("1.5B", "1.5B"), ("7B", "7B")):
        first = policy == "7B" and prm == "0.5B"
        for prompt in PROMPTS:
            later = 0 if first and prompt == PROMPTS[0] else 1
            if prm != "7B":
                yield 1 + later, Setting(policy, None, prompt, None, None)
                yield 2 + later, Setting(policy, None, prompt, None, None, graphs=False)
            yield 1 + later, Setting(policy, prm, prompt, 4, 16)
            yield 1 + later, Setting(policy, prm, prompt, 4, 16, distinct=True)
            yield 2 + later, Setting(policy, prm, prompt, 4, 16, graphs=False)
            if prm == "7B":
                continue
            yield 2 + later, Setting(policy, prm, prompt, 4, 16, distinct=True, graphs=False)
            for beams in BEAMS:
                for width in WIDTHS:
                    if (beams, width) != (4, 16):
                        yield 3 + later, Setting(policy, prm, prompt, beams, width)


class Decodes:
    """The models, made when they are first needed, and the measurements."""

    def __init__(self, device: Device, peaks: Callable[[], Peaks], tokenizer: Any):
        self.device, self.peaks, self.tokenizer = device, peaks, tokenizer
        # Seconds an answer's token, and a pass, of greedy decoding by policy and prompt.
        self._greedy: dict[tuple[str, int], tuple[float | None, float | None]] = {}
        self._kv_bytes: dict[Any, int] = {}  # of a token, by model
        self.engine, self.reward = cache(self._engine), cache(self._reward)
        self.temperature, self.decoder, self.request = map(cache, (self._temperature, self._decoder, self._request))

    def units(self) -> Iterator[Unit]:
        """Reading the prompts, and all settings."""
        prompts: set[tuple[str, int]] = set()
        for importance, setting in settings(dry=self.device.dry):
            if setting.beams is None and (setting.policy, setting.prompt) not in prompts:
                prompts.add((setting.policy, setting.prompt))
                name = f"{setting.policy}, prompt {setting.prompt:,}"
                yield Unit("prompts", name, importance + 1, partial(self._prompt, setting))
            yield Unit("decode", str(setting), importance, partial(self._case, setting))

    # ------------------------------------------------------------------ what is made once

    def _model(self, shape: str, seed: int, tokenizer: Any) -> Any:
        of = (TINY if self.device.dry else SHAPES)[shape]
        vocabulary = 1 if self.device.dry else VOCABULARY
        return random_model(of, len(tokenizer), seed, torch.bfloat16, self.device.torch, vocabulary)

    def _engine(self, shape: str) -> Engine:
        return self._noted(Engine(self._model(shape, 0, self.tokenizer), self.tokenizer))

    def _reward(self, shape: str) -> ToolPRM:
        tokenizer = with_tags(self.tokenizer)
        reward = ToolPRM(self._model(shape, 1, tokenizer), tokenizer)
        self._noted(reward.engine)
        return reward

    def _noted(self, engine: Engine) -> Engine:
        self._kv_bytes[engine.model] = engine.kv_bytes
        if not self.device.cuda:
            engine._runner.record = self.device.record  # as it is on a GPU
        return engine

    def _temperature(self, shape: str) -> float:
        """At which 16 draws of a step are as often different as those of a trained policy."""
        tools = SMALL if self.device.dry else QUICK_TOOLS
        grammar = CallGrammar(tools, self.tokenizer, FORMAT, max_calls=1, allow_no_call=False)
        prompt = self._tokens(tools, REQUESTS[0])
        return calibrate(self.engine(shape).model, grammar, prompt, 16, texts=1).temperature

    def _decoder(self, policy: str, prm: str | None) -> Decoder:
        reward = None if prm is None else self.reward(prm)
        return Decoder(self.engine(policy), reward, tokenizer=self.tokenizer, format=FORMAT)

    def _request(self, tokens: int) -> tuple[Sequence[Any], str]:
        """Tools and a text that are about as many tokens together: as many tools as fit, then filler."""
        tools, text = (SMALL, "On") if self.device.dry else (TOOLS, REQUESTS[0])
        while len(tools) > 1 and len(self._tokens(tools, text)) > tokens:
            tools = tools[:-1]
        room = tokens - len(self._tokens(tools, text))
        return tools, text + FILLER * max(0, room // len(self.tokenizer(FILLER)["input_ids"]))

    def _tokens(self, tools: Sequence[Any], text: str) -> list[int]:
        """Of the policy's prompt."""
        whole, templated = render(self.tokenizer, read_tools(tools), to_messages(text), get_format(FORMAT))
        return list(self.tokenizer(whole, add_special_tokens=not templated)["input_ids"])

    # ------------------------------------------------------------------ measurements

    def _search(self, setting: Setting) -> Search:
        if setting.beams is None or setting.width is None:
            return Search(strategy="greedy", max_calls=1, allow_no_call=False, max_tokens=MOST_TOKENS)
        return Search(
            beams=setting.beams,
            width=setting.width,
            temperature=self.temperature(setting.policy),
            distinct=setting.distinct,
            max_calls=1,
            allow_no_call=False,
            max_tokens=MOST_TOKENS,
        )

    def _decode(self, decoder: Decoder, setting: Setting) -> OurRun:
        tools, text = self.request(setting.prompt)
        search = self._search(setting)
        gc.collect()
        with timed_forwards() as passes:
            start = time.perf_counter()
            decoded = decoder.decode(tools, text, search)
            return OurRun(decoded, start, time.perf_counter() - start, passes)

    def _prompt(self, setting: Setting) -> dict[str, Any]:
        """How long the policy takes to read a prompt that nobody has read before."""
        decoder = self.decoder(setting.policy, None)
        self._decode(decoder, setting)
        decoder._scheduler.clear_cache()
        run = self._decode(decoder, setting)
        tokens = run.decoded.stats.prompt_tokens
        before = itertools.accumulate((p.tokens for p in run.passes), initial=0)
        reading = [p for p, read in zip(run.passes, before, strict=False) if read < tokens - 1]
        floor = self._floor(reading)
        return {
            "policy": setting.policy,
            "prompt_tokens": tokens,
            "seconds": self._figure(run.prefill),
            "tokens_per_second": self._figure(tokens / run.prefill),
            "share_of_roofline": ratio(floor, self._figure(sum(p.seconds for p in reading))),
        }

    def _case(self, setting: Setting) -> dict[str, Any]:
        """A decode whose prompts have been read and whose passes have been recorded, in two decodes before it."""
        policy = self.engine(setting.policy)
        engines = [policy] if setting.prm is None else [policy, self.reward(setting.prm).engine]
        decoder = self.decoder(setting.policy, setting.prm)
        with _recording(engines, setting.graphs, least=SMALL_LEAST if self.device.dry else graphs._LEAST):
            for _ in range(2):  # the first one makes room, which moves what was recorded
                self._decode(decoder, setting)
            self.device.peak_memory(anew=True)
            run = self._decode(decoder, setting)
            memory, kept = self.device.peak_memory(), sum(map(_recorded, engines))
        stats, count = run.decoded.stats, len(run.decoded.tokens)
        steps = [p for p in run.passes if p.model is policy.model]
        per_token = self._figure(run.total / count)
        per_pass = self._figure(statistics.median(p.seconds for p in steps))
        at = setting.policy, setting.prompt
        if setting.beams is None and setting.graphs:
            self._greedy[at] = per_token, per_pass
        greedy = self._greedy.get(at, (None, None))
        return {
            **asdict(setting),
            "prompt_tokens": stats.prompt_tokens,
            "answer_tokens": count,
            "steps": stats.rounds,
            "passes": len(steps),
            "rows_a_pass": statistics.mean(p.rows for p in steps),
            "distinct_share": stats.distinct_candidates / max(1, stats.candidates),
            "temperature": None if setting.beams is None else self.temperature(setting.policy),
            "graphs_kept": kept,
            "seconds": self._figure(run.total),
            "ms_an_answer_token": None if per_token is None else 1e3 * per_token,
            "over_greedy": ratio(per_token, greedy[0]),
            "pass_over_greedy": ratio(per_pass, greedy[1]),
            "policy_pass_ms": None if per_pass is None else 1e3 * per_pass,
            "policy_tokens_per_second": self._figure(stats.policy_tokens / run.total),
            "share_of_roofline": ratio(self._floor(run.passes), self._figure(run.models)),
            "core_us_a_pass": self._figure(1e6 * stats.seconds.get("core", 0.0) / len(run.passes)),
            "outside_passes_share": self._figure(1 - run.models / run.total),
            "phases": None if self.device.dry else stats.seconds,
            "peak_memory_gib": None if memory is None else memory / 2**30,
        }

    def _floor(self, passes: Sequence[ForwardPass]) -> float | None:
        """Seconds that the passes take at least: weights once a pass, rows of the head that are asked for, and keys."""
        total = 0.0
        for p in passes:
            head = p.model.get_output_embeddings().weight
            size, width = head.element_size(), head.shape[1]
            body = sum(x.numel() for x in p.model.parameters()) - head.numel()
            moved = size * (body + width * p.ids) + self._kv_bytes[p.model] * p.keys
            least = self.peaks().microseconds(moved, 2.0 * (body * p.tokens + width * p.ids * p.outputs))
            if least is None:
                return None
            total += 1e-6 * least
        return total

    def _figure(self, value: float) -> float | None:
        return None if self.device.dry else value


@contextmanager
def _recording(engines: Sequence[Engine], on: bool, least: tuple[int, ...]) -> Iterator[None]:
    """Passes of these engines are recorded at their first use, or not at all. least: sizes of their buffers."""
    before = [(engine._runner.record, engine._runner._graphs) for engine in engines]
    try:
        if not on:
            for engine in engines:
                engine._runner.record = engine._runner._graphs = None
        with patch.object(graphs, "TIMES", 1), patch.object(graphs, "_LEAST", least):
            yield
    finally:
        for engine, (record, recorded) in zip(engines, before, strict=True):
            engine._runner.record = record
            engine._runner._graphs = engine._runner._graphs if on else recorded


def _recorded(engine: Engine) -> int:
    """Passes that are kept as graphs. Raises AssertionError where they could not be recorded."""
    recorded = engine._runner._graphs
    if recorded is None:
        return 0
    if recorded._broken:
        raise AssertionError("the passes could not be recorded as graphs")
    return sum(map(len, recorded._kept.values()))
