"""What the outcomes of strategies say: tables, curves, failures, and the claims that they bear out or do not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from toolprm_decode.decoding import Decoded, Request
from toolprm_decode.evaluation.evaluate import Models, Outcome, own_search
from toolprm_decode.evaluation.scoring import headline_groups
from toolprm_decode.evaluation.statistics import Interval, bootstrap, interval, resamples
from toolprm_decode.grammar.call_grammar import CallGrammar
from toolprm_decode.learning.rollouts import calls_so_far, decode_each
from toolprm_decode.questions.labels import label_steps
from toolprm_decode.questions.samples import Sample
from toolprm_decode.search import Search, SearchTree

SIZES_OF_A_SWEEP = 4  # cells from which on a grid is one


def make_figures(
    outcomes: Sequence[Outcome],
    *,
    rewards: Sequence[Mapping[str, Any]] = (),
    calibration: Sequence[Mapping[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
    trees: Sequence[Mapping[str, Any]] = (),
    failures: int = 8,
) -> dict[str, Any]:
    """All that report.write_report() shows, as plain JSON.

    Args:
        rewards, calibration: of reward_models.
        about: suite, split, seeds, command, versions, models and the like, which are passed on.
        trees: pages of search trees.
        failures: how many wrong answers to show.
    """
    suite = outcomes[0].suite
    subject = main_strategy(outcomes)
    return {
        "suite": suite.name,
        "headline": suite.headline,
        "n": len(suite.samples),
        **(about or {}),
        "rows": [_row(outcome, outcomes[0] if index else None) for index, outcome in enumerate(outcomes)],
        "differences": [] if subject is None else [_difference(o, subject) for o in outcomes if o is not subject],
        "sweep": sweep(outcomes),
        "curves": curves(outcomes),
        "axes": axes(outcomes),
        "rewards": list(rewards),
        "calibration": list(calibration),
        "claims": claims(outcomes, rewards),
        "failures": worst(outcomes, subject, failures) if subject is not None else [],
        "trees": list(trees),
        "skipped": [{"file": row.file, "line": row.line, "reason": row.reason} for row in suite.skipped],
    }


def main_strategy(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The step-beam under the first reward model that is compared with the others: the one without any options."""
    beams = [o for o in outcomes if o.strategy.kind == "step-beam"]
    return next((o for o in beams if o.strategy.name == "step-beam"), beams[0] if beams else None)


def _row(outcome: Outcome, against: Outcome | None) -> dict[str, Any]:
    suite = outcome.suite
    counts = (outcome.right, outcome.values("names"), outcome.values("parameters"), suite.groups)
    found = headline_groups(suite.headline, *counts)
    drawn = headline_groups(suite.headline, *counts, resamples(len(suite.samples)))
    groups = {}
    for group, figure in found.items():
        part = interval(figure, drawn[group])
        n = suite.groups.count(group) or None  # of what sums groups up: nobody's
        groups[group] = {"n": n, "accuracy": part.mean, "low": part.low, "high": part.high}
    return {**outcome.summary(against), "groups": groups}


def _difference(outcome: Outcome, against: Outcome) -> dict[str, Any]:
    gain = bootstrap(outcome.right - against.right)
    return {
        "strategy": outcome.strategy.name,
        "against": against.strategy.name,
        "difference": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "tokens": outcome.tokens,
        "against_tokens": against.tokens,
    }


def _point(outcome: Outcome) -> dict[str, Any]:
    found = bootstrap(outcome.right)
    return {
        "strategy": outcome.strategy.name,
        "tokens": outcome.tokens,
        "accuracy": found.mean,
        "low": found.low,
        "high": found.high,
    }


# -------------------------------------------------------------------- families


def grid(outcomes: Sequence[Outcome]) -> dict[tuple[int, int], Outcome]:
    """Plain step-beams under the first reward model, by beams and width."""
    subject = main_strategy(outcomes)
    return {
        (o.strategy.search.beams, o.strategy.search.width): o
        for o in outcomes
        if subject is not None
        and o.strategy.kind == "step-beam"
        and (o.strategy.options, o.strategy.reward) == (subject.strategy.options, subject.strategy.reward)
    }


def sweep(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """The cells of the grid of beams and widths, where there is one."""
    cells = [
        {
            "beams": beams,
            "width": width,
            **_point(outcome),
            "policy_tokens": float(outcome.values("policy_tokens").mean()),
            "prm_tokens": float(outcome.values("prm_tokens").mean()),
        }
        for (beams, width), outcome in sorted(grid(outcomes).items())
    ]
    return {"cells": cells} if len(cells) >= SIZES_OF_A_SWEEP else None


def curves(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Accuracy against the budget, a family of strategies each: those that differ in their sizes alone."""
    families: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        strategy = outcome.strategy
        label = " ".join((strategy.kind, *strategy.options)) + (f", {strategy.reward}" if strategy.reward else "")
        if strategy.search.strategy == "step-beam":
            if strategy.kind == "adaptive":
                label = f"adaptive, {strategy.reward}"
            elif strategy.search.beams not in (1, 2, 4):
                continue  # the sweep has all of them
            else:
                label = label.replace(strategy.kind, f"{strategy.kind} N={strategy.search.beams}", 1)
        families.setdefault(label, []).append(outcome)
    return [
        {"name": name, "points": sorted((_point(o) for o in family), key=lambda point: float(point["tokens"]))}
        for name, family in families.items()
        if len(family) > 1
    ]


def axes(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Accuracy against one setting of step-beams that agree in all others, where most of its values were measured."""
    found = []
    for axis in ("temperature", "aggregate", "policy_weight"):
        families: dict[Any, dict[Any, dict[str, Any]]] = {}
        for outcome in outcomes:
            strategy = outcome.strategy
            if strategy.kind != "step-beam":
                continue
            x = getattr(strategy.search, axis)
            others = [getattr(strategy.search, name) for name in Search.__dataclass_fields__ if name != axis]
            families.setdefault((strategy.reward, *others), {}).setdefault(x, {"x": x, **_point(outcome)})
        points = max(families.values(), key=len, default={})
        if len(points) > 1:
            ordered = [points[x] for x in (points if axis == "aggregate" else sorted(points))]
            name = ordered[0]["strategy"].partition("+")[0].partition("@")[0]
            found.append({"axis": axis, "curves": [{"name": name, "points": ordered}]})
    return found


# -------------------------------------------------------------------- claims


def claims(outcomes: Sequence[Outcome], rewards: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """The claims of arXiv 2510.14703 and our own, as far as these outcomes can speak to them.

    Each is {"claim", "holds": True, False or None where it stays open, "why": the figures}. A difference counts where
    its paired 95 % interval excludes zero, on either side.
    """
    subject = main_strategy(outcomes)
    return [
        *([] if subject is None else _rivals(subject, outcomes)),
        *_order(rewards),
        *_exploring(outcomes),
        *_adaptive(outcomes),
    ]


def _rivals(subject: Outcome, outcomes: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    own = subject.strategy
    asked: list[tuple[str, str | None, str]] = []
    asked += [("greedy", None, "greedy decoding"), ("majority-vote", None, "majority voting")]
    asked += [("best-of-n", r, f"best-of-N under {r}") for r in _others(outcomes, own.reward)]
    asked += [("weighted-vote", r, f"votes weighted by {r}") for r in _others(outcomes, own.reward)]
    asked += [("best-of-n", own.reward, f"best-of-N under {own.reward}")]
    asked += [("weighted-vote", own.reward, f"votes weighted by {own.reward}")]
    for kind, reward, words in asked:
        family = [o for o in outcomes if (o.strategy.kind, o.strategy.reward) == (kind, reward)]
        if not family:
            continue
        # The rival may spend at least as much; among those that do, its most accurate size stands for it.
        rich = [o for o in family if o.tokens >= subject.tokens]
        rival = max(rich or family, key=lambda o: float(o.right.mean()))
        gain = bootstrap(subject.right - rival.right)
        cheap = kind == "greedy" or bool(rich)
        why = (
            f"{_points(gain)} against {rival.strategy.name}, "
            f"with {subject.tokens:.0f} forward tokens a question against {rival.tokens:.0f}"
        )
        yield {
            "claim": f"{own.name} under {own.reward} beats {words}"
            + ("" if kind == "greedy" else " at an equal or smaller budget"),
            "holds": holds(gain) if cheap else None,
            "why": why if cheap else f"{why}: no size of it spends as much",
        }


def _others(outcomes: Sequence[Outcome], own: str | None) -> list[str]:
    """The other reward models."""
    named = [o.strategy.reward for o in outcomes if o.strategy.reward is not None]
    return [reward for reward in dict.fromkeys(named) if reward != own]


def _order(rewards: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    whole = {row["model"]: row for row in rewards if row["kind"] == "TOTAL_FINISH"}
    every = {row["model"]: row for row in rewards if row["kind"] == "all"}
    order = [name for name in ("toolprm", "c-prm", "orm") if name in whole]
    if len(order) < 2:
        return
    trajectory = [float(every[name]["trajectory_accuracy"]) for name in order]
    auc = [float(whole[name]["auc"]) for name in order]
    why = "; ".join(
        f"{name}: trajectory accuracy {100 * a:.2f} %, AUC of whole answers {u:.4f}"
        for name, a, u in zip(order, trajectory, auc, strict=True)
    )
    falling = [all(x > y for x, y in pairwise(values)) for values in (trajectory, auc)]
    yield {"claim": f"as judges of answers, {' > '.join(order)}", "holds": any(falling), "why": why}


def _exploring(outcomes: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    cells = grid(outcomes)
    pairs = [((n, m), (m, n)) for n, m in cells if n < m and (m, n) in cells]
    if not pairs:
        return
    gain = bootstrap(np.mean([cells[wide].right - cells[many].right for wide, many in pairs], axis=0))
    tokens = [np.mean([cells[pair[side]].tokens for pair in pairs]) for side in (0, 1)]
    yield {
        "claim": "explore more, retain less: of the same N x M, width pays more than beams",
        "holds": holds(gain),
        "why": f"{_points(gain)} for the {len(pairs)} grids with more width than beams against their mirror images, "
        f"with {tokens[0]:.0f} forward tokens a question against {tokens[1]:.0f}",
    }
    for fixed, words in ((0, "at N = {}, M from {} to {}"), (1, "at M = {}, N from {} to {}")):
        lines: dict[int, list[int]] = {}
        for cell in cells:
            lines.setdefault(cell[fixed], []).append(cell[1 - fixed])
        for value, others in sorted(lines.items()):
            if value != 4 or len(others) < 2:
                continue
            ends = [cells[(value, o) if fixed == 0 else (o, value)] for o in (min(others), max(others))]
            gain = bootstrap(ends[1].right - ends[0].right)
            yield {
                "claim": f"{'more width' if fixed == 0 else 'more beams'} helps "
                + words.format(value, min(others), max(others)),
                "holds": holds(gain),
                "why": f"{_points(gain)}, with {ends[1].tokens:.0f} forward tokens a question against "
                f"{ends[0].tokens:.0f}",
            }


def _adaptive(outcomes: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    cells = grid(outcomes)
    if len(cells) < SIZES_OF_A_SWEEP:
        return
    best = max(cells.values(), key=lambda o: (float(o.right.mean()), -o.tokens))
    reached = bootstrap(best.right)
    for outcome in outcomes:
        if outcome.strategy.kind != "adaptive":
            continue
        accuracy = float(outcome.right.mean())
        if not best.answer_tokens:
            continue  # nothing was answered
        share, own = outcome.tokens / best.tokens, outcome.answer_tokens / best.answer_tokens
        gain = bootstrap(outcome.right - best.right)
        yield {
            "claim": f"{outcome.strategy.name} reaches step-beam's best accuracy at no more than half its tokens",
            "holds": accuracy >= reached.low and share <= 0.5,
            "why": f"{100 * accuracy:.1f} % against {100 * reached.mean:.1f} % [{100 * reached.low:.1f}, "
            f"{100 * reached.high:.1f}] of {best.strategy.name} ({_points(gain)}), at {100 * share:.0f} % of its "
            f"forward tokens ({100 * own:.0f} % without the prompts, which both read once)",
        }


def holds(gain: Interval) -> bool | None:
    """Whether a difference is above zero; None where its interval leaves that open."""
    return True if gain.low > 0 else False if gain.high < 0 else None


def _points(gain: Interval) -> str:
    return f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


# -------------------------------------------------------------------- single questions


def worst(outcomes: Sequence[Outcome], subject: Outcome, count: int) -> list[dict[str, Any]]:
    """Wrong answers of a strategy that it was surest of, with those of the others beside them."""
    rows = subject.rows[0]
    wrong = [i for i, row in enumerate(rows) if not row["right"]]
    wrong.sort(key=lambda i: (-(rows[i]["score"] or 0.0), i))
    beside: dict[str, Outcome] = {}  # one of each kind and reward model
    for outcome in (subject, *outcomes):
        beside.setdefault(f"{outcome.strategy.kind} {outcome.strategy.reward}", outcome)
    found = []
    for index in wrong[:count]:
        sample = subject.suite.samples[index]
        answers = [(o.strategy.name, o.rows[0][index]) for o in list(beside.values())[:8]]
        found.append(
            {
                "id": sample.id,
                "group": subject.suite.groups[index],
                "question": question_of(sample),
                "tools": [_tool_name(tool) for tool in sample.tools],
                "gold": [call_text(call["name"], _gold(call)) for call in sample.gold],
                "answers": [
                    {
                        "strategy": name,
                        "calls": [row["refused"]]
                        if row["calls"] is None
                        else [call_text(call["name"], call["arguments"]) for call in row["calls"]],
                        "right": row["right"],
                        "score": row["score"],
                        "logprob": row["logprob"],
                    }
                    for name, row in answers
                ],
            }
        )
    return found


def _gold(call: Mapping[str, Any]) -> dict[str, Any]:
    """The allowed values of each argument: the value itself where there is one."""
    return {name: values[0] if len(values) == 1 else values for name, values in call["arguments"].items()}


def _tool_name(tool: Any) -> str:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(inner.get("name", "?"))


def question_of(sample: Sample) -> str:
    """What the last message asks."""
    content = sample.messages[-1].get("content") if sample.messages else ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def call_text(name: str, arguments: Any) -> str:
    """A call on one line."""
    return f"{name}({json.dumps(arguments, ensure_ascii=False)})"


def tree_pages(outcomes: Sequence[Outcome], models: Models, folder: Path, count: int) -> list[dict[str, Any]]:
    """Writes the search trees of a few telling questions as pages: won against greedy, lost though drawn, and others.

    Returns {"id", "question", "page" (relative to the folder), "note"} of each.
    """
    subject = main_strategy(outcomes)
    if subject is None or count < 1:
        return []
    chosen = _telling(outcomes, subject, count)
    for stale in (folder / "trees").glob("*.html"):
        stale.unlink()
    pages: list[dict[str, Any]] = []
    for index, note in chosen.items():
        sample = subject.suite.samples[index]
        decoder = models.decoder(subject.strategy.reward)
        search = own_search(subject.strategy, subject.seeds[0], sample)
        (decoded,) = decode_each(decoder, [Request(sample.tools, sample.messages, search)])
        if not isinstance(decoded, Decoded):
            continue
        grammar = decoder.grammar(sample.tools, search)
        page = f"trees/{len(pages) + 1}.html"
        (folder / "trees").mkdir(parents=True, exist_ok=True)
        question = question_of(sample)
        decoded.tree.to_html(
            folder / page,
            title=question,
            right=right_nodes(decoded.tree, sample, grammar),
            note=f"{note}. Asked for: "
            + ("; ".join(call_text(call["name"], _gold(call)) for call in sample.gold) or "no call"),
        )
        pages.append({"id": sample.id, "question": question, "page": page, "note": note})
    return pages


def _telling(outcomes: Sequence[Outcome], subject: Outcome, count: int) -> dict[int, str]:
    """Questions by index, with what there is to see, taking turns between the kinds."""
    rows, first = subject.rows[0], outcomes[0]
    groups: dict[str, list[int]] = {
        f"right, where {first.strategy.name} is wrong": [
            i for i, row in enumerate(rows) if row["right"] and not first.rows[0][i]["right"]
        ],
        "a right answer was found, and lost to another": [
            i for i, row in enumerate(rows) if row["any_right"] and not row["right"]
        ],
        "wrong, and sure of it": sorted(
            (i for i, row in enumerate(rows) if not row["any_right"] and row["refused"] is None),
            key=lambda i: -(rows[i]["score"] or 0.0),
        ),
    }
    found: dict[int, str] = {}
    while len(found) < count and any(groups.values()):
        for note, waiting in groups.items():
            if waiting and len(found) < count:
                found.setdefault(waiting.pop(0), note)
    return found


def right_nodes(tree: SearchTree, sample: Sample, grammar: CallGrammar) -> list[bool | None]:
    """Which candidates of a search agree with the gold in all that they decided so far, one a node."""
    assert grammar.format is not None
    names = [tool.name for tool in grammar.tools]
    flags: list[bool | None] = []
    for index in range(len(tree)):
        steps = [step for i in tree.path(index) for step in tree.nodes[i].steps]
        if not steps:
            flags.append(None)
            continue
        text = "".join(step.text for step in steps)
        calls = calls_so_far(text, steps[-1].kind, grammar.format, names)
        flags.append(all(label_steps(steps, calls, sample, grammar.tools)))
    return flags
