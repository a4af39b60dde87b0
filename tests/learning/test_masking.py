"""Masking: nothing tells the old names any more, all stays consistent, and unmasking gives back what there was."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolprm_decode.learning.masking import Mask, copies, mask_sample, unmask, unmask_calls
from toolprm_decode.questions.labels import gold_calls, trajectory_right
from toolprm_decode.questions.readers import read_samples
from toolprm_decode.questions.samples import Sample, gold_call
from toolprm_decode.tools import read_tools

FUNCTION, PARAMETER = re.compile(r"[A-Za-z_.0-9]{5,15}"), re.compile(r"[A-Za-z_.0-9]{4,10}")

BOOK = {
    "type": "function",
    "function": {
        "name": "book_flight",
        "description": "Books what search_flights found. Give 'seat', not the tool's seat; see book_flight(from_city).",
        "parameters": {
            "type": "object",
            "properties": {
                "from_city": {"type": "string", "description": "Where from_city lies; `seat` is apart from_city."},
                "seat": {"type": "string", "enum": ["window", "from_city"], "default": "window"},
                "people": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"last.name": {"type": "string"}, "age": {"type": "integer"}},
                        "required": ["last.name"],
                    },
                },
                "payer": {"$ref": "#/properties/people/items"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "limit": {"type": "integer", "description": "At most so many, 25 by default.", "default": 25},
            },
            "required": ["from_city"],
        },
    },
}
SEARCH = {
    "name": "search_flights",
    "description": "Finds flights.",
    "parameters": {
        "from_city": {"type": "str", "description": "As in book_flight.", "required": True},
        "type": {"type": "str", "description": "The kind."},
        "limit": {"type": "int", "default": 10},
    },
    "return": {"from_city": {"type": "str", "description": "the from_city"}, "other": {"type": "list"}},
}


def sample(**more: Any) -> Sample:
    arguments = {
        "from_city": "Rome",
        "people": [{"last.name": "Li", "age": 3}],
        "payer": {"last.name": "Wu"},
        "labels": {"age": "from_city"},
        "limit": 25,
    }
    given_: dict[str, Any] = {
        "id": "q",
        "tools": [BOOK, SEARCH],
        "messages": [
            {"role": "user", "content": "Use book_flight from Rome, the seat as you like, 25 at most"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {"name": "search_flights", "arguments": '{"from_city": "Rome"}'}}
                ],
            },
            {"role": "tool", "name": "search_flights", "content": '{"from_city": "Rome", "type": 3}'},
        ],
        "gold": [gold_call("book_flight", arguments)],
        "meta": {"source": "made up"},
    }
    return Sample(**{**given_, **more})


def test_everything_has_its_new_name_everywhere() -> None:
    asked = sample()
    masked, mask = mask_sample(asked, 3)
    names = mask.parameters["book_flight"]
    assert set(names) == {"from_city", "seat", "people", "last.name", "age", "payer", "labels", "limit"}
    assert set(mask.parameters["search_flights"]) == {"from_city", "type", "limit"}
    assert all(FUNCTION.fullmatch(name) for name in mask.functions.values())
    every = [name for its in mask.parameters.values() for name in its.values()]
    assert all(PARAMETER.fullmatch(name) for name in every) and len(set(every)) == len(every)
    assert sorted(mask.order) == [0, 1]

    book, search = (masked.tools[mask.order.index(index)] for index in (0, 1))
    text = json.dumps([book, search, masked.messages])
    assert not re.search(r"book_flight|search_flights|last\.name", text)
    # Data keep what they say, even where that is a name.
    assert text.count("from_city") == 1 and book["function"]["parameters"]["properties"][names["seat"]]["enum"] == [
        "window",
        "from_city",
    ]
    assert book["function"]["description"] == (
        f"Books what {mask.functions['search_flights']} found. Give '{names['seat']}', not the tool's seat; "
        f"see {mask.functions['book_flight']}({names['from_city']})."
    )
    parameters = book["function"]["parameters"]
    assert parameters["required"] == [names["from_city"]]
    assert parameters["properties"][names["payer"]]["$ref"] == f"#/properties/{names['people']}/items"
    assert parameters["properties"][names["people"]]["items"]["required"] == [names["last.name"]]
    assert set(search["return"]) == {mask.parameters["search_flights"]["from_city"], "other"}
    call = masked.messages[1]["tool_calls"][0]["function"]
    assert call["name"] == mask.functions["search_flights"] == masked.messages[2]["name"]
    assert json.loads(call["arguments"]) == {mask.parameters["search_flights"]["from_city"]: "Rome"}
    assert "the seat as you like" in masked.messages[0]["content"]

    (gold,) = masked.gold
    assert gold["name"] == mask.functions["book_flight"]
    assert gold["arguments"][names["people"]] == [[{names["last.name"]: "Li", names["age"]: 3}]]
    assert gold["arguments"][names["payer"]] == [{names["last.name"]: "Wu"}]
    assert gold["arguments"][names["labels"]] == [{"age": "from_city"}], "keys of a free object are data"


def test_the_gold_stays_right_and_unmasks_to_the_gold() -> None:
    asked = sample()
    masked, mask = mask_sample(asked, 3)
    calls = gold_calls(masked)
    by_name = {tool.name: tool.parameters for tool in read_tools(masked.tools)}
    for call in calls:
        jsonschema.validate(call["arguments"], by_name[call["name"]])
    assert trajectory_right(masked, calls)
    original = unmask_calls(calls, mask, masked.tools)
    limit = masked.gold[0]["arguments"][mask.parameters["book_flight"]["limit"]][0]
    original[0]["arguments"]["limit"] = 25 if original[0]["arguments"]["limit"] == limit else None
    assert original == gold_calls(asked)
    assert unmask(masked, mask) == asked


def test_a_default_that_the_gold_relies_on_changes_everywhere() -> None:
    masked, mask = mask_sample(sample(), 3)
    book = masked.tools[mask.order.index(0)]["function"]["parameters"]["properties"]
    said = book[mask.parameters["book_flight"]["limit"]]
    new = said["default"]
    assert new != 25 and 10 <= new <= 99
    assert said["description"] == f"At most so many, {new} by default."
    assert masked.gold[0]["arguments"][mask.parameters["book_flight"]["limit"]] == [new]
    assert masked.messages[0]["content"].endswith(f"{new} at most")
    # The one of the other tool is no one's business, nor is the seat's.
    other = masked.tools[mask.order.index(1)]["parameters"]
    assert other[mask.parameters["search_flights"]["limit"]]["default"] == 10
    assert book[mask.parameters["book_flight"]["seat"]]["default"] == "window"


@pytest.mark.parametrize(
    ("default", "request_text", "other", "changes"),
    [
        (25, "25 at most", None, True),
        (25, "as usual", None, True),  # nothing in the request could mean 25
        (25, "two dozen and one", None, False),
        (25, "take 7", None, False),
        (25, "25 at most", 25, False),  # the request's 25 may mean the other
        (1, "a seat", None, False),
        ("en", "in en please", None, True),
        ("en", "in English", None, False),
        ("en-GB", "in en-GB please", "en-GB", False),
        (True, "true", None, False),
        (2.5, "2.5 of them, not 12.5", None, True),
    ],
)
def test_defaults_change_only_where_that_is_safe(default: Any, request_text: str, other: Any, changes: bool) -> None:
    tool = {"name": "f", "parameters": {"a": {"default": default}, "b": {}}}
    arguments = {"a": default, **({} if other is None else {"b": other})}
    asked = Sample("q", [tool], [{"role": "user", "content": request_text}], [gold_call("f", arguments)])
    masked, mask = mask_sample(asked, 0)
    names = mask.parameters["f"]
    (found,) = masked.gold[0]["arguments"][names["a"]]
    assert found == masked.tools[0]["parameters"][names["a"]]["default"]
    assert (found != default) == changes and type(found) is type(default)
    expected = re.sub(rf"(?<!\d){re.escape(str(default))}", str(found), request_text) if changes else request_text
    assert masked.messages[0]["content"] == expected
    assert unmask(masked, mask) == asked


@pytest.mark.parametrize(
    ("schema", "changes"),
    [({"$ref": "#/properties/b"}, True), ({"$ref": "#/$defs/nowhere"}, False), ({"minimum": "x"}, False)],
    ids=str,
)
def test_a_default_of_a_schema_that_refers_to_others(schema: dict[str, Any], changes: bool) -> None:
    properties = {"a": {**schema, "default": 12}, "b": {"type": "integer"}}
    tool = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    gold = [gold_call("f", {"a": 12})]
    sample = Sample("q", [tool], [{"role": "user", "content": "The 12 of them"}], gold)
    masked, mask = mask_sample(sample, 0)
    assert unmask(masked, mask) == sample
    (values,) = masked.gold[0]["arguments"].values()
    assert (values != [12]) == changes


def test_defaults_keep_to_the_schema() -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": ["ab", "cd"], "default": "ab"}}}}
    asked = Sample("q", [tool], [{"role": "user", "content": "ab"}], [gold_call("f", {"a": "ab"})])
    masked, _ = mask_sample(asked, 0)
    assert list(masked.gold[0]["arguments"].values()) == [["ab"]]


def test_masks_depend_on_seed_id_and_copy_alone() -> None:
    asked = sample()
    assert mask_sample(asked, 1) == mask_sample(copy.deepcopy(asked), 1)
    others = [mask_sample(asked, 2), mask_sample(asked, 1, copy=1), mask_sample(sample(id="p"), 1)]
    names = [mask.functions["book_flight"] for _, mask in [mask_sample(asked, 1), *others]]
    assert len(set(names)) == 4
    assert asked == sample(), "the sample itself is left alone"


def test_copies() -> None:
    masked = 0
    for index in range(200):
        asked = sample(id=f"q{index}")
        made = copies(asked, 0)
        assert [one.id for one, _ in made] == [f"q{index}#{number}" for number in range(3)]
        for one, mask in made:
            assert one.meta["origin"] == f"q{index}"
            assert unmask(one, mask) == asked
            masked += not mask.is_identity
            assert mask.is_identity == (one.tools == asked.tools)
    assert abs(masked / 600 - 2 / 3) < 0.06
    assert all(mask.is_identity for _, mask in copies(sample(), 0, 5, probability=0))
    one, mask = copies(sample(meta={"origin": "x"}), 0, probability=1)[0]
    assert one.meta["origin"] == "x" and unmask(one, mask) == sample(meta={"origin": "x"})


# ---------------------------------------------------------------------------------------------------------------------
# Any sample

NAMES = st.sampled_from(["date", "user_id", "getX", "a.b", "type", "x/y", "~", "größe", "items", "q1", "required", "n"])
TEXTS = st.lists(
    st.one_of(NAMES, NAMES.map("'{}'".format), NAMES.map("`{}`.".format), st.sampled_from(["is", "5", "0.5,", "ab"]))
).map(" ".join)
SCALARS = st.one_of(st.integers(-30, 30), st.sampled_from(["ab", "user_id", "5", True, None, 0.5, "x y"]))


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "any"] + (["array", "object"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    said: dict[str, Any] = {} if kind == "any" else {"type": kind}
    if draw(st.booleans()):
        said["description"] = draw(TEXTS)
    if kind == "array":
        said["items"] = draw(schemas(depth - 1))
    elif kind == "object":
        names = draw(st.lists(NAMES, unique=True, max_size=3))
        said["properties"] = {name: draw(schemas(depth - 1)) for name in names}
        said["required"] = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    elif draw(st.booleans()):
        said["default"] = draw(SCALARS)
    return said


def values(draw: st.DrawFn, schema: dict[str, Any]) -> Any:
    if "default" in schema and draw(st.booleans()):
        return schema["default"]
    if "properties" in schema:
        return {name: values(draw, said) for name, said in schema["properties"].items() if draw(st.booleans())}
    if "items" in schema:
        return [values(draw, schema["items"]) for _ in range(draw(st.integers(0, 2)))]
    return draw(SCALARS)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    tools: list[Any] = []
    gold = []
    for name in draw(st.lists(NAMES, unique=True, min_size=1, max_size=3)):
        said = {one: draw(schemas()) for one in draw(st.lists(NAMES, unique=True, max_size=3))}
        parameters: dict[str, Any] = {"type": "object", "properties": said}
        if draw(st.booleans()) and not said.keys() & {"type", "properties", "required", "items"}:
            parameters = said
        function = {"name": name, "description": draw(TEXTS), "parameters": parameters}
        tools.append({"type": "function", "function": function} if draw(st.booleans()) else function)
        for _ in range(draw(st.integers(0, 2))):
            chosen = [one for one in said if draw(st.booleans())]
            gold.append(gold_call(name, {one: values(draw, said[one]) for one in chosen}))
    return Sample("q", tools, [{"role": "user", "content": draw(TEXTS)}], gold)


@given(samples(), st.integers(0, 99))
def test_unmasking_gives_back_the_sample(asked: Sample, seed: int) -> None:
    masked, mask = mask_sample(asked, seed)
    assert unmask(masked, Mask.from_json(json.loads(json.dumps(mask.to_json())))) == asked
    assert len(masked.tools) == len(asked.tools)
    assert len(json.dumps(gold_calls(masked))) > 1
    shapes = [json.dumps(shape(one.gold), sort_keys=True) for one in (asked, masked)]
    assert shapes[0] == shapes[1]


def shape(value: Any) -> Any:
    """A value without names: what it holds, in order."""
    if isinstance(value, dict):
        return [shape(one) for one in value.values()]
    return [shape(one) for one in value] if isinstance(value, list) else type(value).__name__


@given(samples(), st.integers(0, 99))
def test_no_name_that_looks_like_one_survives_in_the_tools(asked: Sample, seed: int) -> None:
    masked, mask = mask_sample(asked, seed)
    known = {*mask.functions, *(name for names in mask.parameters.values() for name in names)}
    for tool in read_tools(masked.tools):
        assert tool.name in mask.functions.values()
        text = json.dumps([tool.description, without_data(tool.parameters)], ensure_ascii=False)
        for name in known & {"user_id", "getX", "a.b", "q1"}:
            assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text), (name, text)
        for name in known:
            assert f"'{name}'" not in text and f"`{name}`" not in text


def without_data(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: without_data(one) for key, one in schema.items() if key not in ("default", "enum")}
    return [without_data(one) for one in schema] if isinstance(schema, list) else schema


# ---------------------------------------------------------------------------------------------------------------------
# Real data


@pytest.mark.parametrize("source", ["bfcl", "hammer", "toolalpaca"])
def test_real_samples(source: str, data_dir: Path) -> None:
    looks = re.compile(r"_|\w\.\w|[a-z][A-Z]|[A-Za-z]\d")
    count = 0
    for asked in itertools.islice(read_samples(data_dir / source, on_error="skip"), 0, None, 3):
        masked, mask = mask_sample(asked, 1)
        count += 1
        assert unmask(masked, mask) == asked
        tools = json.dumps([without_data(tool) for tool in masked.tools], ensure_ascii=False)
        for name in {*mask.functions, *(name for names in mask.parameters.values() for name in names)}:
            assert not looks.search(name) or not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", tools), (asked.id, name)
        assert trajectory_right(masked, gold_calls(masked)) == trajectory_right(asked, gold_calls(asked))
    assert count > 50
