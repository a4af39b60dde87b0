"""Labels: right where the best match with the gold says so, and wrong at a mistake and at what depends on it alone."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolprm_decode.errors import FormatError, RequestError
from toolprm_decode.formats import FORMATS
from toolprm_decode.grammar import CallGrammar, Step
from toolprm_decode.questions.labels import assign, gold_calls, label, label_steps, same_value, trajectory_right
from toolprm_decode.questions.samples import Sample, gold_call

from ..search.models import small

Call = dict[str, Any]
Place = tuple[str, str]  # a step's kind and path

# Each function takes all its parameters in every gold call, so that no mistake turns one gold call into another.
ARGUMENTS = {"f": ["a", "b"], "g": ["a"], "h": ["a"], "none": []}
ANY = {"type": "object", "properties": {name: {} for name in ("a", "b", "z", "x/y~z")}}
TOOLS = [{"name": name, "description": "", "parameters": ANY} for name in ARGUMENTS]
FRESH: list[Any] = [99, "1", None, [1], {"k": 1}, True]


@cache
def tokenizer() -> Any:
    return small().tokenizer


@cache
def grammar(format: str = "json-list") -> CallGrammar:
    return CallGrammar(TOOLS, tokenizer(), format)


def sample(gold: list[Call], **more: Any) -> Sample:
    return Sample("q", TOOLS, [{"role": "user", "content": "?"}], [gold_call(**call) for call in gold], **more)


def labels(asked: Sample, calls: list[Call], format: str = "json-list") -> dict[Place, bool]:
    compiled = grammar(format)
    assert compiled.format is not None
    steps, found = label(asked, compiled, compiled.format.render(calls))
    return {(step.kind, step.path): right for step, right in zip(steps, found, strict=True)}


def wrong(asked: Sample, calls: list[Call], format: str = "json-list") -> set[Place]:
    return {place for place, right in labels(asked, calls, format).items() if not right}


def places(index: int, call: Call) -> set[Place]:
    """All steps of a call."""
    arguments = {("ARG_VALUE", f"/{index}/arguments/{name}") for name in call["arguments"]}
    return {("FUNC_NAME", f"/{index}/name"), *arguments, *finishes(index)}


def finishes(index: int) -> set[Place]:
    return {("PARAM_FINISH", f"/{index}/arguments"), ("FUNC_FINISH", f"/{index}")}


TOTAL = ("TOTAL_FINISH", "")
VALUES = st.one_of(st.integers(0, 2), st.sampled_from(["x", 0.5, False, [], {}]))
FORMAT = st.sampled_from(sorted(FORMATS))


@st.composite
def golds(draw: st.DrawFn, least: int = 0) -> list[Call]:
    names = draw(st.lists(st.sampled_from(["f", "g", "none"]), min_size=least, max_size=4))
    return [{"name": name, "arguments": {key: draw(VALUES) for key in ARGUMENTS[name]}} for name in names]


# ---------------------------------------------------------------------------------------------------------------------
# One mistake


@given(golds(), st.randoms(use_true_random=False), FORMAT)
def test_gold_calls_are_right_at_every_step_in_any_order(gold: list[Call], rng: Any, format: str) -> None:
    if not gold and format in ("hermes", "llama-json"):
        return  # the empty text has no step but its end
    asked = sample(gold)
    calls = gold_calls(asked)
    assert calls == gold
    rng.shuffle(calls)
    assert not wrong(asked, calls, format)
    assert trajectory_right(asked, calls)


@given(golds(1), st.data())
def test_a_wrong_value(gold: list[Call], data: st.DataObject) -> None:
    calls = copy.deepcopy(gold)
    index = data.draw(st.integers(0, len(calls) - 1))
    if not calls[index]["arguments"]:
        return
    name = data.draw(st.sampled_from(sorted(calls[index]["arguments"])))
    calls[index]["arguments"][name] = data.draw(st.sampled_from(FRESH))
    asked = sample(gold)
    assert wrong(asked, calls) == {("ARG_VALUE", f"/{index}/arguments/{name}"), *finishes(index), TOTAL}
    assert not trajectory_right(asked, calls)


@given(golds(1), st.data())
def test_a_wrong_name(gold: list[Call], data: st.DataObject) -> None:
    calls = copy.deepcopy(gold)
    index = data.draw(st.integers(0, len(calls) - 1))
    calls[index]["name"] = "h"
    assert wrong(sample(gold), calls) == {*places(index, calls[index]), TOTAL}


@given(golds(1), st.data())
def test_a_missing_argument(gold: list[Call], data: st.DataObject) -> None:
    calls = copy.deepcopy(gold)
    index = data.draw(st.integers(0, len(calls) - 1))
    if not calls[index]["arguments"]:
        return
    name = data.draw(st.sampled_from(sorted(calls[index]["arguments"])))
    del calls[index]["arguments"][name]
    found = wrong(sample(gold), calls)
    # Without the argument the call may resemble another gold call more; the mistake moves to that one's twin then.
    if sum(call["name"] == calls[index]["name"] for call in gold) == 1:
        assert found == {*finishes(index), TOTAL}
    assert len(found) == 3 and TOTAL in found
    asked = sample(gold)
    for allowed in asked.gold:
        allowed["optional"].append(name)
    assert not wrong(asked, calls)


@given(golds(1), st.data())
def test_an_extra_argument(gold: list[Call], data: st.DataObject) -> None:
    calls = copy.deepcopy(gold)
    index = data.draw(st.integers(0, len(calls) - 1))
    given_ = list(calls[index]["arguments"].items())
    given_.insert(data.draw(st.integers(0, len(given_))), ("z", 1))
    calls[index]["arguments"] = dict(given_)
    assert wrong(sample(gold), calls) == {("ARG_VALUE", f"/{index}/arguments/z"), *finishes(index), TOTAL}


@given(golds(1), st.data())
def test_a_missing_call(gold: list[Call], data: st.DataObject) -> None:
    calls = copy.deepcopy(gold)
    del calls[data.draw(st.integers(0, len(calls) - 1))]
    assert wrong(sample(gold), calls) == {TOTAL}


@given(golds(), st.data())
def test_an_extra_call(gold: list[Call], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["f", "g", "h"]))
    extra = {"name": name, "arguments": {key: data.draw(st.sampled_from(FRESH)) for key in ARGUMENTS[name]}}
    calls = copy.deepcopy(gold)
    index = data.draw(st.integers(0, len(calls)))
    calls.insert(index, extra)
    assert wrong(sample(gold), calls) == {*places(index, extra), TOTAL}


@given(golds(1), st.data())
def test_of_a_gold_call_written_twice_the_second_is_wrong(gold: list[Call], data: st.DataObject) -> None:
    calls = copy.deepcopy(gold)
    calls.insert(data.draw(st.integers(0, len(calls))), data.draw(st.sampled_from(calls)))
    twin = max(i for i, call in enumerate(calls) if calls.count(call) > gold.count(call) and exactly(call, calls, gold))
    assert wrong(sample(gold), calls) == {*places(twin, calls[twin]), TOTAL}


def exactly(call: Call, calls: list[Call], gold: list[Call]) -> bool:
    """Whether there is one call too many like this one, False and 0 being different."""
    return sum(same_value(call, other) for other in calls) > sum(same_value(call, other) for other in gold)


def test_no_call_and_a_call_too_many() -> None:
    call = {"name": "f", "arguments": {"a": 1, "b": 2}}
    assert labels(sample([]), []) == {TOTAL: True}
    assert labels(sample([call]), []) == {TOTAL: False}
    assert wrong(sample([]), [call]) == {*places(0, call), TOTAL}


# ---------------------------------------------------------------------------------------------------------------------
# Any answer, against all pairings


def oracle(gold: list[Call], calls: list[Call], steps: list[Step]) -> list[bool]:
    """The labels of the pairing with the most right steps, then the earliest ones, by trying all of them."""

    def judged(partners: tuple[int, ...]) -> list[bool]:
        found: list[bool] = []
        for step in steps:
            parts = step.path.split("/")[1:]
            if step.kind == "TOTAL_FINISH":
                whole = all(found) and len(gold) == len(calls)
                found.append(whole)
                continue
            call, partner = calls[int(parts[0])], partners[int(parts[0])]
            right = partner >= 0 and call["name"] == gold[partner]["name"]
            wanted = gold[partner]["arguments"] if right else {}
            pairs = {key: key in wanted and same_value(value, wanted[key]) for key, value in call["arguments"].items()}
            if step.kind == "ARG_VALUE":
                right = right and pairs[parts[2]]
            elif step.kind != "FUNC_NAME":
                right = right and all(pairs.values()) and wanted.keys() <= pairs.keys()
            found.append(right)
        return found

    best: list[bool] = []
    for partners in itertools.product(range(-1, len(gold)), repeat=len(calls)):
        used = [partner for partner in partners if partner >= 0]
        if len(used) == len(set(used)):
            best = max(best, judged(partners), key=lambda found: (sum(found[:-1]), found)) if best else judged(partners)
    return best


@st.composite
def answers(draw: st.DrawFn) -> list[Call]:
    names = draw(st.lists(st.sampled_from(["f", "g", "h", "none"]), max_size=4))
    calls = []
    for name in names:
        keys = draw(st.lists(st.sampled_from(["a", "b", "z"]), unique=True))
        calls.append({"name": name, "arguments": {key: draw(st.integers(0, 2)) for key in keys}})
    return calls


@settings(max_examples=200)
@given(answers(), answers())
def test_labels_are_those_of_the_best_pairing(gold: list[Call], calls: list[Call]) -> None:
    compiled = grammar()
    assert compiled.format is not None
    steps, found = label(sample(gold), compiled, compiled.format.render(calls))
    assert found == oracle(gold, calls, steps)
    assert found[-1] == trajectory_right(sample(gold), calls)


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), max_size=5), st.integers(0, 4))
def test_assignments_are_the_best(rows: list[list[int]], columns: int) -> None:
    weights = [row[:columns] for row in rows]
    partners = assign(weights)
    used = [partner for partner in partners if partner is not None]
    assert len(partners) == len(rows) and len(used) == len(set(used))
    assert all(partner is None or weights[row][partner] > 0 for row, partner in enumerate(partners))
    totals = [
        sum(weights[row][partner] for row, partner in enumerate(chosen) if partner >= 0)
        for chosen in itertools.product(range(-1, columns), repeat=len(rows))
        if len([p for p in chosen if p >= 0]) == len({p for p in chosen if p >= 0})
    ]
    assert sum(weights[row][p] for row, p in enumerate(partners) if p is not None) == max(totals)


def test_a_long_answer_is_paired_as_well() -> None:
    gold = [{"name": "f", "arguments": {"a": i, "b": i}} for i in range(5)]
    calls = [{"name": "f", "arguments": {"a": i % 40, "b": i % 40}} for i in range(120)][::-1]
    found = labels(sample(gold), calls)
    right = {int(path.split("/")[1]) for (kind, path), value in found.items() if kind == "FUNC_FINISH" and value}
    assert right == {i for i in range(40) if calls[i]["arguments"]["a"] < 5}


# ---------------------------------------------------------------------------------------------------------------------
# The rest


def test_the_first_steps_of_an_answer() -> None:
    asked = sample([{"name": "f", "arguments": {"a": 1, "b": 2}}, {"name": "g", "arguments": {"a": 3}}])
    compiled = grammar()
    assert compiled.format is not None
    calls = [{"name": "g", "arguments": {"a": 3}}, {"name": "f", "arguments": {"b": 2, "a": 7}}]
    steps = compiled.steps(compiled.format.render(calls))
    whole = label_steps(steps, calls, asked)
    for length in range(len(steps)):
        assert label_steps(steps[:length], calls, asked) == whole[:length]
    begun = [calls[0], {"name": "f", "arguments": {"b": 2}}]
    assert label_steps(steps[:6], begun, asked) == [True] * 6
    with pytest.raises(RequestError, match="belongs to none of the 1 calls"):
        label_steps(steps, calls[:1], asked)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (5, 5.0, True),
        (True, 1, False),
        (0, False, False),
        (True, True, True),
        (None, False, False),
        ("a", "A", False),
        ([1, 2], [2, 1], False),
        ([1, True], [1, 1], False),
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ("1", 1, False),
        (10**30, 1e30, 10**30 == 1e30),
    ],
)
def test_exact_values(one: Any, other: Any, same: bool) -> None:
    assert same_value(one, other) == same_value(other, one) == same
    asked = sample([{"name": "g", "arguments": {"a": one}}])
    assert (not wrong(asked, [{"name": "g", "arguments": {"a": other}}])) == same


def test_one_of_several_allowed_values() -> None:
    asked = sample([{"name": "g", "arguments": {"a": "Rome"}}])
    asked.gold[0]["arguments"]["a"].append("Roma")
    for value, right in (("Rome", True), ("Roma", True), ("rome", False)):
        assert trajectory_right(asked, [{"name": "g", "arguments": {"a": value}}]) == right


def test_names_with_slashes() -> None:
    asked = sample([{"name": "g", "arguments": {"x/y~z": 1}}])
    assert not wrong(asked, [{"name": "g", "arguments": {"x/y~z": 1}}])
    assert ("ARG_VALUE", "/0/arguments/x~1y~0z") in wrong(asked, [{"name": "g", "arguments": {"x/y~z": 2}}])


def test_what_cannot_be_labelled() -> None:
    with pytest.raises(FormatError):
        label(sample([]), grammar(), "[{")
    with pytest.raises(RequestError, match="unknown rule 'close'"):
        labels(sample([], match="close"), [])
    with pytest.raises(RequestError, match="no calls"):
        label(sample([]), CallGrammar.for_schema({"type": "integer"}, tokenizer()), "1")
