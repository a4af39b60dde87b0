"""Random schemas against jsonschema: what compiles is enforced to the letter, what does not is refused in our words.

TOOLPRM_FUZZ_EXAMPLES=20000 pytest tests/grammar/test_fuzz_schemas.py    # other schemas at every run
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import jsonschema
import numpy as np
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from toolprm_decode.errors import BudgetExceeded, ToolSchemaError
from toolprm_decode.grammar import CallGrammar
from toolprm_decode.grammar.schema import Impossible

from .cases import small_tokenizer

DEEPER = os.environ.get("TOOLPRM_FUZZ_EXAMPLES")
EXAMPLES = int(DEEPER or 250)
VALUES = 10  # of each kind for a schema
MAX_INSTRUCTIONS = 100_000
WALK_TOKENS = 40

fuzzing = settings(
    max_examples=EXAMPLES,
    derandomize=DEEPER is None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

# No line break: Python's `$` matches before the last one too, and jsonschema reads patterns by Python's rules.
_TEXTS = ["", "a", "b", "ab", "abc", "aa", "bab", "é", "x-1", "12", "😀", 'a "b"', "\\", "\x00", "/", "b" * 9]
_NAMES = ["a", "b", "ab", "c-1", "é", ""]
_PATTERNS = ["^a", "b$", "^[a-c]+$", "[0-9]", "^.{2}$", "a|é", "^(ab?)*$", "^$", "x-\\d"]
_NUMBERS = [0, 1, -1, 2, 3, 7, 10, 100, 0.5, -2.5, 1.0, 3.75, 1e3, 10**12]
_TYPES = ["string", "number", "integer", "boolean", "null", "object", "array"]

texts, numbers, names = st.sampled_from(_TEXTS), st.sampled_from(_NUMBERS), st.sampled_from(_NAMES)
small = st.integers(0, 3)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=6,
)


def _some(words: dict[str, st.SearchStrategy[Any]], most: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas with a few of the words."""
    chosen = st.lists(st.sampled_from(sorted(words)), unique=True, max_size=most)
    return chosen.flatmap(lambda found: st.fixed_dictionaries({word: words[word] for word in found}))


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    listed = st.lists(inner, min_size=1, max_size=3)
    by_name = st.dictionaries(names, inner, max_size=3)
    objects = _some(
        {
            "properties": by_name,
            "required": st.lists(names, unique=True, max_size=2),
            "additionalProperties": inner,
            "patternProperties": st.dictionaries(st.sampled_from(_PATTERNS), inner, min_size=1, max_size=2),
            "propertyNames": inner,
            "minProperties": small,
            "maxProperties": small,
            "dependentRequired": st.dictionaries(names, st.lists(names, unique=True, max_size=2), max_size=2),
            "dependentSchemas": st.dictionaries(names, inner, max_size=1),
            "unevaluatedProperties": inner,
        },
        4,
    ).map(lambda words: {"type": "object", **words})
    arrays = _some(
        {
            "prefixItems": listed,
            "items": inner,
            "minItems": small,
            "maxItems": small,
            "uniqueItems": st.booleans(),
            "contains": inner,
            "minContains": small,
            "maxContains": small,
            "unevaluatedItems": inner,
        }
    ).map(lambda words: {"type": "array", **words})
    unions = _some(
        {
            "anyOf": listed,
            "oneOf": listed,
            "allOf": listed,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "$ref": st.sampled_from(["#", "#/$defs/x", "#/$defs/y"]),
        },
        2,
    )
    both = st.tuples(st.one_of(objects, arrays, inner.filter(lambda s: isinstance(s, dict))), unions)
    return st.one_of(objects, arrays, unions, both.map(lambda pair: {**pair[0], **pair[1]}))


_strings = _some({"minLength": small, "maxLength": st.integers(0, 5), "pattern": st.sampled_from(_PATTERNS)})
_amounts = _some(
    {
        "minimum": numbers,
        "maximum": numbers,
        "exclusiveMinimum": numbers,
        "exclusiveMaximum": numbers,
        "multipleOf": st.sampled_from([1, 2, 3, 0.5, 10]),
    },
    2,
)
_leaves: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.just({}),
    st.sampled_from(_TYPES).map(lambda name: {"type": name}),
    st.lists(st.sampled_from(_TYPES), unique=True, min_size=1, max_size=3).map(lambda found: {"type": found}),
    _strings.map(lambda words: {"type": "string", **words}),
    _amounts.map(lambda words: {"type": "number", **words}),
    _amounts.map(lambda words: {"type": "integer", **words}),
    st.lists(values, min_size=1, max_size=3).map(lambda found: {"enum": found}),
    values.map(lambda value: {"const": value}),
    _strings,
    _amounts,
)
_one = st.recursive(_leaves, _schemas, max_leaves=8)


@st.composite
def schemas(draw: st.DrawFn) -> Any:
    """A schema, and the definitions that it may refer to."""
    schema = draw(_one)
    if isinstance(schema, dict) and "#/$defs/" in json.dumps(schema):
        schema = {**schema, "$defs": {"x": draw(_one), "y": draw(_leaves)}}
    return schema


class Fitting:
    """Makes values that satisfy a schema more often than not, as far as its words can be followed one by one."""

    def __init__(self, root: Any, rng: random.Random):
        self.root, self.rng = root, rng

    def __call__(self, schema: Any, depth: int = 0) -> Any:
        rng = self.rng
        if not isinstance(schema, dict) or depth > 5 or rng.random() < 0.03:
            return rng.choice([*_TEXTS, *_NUMBERS, None, True, [], {}])
        if "$ref" in schema:
            target = self.root if schema["$ref"] == "#" else self.root.get("$defs", {}).get(schema["$ref"][8:], {})
            return self._both(target, schema, "$ref", depth)
        for word in ("anyOf", "oneOf", "allOf"):
            if word in schema:
                return self._both(rng.choice(schema[word]), schema, word, depth)
        if "then" in schema and rng.random() < 0.5:
            return self._both(schema["then"], schema, "then", depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        kinds = schema.get("type", _TYPES)
        kind = kinds if isinstance(kinds, str) else rng.choice(kinds)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        fitting = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}[kind]
        return rng.choice([value for value in (*_TEXTS, *_NUMBERS, True, False, None) if isinstance(value, fitting)])

    def _both(self, chosen: Any, schema: dict[str, Any], word: str, depth: int) -> Any:
        rest = {key: value for key, value in schema.items() if key != word}
        if not isinstance(chosen, dict):
            return self(rest if chosen else False, depth + 1)
        return self({**rest, **chosen} if self.rng.random() < 0.5 else {**chosen, **rest}, depth + 1)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        declared = schema.get("properties", {})
        wanted = [*schema.get("required", []), *(name for name in declared if self.rng.random() < 0.5)]
        while len(set(wanted)) < schema.get("minProperties", self.rng.randrange(2)) and len(set(wanted)) < len(_NAMES):
            wanted.append(self.rng.choice(_NAMES))
        self.rng.shuffle(wanted)
        others = schema.get("additionalProperties", True)
        return {name: self(declared.get(name, others), depth + 1) for name in wanted}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        prefix, least = schema.get("prefixItems", []), schema.get("minItems", 0)
        count = self.rng.randint(least, max(least, schema.get("maxItems", least + 2)))
        found = [self(prefix[i] if i < len(prefix) else schema.get("items", True), depth + 1) for i in range(count)]
        if found and "contains" in schema:
            found[self.rng.randrange(count)] = self(schema["contains"], depth + 1)
        return found


def altered(value: Any, rng: random.Random) -> Any:
    """The value with one part of it exchanged, taken away or added."""
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        changed = [*value[:at], altered(value[at], rng), *value[at + 1 :]]
        return rng.choice([changed, changed, value[:at] + value[at + 1 :], [*value, value[at]]])
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        rest = {key: item for key, item in value.items() if key != name}
        changed = {**rest, name: altered(value[name], rng)}
        return rng.choice([changed, changed, rest, {**value, rng.choice(_NAMES): value[name]}])
    return rng.choice([*_TEXTS, *_NUMBERS, None, True, False, [], {}, [value], {"a": value}])


def compiled(schema: Any) -> CallGrammar | type[Impossible] | None:
    """The grammar; None where the schema is refused in the words of the package, Impossible where it has no value."""
    try:
        return CallGrammar.for_schema(schema, small_tokenizer(), max_instructions=MAX_INSTRUCTIONS)
    except Impossible:
        return Impossible
    except (ToolSchemaError, BudgetExceeded):
        return None


class KeyTwice(Exception):
    """A key that no property declares stands twice in an object: legal, and fewer members than it seems."""


def once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        raise KeyTwice
    return found


def holds(oracle: Any, value: Any) -> bool | None:
    """Whether jsonschema accepts the value; None where it does not come to an end."""
    try:
        return bool(oracle.is_valid(value))
    except RecursionError:
        return None


@given(schemas(), st.lists(values, max_size=VALUES), st.randoms())
@fuzzing
def test_schemas_are_enforced_to_the_letter(schema: Any, free: list[Any], rng: random.Random) -> None:
    grammar = compiled(schema)
    if grammar is None:
        return
    oracle = jsonschema.Draft202012Validator(schema)
    fitting = Fitting(schema, rng)
    tried = [*free, *(fitting(schema) for _ in range(VALUES))]
    tried += [altered(value, rng) for value in tried]
    for value in tried:
        valid = holds(oracle, value)
        if valid is None:
            return
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
        note(f"{text} is {'valid' if valid else 'invalid'}")
        if grammar is Impossible:
            assert not valid, text
            continue
        assert isinstance(grammar, CallGrammar)
        try:
            assert grammar.accepts(text) == valid, text
        except BudgetExceeded:
            return


@given(schemas(), st.randoms())
@fuzzing
def test_whatever_can_be_written_is_valid(schema: Any, rng: random.Random) -> None:
    """Random tokens under the mask, then the shortest end: the value is one that the schema allows."""
    grammar = compiled(schema)
    if not isinstance(grammar, CallGrammar):
        return
    oracle = jsonschema.Draft202012Validator(schema)
    row = np.zeros((grammar.vocabulary_size + 31) // 32, np.int32)
    for _ in range(3):
        matcher = grammar.matcher()
        try:
            for _ in range(rng.randrange(WALK_TOKENS)):
                matcher.fill_mask(row)
                legal = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
                if matcher.is_stopped or not len(legal):
                    break
                assert matcher.try_accept(int(rng.choice(list(legal)))) is not None
            if not matcher.is_stopped:
                end = matcher.closing()
                note(f"{matcher.text!r}, closed by {end!r}")
                assert matcher.accept_bytes(end) is not None and matcher.is_complete
        except BudgetExceeded:
            return
        text = matcher.text_bytes
        try:
            value = json.loads(text, object_pairs_hook=once)
        except KeyTwice:
            continue
        assert holds(oracle, value) is not False, text


@given(st.recursive(st.one_of(schemas(), values), lambda inner: st.dictionaries(st.sampled_from(
    ["properties", "items", "anyOf", "allOf", "$ref", "$defs", "type", "enum", "required", "minLength", "pattern",
     "additionalProperties", "minItems", "format", "multipleOf", "const", "not", "if", "oneOf"]), inner, max_size=3),
    max_leaves=6))  # fmt: skip
@fuzzing
def test_malformed_schemas_are_refused_in_the_words_of_the_package(schema: Any) -> None:
    compiled(schema)
