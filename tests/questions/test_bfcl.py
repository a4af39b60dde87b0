"""The AST check gives the verdicts of the leaderboard's own checker, where that is installed, and of its rules."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.questions.bfcl import check_call, check_calls
from toolprm_decode.questions.labels import trajectory_right
from toolprm_decode.questions.literals import java, javascript
from toolprm_decode.questions.readers import read_samples
from toolprm_decode.questions.samples import Sample
from toolprm_decode.tools import read_tools

Answer = dict[str, dict[str, list[Any]]]
Question = tuple[str, str, list[dict[str, Any]], list[Answer]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def questions(data_dir: Path) -> list[Question]:
    """(category, language, tools, ground truth) of every answered question."""
    found = []
    for path in sorted((data_dir / "bfcl" / "possible_answer").glob("BFCL_v4_*.json")):
        category = path.stem.removeprefix("BFCL_v4_")
        if category.startswith("multi_turn"):
            continue
        asked = {row["id"]: row["function"] for row in lines(data_dir / "bfcl" / path.name)}
        language = {"simple_java": "java", "simple_javascript": "javascript"}.get(category, "python")
        for row in lines(path):
            if row["id"] in asked:
                found.append((category, language, asked[row["id"]], row["ground_truth"]))
    return found


def calls_of(answers: list[Answer], rng: random.Random, language: str) -> list[dict[str, Any]]:
    """Calls with a random allowed value of each parameter."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            chosen = {key: rng.choice(choices or [""]) for key, choices in value.items()}
            return {key: plain(one) for key, one in chosen.items() if one != "" or rng.random() < 0.3}
        return [plain(item) for item in value] if isinstance(value, list) else value

    calls = []
    for answer in answers:
        for name, allowed in answer.items():
            chosen = {key: rng.choice(values or [""]) for key, values in allowed.items()}
            arguments = {key: plain(one) for key, one in chosen.items() if one != "" or rng.random() < 0.3}
            if language != "python":
                arguments = {key: literal(value, rng, language) for key, value in arguments.items()}
            calls.append({"name": name, "arguments": arguments})
    return calls


def literal(value: Any, rng: random.Random, language: str) -> str:
    """A source literal that may stand for the value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value) + rng.choice(["", "", "L", "f", "n"])
    if isinstance(value, list):
        inner = ", ".join(literal(item, rng, language) if not isinstance(item, str) else f'"{item}"' for item in value)
        if language == "javascript":
            return rng.choice([f"[{inner}]", f"new Array({inner})"])
        return rng.choice([f"new Object[]{{{inner}}}", f"new ArrayList<Object>(Arrays.asList({inner}))"])
    if isinstance(value, dict):
        if language == "javascript":
            return json.dumps(value)
        puts = " ".join(f'put("{key}", {json.dumps(one)});' for key, one in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    return str(value)


ODD: list[Any] = ["", " ", "x", 0, 1, -1, 2.5, 1.0, True, False, None, [], ["a"], [1], [1.0], {}, {"a": 1}, [{}]]


def mutated(calls: list[dict[str, Any]], rng: random.Random, language: str) -> list[dict[str, Any]]:
    calls = copy.deepcopy(calls)
    kind = rng.randrange(9)
    call = rng.choice(calls)
    arguments = call["arguments"]
    key = rng.choice(sorted(arguments)) if arguments else None
    if kind == 0:
        calls.append(copy.deepcopy(call))
    elif kind == 1:
        calls.remove(call)
    elif kind == 2:
        rng.shuffle(calls)
    elif kind == 3:
        call["name"] += "x"
    elif kind == 4:
        arguments["unheard_of"] = "x"
    elif key is not None and kind == 5:
        del arguments[key]
    elif key is not None:
        arguments[key] = altered(arguments[key], rng)
        if language != "python" and not isinstance(arguments[key], str):
            arguments[key] = literal(arguments[key], rng, language)
    return calls


def altered(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str) and rng.random() < 0.6:
        return rng.choice([value.upper(), value.replace(" ", ""), value + ".", f"'{value}'", value.replace(",", ", ")])
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.6:
        return rng.choice([float(value), int(value), value + 1, str(value), -value])
    if isinstance(value, list) and value and rng.random() < 0.6:
        index = rng.randrange(len(value))
        return rng.choice([value[::-1], value + value[:1], value[:-1], [*value[:index], altered(value[index], rng)]])
    if isinstance(value, dict) and value and rng.random() < 0.6:
        key = rng.choice(sorted(value))
        return {**value, key: altered(value[key], rng)}
    return rng.choice(ODD)


@pytest.fixture(scope="module")
def official() -> Any:
    """bfcl-eval's checker, without its list of models, which would load every vendor's client."""
    if importlib.util.find_spec("bfcl_eval") is None:
        pytest.skip("bfcl-eval is not installed: pip install --no-deps bfcl-eval")
    name = "bfcl_eval.constants.model_config"
    before = sys.modules.get(name)
    stub = types.ModuleType(name)
    stub.__dict__["MODEL_CONFIG_MAPPING"] = {"model": types.SimpleNamespace(underscore_to_dot=False)}
    sys.modules[name] = stub
    try:
        checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
        language = importlib.import_module("bfcl_eval.constants.enums").Language
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before

    def check(question: Question, calls: list[dict[str, Any]]) -> bool | None:
        category, written, tools, answers = question
        output = [{call["name"]: copy.deepcopy(call["arguments"])} for call in calls]
        try:
            return bool(checker(tools, output, answers, language[written.upper()], category, "model")["valid"])
        except (AttributeError, IndexError, KeyError, TypeError):
            return None  # the checker itself fails on this

    return check


def test_same_verdicts_as_the_official_checker(official: Any, data_dir: Path) -> None:
    rng = random.Random(0)
    verdicts = {True: 0, False: 0, None: 0}
    for question in questions(data_dir):
        _, language, tools, answers = question
        read = read_tools(tools)
        for _ in range(12):
            calls = calls_of(answers, rng, language)
            if rng.random() < 0.8:
                calls = mutated(calls, rng, language)
            expected = official(question, calls)
            verdicts[expected] += 1
            if expected is not None:
                found = check_calls(calls, answers, read, language, official=True)
                assert found == expected, (language, calls, answers)
    assert verdicts[True] > 1000 and verdicts[False] > 1000 and verdicts[None] < 100, verdicts


def test_java_and_javascript_literals_are_read_as_officially(official: Any, data_dir: Path) -> None:
    convertors = "bfcl_eval.eval_checker.ast_eval.type_convertor"
    java_type_converter = importlib.import_module(f"{convertors}.java_type_converter").java_type_converter
    js_type_converter = importlib.import_module(f"{convertors}.js_type_converter").js_type_converter
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
                calls = mutated(calls, rng, language)
            expected = check_calls(calls, answers, read_tools(tools), language)
            counts[expected] += 1
            assert trajectory_right(sample, calls) == expected, (sample.id, calls)
    assert min(counts.values()) > 500
