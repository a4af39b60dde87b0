"""Function masking: random names for functions and parameters, so that a model has to read the descriptions.

After Hammer (arXiv 2410.04587), which ToolPRM's data are made with.
"""

from __future__ import annotations

import json
import math
import random
import re
import string
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

import jsonschema
import referencing

from toolprm_decode.questions.samples import Sample
from toolprm_decode.tools import Tool, _is_schema, read_tools

LETTERS = string.ascii_letters + string.digits + "_."
FUNCTION_LENGTHS = (5, 15)
PARAMETER_LENGTHS = (4, 10)

Names = dict[str, str]


@dataclass(frozen=True)
class Mask:
    """What was done to a sample, as plain JSON.

    Attributes:
        id: of the sample before. origin: its meta["origin"], None where it had none.
        functions: {name: random name}; empty where the sample was left as it is.
        parameters: {function's name: {parameter: random name}}, nested ones included.
        order: which tool of the sample before stands at each place.
        originals: [JSON pointer into the sample, value before] of texts, defaults and values that names do not tell.
    """

    id: str
    origin: str | None = None
    functions: Names = field(default_factory=dict)
    parameters: dict[str, Names] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    originals: list[list[Any]] = field(default_factory=list)

    @property
    def is_identity(self) -> bool:
        """Nothing was masked."""
        return not self.order

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as `from_json` reads it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Mask:
        """Reads what `to_json` gives."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__})


def copies(sample: Sample, seed: int, n: int = 3, *, probability: float = 2 / 3) -> list[tuple[Sample, Mask]]:
    """n copies of a question, each masked in its own way with this probability, and else left as it is.

    Their ids are "id#0", "id#1" and so on, and meta["origin"] names the question.
    """
    made = []
    for index in range(n):
        if random.Random(f"{seed}/{sample.id}/{index}/masked").random() < probability:
            made.append(mask_sample(sample, seed, copy=index))
        else:
            made.append((_copy(sample, index), Mask(sample.id, sample.meta.get("origin"))))
    return made


def mask_sample(sample: Sample, seed: int, *, copy: int = 0) -> tuple[Sample, Mask]:
    """Masks a question. The same seed, id and copy give the same result.

    - Functions get names of 5 to 15, parameters of 4 to 10 random characters of [A-Za-z_.0-9]: in definitions (nested
      properties, `required`, `$ref` into properties, objects in defaults and enums), in the gold and in earlier calls
      of the chat. Tools are shuffled.
    - Names in texts: one that looks like an identifier (with an underscore, an inner dot or capital, a digit) is
      replaced wherever it stands as a whole word in the tools, the chat and the request. Words of the request that are
      also values of the gold stay, and those with a digit alone for a sign (mp3). A name that could be an ordinary word
      (date, search) stays in prose, and is replaced where quotes or backticks mark it as a name; in the request it
      stays.
    - A default that the gold relies on, by giving that very value, is replaced by a random one of its shape: in the
      schema, in the parameter's description, in the gold and in the request. This is done to numbers and texts that
      stand in the request word by word, and to numbers above 1 where the request holds no number at all; not where
      another value of the gold is the same, or where the schema would forbid the new one.

    Enum values and other data are never changed, so a name that is also such a value survives there.
    """
    rng = random.Random(f"{seed}/{sample.id}/{copy}")
    tools = read_tools(sample.tools)
    text = json.dumps(sample.to_json(), ensure_ascii=False)
    draw = _Namer(rng, text)
    own = {tool.name: _parameter_names(definition) for tool, definition in zip(tools, sample.tools, strict=True)}
    functions = {name: draw(*FUNCTION_LENGTHS) for name in own}
    parameters = {name: {one: draw(*PARAMETER_LENGTHS) for one in dict.fromkeys(names)} for name, names in own.items()}
    order = list(range(len(tools)))
    rng.shuffle(order)

    changed = _with_other_defaults(sample, tools, rng)
    texts = _Texts(functions, parameters, _gold_words(changed))
    renamed = _renamed(changed, functions, parameters, texts)
    masked = replace(_copy(sample, copy), **{**renamed, "tools": [renamed["tools"][index] for index in order]})
    mask = Mask(sample.id, sample.meta.get("origin"), functions, parameters, order)
    # What the names alone do not bring back, whatever it is, is kept.
    originals = [list(pair) for pair in _differences(_unmasked(masked, mask), _body(sample), "")]
    return masked, replace(mask, originals=originals)


def unmask(sample: Sample, mask: Mask) -> Sample:
    """The sample that `mask_sample` made this one of."""
    meta = {key: value for key, value in sample.meta.items() if key != "origin"}
    if mask.origin is not None:
        meta["origin"] = mask.origin
    body = deepcopy(_body(sample)) if mask.is_identity else _unmasked(sample, mask)
    for pointer, value in mask.originals:
        _put(body, pointer, value)
    return replace(sample, id=mask.id, meta=meta, **body)


def unmask_calls(calls: list[dict[str, Any]], mask: Mask, tools: Any) -> list[dict[str, Any]]:
    """Calls to masked tools under the names of the original ones.

    tools: of the masked sample.
    """
    if mask.is_identity:
        return deepcopy(calls)
    functions, parameters = _inverse(mask)
    known = {tool.name: tool for tool in read_tools(tools)}
    return [_renamed_call(call, functions, parameters, known) for call in calls]


def _copy(sample: Sample, index: int) -> Sample:
    meta = {**sample.meta, "origin": sample.meta.get("origin", sample.id)}
    return replace(deepcopy(sample), id=f"{sample.id}#{index}", meta=meta)


def _body(sample: Sample) -> dict[str, Any]:
    """What a mask changes."""
    return {"tools": sample.tools, "messages": sample.messages, "gold": sample.gold}


class _Namer:
    """Draws random names that are new and occur nowhere in a text, so that they can be told from all else."""

    def __init__(self, rng: random.Random, text: str):
        self.rng, self.text, self.used = rng, text, set[str]()

    def __call__(self, shortest: int, longest: int) -> str:
        while True:
            name = "".join(self.rng.choices(LETTERS, k=self.rng.randint(shortest, longest)))
            # Something to hold on to: without a letter or digit it would be all dots.
            if name not in self.used and name not in self.text and any(one.isalnum() for one in name):
                self.used.add(name)
                return name


# ---------------------------------------------------------------------------------------------------------------------
# Names in the structure of tools and calls


class _Renaming:
    """New names of properties; it remembers which names it was asked for."""

    def __init__(self, names: Names):
        self.names, self.asked = names, dict[str, None]()

    def __call__(self, name: str) -> str:
        self.asked[name] = None
        return self.names.get(name, name)

    def data(self, value: Any) -> Any:
        """Objects among the values that a schema tells: their keys may be properties."""
        if isinstance(value, Mapping):
            return {self.names.get(key, key): self.data(one) for key, one in value.items()}
        return [self.data(one) for one in value] if isinstance(value, list) else value


_MAPS = ("$defs", "definitions", "patternProperties")
_SCHEMAS = (
    *("items", "additionalItems", "contains", "additionalProperties", "unevaluatedProperties", "unevaluatedItems"),
    *("propertyNames", "not", "if", "then", "else", "contentSchema"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_VALUES = ("default", "const", "example", "enum", "examples")
_KEYS_OF_PARAMETERS = ("parameters", "inputSchema", "input_schema")


def _parts(tool: Mapping[str, Any]) -> tuple[Mapping[str, Any], str, str | None]:
    """The definition inside a tool, the key of its name, and the key of its parameters."""
    body = tool.get("function", tool)
    name = next(key for key in ("name", "api_name") if body.get(key) is not None)
    return body, name, next((key for key in _KEYS_OF_PARAMETERS if body.get(key) is not None), None)


def _parameter_names(tool: Mapping[str, Any]) -> list[str]:
    """The names of the parameters and of all nested properties, in order."""
    body, _, key = _parts(tool)
    renaming = _Renaming({})
    if key is not None:
        _rename_parameters(body[key], renaming)
    return list(renaming.asked)


def _rename_parameters(parameters: Mapping[str, Any], rename: _Renaming) -> dict[str, Any]:
    if parameters and _is_schema(parameters):
        schema: dict[str, Any] = _rename_schema(parameters, rename)
        return schema
    return {rename(name): _rename_schema(said, rename) for name, said in parameters.items()}


def _rename_schema(node: Any, rename: _Renaming) -> Any:
    """A schema with other names of properties, wherever one stands."""
    if not isinstance(node, Mapping):
        return node
    renamed: dict[str, Any] = {}
    for word, value in node.items():
        if word == "properties" and isinstance(value, Mapping):
            value = {rename(name): _rename_schema(said, rename) for name, said in value.items()}
        elif word == "required" and isinstance(value, list | tuple):
            value = [rename(one) if isinstance(one, str) else one for one in value]
        elif word in ("dependentSchemas", "dependencies", "dependentRequired") and isinstance(value, Mapping):
            value = {
                rename(name): [rename(one) for one in said] if isinstance(said, list) else _rename_schema(said, rename)
                for name, said in value.items()
            }
        elif word in _MAPS and isinstance(value, Mapping):
            value = {name: _rename_schema(said, rename) for name, said in value.items()}
        elif word in _LISTS and isinstance(value, list):
            value = [_rename_schema(said, rename) for said in value]
        elif word in _SCHEMAS:
            value = _rename_schema(value, rename)
        elif word == "$ref" and isinstance(value, str):
            value = _rename_pointer(value, rename)
        elif word in _VALUES:
            value = rename.data(value)
        renamed[word] = value
    return renamed


def _rename_pointer(reference: str, rename: _Renaming) -> str:
    """A reference into properties; what leads to definitions stays."""
    parts = reference.split("/")
    for index in range(2, len(parts)):
        if parts[index - 1] == "properties" and parts[index - 2] not in ("properties", "$defs", "definitions"):
            name = unquote(parts[index]).replace("~1", "/").replace("~0", "~")
            new = rename(name)
            if new != name:
                parts[index] = quote(new.replace("~", "~0").replace("/", "~1"), safe="~")
    return "/".join(parts)


def _renamed_tool(tool: Mapping[str, Any], functions: Names, parameters: Mapping[str, Names]) -> dict[str, Any]:
    body, name_key, key = _parts(tool)
    name = body[name_key]
    rename = _Renaming(parameters.get(name, {}))
    renamed = {**body, name_key: functions.get(name, name)}
    if key is not None:
        renamed[key] = _rename_parameters(body[key], rename)
    if isinstance(body.get("required"), list):
        renamed["required"] = [rename(one) if isinstance(one, str) else one for one in body["required"]]
    return {**tool, "function": renamed} if "function" in tool else renamed


def _renamed_call(
    call: Mapping[str, Any], functions: Names, parameters: Mapping[str, Names], known: Mapping[str, Tool]
) -> dict[str, Any]:
    """A call, or a gold call, with the keys of its objects that the tool declares under their other names."""
    name = call["name"]
    rename = _Renaming(parameters.get(name, {}))
    schemas = [known[name].parameters] if name in known else []
    root = schemas[0] if schemas else {}
    renamed = {
        **call,
        "name": functions.get(name, name),
        "arguments": _rename_value(call["arguments"], schemas, root, rename),
    }
    if "optional" in call:
        renamed["optional"] = [rename(one) for one in call["optional"]]
    return renamed


def _rename_value(value: Any, schemas: list[Any], root: Mapping[str, Any], rename: _Renaming) -> Any:
    """A value of one of these schemas. Lists of allowed values may stand at every level, and are looked through."""
    schemas = list(_alternatives(schemas, root))
    if isinstance(value, Mapping):
        renamed = {}
        for key, one in value.items():
            declared = [schema["properties"][key] for schema in schemas if key in schema.get("properties", {})]
            others = [
                schema["additionalProperties"]
                for schema in schemas
                if isinstance(schema.get("additionalProperties"), Mapping)
            ]
            renamed[rename(key) if declared else key] = _rename_value(one, declared or others, root, rename)
        return renamed
    if isinstance(value, list):
        inner = [schema["items"] for schema in schemas if isinstance(schema.get("items"), Mapping)]
        inner += [one for schema in schemas for one in schema.get("prefixItems", ())]
        return [_rename_value(one, [*schemas, *inner], root, rename) for one in value]
    return value


def _alternatives(schemas: list[Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All schemas that these are made of: what they refer to, and their branches."""
    waiting, seen = list(schemas), set[int]()
    while waiting:
        schema = waiting.pop(0)
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        for word in ("allOf", "anyOf", "oneOf"):
            waiting += schema.get(word, ())
        waiting += [schema[word] for word in ("if", "then", "else") if word in schema]
        if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#"):
            target: Any = root
            for part in unquote(reference[1:]).split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                if isinstance(target, Mapping):
                    target = target.get(part)
                elif isinstance(target, list) and part.isdigit() and int(part) < len(target):
                    target = target[int(part)]
                else:
                    target = None
            waiting.append(target)


# ---------------------------------------------------------------------------------------------------------------------
# Names in texts

# What an identifier has and a word of prose has not. A digit alone (mp3) is no sign of one in a request.
_IDENTIFIER = re.compile(r"_|\w\.\w|[a-z][A-Z]|\$|[A-Za-z]\d")
_CLEARLY = re.compile(r"_|\w\.\w|[a-z][A-Z]|\$")
_QUOTES = "`'\"‘’“”"


class _Texts:
    """Replaces names in texts: those that look like identifiers as whole words, others between quotes."""

    def __init__(self, functions: Names, parameters: Mapping[str, Names], values: set[str]):
        every: Names = {}
        for names in reversed(list(parameters.values())):
            every.update(names)
        every.update(functions)  # where a function and a parameter have one name, a text means the function
        self.all = every
        self._in_chat = _replacer(every, _IDENTIFIER, quoted=True)
        # Names that are also a parameter of the tool itself mean that one in its texts.
        self._in_tool = {
            tool: _replacer({**every, **names}, _IDENTIFIER, quoted=True) for tool, names in parameters.items()
        }
        asked = {name: new for name, new in every.items() if name not in values}
        self._in_request = _replacer(asked, _CLEARLY, quoted=False)

    def in_tool(self, text: str, tool: str) -> str:
        """A text of a tool."""
        return self._in_tool[tool](text)

    def in_chat(self, text: str) -> str:
        """A text of the assistant or of a tool's answer."""
        return self._in_chat(text)

    def in_request(self, text: str) -> str:
        """A text of the user, whose words may be values."""
        return self._in_request(text)


def _replacer(names: Names, sign: re.Pattern[str], *, quoted: bool) -> Callable[[str], str]:
    longest = sorted(filter(None, names), key=len, reverse=True)
    marked = "|".join(re.escape(name) for name in longest if sign.search(name))
    plain = "|".join(re.escape(name) for name in longest if not sign.search(name))
    either = [rf"(?<!\w)(?:{marked})(?!\w)"] if marked else []
    if quoted and plain:
        either.append(rf"(?<=[{_QUOTES}])(?:{plain})(?=[{_QUOTES}])")
    if not either:
        return lambda text: text
    pattern = re.compile("|".join(either))
    return lambda text: pattern.sub(lambda found: names[found[0]], text)


def _gold_words(sample: Sample) -> set[str]:
    """All texts among the gold's values, and their words."""
    words: set[str] = set()

    def note(value: Any) -> None:
        if isinstance(value, str):
            words.update([value, *re.findall(r"[\w.$-]+", value)])
        elif isinstance(value, Mapping):
            for one in value.values():
                note(one)
        elif isinstance(value, list):
            for one in value:
                note(one)

    for call in sample.gold:
        note(call["arguments"])
    return words


_DATA = ("default", "const", "enum", "examples", "example", "pattern", "format", "type", "$ref", "$schema", "$id")


def _renamed(sample: Sample, functions: Names, parameters: dict[str, Names], texts: _Texts) -> dict[str, Any]:
    """The tools (in the old order), messages and gold with the new names."""
    known = {tool.name: tool for tool in read_tools(sample.tools)}
    tools = []
    for tool, name in zip(sample.tools, known, strict=True):
        tools.append(_with_texts(_renamed_tool(tool, functions, parameters), name, texts, functions, parameters))
    messages = [_renamed_message(message, texts, functions, parameters, known) for message in sample.messages]
    gold = [_renamed_call(call, functions, parameters, known) for call in sample.gold]
    return {"tools": tools, "messages": messages, "gold": gold}


def _with_texts(
    tool: dict[str, Any], name: str, texts: _Texts, functions: Names, parameters: Mapping[str, Names]
) -> dict[str, Any]:
    """A tool with the names in its texts replaced, and in what it says beside its parameters also in keys."""
    body, name_key, key = _parts(tool)
    own = {**texts.all, **parameters.get(name, {})}

    def inside(node: Any, word: str, *, is_map: bool = False) -> Any:
        if isinstance(node, Mapping):
            return {
                one: inside(value, "" if is_map else one, is_map=not is_map and one in ("properties", *_MAPS))
                if is_map or one not in _DATA
                else value
                for one, value in node.items()
            }
        if isinstance(node, list):
            return [inside(value, word) for value in node] if word != "required" else node
        return texts.in_tool(node, name) if isinstance(node, str) else node

    def beside(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {
                own.get(one, one): value if one in _DATA and isinstance(value, str) else beside(value)
                for one, value in node.items()
            }
        if isinstance(node, list):
            return [beside(one) for one in node]
        return own.get(node, texts.in_tool(node, name)) if isinstance(node, str) else node

    changed: dict[str, Any] = {}
    for one, value in body.items():
        if one in (name_key, "required", "type", "strict"):
            changed[one] = value
        elif one == key:
            flat = bool(value) and not _is_schema(value)
            changed[one] = inside(value, "", is_map=flat)
        else:
            changed[one] = texts.in_tool(value, name) if isinstance(value, str) else beside(value)
    return {**tool, "function": changed} if "function" in tool else changed


def _renamed_message(
    message: Mapping[str, Any],
    texts: _Texts,
    functions: Names,
    parameters: dict[str, Names],
    known: Mapping[str, Tool],
) -> dict[str, Any]:
    replaced = texts.in_request if message.get("role") in ("user", "system") else texts.in_chat
    renamed = {**message}
    if isinstance(message.get("name"), str):
        renamed["name"] = functions.get(message["name"], message["name"])
    if isinstance(message.get("content"), str):
        renamed["content"] = replaced(message["content"])
    if isinstance(message.get("content"), list):
        renamed["content"] = [
            {**part, "text": replaced(part["text"])}
            if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            else part
            for part in message["content"]
        ]
    if isinstance(message.get("tool_calls"), list):
        renamed["tool_calls"] = [_renamed_tool_call(one, functions, parameters, known) for one in message["tool_calls"]]
    if isinstance(message.get("function_call"), Mapping):
        renamed["function_call"] = _renamed_tool_call(message["function_call"], functions, parameters, known)
    return renamed


def _renamed_tool_call(given: Any, functions: Names, parameters: dict[str, Names], known: Mapping[str, Tool]) -> Any:
    call = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        return given
    arguments = call.get("arguments", {})
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        read = None
    changed: dict[str, Any] = {**call, "name": functions.get(call["name"], call["name"])}
    if isinstance(read, Mapping):
        value = _renamed_call({"name": call["name"], "arguments": read}, functions, parameters, known)["arguments"]
        changed["arguments"] = json.dumps(value, ensure_ascii=False) if isinstance(arguments, str) else value
    return {**given, "function": changed} if "function" in given else changed


# ---------------------------------------------------------------------------------------------------------------------
# Defaults

_NUMBER_WORDS = re.compile(
    r"\b(?:zero|once|twice|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    r"sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|"
    r"million|billion|half|quarter|third|dozen|couple|pair|few|several|single|double|first|second|triple|last)\b|\d",
    re.IGNORECASE,
)


def _with_other_defaults(sample: Sample, tools: list[Tool], rng: random.Random) -> Sample:
    """The sample with random values for the defaults that its gold relies on."""
    if sample.meta.get("language", "python") != "python":
        return sample  # source literals stand for values there
    sample = deepcopy(sample)
    for tool, definition in zip(tools, sample.tools, strict=True):
        body, _, key = _parts(definition)
        written = body.get(key, {}) if key else {}
        declared = written.get("properties", {}) if _is_schema(written) else written
        for name, said in declared.items():
            if not isinstance(said, dict) or not _is_scalar(said.get("default")):
                continue
            relying = [
                call
                for call in sample.gold
                if call["name"] == tool.name and _is_only(call["arguments"].get(name), said["default"])
            ]
            if relying:
                _change_default(sample, tool, name, said, relying, rng)
    return sample


def _change_default(
    sample: Sample, tool: Tool, name: str, said: dict[str, Any], relying: list[dict[str, Any]], rng: random.Random
) -> None:
    old = said["default"]
    request = [message for message in sample.messages if message.get("role") == "user"]
    texts = [str(message.get("content")) for message in request]
    stated = any(_mention(old).search(text) for text in texts)
    if not stated and (isinstance(old, str) or abs(old) <= 1 or any(_NUMBER_WORDS.search(text) for text in texts)):
        return  # it may be meant in other words, which could not be rewritten
    elsewhere = [
        value
        for call in sample.gold
        for key, allowed in call["arguments"].items()
        if not (key == name and any(call is one for one in relying))
        for value in allowed
    ]
    if any(_mention(old).search(json.dumps(value, ensure_ascii=False)) for value in elsewhere):
        return
    if any(isinstance(message.get("content"), list) for message in request):
        return
    schema = tool.parameters.get("properties", {}).get(name)
    if not isinstance(schema, Mapping) or "format" in schema:
        return
    # As a part of the whole, so that references hold; with a registry of its own no address is fetched.
    whole = jsonschema.Draft202012Validator(tool.parameters, registry=referencing.Registry())
    check = whole.evolve(schema=schema)
    try:
        candidates = (_random_like(old, rng) for _ in range(8))
        new = next(
            one
            for one in candidates
            if one != old and check.is_valid(one) and not any(_mention(one).search(text) for text in texts)
        )
    except Exception:  # none will do, or jsonschema stumbles over a schema that is none
        return
    said["default"] = new
    if isinstance(said.get("description"), str):
        said["description"] = _mention(old).sub(lambda found: _shown(new), said["description"])
    for call in relying:
        call["arguments"][name] = [new if value != "" else value for value in call["arguments"][name]]
    for message in request:
        if isinstance(message.get("content"), str):
            message["content"] = _mention(old).sub(lambda found: _shown(new), message["content"])


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_only(allowed: Any, value: Any) -> bool:
    """Whether this is the one allowed value; "" beside it says that it may be left out."""
    values = [one for one in allowed or () if one != ""]
    return len(values) == 1 and type(values[0]) is type(value) and values[0] == value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _mention(value: Any) -> re.Pattern[str]:
    """Where a text names the value, as whole words; 5 is not in 15, 5.5 or 1,500."""
    if isinstance(value, str):
        return re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")
    return re.compile(rf"(?<![\w.,-]){re.escape(json.dumps(value))}(?![\w]|[.,]\d)")


def _random_like(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str):
        return "".join(_random_character(one, rng) for one in value)
    if isinstance(value, int):
        digits = len(str(abs(value)))
        new = rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
        return -new if value < 0 else new
    places = len(repr(value).partition(".")[2]) if "e" not in repr(value) else 2
    return round(value * rng.uniform(0.2, 3.0) + (rng.random() if not value else 0.0), min(places, 6))


def _random_character(one: str, rng: random.Random) -> str:
    """Another one of its kind, so that codes, dates and names keep their shape."""
    for kind in (string.ascii_lowercase, string.ascii_uppercase, string.digits):
        if one in kind:
            return rng.choice(kind)
    return one


# ---------------------------------------------------------------------------------------------------------------------
# Back again


def _inverse(mask: Mask) -> tuple[Names, dict[str, Names]]:
    functions = {new: old for old, new in mask.functions.items()}
    parameters = {
        mask.functions[tool]: {new: old for old, new in names.items()} for tool, names in mask.parameters.items()
    }
    return functions, parameters


def _unmasked(sample: Sample, mask: Mask) -> dict[str, Any]:
    """Tools, messages and gold with the old names in the old order; texts and defaults are still the new ones."""
    functions, parameters = _inverse(mask)
    known = {tool.name: tool for tool in read_tools(sample.tools)}
    tools: list[Any] = [None] * len(mask.order)
    for place, tool in zip(mask.order, sample.tools, strict=True):
        tools[place] = _renamed_tool(tool, functions, parameters)
    gold = [_renamed_call(call, functions, parameters, known) for call in sample.gold]
    return deepcopy({"tools": tools, "messages": sample.messages, "gold": gold})


def _differences(found: Any, wanted: Any, at: str) -> Iterator[tuple[str, Any]]:
    """(JSON pointer, value) of the smallest parts that have to be put in place to get what is wanted."""
    if isinstance(found, dict) and isinstance(wanted, dict) and list(found) == list(wanted):
        for key in wanted:
            yield from _differences(found[key], wanted[key], f"{at}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, one in enumerate(wanted):
            yield from _differences(found[index], one, f"{at}/{index}")
    elif type(found) is not type(wanted) or found != wanted:
        yield at, deepcopy(wanted)


def _put(body: Any, pointer: str, value: Any) -> None:
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    for part in way:
        body = body[int(part)] if isinstance(body, list) else body[part]
    if isinstance(body, list):
        body[int(last)] = deepcopy(value)
    else:
        body[last] = deepcopy(value)
