"""Rollouts: what a policy answers to questions under the grammar, many times each."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from toolprm_decode.decoding import Decoded, Decoder, Request
from toolprm_decode.errors import BudgetExceeded, FormatError, RequestError, ToolprmError, ToolSchemaError
from toolprm_decode.formats import Format, get_format
from toolprm_decode.grammar.call_grammar import Step
from toolprm_decode.questions.samples import Sample
from toolprm_decode.search import Search

if TYPE_CHECKING:
    from toolprm_decode.learning.served import ServedPolicy, Server

log = logging.getLogger(__name__)

STRATEGIES = ("sample", "search")

# What is wrong with one query, and no reason to stop at it.
REFUSALS = (ToolSchemaError, FormatError, RequestError, BudgetExceeded)


@dataclass(frozen=True)
class RolloutSettings:
    """How a policy is asked.

    Attributes:
        samples: answers a query; of "search" the continuations of a beam.
        temperature: of the policy's legal tokens.
        seed: of the random numbers. A query's own seed depends on it and on the query's id alone, so what is drawn
            for it does not depend on the queries around it.
        format: how the policy writes calls, "auto" by its chat template.
        max_tokens: most tokens of an answer.
        batch_size: queries decoded at once.
        strategy: "sample" draws independent answers. "search" takes the candidates of a step-beam instead, also
            the answers and prefixes that it gave up: those are the mistakes that a reward model meets there.
        beams: prefixes that "search" retains.
        policy: folder or hub id of the policy, for `decoder`.
        prm: folder or hub id of the reward model that "search" ranks by, None for the log-probability.
        server: where the policy runs, None for here. Of `policy`, only the tokenizer is then read.

    Raises:
        RequestError: a value is out of range. FormatError: an unknown format.
    """

    samples: int = 10
    temperature: float = 1.0
    seed: int = 0
    format: str = "auto"
    max_tokens: int = 512
    batch_size: int = 32
    strategy: str = "sample"
    beams: int = 4
    policy: str | None = None
    prm: str | None = None
    server: Server | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise RequestError(f"unknown strategy {self.strategy!r:.60}: use one of {', '.join(STRATEGIES)}")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise RequestError(f"batch_size must be a whole number of 1 or more, not {self.batch_size!r:.60}")
        if self.prm is not None and self.strategy != "search":
            raise RequestError("a reward model takes part in strategy 'search' alone: samples are drawn without one")
        if self.server is not None and self.strategy != "sample":
            raise RequestError("a server draws samples: strategy 'search' needs the policy here")
        get_format(self.format)
        self._search(self.seed)

    def search(self, sample_id: str) -> Search:
        """The search of one query, with a seed of its own."""
        digest = hashlib.sha256(f"{self.seed}:{sample_id}".encode("utf-8", "surrogatepass")).digest()
        return self._search(int.from_bytes(digest[:8], "little"))

    def decoder(self) -> Decoder | ServedPolicy:
        """A decoder with the policy and the reward model named here, or the policy's server. Raises what they raise."""
        if self.policy is None:
            raise RequestError("name the policy: a transformers folder or hub id")
        if self.server is not None:
            from toolprm_decode.learning.served import ServedPolicy

            return ServedPolicy(self.server, self.policy, self.format)
        # Without prompts of earlier batches: what was read before changes the last digits of a log-probability, and a
        # run that goes on elsewhere must give the same.
        return Decoder(self.policy, self.prm, format=self.format, prefix_memory=0)

    def _search(self, seed: int) -> Search:
        beam = self.strategy == "search"
        return Search(
            strategy="step-beam" if beam else "sample",
            beams=self.beams,
            width=self.samples,
            temperature=self.temperature,
            seed=seed,
            max_tokens=self.max_tokens,
        )


@dataclass(frozen=True)
class Rollout:
    """One distinct answer to a query, or the start of one that a search gave up.

    Attributes:
        text: what the policy wrote.
        tokens: its token ids; empty for what a search gave up, or where a server does not give them.
        steps: its decisions.
        calls: [{"name", "arguments"}] that the text makes; of a start those begun, with the arguments so far.
        logprob: natural log-probability, as Answer.logprob; of a server, what it says: mostly among all tokens instead
            of the legal ones, None where it says nothing.
        count: how many draws ended in it.
        finished: a whole answer.
    """

    text: str
    tokens: list[int]
    steps: list[Step]
    calls: list[dict[str, Any]]
    logprob: float | None
    count: int
    finished: bool = True

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as `from_json` reads it. Log-probabilities to six decimals: further ones are noise."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "steps": [[s.kind, s.start, s.end, s.path, _rounded(s.logprob), s.score] for s in self.steps],
            "calls": self.calls,
            "logprob": _rounded(self.logprob),
            "count": self.count,
            "finished": self.finished,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Rollout:
        """Reads what `to_json` gives."""
        data = value["text"].encode()
        steps = [
            Step(kind, data[start:end].decode(), start, end, path, score, logprob)
            for kind, start, end, path, logprob, score in value["steps"]
        ]
        return cls(**{**{name: value[name] for name in cls.__dataclass_fields__}, "steps": steps})


@dataclass
class Rollouts:
    """Iterates over (sample, its rollouts), and knows afterwards what it cost.

    Attributes:
        skipped: (sample id, reason) of the queries that could not be asked.
        dropped: answers of a server that could not be used.
        policy_tokens: tokens that the answers took of the policy, prompts in full.
        format: name of the call format, once a query was answered.
    """

    samples: Iterable[Sample]
    decoder: Decoder
    settings: RolloutSettings
    skipped: list[tuple[str, str]] = field(default_factory=list)
    dropped: int = 0
    policy_tokens: int = 0
    format: str | None = None

    def __iter__(self) -> Iterator[tuple[Sample, list[Rollout]]]:
        waiting = iter(self.samples)
        while batch := list(itertools.islice(waiting, self.settings.batch_size)):
            yield from self._batch(batch)

    def _batch(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, list[Rollout]]]:
        requests = [Request(s.tools, s.messages, self.settings.search(s.id)) for s in samples]
        answers = decode_each(self.decoder, requests)
        for sample, request, answer in zip(samples, requests, answers, strict=True):
            if isinstance(answer, ToolprmError):
                self._skip(sample, answer)
                continue
            # Prompts count in full: a data set must not depend on which of its queries were decoded together.
            self.policy_tokens += answer.stats.policy_tokens + answer.stats.cached_tokens
            self.format = answer.format
            grammar = self.decoder.grammar(request.tools, request.search)
            assert grammar.format is not None
            names = [tool.name for tool in grammar.tools]
            yield sample, _rollouts(answer, grammar.format, names)

    def _skip(self, sample: Sample, reason: ToolprmError) -> None:
        log.info("query %s is skipped: %s", sample.id, reason)
        self.skipped.append((sample.id, " ".join(str(reason).split())))


def decode_each(decoder: Decoder, requests: Sequence[Request]) -> list[Decoded | ToolprmError]:
    """An answer to each request, or why it is refused: by the grammar, or as too long.

    Raises ModelNotSupported where the model's logits are not numbers.
    """
    answers: list[Decoded | ToolprmError] = []
    for answer in decoder.decode_batch(requests, return_exceptions=True):
        if isinstance(answer, Exception) and not isinstance(answer, REFUSALS):
            raise answer
        answers.append(answer)
    return answers


def roll_out(samples: Iterable[Sample], decoder: Decoder | ServedPolicy, settings: RolloutSettings) -> Rollouts:
    """Asks the decoder's policy, or its server, for answers to every sample, in order, in batches.

    A query that the grammar refuses, or that is too long for the model, is left out and noted in `.skipped`.
    Raises ModelNotSupported where the model's logits are not numbers, ServerError where the server does not answer.
    """
    if isinstance(decoder, Decoder):
        return Rollouts(samples, decoder, settings)
    from toolprm_decode.learning.served import ServedRollouts

    return ServedRollouts(samples, decoder, settings)


def calls_so_far(text: str, last: str, format: Format, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The calls that the start of an answer has begun, with the arguments written so far.

    text: ends with a step. last: the kind of that step. names: of the tools.
    """
    if last == "TOTAL_FINISH":  # with or without what a format writes after the list
        return format.parse(text if text.endswith(format.end) else text + format.end, names)
    if format.pythonic:
        tail = {"FUNC_NAME": "()", "ARG_VALUE": ")"}.get(last, "")
    else:
        tail = {"FUNC_NAME": format.arguments_open + "{}", "ARG_VALUE": "}"}.get(last, "")
        tail += (format.call_close if last != "FUNC_FINISH" else "") + format.call_end
    return format.parse(text + tail + format.list_close + format.end, names)


def _rollouts(answer: Decoded, format: Format, names: Sequence[str]) -> list[Rollout]:
    """One rollout a text, answers first, best first. A search may end in one text at several places."""
    found = {(a.text, True): Rollout(a.text, a.tokens, a.steps, a.calls, a.logprob, 0) for a in answer.finished}
    nodes = answer.tree.nodes
    inner = {node.parent for node in nodes}
    for index, node in enumerate(nodes):
        steps = [step for i in answer.tree.path(index) for step in nodes[i].steps]
        if index in inner or not steps:
            continue
        text = "".join(step.text for step in steps)
        if node.finished and format.list_close:  # the last step ends with the list
            text += format.end
        known = found.get((text, node.finished))
        if known is None:
            calls = calls_so_far(text, steps[-1].kind, format, names)
            logprob = sum(step.logprob or 0.0 for step in steps)
            known = Rollout(text, [], steps, calls, logprob, 0, node.finished)
        found[text, node.finished] = replace(known, count=known.count + node.multiplicity)
    return list(found.values())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
