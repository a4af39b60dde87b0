"""Temperatures at which a random model is as decided as a trained one.

A trained policy of the built-in world has a mean entropy of 0.18 nats a token, and of 4, 8 or 16 draws a step 1.3, 1.6
or 2.1 are distinct. Random weights give flat logits; a low temperature makes them as decided. Which one is found by
writing some texts and asking, of the distributions met on the way, how many distinct steps so many draws would give.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolprm_decode.benchmark.peer_grammar import bits
from toolprm_decode.benchmark.peers import cache_argument
from toolprm_decode.grammar.call_grammar import CallGrammar

# Distinct steps of so many draws, of a trained policy.
DISTINCT = {4: 1.3, 8: 1.6, 16: 2.1}
# Mean entropy of a decided policy, nats a drawn token.
ENTROPY = 0.2

_SIMULATIONS = 50
# Logits kept of a distribution, the largest: at temperatures of interest the others weigh nothing.
_KEPT = 1024
_MOST_DRAWS = 100

# Logits among the legal tokens at each draw of a step, float64.
StepLogits = list[np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """Temperatures found, and what was expected of them.

    Attributes:
        temperature: at which `width` draws of a step give as many distinct ones as a trained policy's.
        distinct: of these draws, expected. entropy: there, mean nats a drawn token.
        confident: temperature of a mean entropy of about 0.2 nats a drawn token. confident_entropy: the mean there.
        drawn_tokens: of a text, mean; those that the grammar forces not counted.
    """

    temperature: float
    distinct: float
    entropy: float
    confident: float
    confident_entropy: float
    drawn_tokens: float


def target_distinct(width: int) -> float:
    """Distinct steps of so many draws of a trained policy, in between by the logarithm of the width."""
    widths = sorted(DISTINCT)
    logs = [math.log(w) for w in (1, *widths)]
    return float(np.interp(math.log(width), logs, [1.0, *(DISTINCT[w] for w in widths)]))


def calibrate(
    model: Any, grammar: CallGrammar, prompt: Sequence[int], width: int, seed: int = 0, texts: int = 3
) -> Calibration:
    """Writes texts with a model after a prompt's tokens, twice, and returns the temperatures that fit them."""
    writer = _Writer(model, grammar, prompt, seed)
    steps = [step for _ in range(texts) for step in writer.text(None)]
    temperature = _fit(steps, width)
    written = [writer.text(temperature) for _ in range(texts)]
    steps = [step for text in written for step in text]
    temperature, confident = _fit(steps, width), _solve(lambda t: mean_entropy(steps, t), ENTROPY)
    return Calibration(
        temperature,
        expected_distinct(steps, temperature, width),
        mean_entropy(steps, temperature),
        confident,
        mean_entropy(steps, confident),
        sum(map(len, steps)) / texts,
    )


def mean_entropy(steps: Sequence[StepLogits], temperature: float) -> float:
    """Nats a drawn token."""
    entropies = []
    for logits in (row for step in steps for row in step):
        chances = _softmax(logits, temperature)
        some = chances[chances > 0]
        entropies.append(-float((some * np.log(some)).sum()))
    return float(np.mean(entropies))


def expected_distinct(steps: Sequence[StepLogits], temperature: float, width: int) -> float:
    """Distinct steps among `width` draws, the mean over the steps, by simulation.

    A draw that leaves the recorded text is taken to meet the same distributions further on.
    """
    rng = np.random.default_rng(0)
    found = []
    for step in steps:
        chances = [_softmax(logits, temperature) for logits in step]
        tops = [_largest(row) for row in chances]
        found += [_distinct(rng, tops, width) for _ in range(_SIMULATIONS)]
    return float(np.mean(found))


def _distinct(rng: np.random.Generator, chances: Sequence[np.ndarray], draws: int) -> int:
    groups = [draws]
    for row in chances:
        parted = []
        for group in groups:
            if group == 1:
                parted.append(1)
                continue
            *counts, tail = rng.multinomial(group, row).tolist()
            parted += [count for count in counts if count]
            parted += [1] * tail  # of so many tokens that hardly any is met twice
        groups = parted
    return len(groups)


def _largest(chances: np.ndarray, count: int = 64) -> np.ndarray:
    """The largest chances, and the rest of them as one at the end."""
    top = _top(chances, count)
    rest = max(0.0, 1.0 - float(top.sum()))
    whole = np.append(top, rest)
    return whole / whole.sum()


def _top(values: np.ndarray, count: int) -> np.ndarray:
    return values if len(values) <= count else np.partition(values, -count)[-count:]


def _fit(steps: Sequence[StepLogits], width: int) -> float:
    return _solve(lambda t: expected_distinct(steps, t, width), target_distinct(width))


def _solve(measure: Callable[[float], float], target: float) -> float:
    """The temperature at which a rising measure meets its target, by bisection of its logarithm."""
    low, high = 1e-4, 10.0
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if measure(middle) < target else (low, middle)
    return math.sqrt(low * high)


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


class _Writer:
    """Writes calls with a model, one token a pass, and keeps the logits that it met."""

    def __init__(self, model: Any, grammar: CallGrammar, prompt: Sequence[int], seed: int):
        from transformers import DynamicCache

        self.model, self.grammar, self.last = model, grammar, prompt[-1]
        self.rng = np.random.default_rng(seed)
        self.row = np.zeros((model.config.vocab_size + 31) // 32, np.int32)
        self.cache = DynamicCache(config=model.config)
        self._read(prompt[:-1], self.cache)

    def text(self, temperature: float | None) -> list[StepLogits]:
        """The logits of one text, by step. temperature: None to guess one from how far the logits differ."""
        cache, matcher = copy.deepcopy(self.cache), self.grammar.matcher()
        forced = matcher.forced()
        steps, step, pending, known = list[StepLogits](), StepLogits(), [self.last, *forced], 0
        for token in forced:
            matcher.accept(token)
        for _ in range(_MOST_DRAWS):
            logits = self._read(pending, cache)
            matcher.fill_mask(self.row)
            legal = bits(self.row, len(logits))
            step.append(logits[legal])
            temperature = temperature or max(float(step[-1].std()), 1e-6) / 10
            token = int(legal[self.rng.choice(len(legal), p=_softmax(step[-1], temperature))])
            matcher.accept(token)
            pending = [token, *matcher.forced()]
            for token in pending[1:]:
                matcher.accept(token)
            if len(matcher.steps) > known:
                steps.append([_top(logits, _KEPT) for logits in step])
                known, step = len(matcher.steps), StepLogits()
            if matcher.is_complete or matcher.is_stopped:
                break
        return steps

    @torch.inference_mode()
    def _read(self, tokens: Sequence[int], cache: Any) -> np.ndarray:
        ids = torch.tensor([list(tokens)], device=self.model.device)
        out = self.model(input_ids=ids, logits_to_keep=1, **{cache_argument(self.model): cache})
        logits: np.ndarray = out.logits[0, -1].double().cpu().numpy()
        return logits
