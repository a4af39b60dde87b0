"""toolprm evaluate: how often strategies are right on a suite, and at what cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolprm_decode.errors import RequestError
from toolprm_decode.models import MODELS


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "evaluate",
        help="measure strategies on a suite of questions",
        description="Says how often each strategy answers right, with 95 %% bootstrap intervals over the questions, "
        "and how many tokens it runs. Without --model and --prm it measures the models of the package.",
    )
    parser.add_argument("--suite", default="built-in", help="built-in, built-in-values or built-in-tools")
    parser.add_argument(
        "--strategies",
        default="greedy,step-beam",
        metavar="LIST",
        help="separated by commas: greedy, sample, majority-vote:N, weighted-vote:N, best-of-n:N, logprob-best-of-n:N, "
        "step-beam:NxM, logprob-step-beam:NxM; @W mixes the log-probability in, as in step-beam:2x8@0.5",
    )
    parser.add_argument("--model", metavar="PATH", help="policy (default: the one in the package)")
    parser.add_argument("--prm", metavar="PATH", help="reward model (default: the one in the package, for its policy)")
    parser.add_argument("--format", default="auto", help="how the policy writes calls")
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="questions (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the questions and the search (default 0)")
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        default="test",
        help="settings are chosen on validation, figures quoted from test (default)",
    )
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--aggregate")
    parser.add_argument("--policy-weight", type=float, help="of step-beam, where its name gives none")
    parser.add_argument("--batch", type=int, default=32, help="questions decoded together (default 32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, one object a strategy")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the subcommand."""
    from rich.console import Console
    from rich.progress import Progress

    from toolprm_decode.decoding import Decoder
    from toolprm_decode.demo import SEARCH, one_thread
    from toolprm_decode.engine import Engine
    from toolprm_decode.evaluation.evaluate import evaluate
    from toolprm_decode.evaluation.strategies import read_strategies, unrewarded
    from toolprm_decode.evaluation.suites import load_suite

    if options.batch < 1:
        raise RequestError(f"--batch must be 1 or more, not {options.batch}")
    given = {name: getattr(options, name) for name in ("temperature", "aggregate", "policy_weight")}
    chosen = {name: value for name, value in given.items() if value is not None}
    search = replace(SEARCH, seed=options.seed, **chosen)
    strategies = read_strategies(options.strategies, search)
    samples = load_suite(options.suite, limit=options.limit, seed=options.seed, split=options.split).samples
    if options.json is not None and not options.json.parent.is_dir():
        raise RequestError(f"{options.json.parent}: there is no such folder")
    prm = options.prm or (MODELS / "toolprm" if options.model is None else None)
    if prm is None and not unrewarded(strategies):
        raise RequestError("these strategies need a reward model: pass --prm")
    if options.model is None:
        one_thread()
    policy = Engine.from_pretrained(str(options.model or MODELS / "policy"))
    plain = Decoder(policy, None, format=options.format)
    rewarded = None if unrewarded(strategies) else Decoder(policy, prm, format=options.format)

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {s.name: progress.add_task(s.name, total=len(samples)) for s in strategies}
        outcomes = evaluate(
            samples,
            strategies,
            plain,
            rewarded,
            batch=options.batch,
            progress=lambda name, done: progress.update(tasks[name], completed=done),
        )
    for outcome in outcomes:
        for id, reason in list(outcome.refused.items())[:3]:
            console.print(f"{outcome.strategy.name} counts {id} as wrong: {reason}", markup=False, soft_wrap=True)
    rows = [outcome.summary(outcomes[0] if index else None) for index, outcome in enumerate(outcomes)]
    _print(rows)
    if options.json is not None:
        described = {"suite": options.suite, "split": options.split, "seed": options.seed}
        text = json.dumps([described | row for row in rows], indent=2) + "\n"
        try:
            options.json.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RequestError(f"{options.json}: {error.strerror}") from error


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        Column("strategy", no_wrap=True), "right", "95 %", "against the first", "policy tokens", "reward tokens"
    )
    for row in rows:
        against = (
            f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
            if "difference" in row
            else ""
        )
        table.add_row(
            row["strategy"],
            f"{row['accuracy']:.3f}",
            f"[{row['low']:.3f}, {row['high']:.3f}]".replace("[", "\\["),
            against.replace("[", "\\["),
            f"{row['policy_tokens']:.0f}",
            f"{row['prm_tokens']:.0f}",
        )
    Console().print(table)
