"""Where steps end: the same for every tokenisation and any white space, and told by an independent reader."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest

from toolprm_decode.errors import FormatError, RequestError
from toolprm_decode.grammar import CallGrammar, Step
from toolprm_decode.grammar.vocabulary import token_bytes

from .cases import COUNTED, FORMATS, PARAMETERS, small_tokenizer, tool
from .test_masks import walk
from .texts import Span, dumps_of, random_tokens, steps_of, write

CASES = {**PARAMETERS, **COUNTED}
IDS = {text: index for index, text in enumerate(token_bytes(small_tokenizer())) if text}
STOP_ID = small_tokenizer().eos_token_id


def spans(steps: list[Step]) -> list[Span]:
    return [(step.kind, step.start, step.end, step.path) for step in steps]


def check(grammar: CallGrammar, text: str, expected: list[Span], rng: random.Random) -> None:
    """The steps of a text, read at once and in several tokenisations."""
    data = text.encode()
    steps = grammar.steps(text)
    assert spans(steps) == expected
    assert steps[0].start == 0
    assert all(a.end == b.start for a, b in itertools.pairwise(steps))
    assert all(step.text.encode() == data[step.start : step.end] for step in steps)
    for _ in range(3):
        matcher = grammar.matcher()
        written = [step for token in random_tokens(data, IDS, rng) for step in matcher.accept(token)]
        assert matcher.is_complete
        assert written + matcher.accept(STOP_ID) == matcher.steps == steps
        assert matcher.is_stopped


@pytest.mark.parametrize("name", CASES)
def test_steps_of_random_answers(name: str) -> None:
    rng = random.Random(name)
    for format in FORMATS:
        for flexible in (False, True):
            if format == "pythonic" and "additionalProperties" in CASES[name]:
                continue
            tools = [tool(CASES[name], "get_weather"), tool(CASES["nothing"], "get.it")]
            grammar = CallGrammar(tools, small_tokenizer(), format, flexible_whitespace=flexible)
            assert grammar.format is not None
            for _ in range(6):
                matcher = grammar.matcher()
                walk(matcher, grammar, rng, 50, lambda matcher, legal: None)
                if not matcher.is_stopped:
                    matcher.accept_bytes(matcher.closing())
                text = matcher.text
                calls = grammar.format.parse(text, [tool.name for tool in grammar.tools])
                check(grammar, text, steps_of(text, format, calls), rng)


NAMES = ["f", "a.b-c", 'say "hi"', "größe", "f/~x"]
KEYS = ["a/b", "~", "é", "{x}", 'q"', "back\\slash", "[", "a"]
VALUES: list[Any] = [
    "} ] \" ' ), (",
    'a": {',
    "\\",
    "\n",
    1,
    -0.5,
    None,
    True,
    [],
    [[1], {"k": "]"}],
    {},
    {"a/b": {"~": 0}},
]


@pytest.mark.parametrize("format", FORMATS)
def test_brackets_and_quotes_in_names_and_values_end_nothing(format: str) -> None:
    rng = random.Random(format)
    names = ["f", "a.b-c"] if format == "pythonic" else NAMES
    keys = [key for key in KEYS if re.fullmatch(r"[\w/~é]+", key)] if format == "pythonic" else KEYS
    tools = [tool({"type": "object", "properties": {key: {} for key in keys}}, name) for name in names]
    grammar = CallGrammar(tools, small_tokenizer(), format)
    for _ in range(60):
        calls = [
            {
                "name": rng.choice(names),
                "arguments": {key: rng.choice(VALUES) for key in rng.sample(keys, rng.randrange(4))},
            }
            for _ in range(rng.randrange(4))
        ]
        for dumps in dumps_of(format):
            text = write(calls, format, dumps)
            check(grammar, text, steps_of(text, format, calls), rng)


def test_one_step_of_each_kind() -> None:
    tools = [tool(PARAMETERS["strings"], "get")]
    text = '[{"name": "get", "arguments": {"city": "Rome"}}]'
    steps = CallGrammar(tools, small_tokenizer(), "json-list").steps(text)
    assert [(step.kind, step.text, step.path) for step in steps] == [
        ("FUNC_NAME", '[{"name": "get"', "/0/name"),
        ("ARG_VALUE", ', "arguments": {"city": "Rome"', "/0/arguments/city"),
        ("PARAM_FINISH", "}", "/0/arguments"),
        ("FUNC_FINISH", "}", "/0"),
        ("TOTAL_FINISH", "]", ""),
    ]
    steps = CallGrammar(tools, small_tokenizer(), "pythonic").steps("[get(city='Rome')]")
    assert [(step.kind, step.text, step.path) for step in steps] == [
        ("FUNC_NAME", "[get", "/0/name"),
        ("ARG_VALUE", "(city='Rome'", "/0/arguments/city"),
        ("PARAM_FINISH", ")", "/0/arguments"),
        ("FUNC_FINISH", "", "/0"),
        ("TOTAL_FINISH", "]", ""),
    ]


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        (
            {"type": "object"},
            '{"a/b": 1, "c": {"d": 2}}',
            [("ARG_VALUE", "/a~1b"), ("ARG_VALUE", "/c"), ("TOTAL_FINISH", "")],
        ),
        ({"type": "integer"}, "123", [("TOTAL_FINISH", "")]),
        ({"type": "array"}, '[1, {"a": 1}]', [("TOTAL_FINISH", "")]),
        ({"anyOf": [{"type": "object"}, {"type": "null"}]}, '{"": null}', [("ARG_VALUE", "/"), ("TOTAL_FINISH", "")]),
    ],
)
def test_steps_of_one_value(schema: dict[str, Any], text: str, expected: list[tuple[str, str]]) -> None:
    steps = CallGrammar.for_schema(schema, small_tokenizer()).steps(text)
    assert [(step.kind, step.path) for step in steps] == expected
    assert "".join(step.text for step in steps) == text


# ---------------------------------------------------------------- white space

_TOKENS = re.compile(r"```|</?tool_call>|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[\w.]+[(=]|[-+.\w]+|[^\s\w]")


def spaced(text: str, rng: random.Random) -> str:
    """The text with other white space between its tokens, and around it."""
    gaps = lambda: "".join(rng.choice([" ", "\n", "\t", "\r"]) for _ in range(rng.choice([0, 0, 1, 1, 2, 3])))  # noqa: E731
    return gaps() + "".join(token + gaps() for token in _TOKENS.findall(text))


@pytest.mark.parametrize("format", FORMATS)
def test_flexible_white_space(format: str) -> None:
    rng = random.Random(format)
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "numbers": {"type": "array", "items": {"type": "number"}},
            "open": {},
            "closed": {"type": "object", "properties": {"a": {"type": "integer", "maximum": 30}}},
            "fixed": {"enum": [["x", {"k": 1}], "y", 3]},
        },
    }
    tools = [tool(parameters, "get.weather"), tool({"type": "object", "properties": {}}, "get")]
    strict = CallGrammar(tools, small_tokenizer(), format)
    flexible = CallGrammar(tools, small_tokenizer(), format, flexible_whitespace=True)
    for _ in range(60):
        arguments = {
            "city": rng.choice(["", "a  b", "[ {", "é"]),
            "numbers": [1, 2.5, -1e22][: rng.randrange(4)],
            "open": rng.choice(VALUES),
            "closed": rng.choice([{}, {"a": 12}]),
            "fixed": rng.choice([["x", {"k": 1}], "y", 3]),
        }
        kept = {key: arguments[key] for key in rng.sample(sorted(arguments), rng.randrange(6))}
        calls = [{"name": "get.weather", "arguments": kept}, {"name": "get", "arguments": {}}][: rng.randrange(3)]
        text = write(calls, format, rng.choice(dumps_of(format)))
        other = spaced(text, rng)
        assert strict.accepts(text)
        assert strict.accepts(other) == (other == text)
        check(flexible, other, steps_of(other, format, calls), rng)


@pytest.mark.parametrize(
    "text",
    [
        '[{"na me": "get", "arguments": {}}]',
        '[{"name": "get ", "arguments": {}}]',
        '[{"name": "get", "arguments": {"n": 1 2}}]',
        '[{"name": "get", "arguments": {"n ": 1}}]',
        '[{"name": "get", "arguments": {"n": 1}}] ]',
        '[{"name": "get", "arguments": {"n": 1}}]\f',
        '[\u00a0{"name": "get", "arguments": {"n": 1}}]',
    ],
)
def test_white_space_inside_tokens_or_of_other_kinds_is_not_legal(text: str) -> None:
    tools = [tool({"type": "object", "properties": {"n": {"type": "integer"}}}, "get")]
    assert not CallGrammar(tools, small_tokenizer(), "json-list", flexible_whitespace=True).accepts(text)


# ---------------------------------------------------------------- texts that are not legal


def test_an_illegal_text_is_refused_with_its_place() -> None:
    grammar = CallGrammar([tool(PARAMETERS["strings"], "get")], small_tokenizer(), "json-list")
    text = '[{"name": "get", "arguments": {"city": "ü"}} {}]'
    assert not grammar.accepts(text)
    with pytest.raises(FormatError, match=rf"byte {len(text.encode()) - 4}\b"):
        grammar.steps(text)
    with pytest.raises(FormatError, match="ends early"):
        grammar.steps(text[:-5])
    with pytest.raises(RequestError):
        grammar.accepts("\ud800")
    with pytest.raises(RequestError):
        grammar.steps(b"[\xff]")
