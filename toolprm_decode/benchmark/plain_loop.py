"""The plain loop: each candidate on its own, from a copy of its beam's cache, judged by reading its whole text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from toolprm_decode.benchmark.peers import Draft, PeerLoop, cache_argument


class PlainLoop(PeerLoop):
    """One forward pass a token of a candidate, one over the whole text for its score.

    Of the heads only the rows that are needed are computed.
    """

    name = "plain"

    def prefill(self, prompt: Sequence[int], reward_prompt: Sequence[int]) -> None:
        """The policy's prompt is read once; the reward model reads its own with every candidate."""
        from transformers import DynamicCache

        self.prompt, self.reward_prompt = list(prompt), list(reward_prompt)
        self.caches: list[Any] = [DynamicCache(config=self.policy.config)]
        self.read(self.prompt[:-1], self.caches[0])

    def expand(self, beams: Sequence[Draft], round_: int) -> list[Draft]:
        """Each candidate starts from a copy of its beam's cache, and reads the beam's last tokens itself."""
        width, before = self.search.width, self.caches
        drafts, self.caches = list[Draft](), []
        for number, beam in enumerate(beams):
            for draw in range(number * width, (number + 1) * width):
                draft, cache = beam.fork(), copy.deepcopy(before[number])
                self.clock.lap("search")
                while True:
                    logits = self.read(self.take_pending(draft), cache)
                    while draft.pending:
                        logits = self.read(self.take_pending(draft), cache)
                    self.clock.lap("policy")
                    self.draw(draft, logits, draw, round_)
                    self.clock.lap("masks and draws")
                    if self.at_boundary(draft, len(beam.steps) if round_ else 0):
                        break
                drafts.append(draft)
                self.caches.append(cache)
                self.done(0.2 * len(drafts) / (len(beams) * width))
        return drafts

    def score(self, drafts: Sequence[Draft], beams: Sequence[Draft]) -> None:
        """One pass over prompt, steps and tags for each candidate."""
        for number, draft in enumerate(drafts):
            new, tags = self.new_text(draft, len(draft.scores))
            whole = self.reward_prompt + self.new_text(draft, 0)[0]
            hidden = self.judge.base_model(input_ids=torch.tensor([whole]), use_cache=False).last_hidden_state[0]
            draft.scores += self.to_scores(hidden[[len(whole) - len(new) + tag for tag in tags]])
            self.prm_tokens += len(whole)
            self.clock.lap("prm")
            self.done(0.2 + 0.8 * (number + 1) / len(drafts))

    def keep(self, indices: Sequence[int]) -> None:
        """Their caches."""
        self.caches = [self.caches[index] for index in indices]

    def read(self, tokens: Sequence[int], cache: Any) -> torch.Tensor:
        """Runs tokens after those in the cache: the last one's logits [vocab], float32."""
        self.policy_tokens += len(tokens)
        out = self.policy(
            input_ids=torch.tensor([list(tokens)]), logits_to_keep=1, **{cache_argument(self.policy): cache}
        )
        return out.logits[0, -1].float()
