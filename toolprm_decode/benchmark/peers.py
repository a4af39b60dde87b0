"""What the peers' loops share: texts under way, their draws, and which of them go on.

The search is the one of arXiv 2510.14703 with the package's choices, so that equal random numbers find equal answers:
ranks by the last step's score to four decimals, equal decisions as one candidate, finished ones keeping their seats.
Where steps end, and which text is forced, the loops learn from the package's own matcher; the masks are xgrammar's.
Forced text takes a pass a token, as in generate(), unless a loop jumps forward: then it is read in one pass.
Candidates that decide the same are told apart until they were scored: merging them earlier is what is measured.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from toolprm_decode import _core
from toolprm_decode.benchmark.peer_grammar import PeerGrammar
from toolprm_decode.decoding import Decoded
from toolprm_decode.errors import RequestError
from toolprm_decode.grammar.call_grammar import CallGrammar, Matcher, Step
from toolprm_decode.rewards import ToolPRM
from toolprm_decode.search import Search


class Clock:
    """Seconds spent a phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Books the time since the last lap on a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


# Called with the number of the round, from 1, and how much of its work is done, in [0, 1].
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Trail:
    """What a search of the package drew and how it scored, for loops to follow.

    In bfloat16 rounding sends loops different ways, and their times would be of different work. A loop that follows
    computes all that it would without, and then takes what the search took.

    Attributes:
        tokens: by the uniform number that drew it. scores: of a step, by the texts of the steps up to it.
    """

    tokens: dict[float, int] = field(default_factory=dict)
    scores: dict[tuple[str, ...], float] = field(default_factory=dict)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Notes the draws of all decoders until the context ends."""
        sample = _core.sample_plan

        def noted(plan: _core.Plan, *logits: Any) -> Any:
            drawn = sample(plan, *logits)
            self.tokens.update(zip(plan.uniforms.tolist(), drawn[0].tolist(), strict=True))
            return drawn

        with patch.object(_core, "sample_plan", noted):
            yield

    def note_scores(self, decoded: Decoded) -> None:
        """Notes how an answer's candidates were scored."""
        nodes = decoded.tree.nodes
        for index, node in enumerate(nodes):
            before = [step.text for i in decoded.tree.path(index)[:-1] for step in nodes[i].steps]
            for step in node.steps:
                before.append(step.text)
                if step.score is not None:
                    self.scores[tuple(before)] = step.score


@dataclass
class Draft:
    """A text under way.

    Attributes:
        matcher: says where steps end and what is forced. masks: xgrammar's matcher.
        tokens: all of it. pending: those at its end that the policy has not read yet.
        choices: the drawn ones. logprob: of these, natural, among the legal ones at temperature 1.
        steps: as far as they are complete. scores: one each.
        rank, multiplicity: once it is a candidate.
    """

    matcher: Matcher
    masks: Any
    tokens: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    choices: tuple[int, ...] = ()
    logprob: float = 0.0
    steps: list[Step] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    finished: bool = False
    rank: float = 0.0
    multiplicity: int = 1

    def fork(self) -> Draft:
        """An independent copy."""
        other = copy.copy(self)
        other.matcher, other.masks = self.matcher.fork(), self.masks.fork()
        for name in ("tokens", "pending", "steps", "scores"):
            setattr(other, name, list(getattr(self, name)))
        return other

    @property
    def text(self) -> str:
        """What was written."""
        return self.matcher.text

    def write(self, tokens: Sequence[int]) -> None:
        """Adds legal tokens."""
        for token in tokens:
            self.steps += self.matcher.accept(token)
            if not self.masks.accept_token(token):
                raise RuntimeError(f"xgrammar refuses token {token} after {self.text!r}")
            self.tokens.append(token)
            self.pending.append(token)

    def force(self) -> None:
        """Adds the text that the grammar leaves no choice about, and ends where it leaves nothing at all."""
        self.write(self.matcher.forced())
        self.finished = bool(self.masks.is_terminated())


@dataclass(frozen=True)
class PeerRun:
    """What a loop found, and what it cost.

    Attributes:
        texts: of the answers, best first; those so far where it was stopped early.
        seconds: by phase: prefill, policy, masks and draws, prm, search.
        rounds: seconds from the start to the end of each round.
        policy_tokens, prm_tokens: run through the models, prompts included, padding left out.
        candidates: draws made.
        complete: it was not stopped early.
    """

    texts: list[str]
    seconds: dict[str, float]
    rounds: list[float]
    policy_tokens: int
    prm_tokens: int
    candidates: int
    complete: bool

    @property
    def total(self) -> float:
        """Seconds of the whole."""
        return sum(self.seconds.values())


class PeerLoop(ABC):
    """A step beam search over two transformers models.

    Args:
        policy: a causal LM of transformers. reward: the reward model; its tokenizer and tags are used, its engine not.
        grammar: of one call, for the boundaries. masks: the same calls in xgrammar's words.
        search: step-beam, ranked by the last score; max_tokens is not enforced, but an answer beyond it is an error.
        jump_forward: text that is forced is read in one pass.
        trail: a search to follow, None to go its own way.
    """

    name = ""

    def __init__(
        self,
        policy: Any,
        reward: ToolPRM,
        grammar: CallGrammar,
        masks: PeerGrammar,
        search: Search,
        progress: Progress,
        jump_forward: bool = False,
        trail: Trail | None = None,
    ):
        self.jump_forward, self.trail = jump_forward, trail
        self.policy, self.reward, self.judge = policy, reward, reward.engine.model
        self.grammar, self.masks, self.search, self.progress = grammar, masks, search, progress
        self.round = 0
        self.compiled = masks.compile()  # before the clock starts, as one would for many requests
        self.policy_tokens = self.prm_tokens = self.candidates = 0
        self.clock = Clock()

    @torch.inference_mode()
    def run(self, prompt: Sequence[int], reward_prompt: Sequence[int], max_rounds: int | None = None) -> PeerRun:
        """Decodes a prompt, given in the tokens of each model; stops early after max_rounds."""
        self.clock = Clock()
        self.prefill(prompt, reward_prompt)
        self.clock.lap("prefill")
        beams, answers, ends = [self.root(prompt[-1])], list[Draft](), list[float]()
        answered = set[Hashable]()
        while beams and (max_rounds is None or len(ends) < max_rounds):
            round_ = len(ends)
            self.round = round_ + 1
            self.candidates += len(beams) * self.search.width
            drafts = self.expand(beams, round_)
            self.score(drafts, beams)
            for draft in drafts:
                self._follow(draft)
            kept = self._select(drafts, answered, self.search.beams - len(answers))
            going = [i for i in kept if not drafts[i].finished]
            self.keep(going)
            answers += [drafts[i] for i in kept if drafts[i].finished]
            answered |= {decisions(drafts[i]) for i in kept if drafts[i].finished}
            beams = [drafts[i] for i in going]
            self.clock.lap("search")
            ends.append(sum(self.clock.seconds.values()))
        answers.sort(key=lambda draft: -four_decimals(draft.rank))
        return PeerRun(
            texts=[draft.text for draft in answers],
            seconds=dict(self.clock.seconds),
            rounds=ends,
            policy_tokens=self.policy_tokens,
            prm_tokens=self.prm_tokens,
            candidates=self.candidates,
            complete=not beams,
        )

    @abstractmethod
    def prefill(self, prompt: Sequence[int], reward_prompt: Sequence[int]) -> None:
        """Reads the prompts, the last token of the policy's left out, as far as they are read only once."""

    @abstractmethod
    def expand(self, beams: Sequence[Draft], round_: int) -> list[Draft]:
        """width candidates a beam, in the order of their draws, each written to its next boundary."""

    @abstractmethod
    def score(self, drafts: Sequence[Draft], beams: Sequence[Draft]) -> None:
        """Appends the scores of the candidates' new steps."""

    @abstractmethod
    def keep(self, indices: Sequence[int]) -> None:
        """The candidates that go on, in their order; the others are forgotten."""

    def done(self, share: float) -> None:
        """Tells how much of the round's work is done."""
        self.progress(self.round, min(share, 1.0))

    # ------------------------------------------------------------------ texts

    def root(self, last_token: int) -> Draft:
        """The empty text; last_token is the prompt's."""
        draft = Draft(self.grammar.matcher(), self.masks.matcher(self.compiled))
        draft.force()
        draft.pending.insert(0, last_token)
        return draft

    def draw(self, draft: Draft, logits: torch.Tensor, draw: int, round_: int) -> None:
        """Draws a token from logits [vocab] under xgrammar's mask and writes it, with what is forced after it."""
        if len(draft.tokens) >= self.search.max_tokens:
            raise RequestError(
                f"an answer outgrew max_tokens ({self.search.max_tokens}), which the loops to compare with do not "
                "close: bound the texts of the tools"
            )
        legal = self.masks.legal(draft.masks)
        values = logits[torch.from_numpy(legal)].double().numpy()
        values -= values.max()
        uniform = _core.uniform(self.search.seed, draw, len(draft.tokens), round_)
        heap = np.cumsum(np.exp(values / self.search.temperature))
        pick = min(int(np.searchsorted(heap, uniform * heap[-1], side="right")), len(legal) - 1)
        if self.trail is not None and (taken := self.trail.tokens.get(uniform)) is not None:
            pick = int(np.searchsorted(legal, taken))
        token = int(legal[pick])
        draft.logprob += float(values[pick] - np.log(np.exp(values).sum()))
        draft.choices = (*draft.choices, token)
        draft.write([token])
        draft.force()

    def take_pending(self, draft: Draft) -> list[int]:
        """What the policy reads of a draft next: all that is pending, or a token of it. None is left where it draws."""
        count = len(draft.pending) if self.jump_forward else min(1, len(draft.pending))
        taken, draft.pending = draft.pending[:count], draft.pending[count:]
        return taken

    def at_boundary(self, draft: Draft, known: int) -> bool:
        """It has a step more than the known ones, or is over."""
        return draft.finished or len(draft.steps) > known

    def _follow(self, draft: Draft) -> None:
        """Takes the scores of the trail for those of its own."""
        if self.trail is None:
            return
        texts = tuple(step.text for step in draft.steps)
        draft.scores = [self.trail.scores.get(texts[: i + 1], own) for i, own in enumerate(draft.scores)]

    def new_text(self, draft: Draft, first: int) -> tuple[list[int], list[int]]:
        """What the reward model reads of the steps from `first` on: tokens, and indices of the tags among them."""
        tokens, tags = list[int](), list[int]()
        for step in draft.steps[first:]:
            tokens += self.reward.encode_text(step.text) + self.reward.tag_ids(step.kind)
            tags.append(len(tokens) - 1)
        return tokens, tags

    def to_scores(self, hidden: torch.Tensor) -> list[float]:
        """Scores of the reward model's hidden states [n, hidden] at tags: two rows of its head are enough."""
        head = self.judge.get_output_embeddings().weight
        logits = hidden @ head[list(self.reward.label_ids)].T
        return [float(score) for score in self.reward.scores(logits.float())]

    # ------------------------------------------------------------------ choosing

    def _select(self, drafts: Sequence[Draft], answered: set[Hashable], seats: int) -> list[int]:
        """Indices of the best candidates, best first; equal decisions count as one, in their most frequent spelling."""
        groups: dict[Hashable, list[int]] = {}
        for index, draft in enumerate(drafts):
            decided = decisions(draft)
            if decided not in answered:
                groups.setdefault(decided, []).append(index)
        chosen = []
        for group in groups.values():
            ways: dict[Hashable, list[int]] = {}
            for index in group:
                ways.setdefault((index // self.search.width, drafts[index].choices), []).append(index)
            index = max(ways.values(), key=len)[0]
            draft = drafts[index]
            draft.multiplicity = len(group)
            draft.rank = math.log(max(draft.scores[-1], 1e-300)) + self.search.policy_weight * draft.logprob
            chosen.append(index)
        chosen.sort(key=lambda i: (-four_decimals(drafts[i].rank), -drafts[i].multiplicity, -drafts[i].logprob))
        return chosen[:seats]


def four_decimals(rank: float) -> float:
    """As much of a rank as counts: what differs by rounding alone stays equal."""
    return math.floor(rank * 1e4 + 0.5)


def decisions(draft: Draft) -> Hashable:
    """What was decided, whatever the order of the arguments and the spelling of the values."""
    out: list[Hashable] = [draft.finished]
    arguments: dict[str, str] = {}
    for step in draft.steps:
        if step.kind == "ARG_VALUE":
            member = step.text.removeprefix(', "arguments": {').removeprefix(", ")
            (value,) = json.loads("{" + member + "}").values()
            arguments[step.path] = json.dumps(int(value) if isinstance(value, float) else value)
        else:
            out.append((step.kind, step.text if step.kind == "FUNC_NAME" else "", tuple(sorted(arguments.items()))))
            arguments = {}
    return (*out, tuple(sorted(arguments.items())))


def cache_argument(model: Any) -> str:
    """The name under which a model's forward takes its key-value cache: transformers is renaming it."""
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"
