"""An engine of one's own on the sans-IO search: a small transformer in numpy, with paged keys and values.

The search plans; the engine runs what a plan says, draws tokens and hands them back. Three requests with strategies of
their own share each forward pass. At the end every answer is held to a recomputation that knows nothing of plans or
blocks:

    python examples/custom_engine.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolprm_decode import CallGrammar, Search
from toolprm_decode.integrations import sansio
from toolprm_decode.models import MODELS

TOOLS = [
    {
        "name": "set_light",
        "parameters": {
            "type": "object",
            "properties": {
                "room": {"enum": ["hall", "attic"]},
                "level": {"type": "integer", "minimum": 0, "maximum": 100},
            },
            "required": ["room"],
        },
    }
]
LAYERS, HEADS, WIDTH = 2, 2, 32


class Model:
    """A decoder-only transformer with random weights, in float64."""

    def __init__(self, vocabulary: int, seed: int = 0):
        random = np.random.default_rng(seed)
        self.embedding = random.normal(size=(vocabulary, WIDTH))
        self.layers = random.normal(0, WIDTH**-0.5, size=(LAYERS, 4, WIDTH, WIDTH))  # query, key, value, output

    def begin(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """[T, WIDTH] of token ids [T] at positions [T]."""
        rates = 10.0 ** -np.arange(0, 4, 4 / (WIDTH // 2))
        angles = positions[:, None] * rates
        return self.embedding[tokens] + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    def project(self, layer: int, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query, key and value, [T, WIDTH] each."""
        normed = hidden / np.sqrt((hidden**2).mean(1, keepdims=True))
        query, key, value = (normed @ self.layers[layer, i] for i in range(3))
        return query, key, value

    def attend(self, layer: int, query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """What a token [WIDTH] that sees keys and values [N, WIDTH] adds to its hidden state."""
        q, k, v = (x.reshape(*x.shape[:-1], HEADS, -1) for x in (query, keys, values))
        scores = np.einsum("hd,nhd->hn", q, k) * (WIDTH / HEADS) ** -0.5
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        mixed = np.einsum("hn,nhd->hd", weights, v).reshape(-1)
        return np.tanh(mixed) @ self.layers[layer, 3]

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """[L, vocabulary] of hidden states [L, WIDTH]."""
        return hidden @ self.embedding.T * 0.3


class Engine:
    """Runs the plans of a search on a model."""

    def __init__(self, model: Model, block_size: int):
        self.model, self.block_size = model, block_size
        self.keys = np.zeros((LAYERS, 0, WIDTH))  # by slot
        self.values = np.zeros((LAYERS, 0, WIDTH))

    def forward(self, plan: sansio.Plan) -> tuple[np.ndarray, np.ndarray]:
        """float32 logits [full outputs, vocabulary], and of the other outputs [.., few_ids]."""
        more = plan.blocks * self.block_size - self.keys.shape[1]
        if more > 0:
            self.keys, self.values = (np.pad(x, ((0, 0), (0, more), (0, 0))) for x in (self.keys, self.values))
        for source, target, count in plan.copies:  # in order: one may read what the one before it wrote
            for pool in (self.keys, self.values):
                pool[:, target : target + count] = pool[:, source : source + count].copy()

        slots, sees = plan.slots, self.visible(plan)
        hidden = self.model.begin(plan.tokens, plan.positions)
        for layer in range(LAYERS):
            query, key, value = self.model.project(layer, hidden)
            self.keys[layer, slots], self.values[layer, slots] = key, value  # all, before any is read
            hidden = hidden + np.stack(
                [
                    self.model.attend(layer, query[token], self.keys[layer, seen], self.values[layer, seen])
                    for token, seen in enumerate(sees)
                ]
            )
        logits = self.model.logits(hidden[plan.outputs]).astype(np.float32)
        full = plan.full_outputs
        return logits[:full], np.ascontiguousarray(logits[full:, plan.few_ids])

    def visible(self, plan: sansio.Plan) -> list[np.ndarray]:
        """The slots that each token of the pass reads: its row's context, the row's earlier tokens, and itself."""
        rows, slots, size = plan.rows, plan.slots, self.block_size
        segments, contexts, tables, lengths = plan.segments, plan.contexts, plan.block_tables, plan.lengths
        seen: list[np.ndarray] = []
        for row, length in enumerate(lengths):
            new = slots[rows == row]
            before = np.arange(length - len(new))  # own tokens of earlier passes: those in the row's blocks
            context = [np.arange(first, first + count) for first, count in segments[contexts[row][contexts[row] >= 0]]]
            own = tables[row, before // size] * size + before % size if len(before) else before
            past = np.concatenate([*context, own]).astype(np.int64)
            seen += [np.concatenate([past, new[: i + 1]]) for i in range(len(new))]
        return seen


def run(search: sansio.Search, engine: Engine) -> None:
    """Runs plans until every request of the search has ended."""
    while (plan := search.plan()).kind != sansio.PlanKind.DONE:
        if plan.kind == sansio.PlanKind.DECODE:
            # Draws on the CPU, by the plan's random numbers. An engine with a sampler of its own reads plan.masks.
            tokens, logprobs, perturbed, wrong = sansio.sample_plan(plan, *engine.forward(plan))
            for id in wrong:  # a request whose logits are no numbers ends; the others go on
                search.cancel(id)
            search.commit_tokens(tokens, logprobs, perturbed)
        else:
            search.commit_scores([brevity(steps) for steps in plan.prefixes_to_score])


def brevity(steps: Sequence[sansio.Step]) -> float:
    """Stands for a reward model: the score, in [0, 1], of the last of the steps."""
    return 1 / (1 + len(steps[-1].text))


def recomputed(model: Model, grammar: CallGrammar, prompt: list[int], tokens: list[int]) -> tuple[float, bool]:
    """An answer's log-probability by the plainest means, and whether each drawn token was the likeliest legal one."""
    ids = np.array(prompt + tokens)
    hidden = model.begin(ids, np.arange(len(ids)))
    for layer in range(LAYERS):
        query, key, value = model.project(layer, hidden)
        added = [model.attend(layer, query[i], key[: i + 1], value[: i + 1]) for i in range(len(ids))]
        hidden = hidden + np.stack(added)
    matcher, row = grammar.matcher(), np.zeros((grammar.vocabulary_size + 31) // 32, np.int32)
    total, greedy, forced = 0.0, True, 0
    for place, token in enumerate(tokens, len(prompt)):
        forced = forced or len(matcher.forced())  # written without asking the model
        if forced:
            forced -= 1
        else:
            matcher.fill_mask(row)
            legal = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
            logits = model.logits(hidden[place - 1 : place])[0, legal]
            total += float(logits[legal == token][0] - np.logaddexp.reduce(logits))
            greedy = greedy and token == legal[logits.argmax()]
        matcher.accept(token)
    return total, greedy


def main() -> None:
    grammar = CallGrammar(TOOLS, MODELS / "policy", format="json-list", allow_no_call=False, max_calls=2)
    model, pool = Model(grammar.vocabulary_size), sansio.PoolOptions(block_size=8)
    search, engine = sansio.Search(policy=pool), Engine(model, pool.block_size)

    # Prompts are token ids. Two of them begin alike: that part is read once.
    wanted = {
        "greedy": (Search(strategy="greedy"), [5, 6, 7, 8, 9, 10, 11, 12, 13], sansio.Scoring.NONE),
        "sample": (Search(strategy="sample", width=4, seed=1), [5, 6, 7, 8, 9, 10, 11, 12, 14], sansio.Scoring.NONE),
        "step-beam": (Search(beams=2, width=4, seed=2), [40, 30, 20], sansio.Scoring.EXTERNAL),
    }
    ids = {
        name: search.add(grammar.matcher(), settings.core_options(max_tokens=96), prompt, scoring)
        for name, (settings, prompt, scoring) in wanted.items()
    }
    run(search, engine)
    for name, (_, prompt, _) in wanted.items():
        result = search.take(ids[name])
        print(f"{name}: {len(result.answers)} answers in {result.stats.forward_passes} passes")
        for answer in result.answers:
            logprob, greedy = recomputed(model, grammar, prompt, answer.tokens)
            legal = grammar.accepts(answer.text)
            if not legal or abs(logprob - answer.logprob) > 1e-3 or (name == "greedy" and not greedy):
                raise SystemExit(f"{answer.text!r}: {answer.logprob} is {logprob} when it is recomputed")
            print(f"  {answer.logprob:8.3f}  {answer.text.decode()}")


if __name__ == "__main__":
    main()
