"""Runs strategies over a suite of questions and says how often each is right, and at what cost."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolprm_decode.decoding import Decoder, Request
from toolprm_decode.errors import RequestError, ToolprmError
from toolprm_decode.evaluation.statistics import bootstrap
from toolprm_decode.evaluation.strategies import Strategy
from toolprm_decode.learning.rollouts import decode_each
from toolprm_decode.questions.labels import trajectory_right
from toolprm_decode.questions.samples import Sample
from toolprm_decode.search import Search


@dataclass(frozen=True)
class Outcome:
    """What a strategy did on each question of a suite: whether it was right, and the tokens it spent.

    Attributes:
        right: bool [n]. policy_tokens, prm_tokens: int64 [n], prompts included.
        refused: questions that could not be answered (a prompt that is too long, say), by id; they count as wrong.
    """

    strategy: Strategy
    right: np.ndarray
    policy_tokens: np.ndarray
    prm_tokens: np.ndarray
    refused: dict[str, str]

    def summary(self, against: Outcome | None = None) -> dict[str, Any]:
        """Accuracy with its 95 % bootstrap interval and mean tokens a question; against: paired differences to it."""
        accuracy = bootstrap(self.right)
        row: dict[str, Any] = {
            "strategy": self.strategy.name,
            "n": len(self.right),
            "refused": len(self.refused),
            "accuracy": accuracy.mean,
            "low": accuracy.low,
            "high": accuracy.high,
            "policy_tokens": float(self.policy_tokens.mean()),
            "prm_tokens": float(self.prm_tokens.mean()),
        }
        if against is not None:
            gain = bootstrap(self.right.astype(float) - against.right)
            row |= {
                "against": against.strategy.name,
                "difference": gain.mean,
                "difference_low": gain.low,
                "difference_high": gain.high,
            }
        return row


def evaluate(
    samples: Sequence[Sample],
    strategies: Sequence[Strategy],
    plain: Decoder,
    rewarded: Decoder | None,
    *,
    batch: int = 32,
    progress: Callable[[str, int], None] | None = None,
) -> list[Outcome]:
    """Runs each strategy over the questions.

    Args:
        plain: decodes without a reward model. rewarded: with one; needed by strategies that use it.
        batch: questions decoded together; it changes nothing but the time.
        progress: called with the strategy's name and how many questions it has done.

    Raises RequestError where a strategy needs a reward model and there is none.
    """
    outcomes = []
    for strategy in strategies:
        decoder = rewarded if strategy.rewarded else plain
        if decoder is None:
            raise RequestError(f"the strategy {strategy.name!r} needs a reward model: pass --prm")
        right, policy, prm = [], [], []
        refused: dict[str, str] = {}
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            requests = [Request(s.tools, s.messages, _own_seed(strategy.search, s)) for s in part]
            for sample, decoded in zip(part, decode_each(decoder, requests), strict=True):
                if isinstance(decoded, ToolprmError):
                    refused[sample.id] = str(decoded)
                    right.append(False)
                    policy.append(0)
                    prm.append(0)
                    continue
                right.append(trajectory_right(sample, strategy.pick(decoded)))
                # Prompts count in full: what a question costs must not depend on what was asked before it.
                policy.append(decoded.stats.policy_tokens + decoded.stats.cached_tokens)
                prm.append(decoded.stats.prm_tokens + decoded.stats.prm_cached_tokens)
            if progress is not None:
                progress(strategy.name, start + len(part))
        outcomes.append(Outcome(strategy, np.array(right), np.array(policy), np.array(prm), refused))
    return outcomes


def _own_seed(search: Search, sample: Sample) -> Search:
    """A seed for each question: with one for all, chance would favour the same draws everywhere."""
    return replace(search, seed=(search.seed << 32 | zlib.crc32(sample.id.encode())) % 2**64)
