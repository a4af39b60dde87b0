"""The careful loop: both prompts read once, all candidates in one batch, the reward model reading what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from toolprm_decode.benchmark.peers import Draft, PeerLoop, cache_argument


class CarefulLoop(PeerLoop):
    """What one writes who knows transformers well.

    - What a beam wrote last is read once for all of its candidates, which then start from the same logits.
    - All candidates are one batch of a DynamicCache, repeated for the candidates and reordered for those that go on.
      One pass reads a token of each (or, jumping forward, all that is forced, padded on the left).
    - Candidates at their boundary ride along as padding until all are there, as in generate().
    - The reward model reads the new steps of all candidates in one batch over its cached prefixes; of its head only the
      two labels' rows are computed, at the tags.
    """

    name = "careful"

    def prefill(self, prompt: Sequence[int], reward_prompt: Sequence[int]) -> None:
        """Both prompts, once."""
        self.written, self.judged = _Rows(self.policy), _Rows(self.judge)
        self._count(policy=self.written.read([prompt[:-1]], keep=1))
        self._count(prm=self.judged.read([reward_prompt], keep=0))

    def expand(self, beams: Sequence[Draft], round_: int) -> list[Draft]:
        """One pass a token over all candidates."""
        width = self.search.width
        known = [len(beam.steps) if round_ else 0 for beam in beams for _ in range(width)]
        first = list(self._feed(beams))
        while any(beam.pending for beam in beams):
            waiting = [number for number, beam in enumerate(beams) if beam.pending]
            read = self._feed(beams, waiting)
            for number in waiting:
                first[number] = read[number]
        self.written.repeat(width)
        drafts = [beam.fork() for beam in beams for _ in range(width)]
        logits = [first[number // width] for number in range(len(drafts))]
        going = list(range(len(drafts)))
        self.clock.lap("policy")
        while True:
            for index in going:
                self.draw(drafts[index], logits[index], index, round_)
            going = [index for index in going if not self.at_boundary(drafts[index], known[index])]
            self.clock.lap("masks and draws")
            self.done(0.7 * (1 - len(going) / len(drafts)))
            if not going:
                return drafts
            self._feed(drafts, going)
            logits = list(self.written.logits)
            self.clock.lap("policy")
            waiting = [index for index in going if drafts[index].pending]
            while waiting:  # until what is forced was read, the others ride along
                read = self._feed(drafts, waiting)
                for index in waiting:
                    logits[index] = read[index]
                self.clock.lap("policy")
                waiting = [index for index in waiting if drafts[index].pending]

    def score(self, drafts: Sequence[Draft], beams: Sequence[Draft]) -> None:
        """One pass over the new steps of all candidates."""
        new = [self.new_text(draft, len(draft.scores)) for draft in drafts]
        self.judged.repeat(self.search.width)
        self._count(prm=self.judged.read([tokens for tokens, _ in new], keep=0))
        rows = [(row, len(tokens) - tag) for row, (tokens, tags) in enumerate(new) for tag in tags]
        hidden = self.judged.hidden[[row for row, _ in rows], [-back for _, back in rows]]
        scores = iter(self.to_scores(hidden))
        for draft, (_, tags) in zip(drafts, new, strict=True):
            draft.scores += [next(scores) for _ in tags]
        self.clock.lap("prm")

    def keep(self, indices: Sequence[int]) -> None:
        """Reorders both caches."""
        self.written.select(indices)
        self.judged.select(indices)

    def _feed(self, drafts: Sequence[Draft], going: Sequence[int] | None = None) -> torch.Tensor:
        """Reads pending tokens of those that go on; returns the logits [drafts, vocab] of the last ones read."""
        rows = [self.take_pending(draft) if going is None or i in going else [] for i, draft in enumerate(drafts)]
        self._count(policy=self.written.read(rows, keep=1))
        return self.written.logits

    def _count(self, policy: int = 0, prm: int = 0) -> None:
        self.policy_tokens += policy
        self.prm_tokens += prm


class _Rows:
    """Rows of one model: a DynamicCache, and a mask of its columns that are padding.

    Attributes:
        logits: [rows, vocab] float32 of each row's last token, after read(keep=1).
        hidden: [rows, longest, hidden] of the tokens read last, the shorter ones at the right, after read(keep=0).
    """

    logits: torch.Tensor
    hidden: torch.Tensor

    def __init__(self, model: Any):
        from transformers import DynamicCache

        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.mask = torch.zeros(1, 0, dtype=torch.long)

    def read(self, rows: Sequence[Sequence[int]], keep: int) -> int:
        """Reads tokens of each row, any number of them, and returns how many there were in all."""
        longest = max(len(row) for row in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        real = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            if len(row):
                tokens[number, longest - len(row) :] = torch.tensor(list(row))
                real[number, longest - len(row) :] = 1
        before = self.mask.sum(1, keepdim=True)
        positions = before + (real.cumsum(1) - 1).clamp_min(0)
        self.mask = torch.cat([self.mask, real], 1)
        model = self.model if keep else self.model.base_model
        options: dict[str, Any] = {"logits_to_keep": 1} if keep else {}
        out = model(
            input_ids=tokens,
            position_ids=positions,
            # Without padding there is no mask to build, and attention takes its faster way.
            attention_mask=None if bool(self.mask.all()) else self.mask,
            **{cache_argument(model): self.cache},
            **options,
        )
        if keep:
            self.logits = out.logits[:, -1].float()
        else:
            self.hidden = out.last_hidden_state
        return int(real.sum())

    def repeat(self, times: int) -> None:
        """Each row so many times, copies beside each other."""
        self.cache.batch_repeat_interleave(times)
        self.mask = self.mask.repeat_interleave(times, 0)

    def select(self, indices: Sequence[int]) -> None:
        """These rows, in this order; columns that are padding in all of them are left as they are."""
        if indices:
            where = torch.tensor(list(indices))
            self.cache.batch_select_indices(where)
            self.mask = self.mask[where]
