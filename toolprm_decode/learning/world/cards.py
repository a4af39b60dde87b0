"""The cards of the models that ship with the package: what they are, what was measured, and where they end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# By what is new in the questions and kind of reward model, a row a strategy.
Figures = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]

# What is new in a question of the suite "built-in": how the names of its groups begin.
UNSEEN = ("unseen values", "unseen tools")


def model_card(name: str, work: Path, figures: Figures) -> str:
    """The card of a model.

    Args:
        name: "policy", "toolprm", "c-prm" or "orm".
        work: where it was made. attempts.md there, if any, tells what else was tried.
        figures: what the strategies reached on held-out questions.
    """
    own = _policy(work) if name == "policy" else (work / name / "README.md").read_text(encoding="utf-8")
    parts = [own.strip(), _measured("toolprm" if name == "policy" else name, figures)]
    attempts = work / "attempts.md"
    if name == "toolprm" and attempts.exists():
        parts.append(attempts.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


def _policy(work: Path) -> str:
    made = json.loads((work / "policy" / "pretraining.json").read_text(encoding="utf-8"))
    seen = int(made["tokens"] * made["early"])
    settings = {key: value for key, value in made.items() if key not in ("hours", "grown_from")}
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [function-calling, toolprm]
---
# A small policy for the built-in world

Writes function calls as a JSON list, for tools and requests in the words of the built-in world
(`toolprm_decode.learning.world`). It is there to try the decoder with, offline and in seconds.

- Data: questions drawn by `World`, levels 0 to {made["hardest"]}, split "train"; no other text
- Training: {seen:,} of {made["tokens"]:,} planned tokens, in {made["hours"]:.2f} hours on one CPU core; `make models`.
  It was stopped early on purpose: a policy that still errs leaves a search something to find

## Settings

```json
{json.dumps(settings, indent=2)}
```

## Limits

It knows a few hundred words, English word order of one kind, and up to five tools at once. Other texts are read byte by
byte, and what it answers to them is legal and means nothing."""


def _measured(kind: str, figures: Figures) -> str:
    lines = [
        "## On held-out questions",
        "",
        "Right answers with 95 % bootstrap intervals over the questions; the third column is the paired difference to",
        "greedy decoding. `@W`: the score is mixed with W times the policy's log-probability, else with .15 of it in",
        "beams, of which there are 2, with 16 candidates each. Tokens are those of the models' passes, with prompts.",
        "",
    ]
    for words in UNSEEN:
        rows = figures[words][kind]
        seeds = max(row["seeds"] for row in rows)
        lines += [f"{words.capitalize()} ({rows[0]['n']} questions, searched {seeds} times):", ""]
        lines += ["| strategy | right | against greedy | policy tokens | reward tokens |", "|---|---|---|---|---|"]
        for row in rows:
            gain = (row["difference"], row["difference_low"], row["difference_high"])
            against = "" if row["strategy"] == "greedy" else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)
            lines.append(
                f"| {row['strategy']} | {row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {against} "
                f"| {row['policy_tokens']:.0f} | {row['prm_tokens']:.0f} |"
            )
        lines.append("")
    return "\n".join(lines).strip()
