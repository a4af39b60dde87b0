"""Call formats: what is written is read back, by this package and by plain parsers; chat templates name theirs."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from toolprm_decode.errors import FormatError
from toolprm_decode.formats import FORMATS, Format, get_format, pick_format

CALLS = [{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}, {"name": "now", "arguments": {}}]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
identifiers = st.from_regex(r"[A-Za-z_][\w.-]{0,8}", fullmatch=True)


def calls_of(names: st.SearchStrategy[str], keys: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    arguments = st.dictionaries(keys, values, max_size=3)
    return st.lists(st.fixed_dictionaries({"name": names, "arguments": arguments}), max_size=3)


@given(calls=calls_of(text, text), ensure_ascii=st.booleans())
def test_json_formats_are_read_back(calls: list[dict[str, Any]], ensure_ascii: bool) -> None:
    for format in FORMATS.values():
        if not format.pythonic:
            written = format.render(calls, ensure_ascii=ensure_ascii)
            assert format.parse(written) == calls
            assert written.isascii() or not ensure_ascii


@given(calls=calls_of(identifiers, identifiers))
def test_pythonic_calls_are_read_back(calls: list[dict[str, Any]]) -> None:
    format = FORMATS["pythonic"]
    assert format.parse(format.render(calls)) == calls


@given(calls=calls_of(st.sampled_from(["say hi", "a, b", "größe (m)", "x"]), st.sampled_from(["a b", "ü", "x"])))
def test_pythonic_names_that_are_no_identifiers_are_read_back_when_they_are_known(calls: list[dict[str, Any]]) -> None:
    format = FORMATS["pythonic"]
    assert format.parse(format.render(calls), ["say hi", "a, b", "größe (m)", "x"]) == calls


@given(value=values)
def test_python_literals_mean_what_python_says(value: Any) -> None:
    (call,) = FORMATS["pythonic"].parse(f"[f(a={value!r})]")
    assert call["arguments"]["a"] == ast.literal_eval(repr(value)) == value
    (call,) = FORMATS["pythonic"].parse(f"[f(a={json.dumps(value)})]")
    assert call["arguments"]["a"] == value


@given(calls=calls_of(identifiers, text))
def test_other_parsers_read_it(calls: list[dict[str, Any]]) -> None:
    assert json.loads(FORMATS["json-list"].render(calls)) == calls
    assert json.loads(FORMATS["hammer"].render(calls).strip("`\n")) == calls
    tagged = re.findall(
        r"<tool_call>\n(.*?)\n</tool_call>", FORMATS["hermes"].render(calls, ensure_ascii=True), re.DOTALL
    )
    assert [json.loads(call) for call in tagged] == calls or any("</tool_call>" in call for call in tagged)
    for call in calls:
        llama = json.loads(FORMATS["llama-json"].render([call]))
        assert llama == {"name": call["name"], "parameters": call["arguments"]}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("json-list", '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'),
        ("hammer", '```\n[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]\n```'),
        (
            "hermes",
            '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
        ),
        ("llama-json", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}'),
        ("pythonic", "[f(a=1), g()]"),
    ],
)
def test_what_each_format_looks_like(name: str, written: str) -> None:
    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]
    assert FORMATS[name].render(calls) == written
    assert FORMATS[name].parse(written) == calls


@pytest.mark.parametrize("name", FORMATS)
def test_white_space_between_the_parts_does_not_matter(name: str) -> None:
    format = FORMATS[name]
    written = format.render(CALLS)
    for spaced in (f"  {written}\n", written.replace("[", "[ ").replace("]", "\n]"), written.replace(", ", " ,\t")):
        assert format.parse(spaced) == CALLS
    assert format.parse(format.render([])) == []


@pytest.mark.parametrize(
    ("name", "broken", "place"),
    [
        ("json-list", "", 0),
        ("json-list", '{"name": "f"}', 0),
        ("json-list", '[{"name": "f", "arguments": {}}', 31),
        ("json-list", '[{"name": "f", "arguments": {}}] x', 33),
        ("json-list", '[{"name": "f", "arguments": []}]', 1),
        ("json-list", '[{"name": "f", "parameters": {}}]', 1),
        ("json-list", '[{"name": 5, "arguments": {}}]', 1),
        ("json-list", '[{"name": "f", "arguments": {"a": NaN}}]', 1),
        ("json-list", "[" + '{"name": "f", "arguments": ' + '{"a": ' * 100_000, 1),
        ("hammer", '[{"name": "f", "arguments": {}}]', 0),
        ("hermes", '{"name": "f", "arguments": {}}', 0),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {}}', 42),
        ("llama-json", '{"name": "f", "parameters": {}}, {"name": "f", "parameters": {}}', 31),
        ("pythonic", "[f(1)]", 3),
        ("pythonic", "[f(a=b)]", 5),
        ("pythonic", "[f(a={1: 2})]", 7),
        ("pythonic", "[f(a={[]: 2})]", 8),
        ("pythonic", "[f(a='x)]", 5),
        ("pythonic", "[f(a='\\U00110000')]", 5),
        ("pythonic", "[f(a=" + "[" * 100_000, 406),
        ("pythonic", "[f(a=1", 6),
        ("pythonic", "f(a=1)", 0),
    ],
)
def test_what_is_not_written_in_the_format_is_refused_with_its_place(name: str, broken: str, place: int) -> None:
    with pytest.raises(FormatError, match=f"{name} text") as caught:
        FORMATS[name].parse(broken)
    where = re.search(r"at character (\d+)", str(caught.value))
    assert (int(where.group(1)) if where else len(broken)) == place, str(caught.value)


@given(name=st.sampled_from(sorted(FORMATS)), noise=st.text(st.sampled_from("[]{}()\"'\\,:= \nNaTfu01.-e`<>é\x00/")))
def test_nothing_but_a_format_error_comes_out_of_noise(name: str, noise: str) -> None:
    with contextlib.suppress(FormatError):
        FORMATS[name].parse(noise)


@given(data=st.data(), name=st.sampled_from(sorted(FORMATS)))
def test_nothing_but_a_format_error_comes_out_of_damage(data: st.DataObject, name: str) -> None:
    written = FORMATS[name].render([{"name": "f", "arguments": {"a": [1, "x\\", None], "b": {"c": '"'}}}] * 2)
    at = data.draw(st.integers(0, len(written)))
    noise = data.draw(st.text(st.sampled_from("[]{}()\"'\\,:= \nNaTfu01.-e`<>é\x00/"), max_size=3))
    damaged = written[:at] + noise + written[at + data.draw(st.integers(0, 3)) :]
    with contextlib.suppress(FormatError):
        FORMATS[name].parse(damaged)


# ---------------------------------------------------------------- picking

HERMES = """{{- "<tools>" }}... For each function call, return a json object with function name and arguments within
<tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <args>}\\n</tool_call>"""
LLAMA_3_1 = """{{- 'Respond in the format {"name": function name, ' }}
{{- '"parameters": dictionary of argument name and its value}.' }}{{- '{"name": "' + tool_call.name + '", ' }}"""
LLAMA_3_2_PYTHONIC = """If you decide to invoke any of the function(s), you MUST put it in the format of
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]"""
LLAMA_4 = "{%- if message.tool_calls %}{{- '<|python_start|>' }}{%- for tool_call in message.tool_calls %}"
HAMMER = """The output MUST strictly adhere to the following JSON format:\\n```\\n[\\n{\\"name\\": \\"func_name1\\","""
XML_CALLS = "<tool_call>\n<function={{ tool_call.name }}>\n<parameter={{ name }}>"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (HERMES, "hermes"),
        (LLAMA_3_1, "llama-json"),
        (LLAMA_3_2_PYTHONIC, "pythonic"),
        (LLAMA_4, "pythonic"),
        (HAMMER, "hammer"),
        (XML_CALLS, "json-list"),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "json-list"),
        ("", "json-list"),
        (None, "json-list"),
    ],
)
def test_the_format_is_picked_by_the_chat_template(template: str | None, name: str) -> None:
    picked, why = pick_format(template)
    assert picked.name == name == get_format("auto", template).name
    assert name in why


def test_the_format_of_a_real_chat_template(qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    assert pick_format(str(qwen_tokenizer.chat_template))[0].name == "hermes"


def test_formats_by_name() -> None:
    for name, format in FORMATS.items():
        assert get_format(name) is get_format(format) is format
    own = Format("own", begin="<", list_close=">")
    assert get_format(own) is own
    assert own.parse(own.render(CALLS)) == CALLS
    with pytest.raises(FormatError, match="json-list"):
        get_format("xml")


def test_what_demonstrations_hold(data_dir: Path) -> None:
    """The answers that Hammer's authors train on are texts of the list format."""
    rows = json.loads((data_dir / "hammer" / "masking_sft_data_example.json").read_text(encoding="utf-8"))
    for row in rows:
        answer = row["output"].strip()
        format = FORMATS["hammer" if answer.startswith("```") else "json-list"]
        assert format.parse(answer) == json.loads(answer.strip("`\n"))
