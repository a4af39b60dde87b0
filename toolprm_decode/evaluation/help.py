"""What the command line says of strategies: apart from them, since importing torch takes seconds."""

from __future__ import annotations

STRATEGIES = (
    "greedy; sample; token-beam:N; majority-vote:N, weighted-vote:N (by score), best-of-n:N (by score) and "
    "logprob-best-of-n:N over N samples; step-beam:NxM, logprob-step-beam:NxM, dvts:NxM (independent beams), "
    "adaptive:NxM (tokens only in doubt). After the name: @W mixes W times the log-probability in, +distinct draws "
    "different candidates, +min, +last, +product or +mean aggregates the scores, +t0.8 is a temperature, +c0.9 the "
    "confidence of adaptive, and /NAME the reward model, as in best-of-n:16/orm. Sets: paper, grid, curves, "
    "temperatures, aggregates"
)
