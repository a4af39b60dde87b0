"""The report of an evaluation: one page, the same in Markdown, its plots, and the figures that all of it comes from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolprm_decode.errors import RequestError
from toolprm_decode.evaluation import plots
from toolprm_decode.evaluation.document import (
    Block,
    Bullets,
    Code,
    Document,
    Fold,
    Inline,
    Paragraph,
    Plot,
    Plots,
    Section,
    Span,
    Table,
)
from toolprm_decode.evaluation.plots import Point, Series
from toolprm_decode.files import finite

_DASH = "–"
_HEADLINES = {"accuracy": "accuracy", "bfcl-ast": "BFCL AST accuracy", "f1": "F1"}
_BRACKETS = "In brackets: 95 % bootstrap intervals over the questions"
_BEST = 3  # strategies that the first screen names


def write_report(figures: Mapping[str, Any], folder: Path) -> None:
    """Writes report.html (one file, no network), report.md, plots/*.svg and figures.json.

    Args:
        figures: plain JSON; numbers may be None or NaN. Only "suite" and "rows" have to be there:

            suite, split, n, seeds, created, command, notes: what was measured, and how. headline: "accuracy",
                "bfcl-ast" or "f1". models, versions: by role and by package.
            claims: [{claim, holds, why}]; holds is None where the figures do not decide.
            rows: [{strategy, n, refused, closed, accuracy, low, high, headline, headline_low, headline_high,
                any_right, policy_tokens, prm_tokens, tokens, groups: {name: {n, accuracy, low, high}}}]; tokens are
                means a question, any_right the share of questions with a right answer among the finished ones.
            differences: [{strategy, against, difference, low, high, tokens, against_tokens}], paired over questions.
            sweep: {cells: [{beams, width, accuracy, low, high, tokens, policy_tokens, prm_tokens}]}.
            curves: [{name, points: [{strategy, tokens, accuracy, low, high}]}].
            axes: [{axis, curves: [{name, points: [{x, accuracy, low, high, tokens}]}]}].
            rewards: [{model, judges, kind, steps, wrong, loss, accuracy, trajectory_accuracy, auc, wrong_recall, ece}];
                kind "all" or a kind of step.
            calibration: [{model, bins: [{score, right, weight}]}].
            failures: [{id, group, question, tools, gold, answers: [{strategy, calls, right, score, logprob}]}].
            trees: [{id, question, page, note}]; page is relative to the folder.
            skipped: [{file, line, reason}].

            Accuracies, differences and shares are fractions of 1.
        folder: made where it is missing.

    Raises RequestError where suite or rows are missing, matplotlib is, or the folder cannot be written.
    """
    for name in ("suite", "rows"):
        if name not in figures:
            raise RequestError(f"the figures of a report need {name!r}")
    document = _document(figures)
    text = json.dumps(finite(figures), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files = {"report.html": document.html(), "report.md": document.markdown(), "figures.json": text}
    files |= {f"plots/{plot.name}.svg": plot.svg for plot in document.plots()}
    try:
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        for stale in (folder / "plots").glob("*.svg"):  # of an earlier report with more in it
            stale.unlink()
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise RequestError(f"{folder}: the report cannot be written ({error.strerror})") from error


def _document(figures: Mapping[str, Any]) -> Document:
    sections = [
        ("Strategies", _strategies(figures)),
        ("Differences", _differences(_list(figures, "differences"))),
        ("Budget", _budget(_list(figures, "curves"))),
        ("Beams and width", _sweep(_list(figures.get("sweep") or {}, "cells"))),
        *((f"By {axis.get('axis', 'axis')}", _axis(axis)) for axis in _list(figures, "axes")),
        ("Reward models", _rewards(_list(figures, "rewards"), _list(figures, "calibration"))),
        ("Groups", _groups(figures)),
        ("Failures", _failures(_list(figures, "failures"))),
        ("Trees", _trees(_list(figures, "trees"))),
        ("Skipped questions", _skipped(_list(figures, "skipped"))),
        ("How it was measured", _method(figures)),
    ]
    title = f"Evaluation: {figures['suite']}"
    return Document(title, _lead(figures), [Section(name, blocks) for name, blocks in sections if blocks])


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def _lead(figures: Mapping[str, Any]) -> list[Block]:
    """What was measured, what did best, and what it says of the claims: the first screen."""
    rows, name = _list(figures, "rows"), _headline(figures)
    said: list[str | Span] = []
    if (count := _number(figures.get("n"))) is not None:
        said.append(f"{_count(count)} questions")
    said.append(f"split {figures['split']}" if figures.get("split") else "")
    seeds = _list(figures, "seeds")
    said.append(f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(_word, seeds))}" if seeds else "")
    said += [f"{role} {model}" for role, model in (figures.get("models") or {}).items()]
    said.append(str(figures.get("created") or ""))
    blocks: list[Block] = [Paragraph(Span(" · ".join(str(part) for part in said if part), "soft"))]
    blocks += [Paragraph(str(note)) for note in _list(figures, "notes")]
    best = sorted((row for row in rows if _number(_main(row)[0]) is not None), key=lambda row: -_main(row)[0])[:_BEST]
    if best:
        against = {str(d.get("strategy")): d for d in _list(figures, "differences")[::-1]}
        table = []
        for row in best:
            difference = against.get(str(row["strategy"]))
            gain: Inline = _DASH
            if difference is not None:
                gain = [*_parts(_difference(difference)), f" over {difference.get('against')}"]
            table.append([str(row["strategy"]), _share(*_main(row)), _count(row.get("tokens")), gain])
        blocks.append(
            Table(["best strategies", f"{name}, %", "tokens a question", "accuracy difference, points"], table)
        )
    marks = {True: Span("✓ holds", "good"), False: Span("✗ does not hold", "bad")}
    claims = _list(figures, "claims")
    blocks += [Bullets([_claim(claim, marks) for claim in claims])] if claims else []
    return blocks


def _claim(claim: Mapping[str, Any], marks: Mapping[Any, Span]) -> Inline:
    why = f" – {claim['why']}" if claim.get("why") else ""
    return [marks.get(claim.get("holds"), Span("? open", "soft")), ": ", Span(str(claim.get("claim")), "strong"), why]


def _strategies(figures: Mapping[str, Any]) -> list[Block]:
    rows, name = _list(figures, "rows"), _headline(figures)
    if not rows:
        return [Paragraph("No strategy was measured.")]
    own = name != _HEADLINES["accuracy"]
    top = max((value for row in rows if (value := _number(_main(row)[0])) is not None), default=None)
    columns = ["strategy", f"{name}, %"]
    optional = {
        "any_right": ("a right answer found, %", _percent),
        "policy_tokens": ("policy tokens", _count),
        "prm_tokens": ("reward tokens", _count),
        "tokens": ("tokens", _count),
        "refused": ("refused", _count),
        "closed": ("closed", _count),
        "n": ("n", _count),
    }
    shown = {key: value for key, value in optional.items() if any(key in row for row in rows)}
    columns += ["accuracy, %"] if own else []
    columns += [head for head, _ in shown.values()]
    table: list[list[Inline]] = []
    for row in rows:
        share = _share(*_main(row))
        cells: list[Inline] = [str(row.get("strategy")), Span(share, "strong") if _main(row)[0] == top else share]
        cells += [_share(row.get("accuracy"), row.get("low"), row.get("high"))] if own else []
        table.append([*cells, *(write(row.get(key)) for key, (_, write) in shown.items())])
    meanings = {
        "any_right": "a right answer found: among the finished answers of a question there was a right one",
        "tokens": "tokens: forward tokens a question, prompts included",
        "refused": "refused: could not be answered, counted as wrong",
        "closed": "closed: max_tokens ended the answer",
    }
    told = "; ".join([_BRACKETS, *(meaning for key, meaning in meanings.items() if key in shown)])
    names = [_word(row.get("strategy")) for row in rows]
    drawn = plots.intervals(names, [_point(_main(row)) for row in rows], f"{name}, %")
    return [
        Table(columns, table),
        Paragraph(Span(f"{told}.", "soft")),
        Plots([Plot("strategies", drawn, f"{_capital(name)} of each strategy with its interval")]),
    ]


def _differences(differences: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not differences:
        return []
    names = [f"{d.get('strategy')} − {d.get('against')}" for d in differences]
    table = [
        [
            str(d.get("strategy")),
            str(d.get("against")),
            _difference(d),
            _count(d.get("tokens")),
            _count(d.get("against_tokens")),
        ]
        for d in differences
    ]
    points = [_point((d.get("difference"), d.get("low"), d.get("high"))) for d in differences]
    drawn = plots.intervals(names, points, "accuracy difference, points", zero=True)
    return [
        Paragraph("Paired over the questions, in points. Bold: the interval excludes zero."),
        Table(["strategy", "against", "difference", "tokens", "tokens of the other"], table, words=2),
        Plots([Plot("differences", drawn, "Differences between strategies with their intervals")]),
    ]


def _budget(curves: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not curves:
        return []
    series = [_series(curve, "tokens") for curve in curves]
    drawn = plots.lines(series, "forward tokens a question", "accuracy, %", base=10)
    table = [
        [str(curve.get("name")), str(p.get("strategy")), _count(p.get("tokens")), _accuracy(p)]
        for curve in curves
        for p in _list(curve, "points")
    ]
    columns = ["family", "strategy", "tokens", "accuracy, %"]
    return [
        Plots([Plot("budget", drawn, "Accuracy against forward tokens, policy and reward model together")]),
        Fold("The numbers", [Table(columns, table, words=2)]),
    ]


def _sweep(cells: Sequence[Mapping[str, Any]]) -> list[Block]:
    found = {
        (beams, width): cell
        for cell in cells
        if (beams := _number(cell.get("beams"))) is not None and (width := _number(cell.get("width"))) is not None
    }
    if not found:
        return []
    rows, columns = sorted({beams for beams, _ in found}), sorted({width for _, width in found})
    by_width = [
        Series(f"N = {beams:g}", [_at(width, found[beams, width]) for width in columns if (beams, width) in found])
        for beams in rows
    ]
    by_beams = [
        Series(f"M = {width:g}", [_at(beams, found[beams, width]) for beams in rows if (beams, width) in found])
        for width in columns
    ]
    by_tokens = [
        Series(
            f"N = {beams:g}",
            sorted(
                (
                    _at(tokens, cell)
                    for (own, _), cell in found.items()
                    if own == beams and (tokens := _number(cell.get("tokens"))) is not None
                ),
                key=lambda point: point.x,
            ),
        )
        for beams in rows
    ]
    shares = {place: _float(cell.get("accuracy")) for place, cell in found.items()}
    grid: list[list[Inline]] = [
        [f"N = {beams:g}", *(_percent(found.get((beams, width), {}).get("accuracy")) for width in columns)]
        for beams in rows
    ]
    table = [
        [
            f"{beams:g}",
            f"{width:g}",
            _accuracy(cell),
            *(_count(cell.get(key)) for key in ("policy_tokens", "prm_tokens", "tokens")),
        ]
        for (beams, width), cell in sorted(found.items())
    ]
    label = "accuracy, %"
    return [
        Paragraph("N beams are kept, M candidates are drawn from each. Accuracy, %:"),
        Table(["", *(f"M\u00a0=\u00a0{width:g}" for width in columns)], grid),
        Plots(
            [
                Plot("sweep-grid", plots.heat(rows, columns, shares), "Accuracy, %, by beams N and width M"),
                Plot(
                    "sweep-width",
                    plots.lines(by_width, "width M (candidates a beam)", label, base=2, bands=False),
                    "Explore more: accuracy against width M at each N",
                ),
                Plot(
                    "sweep-beams",
                    plots.lines(by_beams, "beams N", label, base=2, bands=False),
                    "Retain less: accuracy against beams N at each M",
                ),
                Plot(
                    "sweep-tokens",
                    plots.lines(by_tokens, "forward tokens a question", label, base=10, bands=False),
                    "Accuracy against forward tokens at each N",
                ),
            ]
        ),
        Fold(
            "The numbers",
            [Table(["N", "M", label, "policy tokens", "reward tokens", "tokens"], table)],
        ),
    ]


def _axis(axis: Mapping[str, Any]) -> list[Block]:
    name, curves = str(axis.get("axis", "axis")), _list(axis, "curves")
    if not curves:
        return []
    drawn = plots.lines([_series(curve, "x") for curve in curves], name, "accuracy, %")
    table = [
        [str(curve.get("name")), _setting(p.get("x")), _accuracy(p), _count(p.get("tokens"))]
        for curve in curves
        for p in _list(curve, "points")
    ]
    return [
        Plots([Plot(f"by-{_slug(name)}", drawn, f"Accuracy by {name}")]),
        Fold("The numbers", [Table(["strategy", name, "accuracy, %", "tokens"], table, words=2)]),
    ]


def _rewards(rewards: Sequence[Mapping[str, Any]], calibration: Sequence[Mapping[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    whole = [row for row in rewards if row.get("kind", "all") == "all"]
    parts = [row for row in rewards if row.get("kind", "all") != "all"]
    if whole:
        blocks.append(_reward_table(whole, kinds=False))
    if rewards:
        told = (
            "A score of 0.5 or more counts as right. AUC: how often a right step scores above a wrong one. "
            "Wrong recall: how many of the wrong steps score below 0.5. ECE: the expected calibration error."
        )
        blocks.append(Paragraph(Span(told, "soft")))
    if parts:
        blocks.append(Fold("By kind of step", [_reward_table(parts, kinds=True)], open=not whole))
    if calibration:
        series = [
            _series({"name": one.get("model"), "points": _list(one, "bins")}, "score", "right") for one in calibration
        ]
        weights = [[_float(each.get("weight")) for each in _list(one, "bins")] for one in calibration]
        table = [
            [
                str(one.get("model")),
                _decimal(each.get("score"), 3),
                _percent(each.get("right")),
                _weight(each.get("weight")),
            ]
            for one in calibration
            for each in _list(one, "bins")
        ]
        drawn = plots.reliability(series, weights)
        caption = "Right steps against the score they were given; on the grey line scores are probabilities"
        blocks.append(Plots([Plot("calibration", drawn, caption)]))
        blocks.append(Fold("The numbers", [Table(["model", "score", "right, %", "weight"], table)]))
    return blocks


def _reward_table(rows: Sequence[Mapping[str, Any]], kinds: bool) -> Table:
    words = ["model", "judges", *(["kind"] if kinds else [])]
    numbers = {
        "steps": ("steps", _count),
        "wrong": ("wrong, %", _percent),
        "loss": ("loss", lambda value: _decimal(value, 4)),
        "accuracy": ("accuracy, %", _percent),
        "trajectory_accuracy": ("trajectory accuracy, %", _percent),
        "auc": ("AUC", lambda value: _decimal(value, 4)),
        "wrong_recall": ("wrong recall, %", _percent),
        "ece": ("ECE", lambda value: _decimal(value, 3)),
    }
    shown = {key: value for key, value in numbers.items() if any(key in row for row in rows)}
    table = [
        [*(_word(row.get(key)) for key in words), *(write(row.get(key)) for key, (_, write) in shown.items())]
        for row in rows
    ]
    return Table([*words, *(head for head, _ in shown.values())], table, words=len(words))


def _groups(figures: Mapping[str, Any]) -> list[Block]:
    rows = _list(figures, "rows")
    names = list(dict.fromkeys(name for row in rows for name in row.get("groups") or {}))
    if not names:
        return []
    sizes = {
        name: {_count(row["groups"][name].get("n")) for row in rows if name in (row.get("groups") or {})}
        for name in names
    }
    one_size = {name: len(sizes[name]) == 1 for name in names}
    heads = [f"{name} (n\u00a0=\u00a0{next(iter(sizes[name]))})" if one_size[name] else name for name in names]
    table: list[list[Inline]] = []
    for row in rows:
        own, cells = row.get("groups") or {}, [str(row.get("strategy"))]
        for name in names:
            size = "" if one_size[name] or name not in own else f", n = {_count(own[name].get('n'))}"
            cells.append(_accuracy(own.get(name, {})) + size)
        table.append([*cells])
    return [Paragraph(f"{_capital(_headline(figures))}, %, by group of questions."), Table(["strategy", *heads], table)]


def _failures(failures: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not failures:
        return []
    count = f"{len(failures)} {'question' if len(failures) == 1 else 'questions'} with the answers of the strategies."
    blocks: list[Block] = [Paragraph(count)]
    for number, failure in enumerate(failures):
        rows: list[list[Inline]] = [["gold", "", _calls(_list(failure, "gold")), "", ""]]
        marks: list[str | Span] = []
        for answer in _list(failure, "answers"):
            mark = Span("✓", "good") if answer.get("right") else Span("✗", "bad")
            strategy = _word(answer.get("strategy"))
            marks += ["  ", mark, f" {strategy}"]
            score, chance = _decimal(answer.get("score"), 3), _decimal(answer.get("logprob"), 2)
            rows.append([strategy, mark, _calls(_list(answer, "calls")), score, chance])
        group = f" ({failure['group']})" if failure.get("group") else ""
        tools = ", ".join(map(str, _list(failure, "tools")))
        inside: list[Block] = [Paragraph(_word(failure.get("question")))]
        inside += [Paragraph(Span(f"Tools: {tools}", "soft"))] if tools else []
        inside.append(Table(["strategy", "right", "calls", "score", "log-probability"], rows, words=3))
        blocks.append(Fold([Span(_word(failure.get("id")), "strong"), group, *marks], inside, open=number == 0))
    return blocks


def _calls(calls: Sequence[Any]) -> Inline:
    if not calls:
        return Span("no call", "soft")
    spans: list[str | Span] = []
    for call in calls:
        spans += [" ", Span(str(call), "code")] if spans else [Span(str(call), "code")]
    return spans


def _trees(trees: Sequence[Mapping[str, Any]]) -> list[Block]:
    items: list[Inline] = []
    for tree in trees:
        name = _word(tree.get("id"))
        item: list[str | Span] = [Span(name, link=str(tree["page"])) if tree.get("page") else name]
        item += [f": {tree['question']}"] if tree.get("question") else []
        item += [" ", Span(str(tree["note"]), "soft")] if tree.get("note") else []
        items.append(item)
    return [Bullets(items)] if items else []


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not skipped:
        return []
    table = [[_word(one.get("file")), _word(one.get("line")), _word(one.get("reason"))] for one in skipped]
    count = f"{len(skipped)} {'line was' if len(skipped) == 1 else 'lines were'} left out."
    return [Paragraph(count), Fold("Which, and why", [Table(["file", "line", "reason"], table, words=3)])]


def _method(figures: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if figures.get("command"):
        blocks += [Paragraph("The command that gives these figures:"), Code(str(figures["command"]))]
    versions = figures.get("versions") or {}
    if versions:
        blocks.append(Paragraph(", ".join(f"{name} {version}" for name, version in versions.items())))
    return blocks


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def _list(figures: Mapping[str, Any], key: str) -> Sequence[Any]:
    return figures.get(key) or []


def _headline(figures: Mapping[str, Any]) -> str:
    name = str(figures.get("headline") or "accuracy")
    return _HEADLINES.get(name, name)


def _main(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The headline of a row with its interval; its accuracy, where it has no headline of its own."""
    if "headline" in row:
        return row["headline"], row.get("headline_low"), row.get("headline_high")
    return row.get("accuracy"), row.get("low"), row.get("high")


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _float(value: Any) -> float:
    number = _number(value)
    return math.nan if number is None else number


def _point(values: Iterable[Any], x: float | str = 0.0) -> Point:
    return Point(x, *map(_float, values))


def _at(x: float | str, values: Mapping[str, Any], key: str = "accuracy") -> Point:
    return _point((values.get(key), values.get("low"), values.get("high")), x)


def _series(curve: Mapping[str, Any], x: str, key: str = "accuracy") -> Series:
    points = [_at(p[x] if isinstance(p.get(x), str) else _float(p.get(x)), p, key) for p in _list(curve, "points")]
    return Series(str(curve.get("name")), points)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers as text


def _percent(value: Any) -> str:
    number = _number(value)
    return _DASH if number is None else f"{100 * number:.1f}"


def _share(value: Any, low: Any, high: Any) -> str:
    if _number(value) is None or _number(low) is None or _number(high) is None:
        return _percent(value)
    return f"{_percent(value)} [{_percent(low)}, {_percent(high)}]"


def _accuracy(values: Mapping[str, Any]) -> str:
    return _share(values.get("accuracy"), values.get("low"), values.get("high"))


def _difference(values: Mapping[str, Any]) -> Inline:
    """In points; bold where the interval excludes zero."""
    value, low, high = (_number(values.get(key)) for key in ("difference", "low", "high"))
    if value is None:
        return _DASH
    if low is None or high is None:
        return f"{100 * value:+.1f}"
    text = f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return Span(text, "strong") if low > 0 or high < 0 else text


def _parts(text: Inline) -> Iterator[str | Span]:
    yield from (text,) if isinstance(text, str | Span) else text


def _count(value: Any) -> str:
    number = _number(value)
    return _DASH if number is None else f"{number:,.0f}"


def _decimal(value: Any, digits: int) -> str:
    number = _number(value)
    return _DASH if number is None else f"{number:.{digits}f}"


def _weight(value: Any) -> str:
    number = _number(value)
    return _DASH if number is None else f"{number:,.0f}" if number == int(number) else f"{number:.3f}"


def _setting(value: Any) -> str:
    number = _number(value)
    return _word(value) if number is None else f"{number:g}"


def _word(value: Any) -> str:
    return _DASH if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "axis"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
