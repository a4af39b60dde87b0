"""Rollouts of a policy behind a server that speaks OpenAI's completions: vLLM, SGLang, llama.cpp and others."""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Any

from toolprm_decode.errors import FormatError, RequestError, ServerError, ToolprmError
from toolprm_decode.formats import get_format
from toolprm_decode.grammar import CallGrammar
from toolprm_decode.grammar.vocabulary import load_tokenizer
from toolprm_decode.learning.rollouts import REFUSALS, Rollout, Rollouts, RolloutSettings
from toolprm_decode.prompting import render, to_messages
from toolprm_decode.questions.samples import Sample

log = logging.getLogger(__name__)

# The variable of the environment that holds the server's key.
KEY = "TOOLPRM_SERVER_KEY"

# What may pass by itself: time-outs, too many requests, a server that is starting, restarting or overloaded.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Server:
    """Where the policy runs, and how it is asked.

    Attributes:
        url: of the API, with its /v1 where it has one.
        model: its name there; None for the first that the server lists.
        concurrency: requests at a time.
        timeout: seconds a request may take.
        retries: how often a request is asked again that failed for a reason that may pass; the waits double from a
            second on, up to a minute, or are what the server says (Retry-After).
        constrained: the server has this package's plug-in (vLLM): each request brings its grammar, and all answers that
            were not cut off are legal.
        options: more members of each request, such as {"top_p": 0.95} or {"skip_special_tokens": False}.

    The key, where the server wants one, is in the environment: TOOLPRM_SERVER_KEY.

    Raises:
        RequestError: a value is out of range.
    """

    url: str
    model: str | None = None
    concurrency: int = 16
    timeout: float = 300.0
    retries: int = 5
    constrained: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.url, str) or not self.url.startswith(("http://", "https://")):
            raise RequestError(f"the server's URL must begin with http:// or https://, not {self.url!r:.80}")
        for name, least in (("concurrency", 1), ("retries", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RequestError(f"{name} must be a whole number of {least} or more, not {value!r:.60}")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float) or not self.timeout > 0:
            raise RequestError(f"timeout must be a number of seconds above 0, not {self.timeout!r:.60}")
        if not isinstance(self.options, Mapping) or "prompt" in self.options or "n" in self.options:
            raise RequestError("options must be members of a request beside those that are set: no prompt, no n")

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the server answers to a request for completions.

        Raises RequestError for what it refuses about the request, ServerError where it cannot be reached, or answers
        with what is no completion.
        """
        answer = self._ask("/completions", json.dumps(body).encode())
        if not isinstance(answer.get("choices"), list) or not all(
            isinstance(choice, dict) and isinstance(choice.get("text"), str) for choice in answer["choices"]
        ):
            raise ServerError(f"{self.url}: no completion, but {json.dumps(answer)[:200]}")
        return answer

    def first_model(self) -> str:
        """The name of the first model that the server lists. Raises ServerError, RequestError."""
        answer = self._ask("/models", None)
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(f"{self.url}/models lists no model: name it") from error

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url.rstrip("/") + path, data=body, headers=headers)
        for attempt in range(self.retries + 1):
            wait = min(60.0, 2.0**attempt)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    answer = json.loads(response.read())
                if not isinstance(answer, dict):
                    raise ServerError(f"{request.full_url}: no answer of such an API, but {answer!r:.200}")
                return answer
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}: {_message(error)}"
                if error.code not in _PASSING:
                    kind = RequestError if error.code in (400, 413, 422) else ServerError
                    raise kind(f"{request.full_url}: {reason}") from error
                wait = _seconds(error.headers.get("Retry-After"), wait)
            except (OSError, HTTPException, ValueError) as error:  # no connection, a broken one, half an answer
                reason = f"{error}" or type(error).__name__
            if attempt < self.retries:
                log.warning("%s: %s: asked again in %g s", request.full_url, reason, wait)
                time.sleep(wait)
        raise ServerError(
            f"{request.full_url}: {reason}, after {self.retries + 1} tries: the same command goes on later"
        )


class ServedPolicy:
    """A policy on a server, with the tokenizer that is needed here: for prompts, and to check what comes back.

    Args:
        tokenizer: of the policy, its folder or hub id: the weights are not read.
        format: how the policy writes calls: a name, or "auto" by its chat template.

    Raises:
        TokenizerError: the tokenizer cannot be loaded. FormatError: an unknown format.
    """

    def __init__(self, server: Server, tokenizer: Any, format: str = "auto"):
        get_format(format)
        self.server, self.tokenizer, self.format = server, load_tokenizer(tokenizer), format
        self.model = server.model or server.first_model()

    def grammar(self, tools: Any) -> CallGrammar:
        """The grammar of a tool set."""
        return CallGrammar(tools, self.tokenizer, self.format)

    def ask(self, sample: Sample, grammar: CallGrammar, settings: RolloutSettings) -> tuple[list[dict[str, Any]], int]:
        """The choices that the server gives to a question, and the tokens that they took, prompt included."""
        assert grammar.format is not None
        text, templated = render(self.tokenizer, grammar.tools, to_messages(sample.messages), grammar.format)
        prompt = self.tokenizer(text, add_special_tokens=not templated)["input_ids"]
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "n": settings.samples,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "seed": settings.search(sample.id).seed % 2**31,  # what servers take differs
            "logprobs": 1,
            **self.server.options,
        }
        if self.server.constrained:
            wish = {"tools": [tool.to_openai() for tool in grammar.tools], "format": grammar.format.name}
            body["vllm_xargs"] = {"toolprm": json.dumps(wish)}
        answer = self.server.post(body)
        choices: list[dict[str, Any]] = answer["choices"]
        usage = answer.get("usage")
        spent = usage.get("total_tokens") if isinstance(usage, dict) else None
        if not isinstance(spent, int):
            spent = len(prompt) + sum(len(self.tokenizer(c["text"])["input_ids"]) for c in choices)
        return choices, spent


@dataclass
class ServedRollouts(Rollouts):
    """Rollouts that a server writes. Answers that are not legal, or were cut off, are dropped and counted."""

    decoder: ServedPolicy  # type: ignore[assignment]

    def _batch(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, list[Rollout]]]:
        with ThreadPoolExecutor(self.decoder.server.concurrency, "toolprm-rollouts") as threads:
            answers = threads.map(self._answers, samples)
            try:
                for sample, answer in zip(samples, answers, strict=True):
                    if isinstance(answer, ToolprmError):
                        self._skip(sample, answer)
                        continue
                    found, dropped, spent, self.format = answer
                    self.policy_tokens += spent
                    self.dropped += sum(dropped.values())
                    if not found:
                        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
                        self._skip(
                            sample, FormatError(f"no answer of the server can be used: {reasons or 'there is none'}")
                        )
                        continue
                    yield sample, found
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _answers(self, sample: Sample) -> tuple[list[Rollout], Counter[str], int, str] | ToolprmError:
        """The rollouts of a query, the answers that were dropped by reason, the tokens spent, and the format's name."""
        try:
            grammar = self.decoder.grammar(sample.tools)
            choices, spent = self.decoder.ask(sample, grammar, self.settings)
        except REFUSALS as error:
            return error
        assert grammar.format is not None
        found: dict[str, Rollout] = {}
        dropped: Counter[str] = Counter()
        names = [tool.name for tool in grammar.tools]
        for choice in choices:
            text = choice["text"]
            if choice.get("finish_reason") == "length":
                dropped["cut off at max_tokens"] += 1
                continue
            try:
                steps = grammar.steps(text)
            except (FormatError, RequestError):
                dropped["not legal"] += 1
                continue
            if text not in found:
                calls = grammar.format.parse(text, names)
                found[text] = Rollout(text, _token_ids(choice), steps, calls, _logprob(choice), 0)
            found[text] = replace(found[text], count=found[text].count + 1)
        return list(found.values()), dropped, spent, grammar.format.name


def _logprob(choice: Mapping[str, Any]) -> float | None:
    """The sum of the tokens' log-probabilities, where the server gives them."""
    logprobs = choice.get("logprobs")
    each = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(each, list) or not all(isinstance(value, int | float) for value in each):
        return None
    return float(sum(each))


def _token_ids(choice: Mapping[str, Any]) -> list[int]:
    """The tokens, where the server gives them (vLLM: return_token_ids)."""
    ids = choice.get("token_ids")
    return list(ids) if isinstance(ids, list) and all(isinstance(value, int) for value in ids) else []


def _message(error: urllib.error.HTTPError) -> str:
    """What a server says about an error, in a line."""
    try:
        body = error.read().decode(errors="replace")
    except (OSError, HTTPException):
        return str(error.reason)
    try:
        said = json.loads(body)
        said = said.get("error", said)
        body = str(said.get("message", said)) if isinstance(said, dict) else str(said)
    except (ValueError, AttributeError):
        pass
    return " ".join(body.split())[:500] or str(error.reason)


def _seconds(said: str | None, otherwise: float) -> float:
    try:
        return min(max(float(said or ""), 0.0), 600.0)
    except ValueError:
        return otherwise
