"""toolprm evaluate: how often strategies are right on a suite, at what cost, and what that says."""

from __future__ import annotations

import argparse
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolprm_decode.errors import BudgetExceeded, DataError, RequestError
from toolprm_decode.evaluation.help import STRATEGIES
from toolprm_decode.files import check_place, write_json
from toolprm_decode.machine import package_versions
from toolprm_decode.models import MODELS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from toolprm_decode.evaluation.evaluate import Models, Outcome
    from toolprm_decode.evaluation.suites import Suite
    from toolprm_decode.search import Search

OWN_REWARDS = ("toolprm", "c-prm", "orm")  # of the package, for its policy
_USUAL = "greedy,step-beam"
_USUAL_REPORT = "paper,curves,grid,temperatures,aggregates"


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "evaluate",
        help="measure strategies on a suite of questions",
        description="Says how often each strategy answers right, with 95 % bootstrap intervals over the questions, "
        "and how many tokens it runs. Without --model and --prm it measures the models of the package. "
        "With --report it writes tables, plots, failures and search trees; a run that was interrupted goes on there.",
    )
    parser.add_argument(
        "--suite",
        default="built-in",
        help="built-in (also -values, -tools, -masked, -natural), bfcl, bfcl:CATEGORY,..., toolalpaca, seal-tools, "
        "api-bank, or a file of your own questions (default built-in)",
    )
    parser.add_argument("--data", metavar="DIR", help="where the public suites' files are (default $TOOLPRM_DATA)")
    parser.add_argument(
        "--strategies",
        metavar="LIST",
        help=f"separated by commas (default {_USUAL}, with --report {_USUAL_REPORT}): {STRATEGIES}",
    )
    parser.add_argument("--model", metavar="PATH", help="policy (default: the one in the package)")
    parser.add_argument(
        "--prm",
        action="append",
        metavar="[NAME=]PATH",
        help="reward model, several times for several with names of their own (default: those in the package, for its "
        f"policy: {', '.join(OWN_REWARDS)}); the first is used where a strategy names none",
    )
    parser.add_argument("--format", default="auto", help="how the policy writes calls")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="questions (default 1000 of the built-in world, else all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the questions and the search (default 0)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="K", help="runs, with searches of other seeds (default 1)"
    )
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        default="test",
        help="settings are chosen on validation, figures quoted from test (default)",
    )
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--aggregate")
    parser.add_argument("--policy-weight", type=float, help="of beams, where their name gives none")
    parser.add_argument("--max-tokens", type=int, help="most tokens of an answer")
    parser.add_argument("--batch", type=int, default=32, help="questions decoded together (default 32)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="Ray actors, on one machine or many")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a report there, or go on with it")
    parser.add_argument(
        "--reward-answers",
        type=int,
        default=8,
        metavar="N",
        help="answers a question that the report's table of reward models judges (default 8; 0 for no table)",
    )
    parser.add_argument("--trees", type=int, default=6, metavar="N", help="search trees in the report (default 6)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, one object a strategy")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the subcommand."""
    from rich.console import Console
    from rich.progress import Progress

    from toolprm_decode.demo import SEARCH, one_thread
    from toolprm_decode.evaluation.evaluate import Models, evaluate
    from toolprm_decode.evaluation.plots import check_installed
    from toolprm_decode.evaluation.strategies import read_strategies
    from toolprm_decode.evaluation.suites import load_suite
    from toolprm_decode.search import Search

    for name, least in (("batch", 1), ("seeds", 1), ("workers", 0), ("reward_answers", 0), ("trees", 0)):
        if getattr(options, name) < least:
            raise RequestError(f"--{name.replace('_', '-')} must be {least} or more, not {getattr(options, name)}")
    check_place(options.json)
    if options.report is not None:  # what it is drawn with is looked for before the work rather than after
        check_installed()
    given = {name: getattr(options, name) for name in ("temperature", "aggregate", "policy_weight", "max_tokens")}
    usual = SEARCH if options.model is None else Search()
    search = replace(usual, **{name: value for name, value in given.items() if value is not None})
    rewards = _rewards(options.prm, options.model)
    wanted = options.strategies or (_USUAL if options.report is None else _USUAL_REPORT)
    strategies = read_strategies(wanted, search, list(rewards))
    suite = load_suite(options.suite, data=options.data, limit=options.limit, seed=options.seed, split=options.split)
    if options.model is None:
        one_thread()
    models = Models(options.model or str(MODELS / "policy"), rewards, options.format)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        seeds = range(options.seed, options.seed + options.seeds)
        n = len(suite.samples)
        tasks = {s.name: progress.add_task(s.name, total=n * (1 if s.chosen else len(seeds))) for s in strategies}
        outcomes = evaluate(
            suite,
            strategies,
            models,
            seeds=seeds,
            folder=options.report,
            batch=options.batch,
            workers=options.workers,
            progress=lambda name, done: progress.advance(tasks[name], done),
        )
        rows = [outcome.summary(outcomes[0] if index else None) for index, outcome in enumerate(outcomes)]
        if options.report is not None:
            _report(options, suite, outcomes, models, search, progress)
    _say_what_lacks(console, suite, outcomes)
    _print(rows, suite.headline)
    if options.report is not None:
        console.print(f"{options.report / 'report.html'}", markup=False, soft_wrap=True)
    described = {"suite": options.suite, "split": options.split, "seed": options.seed}
    write_json(options.json, [described | row for row in rows])


def _rewards(given: Sequence[str] | None, model: str | None) -> dict[str, str]:
    """Reward models by name."""
    if not given:
        return {name: str(MODELS / name) for name in OWN_REWARDS} if model is None else {}
    found: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals:
            name, path = ("prm", one)
        if name in found:
            raise RequestError(f"two reward models are called {name!r}: name them, as in --prm orm=PATH")
        if name == "policy" or not re.fullmatch(r"[\w.-]+", name) or not path:
            raise RequestError(f"--prm {one!r:.80} is neither a path nor NAME=PATH (a name of letters, not policy)")
        found[name] = path
    return found


def _report(
    options: argparse.Namespace,
    suite: Suite,
    outcomes: Sequence[Outcome],
    models: Models,
    search: Search,
    progress: Progress,
) -> None:
    from toolprm_decode.evaluation.figures import make_figures, tree_pages
    from toolprm_decode.evaluation.report import write_report

    folder: Path = options.report
    notes = _notes(suite, outcomes)
    rows: list[dict[str, Any]] = []
    bins: list[dict[str, Any]] = []
    try:
        rows, bins = _reward_table(options, suite, models, search, progress) if models.rewards else ([], [])
    except (DataError, BudgetExceeded) as error:  # what was measured until here is not lost by it
        notes.append(f"The reward models are not compared: {error}")
    packages = package_versions("toolprm_decode", "torch", "transformers", "outlines")
    about = {
        "split": options.split,
        "seeds": list(range(options.seed, options.seed + options.seeds)),
        "command": shlex.join(["toolprm", *options.argv]),
        "versions": {"python": platform.python_version()}
        | {name: known or "unknown" for name, known in packages.items()},
        "models": {role: _shown(model) for role, model in models.named.items()},
        "created": datetime.now(timezone.utc).date().isoformat(),
        "notes": notes,
    }
    trees = tree_pages(outcomes, models, folder, options.trees)
    figures = make_figures(outcomes, rewards=rows, calibration=bins, about=about, trees=trees)
    write_report(figures, folder)


def _reward_table(
    options: argparse.Namespace, suite: Suite, models: Models, search: Search, progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How well the reward models judge the policy's own answers to the questions, and how calibrated they are."""
    from toolprm_decode.evaluation.reward_models import calibration, collect_answers, judge_answers, reward_rows
    from toolprm_decode.learning.rollouts import RolloutSettings
    from toolprm_decode.rewards import ToolPRM

    if not options.reward_answers:
        return [], []
    settings = RolloutSettings(
        samples=options.reward_answers,
        temperature=search.temperature,
        max_tokens=search.max_tokens,
        seed=options.seed,
        batch_size=options.batch,
        format=options.format,
    )
    task = progress.add_task("reward models", total=len(suite.samples))
    answers = collect_answers(
        suite.samples, models.decoder(None), settings, progress=lambda done, _: progress.update(task, completed=done)
    )
    judged = {}
    for name, path in models.rewards.items():
        prm = ToolPRM.from_pretrained(path)
        judged[name] = (prm, judge_answers(prm, answers))
    bins = [{"model": name, "bins": calibration(found, prm.temperature)} for name, (prm, found) in judged.items()]
    return reward_rows(judged), bins


def _shown(path: Any) -> str:
    """A model's name in a report: those of the package without the folder that it is installed in."""
    return f"toolprm_decode/models/{Path(path).name}" if Path(path).is_relative_to(MODELS) else str(path)


def _notes(suite: Suite, outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader should know of the suite."""
    found = []
    if suite.misfits:
        found.append(
            f"{len(suite.misfits)} questions have a gold answer that breaks their own tool's schema; answers under the "
            f"grammar cannot match them, and they count like any others: {', '.join(list(suite.misfits)[:20])}"
        )
    read_again = [o.strategy.name for o in outcomes if o.values("preemptions").any()]
    if read_again:
        found.append(
            f"Memory was short: {', '.join(read_again)} read some tokens twice, and their budgets hold them; a smaller "
            "batch needs less"
        )
    return found


def _say_what_lacks(console: Console, suite: Suite, outcomes: Sequence[Outcome]) -> None:
    """Rows that were left out, and questions that were not answered."""
    for row in suite.skipped[:3]:
        console.print(f"left out: {row.file}, line {row.line}: {row.reason}", markup=False, soft_wrap=True)
    if len(suite.skipped) > 3:
        console.print(f"left out: {len(suite.skipped) - 3} more rows")
    told: set[str] = set()
    for outcome in outcomes:
        refused: Mapping[str, str] = {row["id"]: row["refused"] for row in outcome.rows[0] if row["refused"]}
        for id, reason in list(refused.items())[:3]:
            if id not in told:
                console.print(f"{outcome.strategy.name} counts {id} as wrong: {reason}", markup=False, soft_wrap=True)
            told.add(id)


def _print(rows: Sequence[dict[str, Any]], headline: str) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    own = [] if headline == "accuracy" else [headline]
    table = Table(
        Column("strategy", no_wrap=True), "right", "95 %", *own, "against the first", "policy tokens", "reward tokens"
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
            *[f"{row['headline']:.3f}" for _ in own],
            against.replace("[", "\\["),
            f"{row['policy_tokens']:.0f}",
            f"{row['prm_tokens']:.0f}",
        )
    Console().print(table)
