"""decode(), Decoder, Decoded: the facade."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolprm_decode import _core
from toolprm_decode.engine import Engine
from toolprm_decode.errors import ContextExceeded, DeadlineExceeded, RequestError, TokenizerError
from toolprm_decode.formats import Format, get_format
from toolprm_decode.grammar.call_grammar import CallGrammar, Step
from toolprm_decode.grammar.leniency import SchemaWarning
from toolprm_decode.grammar.vocabulary import load_tokenizer
from toolprm_decode.prompting import render, to_messages
from toolprm_decode.rewards import STEP_KINDS, ToolPRM
from toolprm_decode.search import Search, SearchTree
from toolprm_decode.search.node import Node
from toolprm_decode.search.scheduler import LATE, Pending, Scheduler, Work
from toolprm_decode.tools import Tool, read_tools

log = logging.getLogger(__name__)

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
        policy_tokens, prm_tokens: tokens run through the policy and the reward model, of prompts and answers.
        cached_tokens, prm_cached_tokens: tokens of the two prompts that were not run, since another request had.
        prompt_tokens, prm_prompt_tokens: of the two prompts.
        forced_tokens: tokens that the grammar left no choice about.
        candidates, distinct_candidates: draws, and different ones among them.
        masks: masks computed or looked up.
        rounds: steps of the search. forward_passes: of the policy.
        preemptions: how often it gave its memory to an older request, and read its tokens again later.
        seconds: by phase, of all that the decoder did while it answered the request.
    """

    policy_tokens: int
    prm_tokens: int
    cached_tokens: int
    prm_cached_tokens: int
    prompt_tokens: int
    prm_prompt_tokens: int
    forced_tokens: int
    candidates: int
    distinct_candidates: int
    masks: int
    rounds: int
    forward_passes: int
    preemptions: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Decoded(Answer):
    """The best answer, and how it was found.

    Attributes:
        finished: all answers, best first; the first is this one.
        stats: what it cost.
        tree: all candidates of the search.
        format: the call format.
        warnings: keywords of the tools that were not enforced; only where the decoder is not strict.
    """

    finished: list[Answer] = field(repr=False)
    stats: Stats = field(repr=False)
    tree: SearchTree = field(repr=False)
    format: str = ""
    warnings: list[SchemaWarning] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Request:
    """One request: tools, prompt, search and timeout as for Decoder.decode()."""

    tools: Any
    prompt: Any
    search: Search | None = None
    timeout: float | None = None


class Decoder:
    """Keeps models, grammars and prompts warm between requests.

    Thread-safe: requests of several threads, or of one batch, share forward passes, and read what their prompts have in
    common once. What runs beside a request changes its answer no more than the rounding of float arithmetic does.

    Args:
        model: the policy: a transformers causal LM, its folder or hub id, or an Engine.
        prm: the reward model: the same, a ToolPRM, a callable (see Scorer), or None to rank by log-probability.
        tokenizer: the policy's, where the model does not bring one.
        format: how the policy writes calls: a name, a Format, or "auto" by its chat template.
        strict: a keyword of a tool that cannot be enforced is an error; otherwise it is left out, and the answer's
            warnings say so.
        search: the search of requests that bring none.
        kv_memory: bytes for keys and values, of policy and reward model together; None for half of what is free. It is
            taken as it is needed. Requests beyond it wait; one that does not fit alone is refused.
        prefix_memory: bytes of it that may hold prompts for later requests over the same tools; None for half of it, 0
            to keep none.

    Raises:
        ModelNotSupported: an architecture that the engine cannot run, or a head that does not fit the tokenizer.
        FormatError: an unknown format.
        TokenizerError: the tokenizer's bytes cannot be recovered, or the reward model's labels are not tokens.
        RequestError: there is no model at the path, or kv_memory is too small.
    """

    def __init__(
        self,
        model: Any,
        prm: Any = None,
        *,
        tokenizer: Any = None,
        format: str | Format = "auto",
        strict: bool = True,
        search: Search | None = None,
        kv_memory: int | None = None,
        prefix_memory: int | None = None,
    ):
        for name, value in (("kv_memory", kv_memory), ("prefix_memory", prefix_memory)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise RequestError(f"{name} must be a number of bytes, not {value!r:.60}")
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
        self._scheduler = Scheduler(
            self._policy,
            self._prm,
            _reward_format(self._prm) if self._prm else None,
            kv_memory=kv_memory,
            prefix_memory=prefix_memory,
            scored=self._scorer is not None,
        )
        self.format, self.strict = format, strict
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
            strict=self.strict,
            stop_ids=self._stop_ids(),
        )
        with self._guard:
            self._grammars[key] = grammar
            while len(self._grammars) > _KEPT_GRAMMARS:
                self._grammars.popitem(last=False)
        return grammar

    def decode(self, tools: Any, prompt: Any, search: Search | None = None, *, timeout: float | None = None) -> Decoded:
        """One request: the best answer to the prompt (text or chat messages) with these tools.

        timeout: seconds that it may take, its wait for memory included; None for any time.

        Raises ToolSchemaError and the other errors of CallGrammar, RequestError for a prompt that cannot be used,
        BudgetExceeded where max_tokens, kv_memory or the model's context is too small for any answer, DeadlineExceeded
        when the time is up, and what a reward callable raises.
        """
        return self.decode_batch([Request(tools, prompt, search, timeout)])[0]

    @overload
    def decode_batch(
        self, requests: Sequence[Request], *, return_exceptions: Literal[False] = False
    ) -> list[Decoded]: ...

    @overload
    def decode_batch(
        self, requests: Sequence[Request], *, return_exceptions: Literal[True]
    ) -> list[Decoded | Exception]: ...

    def decode_batch(
        self, requests: Sequence[Request], *, return_exceptions: bool = False
    ) -> list[Decoded] | list[Decoded | Exception]:
        """Several requests at once, answered in order.

        return_exceptions: an error of a request stands in its place, and the others are answered; else the first one is
        raised and the others are dropped.
        """
        self._scheduler.check_caller()
        prepared: list[Work[Decoded] | Exception] = []
        for request in requests:
            try:
                prepared.append(self._prepare(request))
            except Exception as error:
                if not return_exceptions:
                    raise
                prepared.append(error)
        # All at once, so that they go through the same passes each time.
        works = [work for work in prepared if isinstance(work, Work)]
        futures = self._scheduler.submit(works)
        waiting = iter(zip(futures, works, strict=True))
        answers: list[Any] = []
        try:
            for item in prepared:
                try:
                    answers.append(item if isinstance(item, Exception) else _wait(*next(waiting)))
                except Exception as error:
                    if not return_exceptions:
                        raise
                    answers.append(error)
        finally:
            for future in futures:
                future.cancel()
        return answers

    def submit(self, request: Request, on_steps: Callable[[list[Step]], None] | None = None) -> Future[Decoded]:
        """The answer to come. `cancel()` drops the request at any time, and `asyncio.wrap_future` awaits it.

        on_steps: called with steps as they become certain, in order and before the future is done, by a thread that
            all requests wait for: it hands them on and returns. What it raises is logged.

        Raises at once what is wrong with the request itself; the future raises the rest.
        """
        work = self._prepare(request)
        if on_steps is not None:
            work.on_steps = _listener(on_steps)
        return self._scheduler.submit([work])[0]

    def stream(
        self, tools: Any, prompt: Any, search: Search | None = None, *, timeout: float | None = None
    ) -> Iterator[Step | Decoded]:
        """One request: its steps as they become certain (all answers still possible agree on them), then the answer.

        Closing the iterator drops the request. Arguments and errors as for decode().
        """
        self._scheduler.check_caller()
        events: queue.SimpleQueue[list[Step] | None] = queue.SimpleQueue()
        work = self._prepare(Request(tools, prompt, search, timeout))
        work.on_steps = _listener(events.put)
        (pending,) = self._scheduler.submit([work])
        pending.add_done_callback(lambda _: events.put(None))
        return _Stream(pending, events, work.deadline)

    @property
    def blocks_in_use(self) -> tuple[int, int]:
        """Blocks of keys and values that requests hold, of the policy and of the reward model."""
        return self._scheduler.blocks_in_use

    def _prepare(self, request: Request) -> Work[Decoded]:
        started = time.perf_counter()
        if not isinstance(request, Request):
            raise RequestError(f"a batch is a list of Request(tools, prompt), not of {request!r:.60}")
        search = self.search if request.search is None else request.search
        if not isinstance(search, Search):
            raise RequestError(f"search must be a Search, not {search!r:.60}")
        if search.confidence is not None and self._prm is None and self._scorer is None:
            raise RequestError("confidence is in the scores of a reward model: pass prm=")
        deadline = _deadline(request.timeout)
        messages = to_messages(request.prompt)
        grammar = self.grammar(request.tools, search)
        assert grammar.format is not None
        text, templated = render(self.tokenizer, grammar.tools, messages, grammar.format)
        prompt = list(self.tokenizer(text, add_special_tokens=not templated)["input_ids"])
        if not prompt:
            raise RequestError("the prompt has no tokens")
        room = _context(self._policy) - len(prompt)
        if room < 1:
            raise ContextExceeded(
                f"the prompt has {len(prompt)} tokens, and the model's context is {_context(self._policy)}: "
                "use fewer tools or a shorter prompt"
            )
        max_tokens, reward_prompt, reward_room = min(search.max_tokens, room), [], 0
        if self._prm is not None:
            reward_prompt = self._prm.encode_prompt(self._prm.prompt_text(grammar.tools, messages, grammar.format))
            if len(reward_prompt) + 2 * max_tokens > _context(self._prm.engine):
                max_tokens = (_context(self._prm.engine) - len(reward_prompt)) // 2
            if max_tokens < 1:
                raise ContextExceeded(
                    f"the prompt has {len(reward_prompt)} tokens for the reward model, whose context is "
                    f"{_context(self._prm.engine)}: use fewer tools or a shorter prompt"
                )
            reward_room = _context(self._prm.engine) - len(reward_prompt)
        prepare = time.perf_counter() - started

        def finish(result: _core.Result, seconds: dict[str, float]) -> Decoded:
            return _decoded(result, grammar, (len(prompt), len(reward_prompt)), {"prepare": prepare, **seconds})

        return Work(
            matcher=grammar.matcher(),
            options=search.core_options(max_tokens),
            prompt=prompt,
            reward_prompt=reward_prompt,
            reward_room=reward_room,
            scorer=None if self._scorer is None else _bound(self._scorer, text),
            finish=finish,
            deadline=deadline,
        )

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


def _deadline(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise RequestError(f"timeout must be a number of seconds above 0, or None, not {timeout!r:.60}")
    return time.monotonic() + min(timeout, threading.TIMEOUT_MAX)


def _wait(pending: Pending[Decoded], work: Work[Decoded]) -> Decoded:
    """The answer, or DeadlineExceeded on time, even where a long forward pass is under way."""
    if work.deadline is None:
        return pending.result()
    try:
        return pending.result(max(0.0, work.deadline - time.monotonic()))
    except FutureTimeout:
        if pending.done():  # the scheduler was first to say so
            return pending.result()
        raise DeadlineExceeded(LATE) from None


class _Stream(Iterator["Step | Decoded"]):
    """The steps of a request, then its answer. Drops the request when it is closed, or forgotten."""

    def __init__(self, pending: Pending[Decoded], events: queue.SimpleQueue[list[Step] | None], deadline: float | None):
        self._pending, self._events, self._deadline = pending, events, deadline
        self._steps: deque[Step] = deque()
        self._over = False

    def __next__(self) -> Step | Decoded:
        while not self._steps:
            if self._over:
                raise StopIteration
            try:
                left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
                steps = self._events.get(timeout=left)
            except queue.Empty:
                self.close()
                raise DeadlineExceeded(LATE) from None
            if steps is None:
                self._over = True
                return self._pending.result()
            self._steps.extend(steps)
        return self._steps.popleft()

    def close(self) -> None:
        """Drops the request."""
        self._over = True
        self._steps.clear()
        self._pending.cancel()

    def __del__(self) -> None:
        self._pending.cancel()


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


def _listener(on_steps: Callable[[list[Step]], None]) -> Callable[[list[_core.ScoredStep]], None]:
    """Told by the scheduler, which must not fall to what a caller's function raises."""

    def tell(steps: list[_core.ScoredStep]) -> None:
        try:
            on_steps([_step(step) for step in steps])
        except Exception:
            log.exception("on_steps of a request failed")

    return tell


def _decoded(
    result: _core.Result, grammar: CallGrammar, prompts: tuple[int, int], seconds: dict[str, float]
) -> Decoded:
    assert grammar.format is not None
    finished = [_answer(answer, grammar.format, grammar.tools) for answer in result.answers]
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
        cached_tokens=core.cached_tokens,
        prm_cached_tokens=core.reward_cached_tokens,
        prompt_tokens=prompts[0],
        prm_prompt_tokens=prompts[1],
        forced_tokens=core.forced_tokens,
        candidates=core.candidates,
        distinct_candidates=core.distinct_candidates,
        masks=core.masks,
        rounds=core.rounds,
        forward_passes=core.forward_passes,
        preemptions=core.preemptions,
        seconds=seconds,
    )
    best = finished[0]
    return Decoded(
        **{name: getattr(best, name) for name in Answer.__dataclass_fields__},
        finished=finished,
        stats=stats,
        tree=SearchTree(nodes, result.answers[0].node),
        format=grammar.format.name,
        warnings=list(grammar.warnings),
    )


def _answer(answer: _core.Answer, format: Format, tools: Sequence[Tool]) -> Answer:
    text = answer.text.decode()
    return Answer(
        calls=read_calls(text, format, tools),
        text=text,
        tokens=list(answer.tokens),
        steps=[_step(s) for s in answer.steps],
        score=None if math.isnan(answer.score) else answer.score,
        logprob=answer.logprob,
        rank=answer.rank,
        multiplicity=answer.multiplicity,
        closed=answer.closed,
    )


def read_calls(text: str, format: Format, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The calls of a text that is legal for the tools, each {"name": ..., "arguments": {...}}."""
    schemas = {tool.name: tool.parameters for tool in tools}
    return [
        {"name": call["name"], "arguments": _with_integers(call["arguments"], schemas[call["name"]])}
        for call in format.parse(text, list(schemas))
    ]


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
