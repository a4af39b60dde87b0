"""Labels: which steps of an answer are right, by its best match with the gold calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolprm_decode.errors import RequestError
from toolprm_decode.grammar.call_grammar import CallGrammar, Step
from toolprm_decode.questions import bfcl
from toolprm_decode.questions.samples import GoldCall, Sample
from toolprm_decode.tools import Tool, read_tools

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """How the arguments of a call are compared with those of a gold call of the same name.

    Attributes:
        value: (parameter, value, gold, tool, meta) -> the pair is right.
        complete: (arguments, gold, tool) -> no argument is missing.
        plain: (gold, tool) -> the arguments of one call that is right.
    """

    value: Callable[[str, Any, GoldCall, Tool | None, Mapping[str, Any]], bool]
    complete: Callable[[Mapping[str, Any], GoldCall, Tool | None], bool]
    plain: Callable[[GoldCall, Tool | None], dict[str, Any]]


def same_value(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: numbers by value (5 is 5.0, but not true), objects in any order."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_value(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _exact_value(name: str, value: Any, gold: GoldCall, tool: Tool | None, meta: Mapping[str, Any]) -> bool:
    return any(same_value(value, allowed) for allowed in gold["arguments"].get(name, ()))


def _exact_complete(arguments: Mapping[str, Any], gold: GoldCall, tool: Tool | None) -> bool:
    return all(name in arguments or name in gold["optional"] for name in gold["arguments"])


def _exact_plain(gold: GoldCall, tool: Tool | None) -> dict[str, Any]:
    return {name: allowed[0] for name, allowed in gold["arguments"].items() if allowed}


def _bfcl_value(name: str, value: Any, gold: GoldCall, tool: Tool | None, meta: Mapping[str, Any]) -> bool:
    return bfcl.check_value(name, value, gold["arguments"], tool, meta.get("language", "python"))


def _bfcl_complete(arguments: Mapping[str, Any], gold: GoldCall, tool: Tool | None) -> bool:
    return bfcl.is_complete(arguments, gold["arguments"], tool)


def _bfcl_plain(gold: GoldCall, tool: Tool | None) -> dict[str, Any]:
    return _bfcl_members(gold["arguments"], tool.parameters if tool else {})


def _bfcl_members(allowed: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """One allowed value each. An empty string in the first place says that the member is better left out."""
    schema = schema if isinstance(schema, Mapping) else {}
    properties = schema.get("properties", {})
    members = {}
    for name, values in allowed.items():
        values = values if isinstance(values, list) else [values]
        if not values or (values[0] == "" and name not in schema.get("required", ())):
            continue
        inner = properties.get(name, {})
        value = next((value for value in values if value != ""), "")
        if isinstance(value, Mapping):  # objects hold lists of allowed values again
            value = _bfcl_members(value, inner)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            items = inner.get("items") if isinstance(inner, Mapping) else None
            value = [_bfcl_members(item, items) for item in value]
        members[name] = value
    return members


RULES: dict[str, Rule] = {
    "exact": Rule(_exact_value, _exact_complete, _exact_plain),
    "bfcl": Rule(_bfcl_value, _bfcl_complete, _bfcl_plain),
}


ANY_CALL = "any-call"  # a match without gold, which judges whole answers: something is called


def get_rule(match: str) -> Rule:
    """A rule by its name. Raises RequestError."""
    if match == ANY_CALL:
        raise RequestError(
            "that something is to be called is all that is known of a question, so no step can be judged"
        )
    if match not in RULES:
        raise RequestError(f"unknown rule {match!r:.60} to match calls: use one of {', '.join(RULES)}")
    return RULES[match]


def gold_calls(sample: Sample, tools: Sequence[Tool] | None = None) -> list[dict[str, Any]]:
    """One right answer: the gold calls with the first allowed value of each parameter.

    tools: the sample's tools, where they are read already.
    """
    known = {tool.name: tool for tool in (read_tools(sample.tools) if tools is None else tools)}
    plain = get_rule(sample.match).plain
    return [{"name": gold["name"], "arguments": plain(gold, known.get(gold["name"]))} for gold in sample.gold]


def label(sample: Sample, grammar: CallGrammar, text: str) -> tuple[list[Step], list[bool]]:
    """The steps of an answer, and which of them are right.

    Raises FormatError where the text is not a legal answer of the grammar, which must be that of the sample's tools.
    """
    if grammar.format is None:
        raise RequestError("the grammar of one JSON value has no calls to label")
    steps = grammar.steps(text)
    calls = grammar.format.parse(text, [tool.name for tool in grammar.tools])
    return steps, label_steps(steps, calls, sample, grammar.tools)


def trajectory_right(sample: Sample, calls: Sequence[Call], tools: Sequence[Tool] | None = None) -> bool:
    """Whether the calls are those of the gold, in any order; under "any-call", whether there are any.

    Under "bfcl" this is the leaderboard's own check, but for questions whose answers overlap so that it, which takes
    the first call that fits an answer, misses a pairing that exists.
    """
    if sample.match == ANY_CALL:
        return bool(calls)
    if len(calls) != len(sample.gold):
        return False
    return not calls or label_steps(_bare_steps(calls), calls, sample, tools)[-1]


def label_steps(
    steps: Sequence[Step], calls: Sequence[Call], sample: Sample, tools: Sequence[Tool] | None = None
) -> list[bool]:
    """Which steps of an answer are right (arXiv 2510.14703, section 3).

    Calls are paired with gold calls of the same name so that the most steps are right, and where that leaves a choice,
    the earliest ones. FUNC_NAME is right where the call has a partner; ARG_VALUE where its partner allows the value;
    PARAM_FINISH where all values are right and none is missing; FUNC_FINISH with it; TOTAL_FINISH where all calls are
    right and no gold call is left. All steps of a call without a partner are wrong.

    The pairing sees the whole answer, so a step can be right in one answer and wrong in another that begins alike: of
    f(1), f(2) for a gold f(2) the first call is the wrong one, while f(1) alone has a right name.

    Args:
        steps: of a whole answer, or the first ones of it.
        calls: what the answer says; only the calls and arguments that `steps` reached are looked at.
        sample: its gold, and the rule by which it is compared.
        tools: the sample's tools, where they are read already.

    Raises:
        RequestError: an unknown rule, or calls that the steps do not belong to.
    """
    rule = get_rule(sample.match)
    known = {tool.name: tool for tool in (read_tools(sample.tools) if tools is None else tools)}
    spans = _spans(steps, calls)
    judged: list[list[list[bool] | None]] = []
    weights: list[list[int]] = []
    for call, span in zip(calls, spans, strict=False):
        row = [_against(span, steps, call, gold, rule, known.get(gold["name"]), sample.meta) for gold in sample.gold]
        judged.append(row)
        weights.append([_weight(span, flags, len(steps)) for flags in row])
    partners = assign(weights)
    labels = [False] * len(steps)
    for span, row, partner in zip(spans, judged, partners, strict=True):
        flags = row[partner] if partner is not None else None
        for index, right in zip(span, flags or [False] * len(span), strict=True):
            labels[index] = right
    whole = all(labels[index] for span in spans for index in span) and len(spans) == len(sample.gold)
    for index, step in enumerate(steps):
        if step.kind == "TOTAL_FINISH":
            labels[index] = whole
    return labels


def _spans(steps: Sequence[Step], calls: Sequence[Call]) -> list[list[int]]:
    """The steps of each call, by their indices."""
    spans: list[list[int]] = []
    for index, step in enumerate(steps):
        if step.kind == "TOTAL_FINISH":
            continue
        call = int(step.path.split("/", 2)[1])
        if call == len(spans):
            spans.append([])
        if call != len(spans) - 1 or call >= len(calls):
            raise RequestError(f"step {index} ({step.kind} at {step.path}) belongs to none of the {len(calls)} calls")
        spans[-1].append(index)
    return spans


def _against(
    span: Sequence[int],
    steps: Sequence[Step],
    call: Call,
    gold: GoldCall,
    rule: Rule,
    tool: Tool | None,
    meta: Mapping[str, Any],
) -> list[bool] | None:
    """Which steps of a call are right if it is to be this gold call; None where their names differ."""
    if call["name"] != gold["name"]:
        return None
    flags: list[bool] = []
    given: dict[str, Any] = {}
    for index in span:
        step = steps[index]
        if step.kind == "ARG_VALUE":
            name = step.path.split("/", 3)[3].replace("~1", "/").replace("~0", "~")
            given[name] = call["arguments"][name]
            flags.append(rule.value(name, given[name], gold, tool, meta))
        elif step.kind == "PARAM_FINISH":
            flags.append(all(flags) and rule.complete(given, gold, tool))
        else:
            flags.append(all(flags))
    return flags


def _weight(span: Sequence[int], flags: Sequence[bool] | None, length: int) -> int:
    """What a pairing is worth: first the number of right steps, then how early they are."""
    right = [index for index, flag in zip(span, flags or (), strict=False) if flag]
    return (len(right) << length) + sum(1 << (length - 1 - index) for index in right)


def assign(weights: Sequence[Sequence[int]]) -> list[int | None]:
    """The assignment of rows to columns, each used at most once, of the largest total weight.

    A row without a column, or with one of weight 0, gets None. Exact for integers of any size (Hungarian method,
    O(n^2 m) for n rows and m columns, n the smaller number).
    """
    rows, columns = len(weights), len(weights[0]) if weights else 0
    if rows > columns:
        found: list[int | None] = [None] * rows
        for column, row in enumerate(assign([[weights[row][c] for row in range(rows)] for c in range(columns)])):
            if row is not None:
                found[row] = column
        return found
    # Shortest augmenting paths with potentials over costs -weight; column 0 and row 0 stand for "none yet".
    row_potential, column_potential = [0] * (rows + 1), [0] * (columns + 1)
    row_of = [0] * (columns + 1)
    for row in range(1, rows + 1):
        row_of[0], column = row, 0
        slack: list[int | None] = [None] * (columns + 1)
        before, seen = [0] * (columns + 1), [False] * (columns + 1)
        while row_of[column]:
            seen[column] = True
            here, least, nearest = row_of[column], None, 0
            for other in range(1, columns + 1):
                if seen[other]:
                    continue
                reduced = -weights[here - 1][other - 1] - row_potential[here] - column_potential[other]
                known = slack[other]
                if known is None or reduced < known:
                    slack[other], before[other] = reduced, column
                    known = reduced
                if least is None or known < least:
                    least, nearest = known, other
            assert least is not None
            for other in range(columns + 1):
                if seen[other]:
                    row_potential[row_of[other]] += least
                    column_potential[other] -= least
                elif (known := slack[other]) is not None:
                    slack[other] = known - least
            column = nearest
        while column:
            row_of[column] = row_of[before[column]]
            column = before[column]
    partners: list[int | None] = [None] * rows
    for column in range(1, columns + 1):
        if row_of[column] and weights[row_of[column] - 1][column - 1] > 0:
            partners[row_of[column] - 1] = column - 1
    return partners


def _bare_steps(calls: Sequence[Call]) -> list[Step]:
    """The steps of whole calls, of which only kinds and paths are known."""
    found: list[tuple[str, str]] = []
    for index, call in enumerate(calls):
        found.append(("FUNC_NAME", f"/{index}/name"))
        for name in call["arguments"]:
            found.append(("ARG_VALUE", f"/{index}/arguments/{name.replace('~', '~0').replace('/', '~1')}"))
        found += [("PARAM_FINISH", f"/{index}/arguments"), ("FUNC_FINISH", f"/{index}")]
    return [Step(kind, "", 0, 0, path) for kind, path in [*found, ("TOTAL_FINISH", "")]]
