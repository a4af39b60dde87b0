"""The cost of looking at many candidates: this package beside two loops over plain transformers, in one run."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from toolprm_decode.benchmark.calibration import calibrate, target_distinct
from toolprm_decode.benchmark.careful_loop import CarefulLoop
from toolprm_decode.benchmark.forward_time import ForwardPass, timed_forwards
from toolprm_decode.benchmark.libraries import library
from toolprm_decode.benchmark.models import Shape, random_model, with_tags
from toolprm_decode.benchmark.peer_grammar import PeerGrammar, call_ebnf
from toolprm_decode.benchmark.peers import PeerLoop, PeerRun, Trail
from toolprm_decode.benchmark.plain_loop import PlainLoop
from toolprm_decode.decoding import Decoded, Decoder, Request
from toolprm_decode.engine import Engine
from toolprm_decode.grammar.call_grammar import CallGrammar
from toolprm_decode.machine import describe_machine
from toolprm_decode.prompting import render, to_messages
from toolprm_decode.rewards import ToolPRM
from toolprm_decode.search import Search
from toolprm_decode.tools import read_tools

FORMAT = "json-list"
WIDE = 16
# Requests over which the two widths are compared: their answers differ, and with them the work.
WIDTH_REQUESTS = 3
CALIBRATION_SEEDS, CALIBRATION_STEPS = 6, 5

# Called with what is being measured, and how much of it is done, in [0, 1].
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        shape: of both models. dtype: "float32" or "bfloat16", of both.
        tools: of every request. requests: user texts; the first is the one that is compared with the peers.
        beams, width: of the search. seed: of the search and the models.
        plain, careful, widths, batch: which comparisons are made.
        plain_rounds: stop the plain loop after so many rounds, and compare with as many of ours; None for all.
    """

    shape: Shape
    tools: Sequence[Any]
    requests: Sequence[str]
    dtype: str = "float32"
    beams: int = 4
    width: int = 8
    seed: int = 0
    plain: bool = True
    careful: bool = True
    widths: bool = True
    batch: bool = True
    plain_rounds: int | None = None


@dataclass(frozen=True)
class OurRun:
    """One decode of ours. start: of time.perf_counter(). total: seconds. passes: of both models."""

    decoded: Decoded
    start: float
    total: float
    passes: Sequence[ForwardPass]

    @property
    def prefill(self) -> float:
        """Seconds of reading the prompts: until the policy's is read, and of the passes that read the reward model's.

        The pass that reads the end of a prompt may be the first that is asked for logits too.
        """
        policy = self.passes[0].model
        stats, spent = self.decoded.stats, 0.0
        left = {True: stats.prompt_tokens - 1, False: stats.prompt_tokens}
        for p in self.passes:
            mine = p.model is policy
            if left[mine] > 0:
                spent += p.seconds
                left[mine] -= p.tokens
        return stats.seconds.get("prepare", 0.0) + spent

    @property
    def models(self) -> float:
        """Seconds in which a model's forward pass was under way."""
        busy, end = 0.0, self.start
        for p in sorted(self.passes, key=lambda p: p.start):
            busy += max(0.0, p.end - max(p.start, end))
            end = max(end, p.end)
        return busy


class Forks:
    """The models, and one method for each measurement."""

    def __init__(self, settings: Settings, tokenizer: Any, report: Report):
        self.settings, self.tokenizer, self.report = settings, tokenizer, report
        reward_tokenizer = with_tags(tokenizer)
        dtype: torch.dtype = getattr(torch, settings.dtype)
        make = [random_model(settings.shape, len(reward_tokenizer), 2 * settings.seed + i, dtype) for i in range(2)]
        self.policy, judge = Engine(make[0], tokenizer), make[1]
        self.reward = ToolPRM(judge, reward_tokenizer)
        self.grammar = CallGrammar(settings.tools, tokenizer, FORMAT, max_calls=1, allow_no_call=False)
        self.search = Search(
            beams=settings.beams, width=settings.width, seed=settings.seed, max_calls=1, allow_no_call=False
        )
        self.confident = self.search.temperature
        self.trail = Trail()

    def prompts(self, request: str) -> tuple[list[int], list[int]]:
        """A request with its tools in the tokens of the policy and of the reward model, as the decoder writes it."""
        assert self.grammar.format is not None
        messages = to_messages(request)
        text, templated = render(self.tokenizer, self.grammar.tools, messages, self.grammar.format)
        own = self.reward.prompt_text(self.grammar.tools, messages, self.grammar.format)
        return list(self.tokenizer(text, add_special_tokens=not templated)["input_ids"]), self.reward.encode_prompt(own)

    def calibrate(self) -> dict[str, Any]:
        """Sets the temperatures of the search and of a confident policy, and the seed of the search.

        What a policy's distributions promise is a first guess: which texts the search goes on with is up to the reward
        model. So the temperature is set by searches themselves, of several seeds, to the share of distinct candidates
        of a trained policy, and the seed whose search comes closest to it is the one that is compared.
        """
        prompt, _ = self.prompts(self.settings.requests[0])
        found = calibrate(self.policy.model, self.grammar, prompt, self.settings.width, self.settings.seed)
        self.confident = found.confident
        target = target_distinct(self.settings.width)
        decoder, seeds = self._decoder(), range(self.settings.seed, self.settings.seed + CALIBRATION_SEEDS)

        def distinct(temperature: float) -> list[float]:
            """Of `width` draws of a step, for each seed."""
            searches = [replace(self.search, temperature=temperature, seed=seed) for seed in seeds]
            requests = [Request(self.settings.tools, self.settings.requests[0], search) for search in searches]
            stats = [decoded.stats for decoded in decoder.decode_batch(requests)]
            return [self.settings.width * s.distinct_candidates / s.candidates for s in stats]

        low, high = found.temperature / 4, found.temperature * 4
        for step in range(CALIBRATION_STEPS):
            self.report("calibrating the temperature", step / CALIBRATION_STEPS)
            middle = math.sqrt(low * high)
            low, high = (middle, high) if statistics.mean(distinct(middle)) < target else (low, middle)
        temperature = math.sqrt(low * high)
        shares = distinct(temperature)
        seed, share = min(zip(seeds, shares, strict=True), key=lambda pair: abs(pair[1] - target))
        self.search = replace(self.search, temperature=temperature, seed=seed)
        return {
            "target_distinct": target,
            "temperature": temperature,
            "distinct": statistics.mean(shares),
            "seed": seed,
            "seed_distinct": share,
            **{name: getattr(found, name) for name in ("confident", "confident_entropy", "drawn_tokens")},
        }

    def warm_up(self) -> None:
        """What is done once a process: allocations, and the tables of the vocabulary."""
        tiny = [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "boolean"}}}}]
        self._decoder().decode(tiny, "x", replace(self.search, beams=1, width=2))

    def ours(self, request: str, search: Search | None = None) -> OurRun:
        """One decode by a decoder that has seen nothing before."""
        decoder = self._decoder()
        gc.collect()
        with timed_forwards() as passes:
            start = time.perf_counter()
            decoded = decoder.decode(self.settings.tools, request, search or self.search)
            return OurRun(decoded, start, time.perf_counter() - start, passes)

    def note_trail(self) -> None:
        """Decodes the first request once more, untimed, and notes what the loops have to follow."""
        with self.trail.recorded():
            self.trail.note_scores(self._decoder().decode(self.settings.tools, self.settings.requests[0]))

    def one_beam(self, width: int) -> Search:
        """The search of one beam by a confident policy.

        A random reward model would lead the wider one to rare answers of any length, and the comparison would be of
        answers. So candidates rank above all by their chance at this temperature, which one draw follows as well.
        """
        temperature = self.confident
        return replace(self.search, beams=1, width=width, temperature=temperature, policy_weight=1 / temperature)

    def peer(
        self, kind: type[PeerLoop], masks: PeerGrammar, max_rounds: int | None = None, jump_forward: bool = False
    ) -> PeerRun:
        """One decode of the first request by a loop."""

        def progress(round_: int, share: float) -> None:
            self.report(f"{kind.name} loop, round {round_}", share)

        trail = self.trail if self.settings.dtype != "float32" else None
        loop = kind(self.policy.model, self.reward, self.grammar, masks, self.search, progress, jump_forward, trail)
        prompts = self.prompts(self.settings.requests[0])
        gc.collect()
        return loop.run(*prompts, max_rounds)

    def together(self) -> float:
        """Seconds of all requests in one batch, by a decoder that has seen nothing before."""
        self.report(f"{len(self.settings.requests)} requests in a batch", 0.0)
        decoder = self._decoder()
        gc.collect()
        start = time.perf_counter()
        decoder.decode_batch([Request(self.settings.tools, text) for text in self.settings.requests])
        return time.perf_counter() - start

    def apart(self) -> float:
        """Seconds of all requests one after another, by one decoder, which may remember what it has seen of them."""
        decoder, count = self._decoder(), len(self.settings.requests)
        gc.collect()
        start = time.perf_counter()
        for number, text in enumerate(self.settings.requests):
            self.report(f"{count} requests one after another", number / count)
            decoder.decode(self.settings.tools, text)
        return time.perf_counter() - start

    def _decoder(self) -> Decoder:
        return Decoder(self.policy, self.reward, tokenizer=self.tokenizer, format=FORMAT, search=self.search)


def measure(settings: Settings, tokenizer: Any, tokenizer_name: str, report: Report) -> dict[str, Any]:
    """Runs what the settings ask for and returns the record: ratios first, None for those that were left out.

    Raises RequestError where a peer's library is missing or cannot express the tools, and what Decoder raises.
    """
    compared = settings.plain or settings.careful
    if compared:  # what cannot be compared is refused before the models are made, which takes long
        call_ebnf(read_tools(settings.tools))
        library("xgrammar")
    report("making the models", 0.0)
    forks = Forks(settings, tokenizer, report)
    masks = PeerGrammar(forks.grammar.tools, tokenizer, forks.policy.vocab_size) if compared else None
    calibration = forks.calibrate()
    forks.warm_up()
    if settings.dtype != "float32" and masks is not None:
        forks.note_trail()
    runs = [_ours(forks)]
    peers: dict[str, PeerRun] = {}
    if masks is not None and settings.careful:
        peers["careful"] = forks.peer(CarefulLoop, masks)
        runs.append(_ours(forks))
        peers["careful_jump_forward"] = forks.peer(CarefulLoop, masks, jump_forward=True)
        runs.append(_ours(forks))
        # What else the machine does slows either: the faster of two runs of the loop counts, and the median of ours.
        again = forks.peer(CarefulLoop, masks)
        peers["careful"] = min(peers["careful"], again, key=lambda run: run.total)
    if masks is not None and settings.plain:
        peers["plain"] = forks.peer(PlainLoop, masks, settings.plain_rounds)
        runs.append(_ours(forks))
    ours = sorted(runs, key=lambda run: run.total)[len(runs) // 2]
    widths = _widths(forks) if settings.widths else None
    batch = (forks.together(), forks.apart()) if settings.batch else None
    return {
        "suite": "forks",
        **_ratios(ours, peers, forks.reward.engine.model),
        **_width_ratios(widths),
        "batch16_throughput": None if batch is None else batch[1] / batch[0],
        "answers_agree": _agree(ours, peers),
        "widths": _width_answers(widths),
        "seconds": _seconds(ours, peers, widths, batch),
        "breakdown": _breakdown(ours),
        "tokens": _tokens(ours, peers),
        "calibration": calibration,
        "answer": ours.decoded.text,
        "config": {
            "shape": str(settings.shape),
            "vocabulary": forks.policy.vocab_size,
            "dtype": settings.dtype,
            "tokenizer": tokenizer_name,
            "tools": len(forks.grammar.tools),
            "prompt_tokens": ours.decoded.stats.prompt_tokens,
            "requests": len(settings.requests),
            "beams": settings.beams,
            "width": settings.width,
            "temperature": forks.search.temperature,
            "seed": forks.search.seed,
            "format": FORMAT,
            "max_calls": 1,
            "plain_rounds": settings.plain_rounds,
        },
        "machine": describe_machine(),
    }


def _ours(forks: Forks) -> OurRun:
    forks.report("ours", 0.0)
    return forks.ours(forks.settings.requests[0])


def round_ends(run: OurRun, judge: Any) -> list[float]:
    """Seconds from the start to the end of each round of ours: to the last of the passes that score it."""
    ends: list[float] = []
    scoring = False
    for p in run.passes:
        if p.model is not judge:
            scoring = False
        elif p.outputs:
            if scoring:
                ends.pop()  # one round may be scored in several passes
            ends.append(p.end - run.start)
            scoring = True
    return ends


def _widths(forks: Forks) -> dict[int, list[OurRun]]:
    """The first requests with one beam, narrow and wide, at the confident temperature."""
    runs: dict[int, list[OurRun]] = {1: [], WIDE: []}
    for request in forks.settings.requests[:WIDTH_REQUESTS]:
        for width, made in runs.items():
            forks.report(f"one beam, width {width}", len(made) / WIDTH_REQUESTS)
            made.append(forks.ours(request, forks.one_beam(width)))
    return runs


def _ratios(ours: OurRun, peers: dict[str, PeerRun], judge: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in ("plain", "careful", "careful_jump_forward"):
        run = peers.get(name)
        out[f"speedup_{name}"] = out[f"speedup_{name}_after_prefill"] = None
        if run is not None and run.complete:
            out[f"speedup_{name}"] = run.total / ours.total
            own = run.total - run.seconds["prefill"]
            out[f"speedup_{name}_after_prefill"] = own / (ours.total - ours.prefill)
        elif run is not None:  # stopped early: against as many rounds of ours, under a name of its own
            rounds = len(run.rounds)
            ratio = run.rounds[-1] / round_ends(ours, judge)[rounds - 1]
            out[f"speedup_{name}_first_rounds"] = {"rounds": rounds, "ratio": ratio}
    stats = ours.decoded.stats
    out["prm_over_policy_tokens"] = (stats.prm_tokens - stats.prompt_tokens) / max(
        1, stats.policy_tokens - stats.prompt_tokens
    )
    out["prm_over_policy_tokens_with_prompts"] = stats.prm_tokens / stats.policy_tokens
    out["outside_model_share"] = 1 - ours.models / ours.total
    return out


def _width_ratios(runs: dict[int, list[OurRun]] | None) -> dict[str, float | None]:
    names = ("width16_over_width1", "width16_over_width1_after_prefill", "width16_over_width1_per_token")
    if runs is None:
        return dict.fromkeys(names)
    whole = [sum(run.total for run in runs[width]) for width in (1, WIDE)]
    search = [sum(run.total - run.prefill for run in runs[width]) for width in (1, WIDE)]
    tokens = [sum(len(run.decoded.tokens) for run in runs[width]) for width in (1, WIDE)]
    ratio = search[1] / search[0]
    return dict(zip(names, (whole[1] / whole[0], ratio, ratio * tokens[0] / tokens[1]), strict=True))


def _width_answers(runs: dict[int, list[OurRun]] | None) -> dict[str, Any] | None:
    """How far the two widths wrote the same, and how many of their draws were distinct."""
    if runs is None:
        return None
    pairs = list(zip(runs[1], runs[WIDE], strict=True))
    out: dict[str, Any] = {
        "requests": len(pairs),
        "same_answers": sum(narrow.decoded.text == wide.decoded.text for narrow, wide in pairs),
    }
    for width, made in runs.items():
        stats = [run.decoded.stats for run in made]
        out[f"width{width}_answer_tokens"] = sum(len(run.decoded.tokens) for run in made)
        out[f"width{width}_distinct"] = (
            width * sum(s.distinct_candidates for s in stats) / sum(s.candidates for s in stats)
        )
    return out


def _agree(ours: OurRun, peers: dict[str, PeerRun]) -> bool | None:
    """Whether all that ran to the end found the same answers in the same order."""
    texts = [answer.text for answer in ours.decoded.finished]
    found = [run.texts for run in peers.values() if run.complete]
    return all(other == texts for other in found) if found else None


def _seconds(
    ours: OurRun,
    peers: dict[str, PeerRun],
    widths: dict[int, list[OurRun]] | None,
    batch: tuple[float, float] | None,
) -> dict[str, Any]:
    out: dict[str, Any] = {"ours": ours.total, "ours_prefill": ours.prefill}
    for name, run in peers.items():
        out |= {name: run.total, f"{name}_phases": run.seconds, f"{name}_rounds": run.rounds}
    for width, runs in (widths or {}).items():
        out |= {
            f"width{width}": sum(run.total for run in runs),
            f"width{width}_prefill": sum(run.prefill for run in runs),
        }
    if batch is not None:
        out |= {"batch16": batch[0], "one_after_another": batch[1]}
    return out


def _breakdown(ours: OurRun) -> dict[str, float]:
    """Seconds of our decode: the models' passes, and the phases of the search with what they spend beside these."""
    stats = ours.decoded.stats.seconds
    return {
        "models": ours.models,
        "outside": ours.total - ours.models,
        **{f"phase {name}": seconds for name, seconds in stats.items()},
        "phase result": ours.total - sum(stats.values()),
    }


def _tokens(ours: OurRun, peers: dict[str, PeerRun]) -> dict[str, Any]:
    stats = ours.decoded.stats
    out: dict[str, Any] = {
        "answer": len(ours.decoded.tokens),
        "policy": stats.policy_tokens,
        "prm": stats.prm_tokens,
        "prompt": stats.prompt_tokens,
        "forced": stats.forced_tokens,
        "rounds": stats.rounds,
        "forward_passes": stats.forward_passes,
        "candidates": stats.candidates,
        "distinct_candidates": stats.distinct_candidates,
    }
    for name, run in peers.items():
        out |= {f"{name}_policy": run.policy_tokens, f"{name}_prm": run.prm_tokens}
    return out
