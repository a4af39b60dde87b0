"""A logits processor for vLLM: a request that asks for a grammar gets legal answers. Nothing is searched.

vLLM finds it by itself where this package is installed (entry points `vllm.logits_processors`). A request asks by

    SamplingParams(extra_args={"toolprm": {"tools": [...], "format": "hermes"}})
    {"vllm_xargs": {"toolprm": "{\\"tools\\": [...]}"}}        over HTTP, where values must be text: the same as JSON

with a wish as in `toolprm_decode.integrations.wishes`. Other requests are left alone, and cost a look at a dict.

vLLM has two model runners, which find processors by the same entry points and ask different things of them; this one
answers both. With the V1 runner and async scheduling, vLLM tells a processor which tokens were sampled only where the
processor was also named at its start: `--logits-processors toolprm_decode.integrations.vllm:GrammarLogitsProcessor`.
"""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from toolprm_decode.grammar import CallGrammar, Matcher
    from toolprm_decode.integrations.wishes import Grammars

log = logging.getLogger(__name__)

# The name of the wish among the extra arguments of a request.
ARGUMENT = "toolprm"
PLACE = "toolprm_decode.integrations.vllm:GrammarLogitsProcessor"


def _interfaces() -> tuple[type, ...]:
    """The base classes of processors that this vLLM has: of the V2 runner, of the V1 runner, or both."""
    found: list[type] = []
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2
    except ImportError:
        pass
    else:
        found.append(V2)
    try:
        from vllm.v1.sample.logits_processor import LogitsProcessor as V1
    except ImportError:
        if not found:
            raise
    else:
        found.append(V1)
    return tuple(found)


_Interface: Any = type("_Interface", _interfaces(), {})

# The configuration of the engine that the last processor was made for.
_served: weakref.ref[Any] | None = None


@dataclass
class _Request:
    """A request's place in its grammar.

    Attributes:
        grammar: what it asked for; None where that cannot be had.
        matcher: after the tokens read; None once these are not legal, or where there is no grammar.
        output: the tokens sampled for it, a list that vLLM writes to (V1). read: how many of them were read.
        stops: tokens that end it.
    """

    grammar: CallGrammar | None
    matcher: Matcher | None
    output: list[int]
    stops: list[int]
    read: int = 0


class GrammarLogitsProcessor(_Interface):
    """Both of vLLM's interfaces of logits processors, over the same state of requests.

    A request whose grammar cannot be followed is ended by its next token, and the log says why: an exception here would
    end the engine and with it all other requests.
    """

    def __init__(self, vllm_config: Any, where: Any, is_pin_memory: bool = False):
        """where: the device of the logits (V1), or the state of all requests (V2)."""
        global _served
        self._config, self._where = vllm_config, where
        # Named at the start and found as a plug-in, there are two.
        self._idle = _served is not None and _served() is vllm_config
        _served = weakref.ref(vllm_config)
        self._requests: dict[int, _Request] = {}  # by row of the batch (V1) or by slot (V2)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError (a 400 over HTTP) where a wish cannot be had."""
        if (wish := _wish(sampling_params)) is not None:
            from toolprm_decode.integrations.wishes import check_wish

            check_wish(wish)

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Forbids, in place, what is illegal in the rows of requests that asked.

        logits: float [rows, vocabulary]. ctx: of the V2 runner, what each row is.
        """
        if self._requests:
            places = self._rows() if ctx is None else self._rows_of(ctx)
            if places:
                self._forbid(logits, places)
        return logits

    # ------------------------------------------------------------------ the V1 runner

    def is_argmax_invariant(self) -> bool:
        """It is not: the likeliest token may be illegal."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows requests through the batch."""
        if batch_update is None or self._idle:
            return
        requests = self._requests
        for row, params, _, output in batch_update.added:
            requests.pop(row, None)
            if (wish := _wish(params)) is not None:
                requests[row] = self._request(wish, params, output)
        for row in batch_update.removed:
            requests.pop(row, None)
        for source, target, direction in batch_update.moved:
            moved, replaced = requests.pop(source, None), requests.pop(target, None)
            if moved is not None:
                requests[target] = moved
            if replaced is not None and direction.name == "SWAP":
                requests[source] = replaced

    def _rows(self) -> dict[int, tuple[_Request, Matcher | None]]:
        """Where each row stands, by the lists that vLLM writes sampled tokens to."""
        for request in self._requests.values():
            self._read(request, request.output)
        return {row: (request, request.matcher) for row, request in self._requests.items()}

    # ------------------------------------------------------------------ the V2 runner

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Takes a request into a slot, a preempted one again; whether it asked for a grammar."""
        self._requests.pop(req_idx, None)
        wish = None if self._idle else _wish(sampling_params)
        if wish is not None:
            self._requests[req_idx] = self._request(wish, sampling_params, [])
        return wish is not None

    def _rows_of(self, ctx: Any) -> dict[int, tuple[_Request, Matcher | None]]:
        """Where each row stands. Under speculative decoding a request has a row for each token of its draft, too."""
        if not self._requests.keys() & set(ctx.idx_mapping_np.tolist()):
            return {}
        from toolprm_decode.integrations.masks import after

        places: dict[int, tuple[_Request, Matcher | None]] = {}
        columns = (ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.pos, ctx.input_ids)
        table = torch.stack([column.to(torch.int64) for column in columns]).tolist()  # waits for the device once
        matcher: Matcher | None = None
        for row, (slot, draft, position, token) in enumerate(zip(*table, strict=True)):
            request = self._requests.get(slot)
            prompt = int(self._where.prompt_len.np[slot])
            if request is None or position + 1 < prompt:  # a part of a prompt: nothing is drawn from its row
                continue
            if draft:
                matcher = after(matcher, token)
            else:
                known = position + 1 - prompt
                if known == request.read + 1:
                    request.output.append(token)
                else:  # a request that goes on after a preemption
                    request.output[:] = self._where.all_token_ids.gpu[slot, prompt : position + 1].tolist()
                self._read(request, request.output)
                matcher = request.matcher
            places[row] = request, matcher
        return places

    # ------------------------------------------------------------------ both

    @cached_property
    def _grammars(self) -> Grammars:
        from transformers import AutoTokenizer

        from toolprm_decode.integrations.wishes import Grammars

        model = self._config.model_config
        options = {"revision": model.tokenizer_revision, "trust_remote_code": model.trust_remote_code}
        return Grammars(AutoTokenizer.from_pretrained(model.tokenizer, **options))

    def _request(self, wish: Any, params: Any, output: list[int]) -> _Request:
        from toolprm_decode.integrations.masks import check_width

        stops = sorted(params.all_stop_token_ids)
        try:
            grammar = self._grammars.get(wish)
            check_width(grammar, self._config.model_config.get_vocab_size())
        except Exception as error:  # whatever it is, other requests go on
            log.error("toolprm: a request is ended, since its grammar cannot be had: %s", error)
            return _Request(None, None, output, stops)
        return _Request(grammar, grammar.matcher(), output, grammar.stop_ids)

    def _read(self, request: _Request, output: list[int]) -> None:
        """Brings a request up to the tokens that were sampled for it."""
        from toolprm_decode.integrations.masks import after

        if request.grammar is None:
            return
        if len(output) < request.read:  # tokens were taken back
            request.matcher, request.read = request.grammar.matcher(), 0
        for token in output[request.read :]:
            if token < 0:
                log.error(
                    "toolprm: a request is ended, since vLLM does not say which tokens it sampled: start it with "
                    "--logits-processors %s, or with --no-async-scheduling",
                    PLACE,
                )
                request.grammar = request.matcher = None
                return
            before = request.matcher
            request.matcher = after(before, token)
            if before is not None and request.matcher is None:
                log.error("toolprm: a request is ended, since token %d is not legal after %r", token, before.text[-40:])
        request.read = len(output)

    def _forbid(self, logits: torch.Tensor, places: dict[int, tuple[_Request, Matcher | None]]) -> None:
        from toolprm_decode.integrations.masks import forbid, legal_tokens

        stops = [request.stops for request, _ in places.values()]
        masks = legal_tokens([matcher for _, matcher in places.values()], stops, logits.shape[1])
        rows = torch.tensor(list(places), device=logits.device)
        made = forbid(logits[rows], masks)
        # min_tokens has forbidden the end, maybe where nothing else is legal: the answer ends even so.
        ends = torch.tensor([(row, stop) for row, ids in enumerate(stops) for stop in ids], device=logits.device)
        if len(ends):
            row, stop = ends.unbind(1)
            none_left = torch.isneginf(made).all(1)
            made[row, stop] = torch.where(none_left[row], 0.0, made[row, stop])
        logits[rows] = made


def _wish(sampling_params: Any) -> Any:
    """What a request asks of a grammar; None where it does not."""
    return (getattr(sampling_params, "extra_args", None) or {}).get(ARGUMENT)
