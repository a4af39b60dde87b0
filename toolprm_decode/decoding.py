"""decode(), Decoder, Decoded: the facade."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolprm_decode import _core
from toolprm_decode.engine import Engine
from toolprm_decode.errors import BudgetExceeded, RequestError, TokenizerError
from toolprm_decode.formats import Format, get_format
from toolprm_decode.grammar.call_grammar import CallGrammar, Step
from toolprm_decode.grammar.vocabulary import load_tokenizer
from toolprm_decode.prompting import render, to_messages
from toolprm_decode.rewards import STEP_KINDS, ToolPRM
from toolprm_decode.search import Search, SearchTree
from toolprm_decode.search.loop import Clock, run
from toolprm_decode.search.tree import Node
from toolprm_decode.tools import Tool, read_tools

# A callable reward: (the prompt's text, the steps up to and with the one to score) -> a score in [0, 1].
Scorer = Callable[[str, list[Step]], float]

_KEPT_GRAMMARS = 256


@dataclass(frozen=True)
class Answer:
    """One finished answer.

    Attributes:
        calls: [{"name": ..., "arguments": {...}}], empty when no tool fits.
        text: what the model wrote, byte for byte.
        tokens: ids of the text, without a stop token.
        steps: its decisions.
        score: the aggregate of the step scores, None without a reward model.
        logprob: natural log-probability of the tokens that the policy chose, at temperature 1 among the legal ones; the
            steps' add up to it. What the grammar forces, or closes at max_tokens, counts as certain.
        rank: what it was ranked by.
        multiplicity: how many draws ended in it.
        closed: it reached max_tokens and was closed the shortest legal way.
    """

    calls: list[dict[str, Any]]
    text: str
    tokens: list[int]
    steps: list[Step]
    score: float | None
    logprob: float
    rank: float
    multiplicity: int
    closed: bool

    def to_openai(self) -> dict[str, Any]:
        """An assistant message with tool_calls, as OpenAI's chat completions return it."""
        message: dict[str, Any] = {"role": "assistant", "content": None if self.calls else ""}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{index}",
                    "type": "function",
                    "function": {
                        "name": call["name"],
                        "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                    },
                }
                for index, call in enumerate(self.calls)
            ]
        return message


@dataclass(frozen=True)
class Stats:
    """What an answer cost.

    Attributes:
        policy_tokens, prm_tokens: tokens run through the policy and the reward model, prompts included.
        prompt_tokens: the policy's prompt.
        forced_tokens: tokens that the grammar left no choice about.
        candidates, distinct_candidates: draws, and different ones among them.
        masks: masks computed or looked up.
        rounds: steps of the search. forward_passes: of the policy.
        seconds: by phase, of the whole batch that the request ran in.
    """

    policy_tokens: int
    prm_tokens: int
    prompt_tokens: int
    forced_tokens: int
    candidates: int
    distinct_candidates: int
    masks: int
    rounds: int
    forward_passes: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Decoded(Answer):
    """The best answer, and how it was found.

    Attributes:
        finished: all answers, best first; the first is this one.
        stats: what it cost.
        tree: all candidates of the search.
        format: the call format.
    """

    finished: list[Answer] = field(repr=False)
    stats: Stats = field(repr=False)
    tree: SearchTree = field(repr=False)
    format: str = ""


@dataclass(frozen=True)
class Request:
    """One request of a batch: tools, prompt and search as for Decoder.decode()."""

    tools: Any
    prompt: Any
    search: Search | None = None


class Decoder:
    """Keeps models and grammars warm between requests. Thread-safe: requests of several threads wait in line.

    Args:
        model: the policy: a transformers causal LM, its folder or hub id, or an Engine.
        prm: the reward model: the same, a ToolPRM, a callable (see Scorer), or None to rank by log-probability.
        tokenizer: the policy's, where the model does not bring one.
        format: how the policy writes calls: a name, a Format, or "auto" by its chat template.
        search: the search of requests that bring none.

    Raises:
        ModelNotSupported: an architecture that the engine cannot run, or a head that does not fit the tokenizer.
        FormatError: an unknown format.
        TokenizerError: the tokenizer's bytes cannot be recovered, or the reward model's labels are not tokens.
        RequestError: there is no model at the path.
    """

    def __init__(
        self,
        model: Any,
        prm: Any = None,
        *,
        tokenizer: Any = None,
        format: str | Format = "auto",
        search: Search | None = None,
    ):
        get_format(format)  # refused here rather than at the first request
        tokenizer = load_tokenizer(tokenizer)
        if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
            raise TokenizerError(f"the tokenizer must be one of transformers, not {tokenizer!r:.60}")
        self._policy = _engine(model, tokenizer)
        tokenizer = tokenizer or self._policy.tokenizer
        if tokenizer is None:
            raise TokenizerError("the model comes without a tokenizer: pass tokenizer=")
        self.tokenizer = tokenizer
        self._policy.check_head(len(self.tokenizer))
        self._prm, self._scorer = _reward(prm, self.tokenizer)
        if self._prm is not None and self._prm.engine is self._policy:  # each needs a pool of its own
            self._policy = self._policy.sibling()
        self._reward_format = _reward_format(self._prm) if self._prm else None
        self.format = format
        self.search = search or Search()
        self._grammars: OrderedDict[str, CallGrammar] = OrderedDict()
        self._guard = threading.Lock()

    def grammar(self, tools: Any, search: Search | None = None) -> CallGrammar:
        """The grammar of a tool set, from the cache where it was compiled before."""
        search = self.search if search is None else search
        read = read_tools(tools)
        key = json.dumps([[tool.to_openai() for tool in read], search.max_calls, search.allow_no_call])
        with self._guard:
            if (known := self._grammars.get(key)) is not None:
                self._grammars.move_to_end(key)
                return known
        grammar = CallGrammar(
            read,
            self.tokenizer,
            self.format,
            max_calls=search.max_calls,
            allow_no_call=search.allow_no_call,
            stop_ids=self._stop_ids(),
        )
        with self._guard:
            self._grammars[key] = grammar
            while len(self._grammars) > _KEPT_GRAMMARS:
                self._grammars.popitem(last=False)
        return grammar

    def decode(self, tools: Any, prompt: Any, search: Search | None = None) -> Decoded:
        """One request: the best answer to the prompt (text or chat messages) with these tools.

        Raises ToolSchemaError and the other errors of CallGrammar, RequestError for a prompt that cannot be used,
        BudgetExceeded where max_tokens or the model's context is too small for any answer.
        """
        return self.decode_batch([Request(tools, prompt, search)])[0]

    def decode_batch(self, requests: Sequence[Request]) -> list[Decoded]:
        """Several requests at once, answered in order. One that cannot be answered fails the whole batch."""
        clock = Clock()
        jobs = [self._prepare(request) for request in requests]
        clock.lap("prepare")
        with self._policy.pool_lock, self._prm.engine.pool_lock if self._prm else nullcontext():
            return self._run(jobs, clock)

    # ------------------------------------------------------------------ one batch

    def _prepare(self, request: Request) -> _Job:
        if not isinstance(request, Request):
            raise RequestError(f"a batch is a list of Request(tools, prompt), not of {request!r:.60}")
        search = self.search if request.search is None else request.search
        if not isinstance(search, Search):
            raise RequestError(f"search must be a Search, not {search!r:.60}")
        messages = to_messages(request.prompt)
        grammar = self.grammar(request.tools, search)
        assert grammar.format is not None
        text, templated = render(self.tokenizer, grammar.tools, messages, grammar.format)
        tokens = list(self.tokenizer(text, add_special_tokens=not templated)["input_ids"])
        if not tokens:
            raise RequestError("the prompt has no tokens")
        room = _context(self._policy) - len(tokens)
        if room < 1:
            raise BudgetExceeded(
                f"the prompt has {len(tokens)} tokens, and the model's context is {_context(self._policy)}: "
                "use fewer tools or a shorter prompt"
            )
        job = _Job(search, grammar, text, tokens, min(search.max_tokens, room))
        if self._prm is not None:
            own, _ = render(self._prm.tokenizer, grammar.tools, messages, grammar.format)
            job.reward_tokens = self._prm.encode_prompt(own)
            if len(job.reward_tokens) + 2 * job.max_tokens > _context(self._prm.engine):
                job.max_tokens = (_context(self._prm.engine) - len(job.reward_tokens)) // 2
            if job.max_tokens < 1:
                raise BudgetExceeded(
                    f"the prompt has {len(job.reward_tokens)} tokens for the reward model, whose context is "
                    f"{_context(self._prm.engine)}: use fewer tools or a shorter prompt"
                )
        return job

    def _run(self, jobs: Sequence[_Job], clock: Clock) -> list[Decoded]:
        core = _core.Search(self._policy.block_size, self._prm.engine.block_size if self._prm else 0)
        scorers: dict[int, Callable[[Sequence[_core.Step]], float]] = {}
        try:
            for job in jobs:
                self._start(core, job)
                if self._scorer is not None:
                    scorers[job.id] = _bound(self._scorer, job.text)
            clock.lap("prefill")
            run(core, self._policy, self._prm, scorers, clock)
            results = [core.take(job.id) for job in jobs]
        finally:
            for job in jobs:
                if job.policy_prefix is not None:
                    self._policy.release(job.policy_prefix)
                if job.reward_prefix is not None and self._prm is not None:
                    self._prm.engine.release(job.reward_prefix)
        clock.lap("core")
        return [_decoded(job, result, clock) for job, result in zip(jobs, results, strict=True)]

    def _start(self, core: _core.Search, job: _Job) -> None:
        options: dict[str, Any] = {}
        job.policy_prefix = self._policy.prefill(job.tokens[:-1])
        if self._prm is not None:
            job.reward_prefix = self._prm.engine.prefill(job.reward_tokens)
            options = {
                "scoring": _core.Scoring.MODEL,
                "reward_prefix": job.reward_prefix,
                "reward_length": len(job.reward_tokens),
                "reward": self._reward_format,
            }
        elif self._scorer is not None:
            options = {"scoring": _core.Scoring.EXTERNAL}
        try:
            job.id = core.add(
                job.grammar.matcher().core,
                job.search.core_options(job.max_tokens),
                job.policy_prefix,
                len(job.tokens) - 1,
                job.tokens[-1],
                **options,
            )
        except _core.BudgetError as error:
            raise BudgetExceeded(f"{error}: raise max_tokens, shorten the prompt or use simpler tools") from error

    def _stop_ids(self) -> tuple[int, ...] | None:
        known = len(self.tokenizer)
        own = tuple(i for i in self._policy.stop_ids if i < known)
        extra = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*own, *([] if extra is None else [extra])])) or None


def decode(model: Any, prm: Any, tools: Any, prompt: Any, search: Search | None = None, **options: Any) -> Decoded:
    """One answer: what Decoder(model, prm, **options).decode(tools, prompt, search) gives.

    A Decoder keeps what this makes anew at each call; use one for more than one request.
    """
    return Decoder(model, prm, **options).decode(tools, prompt, search)


@dataclass
class _Job:
    search: Search
    grammar: CallGrammar
    text: str
    tokens: list[int]
    max_tokens: int
    reward_tokens: list[int] = field(default_factory=list)
    policy_prefix: int | None = None
    reward_prefix: int | None = None
    id: int = -1


def _engine(model: Any, tokenizer: Any) -> Engine:
    if isinstance(model, Engine):
        return model
    if isinstance(model, PreTrainedModel):
        return Engine(model, _own_tokenizer(model) if tokenizer is None else tokenizer)
    if isinstance(model, str | os.PathLike):
        return Engine.from_pretrained(os.fspath(model), tokenizer=tokenizer)
    raise RequestError(
        f"the model must be a transformers causal LM, its path or hub id, or an Engine, not {model!r:.80}"
    )


def _own_tokenizer(model: PreTrainedModel) -> Any:
    """The tokenizer beside the weights that a model was loaded from, None where there is none."""
    try:
        return load_tokenizer(model.name_or_path) if model.name_or_path else None
    except TokenizerError:
        return None


def _reward(prm: Any, tokenizer: Any) -> tuple[ToolPRM | None, Scorer | None]:
    if prm is None or isinstance(prm, ToolPRM):
        return prm, None
    if isinstance(prm, str | os.PathLike):
        return ToolPRM.from_pretrained(os.fspath(prm)), None
    if isinstance(prm, Engine):
        return ToolPRM(prm, prm.tokenizer or tokenizer), None
    if isinstance(prm, PreTrainedModel):
        return ToolPRM(prm, _own_tokenizer(prm) or tokenizer), None
    if callable(prm):
        return None, prm
    raise RequestError(f"the reward model must be a ToolPRM, a causal LM, a path, a callable or None, not {prm!r:.80}")


def _reward_format(prm: ToolPRM) -> _core.RewardFormat:
    tags = [prm.tag_ids(kind) if kind in prm.tags else [] for kind in STEP_KINDS]
    return _core.RewardFormat(lambda text: prm.encode_text(text.decode()), tags)


def _bound(scorer: Scorer, prompt: str) -> Callable[[Sequence[_core.Step]], float]:
    return lambda steps: scorer(prompt, [Step(s.kind, s.text, s.start, s.end, s.path) for s in steps])


def _context(engine: Engine) -> int:
    """Tokens that the model was made for, or the fewer that the engine can run."""
    made_for = getattr(engine.model.config.get_text_config(), "max_position_embeddings", None)
    return min((limit for limit in (made_for, engine.max_positions) if limit), default=1 << 30)


def _step(scored: _core.ScoredStep) -> Step:
    step = scored.step
    score = None if math.isnan(scored.score) else scored.score
    return Step(step.kind, step.text, step.start, step.end, step.path, score, scored.logprob)


def _decoded(job: _Job, result: _core.Result, clock: Clock) -> Decoded:
    assert job.grammar.format is not None
    finished = [_answer(answer, job.grammar.format, job.grammar.tools) for answer in result.answers]
    nodes = [
        Node(
            None if node.parent < 0 else node.parent,
            tuple(_step(s) for s in node.steps),
            node.rank,
            node.multiplicity,
            node.kept,
            node.finished,
            node.closed,
        )
        for node in result.tree
    ]
    core = result.stats
    stats = Stats(
        policy_tokens=core.policy_tokens,
        prm_tokens=core.reward_tokens,
        prompt_tokens=len(job.tokens),
        forced_tokens=core.forced_tokens,
        candidates=core.candidates,
        distinct_candidates=core.distinct_candidates,
        masks=core.masks,
        rounds=core.rounds,
        forward_passes=core.forward_passes,
        seconds=dict(clock.seconds),
    )
    best = finished[0]
    return Decoded(
        **{name: getattr(best, name) for name in Answer.__dataclass_fields__},
        finished=finished,
        stats=stats,
        tree=SearchTree(nodes, result.answers[0].node),
        format=job.grammar.format.name,
    )


def _answer(answer: _core.Answer, format: Format, tools: Sequence[Tool]) -> Answer:
    text = answer.text.decode()
    schemas = {tool.name: tool.parameters for tool in tools}
    calls = [
        {"name": call["name"], "arguments": _with_integers(call["arguments"], schemas[call["name"]])}
        for call in format.parse(text, list(schemas))
    ]
    return Answer(
        calls=calls,
        text=text,
        tokens=list(answer.tokens),
        steps=[_step(s) for s in answer.steps],
        score=None if math.isnan(answer.score) else answer.score,
        logprob=answer.logprob,
        rank=answer.rank,
        multiplicity=answer.multiplicity,
        closed=answer.closed,
    )


def _with_integers(value: Any, schema: Any) -> Any:
    """5.0 is an integer to JSON Schema; a function that takes one expects 5."""
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return {name: _with_integers(member, properties.get(name)) for name, member in value.items()}
    if isinstance(value, list):
        return [_with_integers(item, schema.get("items")) for item in value]
    if isinstance(value, float) and value.is_integer() and schema.get("type") == "integer":
        return int(value)
    return value
