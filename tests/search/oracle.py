"""The search written down plainly, as the judge of the core: every prefix recomputed, every draw made on its own.

It shares the grammar and the random numbers with the core, and nothing else: no cache, no forks, no batches.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from toolprm_decode import CallGrammar, Search, Step, ToolPRM, _core
from toolprm_decode.prompting import render, to_messages


@dataclass(frozen=True)
class Written:
    """A text under way: its tokens with their log-probabilities, and what the policy chose to get there."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    choices: tuple[int, ...] = ()  # drawn tokens, those that were closed instead of written among them
    finished: bool = False
    closed: bool = False
    node: int | None = None
    seats: tuple[int, ...] = ()  # of a beam: numbers of the trees that it belongs to
    judged: int = 0  # steps that have their scores

    @property
    def logprob(self) -> float:
        return float(sum(self.logprobs))


@dataclass
class Candidate:
    written: Written
    steps: list[Step]
    scores: list[float | None] = field(default_factory=list)
    rank: float = 0.0
    multiplicity: int = 1
    draws: list[int] = field(default_factory=list)  # those that ended here
    node: int | None = None

    @property
    def draw(self) -> int:
        return min(self.draws)


@dataclass
class Found:
    """An answer or a node of the tree."""

    steps: list[Step]  # with score and logprob
    rank: float
    multiplicity: int
    finished: bool
    closed: bool
    tokens: tuple[int, ...] = ()
    score: float | None = None
    logprob: float = 0.0
    parent: int | None = None
    kept: bool = False


class Oracle:
    """One request. model: the plain transformers model; reward: a ToolPRM, a callable or None."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        grammar: CallGrammar,
        prompt: Any,
        search: Search,
        reward: Any,
    ):
        self.model, self.grammar, self.search, self.reward = model, grammar, search, reward
        assert grammar.format is not None
        messages = to_messages(prompt)
        self.text, templated = render(tokenizer, grammar.tools, messages, grammar.format)
        self.prompt = tokenizer(self.text, add_special_tokens=not templated)["input_ids"]
        if isinstance(reward, ToolPRM):
            self.reward_text, _ = render(reward.tokenizer, grammar.tools, messages, grammar.format)
        self.vocabulary = grammar._vocabulary
        self.known_logits: dict[tuple[int, ...], np.ndarray] = {}
        self.known_scores: dict[tuple[tuple[str, str], ...], float | None] = {}
        self.tree: list[Found] = []
        self.answers: list[Found] = []
        self.answered: dict[Any, tuple[Found, Found]] = {}  # decisions -> answer and its node
        self.rounds = 0

    # ------------------------------------------------------------------ models

    def logits(self, tokens: tuple[int, ...]) -> np.ndarray:
        if tokens not in self.known_logits:
            with torch.inference_mode():
                ids = torch.tensor([[*self.prompt, *tokens]])
                self.known_logits[tokens] = self.model(input_ids=ids).logits[0, -1].double().numpy()
        return self.known_logits[tokens]

    def score(self, steps: Sequence[Step]) -> float | None:
        """Of the last of these steps."""
        key = tuple((step.kind, step.text) for step in steps)
        if key not in self.known_scores:
            if isinstance(self.reward, ToolPRM):
                value = self.reward.score(self.reward_text, list(key))[-1]
                self.known_scores[key] = None if math.isnan(value) else value
            else:
                assert self.reward is not None
                self.known_scores[key] = self.reward(
                    self.text, [Step(s.kind, s.text, s.start, s.end, s.path) for s in steps]
                )
        return self.known_scores[key]

    # ------------------------------------------------------------------ the grammar

    def matcher(self, tokens: Sequence[int]) -> Any:
        matcher = self.grammar.matcher()
        for token in tokens:
            matcher.accept(token)
        return matcher

    def legal(self, tokens: Sequence[int]) -> list[int]:
        row = np.zeros((len(self.vocabulary) + 31) // 32, np.int32)
        self.matcher(tokens).fill_mask(row)
        return [i for i in range(len(self.vocabulary)) if row[i // 32] >> (i % 32) & 1]

    def closing(self, tokens: Sequence[int]) -> list[int]:
        return self.vocabulary.tokenize(self.matcher(tokens).closing())

    def fits(self, tokens: Sequence[int]) -> bool:
        return len(tokens) + len(self.closing(tokens)) <= self.search.max_tokens

    def steps(self, written: Written) -> list[Step]:
        """The steps, each with the log-probability of the tokens since the step before."""
        matcher, steps, open_logprob = self.grammar.matcher(), [], 0.0
        for token, logprob in zip(written.tokens, written.logprobs, strict=True):
            open_logprob += logprob
            for step in matcher.accept(token):
                steps.append(Step(step.kind, step.text, step.start, step.end, step.path, None, open_logprob))
                open_logprob = 0.0
        if written.finished:
            for step in self.grammar.steps(matcher.text)[len(steps) :]:
                steps.append(Step(step.kind, step.text, step.start, step.end, step.path, None, open_logprob))
                open_logprob = 0.0
        return steps

    # ------------------------------------------------------------------ one draw

    def write(self, written: Written, token: int, logprob: float) -> Written:
        choices = (*written.choices, token)
        tokens, logprobs = (*written.tokens, token), (*written.logprobs, logprob)
        if token in self.vocabulary.stop_ids:
            return replace(written, tokens=tokens, logprobs=logprobs, choices=choices, finished=True)
        if not self.fits(tokens):
            return self.close(replace(written, choices=choices))
        return self.force(replace(written, tokens=tokens, logprobs=logprobs, choices=choices))

    def force(self, written: Written) -> Written:
        """What the grammar leaves no choice about."""
        run = self.matcher(written.tokens).forced() if self.search.forced_runs else []
        if not self.fits((*written.tokens, *run)):
            return self.close(written)
        tokens, logprobs = (*written.tokens, *run), written.logprobs + (0.0,) * len(run)
        over = set(self.legal(tokens)) <= set(self.vocabulary.stop_ids)
        return replace(written, tokens=tokens, logprobs=logprobs, finished=over)

    def close(self, written: Written) -> Written:
        end = self.closing(written.tokens)
        logprobs = written.logprobs + (0.0,) * len(end)
        return replace(written, tokens=(*written.tokens, *end), logprobs=logprobs, finished=True, closed=True)

    def draw(self, written: Written, draw: int, round_: int, known: int) -> Written:
        beam = self.search.strategy == "step-beam"
        while not written.finished and not (beam and len(self.steps(written)) > known):
            legal = self.legal(written.tokens)
            logits = self.logits(written.tokens)[legal]
            chances = np.exp(logits - logits.max())
            logprobs = logits - logits.max() - math.log(chances.sum())
            if self.search.temperature == 0 or self.search.strategy == "greedy":
                pick = int(np.argmax(logits))
            else:
                uniform = _core.uniform(self.search.seed, draw, len(written.tokens), round_)
                heap = np.cumsum(np.exp((logits - logits.max()) / self.search.temperature))
                pick = next(i for i, height in enumerate(heap) if height > uniform * heap[-1])
            written = self.write(written, legal[pick], float(logprobs[pick]))
        return written

    # ------------------------------------------------------------------ distinct draws

    def race(self, beam: Written, number: int, round_: int, known: int) -> list[Written]:
        """The `width` best of a beam's continuations in a race of perturbed log-probabilities, best first.

        Every text that goes on from a prefix has its own Gumbel number; a prefix stands where its best text does, and
        its children's places are drawn given that. So the best prefix can be gone on with until a text has ended, which
        is then the best of those that are left.
        """
        search = self.search
        waiting = [(0.0, 0, beam, 0.0, number)]  # minus the place, order of arrival, prefix, log-probability, key
        best: list[Written] = []
        arrived = 1
        while waiting and len(best) < search.width:
            place, _, written, logprob, key = heapq.heappop(waiting)
            if written.finished or (search.strategy == "step-beam" and len(self.steps(written)) > known):
                best.append(written)
                continue
            legal = self.legal(written.tokens)
            logits = self.logits(written.tokens)[legal]
            own = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
            heated = (logits - logits.max()) / search.temperature
            heated -= math.log(np.exp(heated).sum())
            weights = np.exp(heated)
            left = list(range(len(legal)))
            before = -place
            for i in range(min(search.width, len(legal))):
                heap = np.cumsum(weights[left])

                def number_of(lane: int, at: int = len(written.tokens), key: int = key) -> float:
                    return _core.uniform(search.seed, key, at, round_, lane)

                pick = left[next(j for j, h in enumerate(heap) if h > number_of(2 * i) * heap[-1])]
                if i > 0:  # the largest Gumbel number of what is left, given that it is below the one before
                    centre = logprob + math.log(heap[-1])
                    before = centre - math.log(math.exp(centre - before) - math.log(number_of(2 * i + 1)))
                left.remove(pick)
                child = self.write(written, legal[pick], float(own[pick]))
                entry = (-before, arrived, child, logprob + float(heated[pick]), child_key(key, legal[pick]))
                heapq.heappush(waiting, entry)
                arrived += 1
        return best

    # ------------------------------------------------------------------ the search

    def run(self) -> list[Found]:
        """The answers, best first."""
        search = self.search
        trees = search.beams if search.independent else 1
        beams = [replace(self.force(Written()), seats=tuple(range(trees)))]
        while beams:
            width = 1 if search.strategy == "greedy" else search.width
            drawn: list[Candidate] = []
            for b, beam in enumerate(beams):
                known = len(self.steps(beam)) if self.rounds else 0
                if search.strategy == "token-beam":
                    found = dict(enumerate(self.token_beam(beam)))
                elif search.distinct and search.strategy != "greedy":
                    found = {b * width + m: w for m, w in enumerate(self.race(beam, b, self.rounds, known))}
                else:
                    numbers = [seat * width + m for seat in beam.seats for m in range(width)]
                    found = {number: self.draw(beam, number, self.rounds, known) for number in numbers}
                drawn += [Candidate(written, self.steps(written), draws=[n]) for n, written in found.items()]
            if search.confidence is None:
                candidates = self.judge(self.merge(drawn, []))
            else:
                candidates = self.waves(drawn)
            beams = self.prune(candidates)
            self.rounds += 1
        self.answers.sort(key=lambda answer: -decimals(answer.rank))
        return self.answers

    def token_beam(self, root: Written) -> list[Written]:
        """The likeliest prefixes, a token longer each time."""
        pool = [root]
        while not all(written.finished for written in pool):
            grown: list[tuple[float, Written, int, float]] = []
            for written in pool:
                if written.finished:
                    grown.append((written.logprob, written, -1, 0.0))
                    continue
                legal = self.legal(written.tokens)
                logits = self.logits(written.tokens)[legal]
                own = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
                grown += [(written.logprob + p, written, t, p) for t, p in zip(legal, own.tolist(), strict=True)]
            grown.sort(key=lambda one: -one[0])
            pool = [w if token < 0 else self.write(w, token, p) for _, w, token, p in grown[: self.search.beams]]
        return pool

    def waves(self, drawn: Sequence[Candidate]) -> list[Candidate]:
        """Candidates of one draw a seat, of two, four and so on, until the best one's score says enough."""
        confidence = self.search.confidence
        assert confidence is not None
        found: list[Candidate] = []
        left, wave = list(drawn), 1
        while True:
            active = {c.written for c in left if c.draw % self.search.width < wave}
            fresh = self.merge([c for c in left if c.written in active], found)
            left = [c for c in left if c.written not in active]
            doubted = bool(left) or len(found) + len(fresh) > 1
            found += self.judge(fresh, doubted)
            best = max(found, key=lambda c: decimals(c.rank), default=None)
            if not left or (best is not None and self.adds_no_doubt(best, confidence)):
                break
            wave *= 2
        return found

    def adds_no_doubt(self, candidate: Candidate, confidence: float) -> bool:
        known = self.depth(candidate.written.node) if self.rounds else 0
        before = [s for s in candidate.scores[:known] if s is not None]
        added = [s for s in candidate.scores[known:] if s is not None]
        return bool(added) and min(added) >= confidence * (before[-1] if before else 1.0)

    def merge(self, drawn: Sequence[Candidate], before: Sequence[Candidate]) -> list[Candidate]:
        """Equal decisions become one candidate, spelled as most of its draws did; those of an answer count for it, and
        those of candidates before. The others become nodes of the tree."""
        groups: dict[Any, list[Candidate]] = {}
        known = {decisions(candidate): candidate for candidate in before}
        for candidate in sorted(drawn, key=lambda c: c.draw):
            decided = decisions(candidate)
            if decided in self.answered:
                for found in self.answered[decided]:
                    found.multiplicity += 1
            elif decided in known:
                earlier = known[decided]
                earlier.draws += candidate.draws
                earlier.multiplicity += 1
                assert earlier.node is not None
                self.tree[earlier.node].multiplicity += 1
            else:
                groups.setdefault(decided, []).append(candidate)
        merged = []
        for group in groups.values():
            ways: dict[Any, list[Candidate]] = {}
            for candidate in group:
                ways.setdefault((candidate.written.node, candidate.written.choices), []).append(candidate)
            first = max(ways.values(), key=len)[0]
            chosen = replace(first, multiplicity=len(group), draws=[c.draw for c in group], node=len(self.tree))
            chosen.scores = [None] * len(chosen.steps)
            merged.append(chosen)
            parent = chosen.written.node
            self.tree.append(self.found(chosen, self.depth(parent)))
            self.tree[-1].parent = parent
        return merged

    def judge(self, candidates: list[Candidate], doubted: bool = True) -> list[Candidate]:
        """Scores all steps up to here, or those alone that were scored before."""
        for candidate in candidates:
            steps, written = candidate.steps, candidate.written
            judged = len(steps) if doubted else written.judged
            candidate.written = written = replace(written, judged=judged)
            if self.reward is not None:
                candidate.scores = [self.score(steps[: i + 1]) if i < judged else None for i in range(len(steps))]
            candidate.rank = written.logprob
            if self.reward is not None:
                score = combined(candidate.scores, self.search.aggregate)
                score = 1.0 if score is None else max(score, 1e-300)
                candidate.rank = math.log(score) + self.search.policy_weight * written.logprob
            node, end = candidate.node, len(steps)
            while node is not None:
                own = self.tree[node]
                end -= len(own.steps)
                own.steps = self.found(candidate, 0).steps[end : end + len(own.steps)]
                node = own.parent
            assert candidate.node is not None
            self.tree[candidate.node].rank = candidate.rank
        return candidates

    def prune(self, candidates: list[Candidate]) -> list[Written]:
        """The best candidates; those that are finished become answers and keep their seats."""
        order = sorted(candidates, key=lambda c: c.draw)
        order.sort(key=lambda c: (-decimals(c.rank), -c.multiplicity, -c.written.logprob))
        search = self.search
        if search.strategy == "step-beam" and not search.independent:
            order = order[: search.beams - len(self.answers)]
        if search.confidence is not None:
            certain = [c for c in order[:1] if (combined(c.scores, search.aggregate) or 0) >= search.confidence]
            order = certain or order
        beams: list[Written] = []
        taken: set[int] = set()
        for candidate in order:
            seats: tuple[int, ...] = (len(beams),)
            if search.independent:
                seats = tuple(sorted({draw // search.width for draw in candidate.draws} - taken))
                taken |= set(seats)
                if not seats:
                    continue
            assert candidate.node is not None
            node = self.tree[candidate.node]
            node.kept = True
            written = candidate.written
            if written.finished:
                answer = self.found(candidate, 0)
                answer.tokens = tuple(t for t in written.tokens if t not in self.vocabulary.stop_ids)
                answer.logprob = written.logprob
                if self.reward is not None:
                    answer.score = combined(candidate.scores, self.search.aggregate)
                self.answers.append(answer)
                self.answered[decisions(candidate)] = (answer, node)
            else:
                beams.append(replace(written, node=candidate.node, seats=seats))
        return beams

    def depth(self, node: int | None) -> int:
        return 0 if node is None else len(self.tree[node].steps) + self.depth(self.tree[node].parent)

    def found(self, candidate: Candidate, known: int) -> Found:
        steps = [
            Step(s.kind, s.text, s.start, s.end, s.path, score, s.logprob)
            for s, score in zip(candidate.steps, candidate.scores, strict=True)
        ]
        written = candidate.written
        return Found(steps[known:], candidate.rank, candidate.multiplicity, written.finished, written.closed)


def child_key(key: int, token: int) -> int:
    """What the random numbers of a prefix of a race depend on: splitmix64 of its parent's key and its last token."""
    h = ((key << 32 | token) + 0x9E3779B97F4A7C15) % 2**64
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    h = (h ^ h >> 27) * 0x94D049BB133111EB % 2**64
    return (h ^ h >> 31) >> 32


def decimals(rank: float) -> float:
    """As much of a rank as counts."""
    return math.floor(rank * 1e4 + 0.5)


def combined(scores: Sequence[float | None], how: str) -> float | None:
    """Of the steps that were judged; None while none is."""
    judged = [score for score in scores if score is not None]
    if not judged:
        return None
    if how == "last":
        return judged[-1]
    return {"min": min(judged), "product": math.prod(judged), "mean": sum(judged) / len(judged)}[how]


def decisions(candidate: Candidate) -> Any:
    """What was decided, whatever its spelling (of a format of JSON calls)."""
    out: list[Any] = [candidate.written.finished]
    arguments: dict[str, Any] = {}
    for step in candidate.steps:
        if step.kind == "ARG_VALUE":
            member = step.text.removeprefix(', "arguments": {').removeprefix(', "parameters": {').removeprefix(", ")
            (value,) = json.loads("{" + member + "}").values()
            arguments[step.path] = canonical(value)
        else:
            out += [(step.kind, step.text if step.kind == "FUNC_NAME" else "", tuple(sorted(arguments.items())))]
            arguments = {}
    return (*out, tuple(sorted(arguments.items())))


def canonical(value: Any) -> str:
    """JSON in which equal values are equal texts."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: plain(member) for key, member in x.items()}
        if isinstance(x, list):
            return [plain(item) for item in x]
        return int(x) if isinstance(x, float) and x.is_integer() else x

    return json.dumps(plain(value), sort_keys=True)
