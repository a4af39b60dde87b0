"""The AST check gives the verdicts of the leaderboard's own checker, where that is installed, and of its rules."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.questions.bfcl import check_call, check_calls
from toolprm_decode.questions.labels import gold_calls, trajectory_right
from toolprm_decode.questions.literals import java, javascript
from toolprm_decode.questions.readers import read_samples
from toolprm_decode.questions.samples import Sample
from toolprm_decode.tools import read_tools

from .bfcl_cases import Checker, Question, calls_of, literal, mutated, official, official_checker, questions


@pytest.fixture(scope="module")
def checker() -> Checker:
    return official_checker()


LEAST = 300  # calls of each category that are compared


def test_same_verdicts_as_the_official_checker(checker: Checker, data_dir: Path) -> None:
    rng = random.Random(0)
    verdicts: dict[str, Counter[bool | None]] = {}
    by_category: dict[str, list[Question]] = {}
    for question in questions(data_dir):
        by_category.setdefault(question[0], []).append(question)
    for category, asked in by_category.items():
        counts = verdicts.setdefault(category, Counter())
        for _, language, tools, answers in asked:
            read = read_tools(tools)
            for turn in range(max(12, -(-LEAST // len(asked)))):
                calls = calls_of(answers, rng, language)
                if turn:  # the first are as the gold has them
                    calls = mutated(calls, rng, language, tools)
                expected = checker(category, language, tools, answers, calls)
                counts[expected] += 1
                if expected is not None:
                    found = check_calls(calls, answers, read, language, official=True)
                    assert found == expected, (category, calls, answers)
    assert all(min(counts[True], counts[False]) > 25 and counts.total() >= LEAST for counts in verdicts.values()), (
        verdicts
    )
    whole = sum(verdicts.values(), Counter())
    assert whole[True] > 3000 and whole[False] > 5000 and whole[None] < 200, whole


def test_gold_calls_have_the_official_verdict(checker: Checker, data_dir: Path) -> None:
    rng = random.Random(2)
    refused = []
    asked = [sample for sample in read_samples(data_dir / "bfcl", on_error="skip", check_gold=False) if sample.gold]
    for sample in asked:
        category, language = sample.meta["category"], sample.meta["language"]
        answers = [{call["name"]: call["arguments"]} for call in sample.gold]
        calls = gold_calls(sample)
        assert trajectory_right(sample, calls) == check_calls(calls, answers, read_tools(sample.tools), language)
        if language != "python":
            for call in calls:
                call["arguments"] = {name: literal(one, rng, language) for name, one in call["arguments"].items()}
        expected = checker(category, language, sample.tools, answers, calls)
        assert check_calls(calls, answers, read_tools(sample.tools), language, official=True) == expected, sample.id
        if not expected and language == "python":  # a literal of another language can be spelled wrongly here
            refused.append(sample.id)
    # Some answers are such that none is right: they name a parameter that the tool lacks, or allow no value of one.
    assert len(asked) > 1300 and len(refused) < len(asked) / 100, refused


def test_java_and_javascript_literals_are_read_as_officially() -> None:
    convertors = "eval_checker.ast_eval.type_convertor"
    modules = official(f"{convertors}.java_type_converter", f"{convertors}.js_type_converter")
    java_type_converter, js_type_converter = modules[0].java_type_converter, modules[1].js_type_converter
    texts = [
        "a",
        "'a'",
        "1",
        "-3",
        "1L",
        "1n",
        "2.5",
        "2.5f",
        "1e3",
        "1e3F",
        "true",
        "false",
        "null",
        "[]",
        "{}",
        '""',
        "'",
        '"',
        "",
        "new ArrayList<>()",
    ]
    texts += [
        "new int[]{1, 2,}",
        "new String[]{\"a\", 'b'}",
        "new ArrayList<Long>(Arrays.asList(1L, 2, x))",
        "[1, 'b']",
    ]
    texts += ["new ArrayList<String>() {{ add(\"a\"); add('b'); }}", "[[1, 2], [3]]", "new Array([1], [2, 'x'])"]
    texts += ['new HashMap<String, Object>() {{ put("a", 1L); put("b", "x"); }}', "new HashMap<>()", "new Array(1n)"]
    texts += ["{'a': 1, 'b': [1, 2], \"c\": {d: true}}", "{a: x, b: 'y'}", " [ 1.5 ] ", "[a: 1]", "{a}", "new Array()"]
    inners = [None, "String", "char", "integer", "float", "long", "boolean", "any", "double"]
    for text in texts:
        for kind in ["integer", "float", "double", "long", "boolean", "char", "String", "any", "HashMap", "byte"]:
            assert same(java(text, kind), java_type_converter(text, kind)), (text, kind)
        for kind in ("Array", "ArrayList"):
            for inner in inners:
                assert same(java(text, kind, inner), java_type_converter(text, kind, inner)), (text, kind, inner)
        for kind in ("String", "integer", "float", "Bigint", "Boolean", "dict", "any"):
            assert same(javascript(text, kind), js_type_converter(text, kind)), (text, kind)
        for inner in (None, "String", "integer", "float", "Bigint", "Boolean", "any", "dict", "array"):
            expected = js_type_converter(text, "array", inner)
            assert same(javascript(text, "array", inner), expected), (text, inner)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


TOOL = {
    "name": "f",
    "description": "",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "rate": {"type": "float"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "box": {"type": "dict", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
            "rows": {"type": "array", "items": {"type": "dict"}},
        },
        "required": ["city"],
    },
}


@pytest.mark.parametrize(
    ("arguments", "allowed", "right"),
    [
        ({"city": "new york"}, {"city": ["New-York."]}, True),
        ({"city": "it's"}, {"city": ['it"s']}, True),
        ({"city": "York"}, {"city": ["New York"]}, False),
        ({}, {"city": ["", "Rome"]}, False),
        ({"city": "Rome"}, {"city": ["Rome"], "days": ["", 3]}, True),
        ({"city": "Rome"}, {"city": ["Rome"], "days": [3]}, False),
        ({"city": "Rome", "days": 3.0}, {"city": ["Rome"], "days": [3]}, False),
        ({"city": "Rome", "days": True}, {"city": ["Rome"], "days": [1]}, False),
        ({"city": "Rome", "rate": 2}, {"city": ["Rome"], "rate": [2.0]}, True),
        ({"city": "Rome", "rate": "2"}, {"city": ["Rome"], "rate": [2.0]}, False),
        ({"city": "Rome", "tags": ["A.b", "c"]}, {"city": ["Rome"], "tags": [["ab", "C"]]}, True),
        ({"city": "Rome", "tags": ["c", "ab"]}, {"city": ["Rome"], "tags": [["ab", "C"]]}, False),
        ({"city": "Rome", "box": {"a": 1}}, {"city": ["Rome"], "box": [{"a": [1, 2], "b": ["", "x"]}]}, True),
        ({"city": "Rome", "box": {"a": 3}}, {"city": ["Rome"], "box": [{"a": [1, 2], "b": ["", "x"]}]}, False),
        ({"city": "Rome", "box": {"b": "x"}}, {"city": ["Rome"], "box": [{"a": [1, 2], "b": ["", "x"]}]}, False),
        ({"city": "Rome", "rows": [{"a": 1}, {"a": 2}]}, {"city": ["Rome"], "rows": [[{"a": [1]}, {"a": [2]}]]}, True),
        ({"city": "Rome", "rows": [{"a": 2}, {"a": 1}]}, {"city": ["Rome"], "rows": [[{"a": [1]}, {"a": [2]}]]}, False),
        ({"city": "Rome", "rows": [{"a": 1}]}, {"city": ["Rome"], "rows": [[{"a": [1]}, {"a": [2]}]]}, False),
        ({"city": "Rome", "other": 1}, {"city": ["Rome"]}, False),
    ],
)
def test_rules(arguments: dict[str, Any], allowed: dict[str, list[Any]], right: bool) -> None:
    assert check_call(arguments, allowed, read_tools([TOOL])[0]) == right


def test_no_call_where_none_is_asked_for() -> None:
    tools = read_tools([TOOL])
    assert check_calls([], [], tools)
    assert not check_calls([{"name": "f", "arguments": {"city": "Rome"}}], [], tools)


def test_native_values_of_java_are_what_their_literals_mean() -> None:
    tool = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {"x": {"type": "double"}}}}
    read = read_tools([tool])[0]
    for value in ("2.0", 2.0, 2):
        assert check_call({"x": value}, {"x": [2.0]}, read, "java")
        assert check_call({"x": value}, {"x": [2.0]}, read, "java", official=True) == isinstance(value, str)
    assert not check_call({"x": "2.5"}, {"x": [2.0]}, read, "java")


def test_the_trajectory_label_is_the_official_check(data_dir: Path) -> None:
    rng = random.Random(1)
    by_category: dict[str, list[Sample]] = {}
    for sample in read_samples(data_dir / "bfcl", on_error="skip", check_gold=False):
        by_category.setdefault(sample.meta["category"], []).append(sample)
    counts: dict[bool, int] = {True: 0, False: 0}
    for category, language, tools, answers in questions(data_dir):
        sample = next(
            one
            for one in by_category[category]
            if one.tools == tools and [{call["name"]: call["arguments"]} for call in one.gold] == answers
        )
        for _ in range(6):
            calls = calls_of(answers, rng, language)
            if rng.random() < 0.7:
                calls = mutated(calls, rng, language, tools)
            expected = check_calls(calls, answers, read_tools(tools), language)
            counts[expected] += 1
            assert trajectory_right(sample, calls) == expected, (sample.id, calls)
    assert min(counts.values()) > 500
