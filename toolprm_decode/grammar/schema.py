"""Reads JSON Schema (draft 2020-12 and 7, as tools use them) and builds the nodes of the compiled grammar.

Scalars become byte automata; objects, arrays, unions, references and free values nodes of the pushdown automaton.
Every keyword is enforced, or it is an annotation, or it is an error: none is silently ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal, NoReturn
from urllib.parse import unquote

from toolprm_decode import _core
from toolprm_decode.errors import BudgetExceeded, FormatError, ToolSchemaError, UnsupportedSchemaError
from toolprm_decode.grammar import scalars
from toolprm_decode.grammar.fsm import ByteFSM, EmptyLanguage, byte_fsm, from_strings, intersect, union
from toolprm_decode.grammar.merging import CannotMerge, Schema, equal, merge

Style = Literal["json", "python"]

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
MAX_DEPTH = 200  # nested schemas; beyond it Python's own stack is at risk
MAX_DISJOINT = 500  # alternatives of a oneOf: each is compared with each
MAX_ALTERNATIVES = 2_000  # options of one union, those of unions inside it among them


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What stands beside a `$ref` or a union without asking for anything.
_ANNOTATIONS = _word_set(
    """
    title description default examples example deprecated readOnly writeOnly $comment $schema $id $anchor $dynamicAnchor
    $vocabulary $defs definitions contentEncoding contentMediaType contentSchema id name optional response discriminator
    externalDocs xml
    """
)
# Values with which a keyword that cannot be enforced asks for nothing.
_TRIVIAL: dict[str, tuple[Any, ...]] = {
    "patternProperties": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "propertyNames": (True, {}),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "not": (False,),
}
# Keywords that ask for nothing without one of these beside them.
_NEEDS: dict[str, tuple[str, ...]] = {
    "if": ("then", "else"),
    "then": ("if",),
    "else": ("if",),
    "minContains": ("contains",),
    "maxContains": ("contains",),
}
_UNSUPPORTED = _word_set(
    """
    patternProperties propertyNames dependentRequired dependentSchemas dependencies not if then else
    contains minContains maxContains unevaluatedProperties unevaluatedItems $dynamicRef $recursiveRef
    """
)
# Formats of numbers and of strings that only annotate.
_ANNOTATING_FORMATS = _word_set(
    """
    int8 int16 int32 int64 uint8 uint16 uint32 uint64 float double decimal
    password byte binary string text markdown html
    """
)


@lru_cache(maxsize=4096)
def regex_dfa(regex: str) -> _core.Dfa:
    """The compiled automaton of a regex, shared by all grammars."""
    fsm = byte_fsm(regex)
    return _core.Dfa(fsm.transitions, fsm.accepting)


@lru_cache(maxsize=4096)
def _strings_dfa(strings: tuple[bytes, ...]) -> _core.Dfa:
    return fsm_dfa(from_strings(strings))


@lru_cache(maxsize=1024)
def fsm_dfa(fsm: ByteFSM) -> _core.Dfa:
    """The compiled form of an automaton, shared by equal ones."""
    return _core.Dfa(fsm.transitions, fsm.accepting)


def spellings(text: str) -> list[bytes]:
    """A string as json.dumps writes it, with and without ensure_ascii."""
    return sorted({json.dumps(text, ensure_ascii=False).encode(), json.dumps(text).encode()})


# Object keys as json.dumps writes them: all of it raw, or all of it in ASCII.
_SHORT = r'\\["\\bfnrt]|\\u00(?:0[0-7bef]|1[0-9a-f])'
_ESCAPED = (
    r"\\u(?:007f|00[89a-f][0-9a-f]|0[1-9a-f][0-9a-f]{2}|[1-9a-c][0-9a-f]{3}|d[0-7][0-9a-f]{2}|[ef][0-9a-f]{3})"
    r"|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}"
)
_PLAIN_KEY = rf'(?:"(?:[^"\\\x00-\x1f]|{_SHORT})*"|"(?:[ !#-\[\]-~]|{_SHORT}|{_ESCAPED})*")'
_PLAIN_PYTHON_KEY = r"'(?:[^'\\\x00-\x1f]|\\[\\nrt])*'"
_SINGLE_QUOTED = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
# Names that a Pythonic call can write before `=`: not only identifiers, some tools have dots and dashes in them.
_KEYWORD = re.compile(r"[^\s\"'=(),\[\]{}][^=(),\[\]{}]*(?<!\s)")


class Impossible(ToolSchemaError):
    """No value satisfies the schema."""


class SchemaCompiler:
    """Adds the values of one root schema to a grammar under construction.

    Args:
        builder: where the nodes go.
        root: the schema; references are resolved against it.
        tool: its tool's name, for errors.
        style: "json" values, or "python" literals.
        flexible: any white space between the parts of values instead of json.dumps' own.
        closed: objects that declare properties and say nothing of others take no others (the rule for tools);
            otherwise JSON Schema's own default, any others.
    """

    def __init__(
        self,
        builder: _core.GrammarBuilder,
        root: Schema,
        *,
        tool: str | None = None,
        style: Style = "json",
        flexible: bool = False,
        closed: bool = False,
    ):
        self.builder, self.root, self.tool, self.style = builder, root, tool, style
        self.flexible, self.closed = flexible, closed
        self._rules: dict[tuple[str, bool], int] = {}
        self._impossible: dict[tuple[str, bool], Impossible] = {}
        # Conjunctions that were worked out, by the identity of their schema, which is kept alive here.
        self._conjunctions: dict[int, tuple[Schema, Schema]] = {}
        self._any: int | None = None
        self._depth = 0

    # ------------------------------------------------------------------ values

    def value(self, schema: Schema, pointer: str = "", *, arguments: bool = False) -> int:
        """The node of any value that satisfies the schema.

        arguments: members of an object at the root of the value end ARG_VALUE steps.
        Raises ToolSchemaError (Impossible, UnsupportedSchemaError among them) and BudgetExceeded.
        """
        options = self._options(schema, pointer, arguments)
        return options[0] if len(options) == 1 else self.builder.choice(options)

    def _options(self, schema: Schema, pointer: str, arguments: bool) -> list[int]:
        with self._deeper(pointer, None, f"schemas are nested more than {MAX_DEPTH} deep"):
            return self._read(schema, pointer, arguments)

    @contextmanager
    def _deeper(self, pointer: str, keyword: str | None, message: str) -> Iterator[None]:
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                self._fail(pointer, keyword, message)
            yield
        finally:
            self._depth -= 1

    def _read(self, schema: Schema, pointer: str, arguments: bool) -> list[int]:
        if schema is True or schema == {}:
            return [self.any_object(arguments=True), *self._any_others()] if arguments else [self.any_value()]
        if schema is False:
            raise Impossible("the schema is false: no value is legal", tool=self.tool, pointer=pointer)
        if not isinstance(schema, dict):
            self._fail(pointer, None, f"a schema must be an object or a boolean, not {schema!r:.60}")
        self._check_words(schema, pointer)
        if "$ref" in schema:
            return self._reference(schema, pointer, arguments)
        if "allOf" in schema:
            return self._shared(self._all_of(schema, pointer), pointer, arguments)
        if "enum" in schema or "const" in schema:
            return self._enumeration(schema, pointer, arguments)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._union(schema, word, pointer, arguments)
        return self._typed(schema, pointer, arguments)

    def _check_words(self, schema: Mapping[Any, Any], pointer: str) -> None:
        # Words outside JSON Schema's vocabulary are annotations by its own rules.
        for word, value in schema.items():
            if not isinstance(word, str):
                self._fail(pointer, None, f"a keyword must be a string, not {word!r:.60}")
            if word in _NEEDS and not any(other in schema for other in _NEEDS[word]):
                continue
            if word in _UNSUPPORTED and not any(equal(value, trivial) for trivial in _TRIVIAL.get(word, ())):
                raise UnsupportedSchemaError(
                    f"{word} cannot be enforced; remove it or express it with another keyword",
                    tool=self.tool,
                    pointer=pointer,
                    keyword=word,
                )

    # ------------------------------------------------------------------ references and combinations

    def _reference(self, schema: dict[str, Any], pointer: str, arguments: bool) -> list[int]:
        target, at = self.resolve(schema["$ref"], pointer)
        flat, _ = self._without_reference(target, at, pointer)  # refuses circles
        siblings = {k: v for k, v in schema.items() if k != "$ref" and k not in _ANNOTATIONS}
        if siblings:
            return self._shared(self._merged(siblings, flat, pointer), pointer, arguments)
        return self._rule(at, target, at, arguments)

    def _shared(self, merged: Schema, pointer: str, arguments: bool) -> list[int]:
        """The options of a conjunction. Where it is recursive, the same one is met again inside itself."""
        return self._rule(json.dumps(merged, sort_keys=True, default=repr), merged, pointer, arguments)

    def _rule(self, name: str, schema: Schema, pointer: str, arguments: bool) -> list[int]:
        key = (name, arguments)
        if key not in self._rules:
            rule = self._rules[key] = self.builder.declare_rule(pointer)
            try:
                body = self.value(schema, pointer, arguments=arguments)
            except Impossible as error:
                self._impossible[key] = error
                body = self.builder.choice([])  # alternatives inside it may refer to it
            self.builder.define_rule(rule, body)
        if key in self._impossible:
            raise self._impossible[key]
        return [self._rules[key]]

    def resolve(self, reference: Any, pointer: str) -> tuple[Schema, str]:
        """The schema that a `$ref` names, and its own pointer. Raises ToolSchemaError where it leads nowhere."""
        if not isinstance(reference, str):
            self._fail(pointer, "$ref", f"a reference must be a string, not {reference!r:.60}")
        own = self.root.get("$id", self.root.get("id")) if isinstance(self.root, dict) else None
        local = reference.removeprefix(own) if isinstance(own, str) and own else reference
        if local in ("", "#"):
            return self.root, ""
        if local.startswith("#/"):
            found: Any = self.root
            for part in local[2:].split("/"):
                part = unquote(part).replace("~1", "/").replace("~0", "~")
                if isinstance(found, dict) and part in found:
                    found = found[part]
                elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
                    found = found[int(part)]
                else:
                    self._fail(pointer, "$ref", f"{reference!r} leads nowhere: there is no {part!r}")
            if not isinstance(found, dict | bool):
                self._fail(pointer, "$ref", f"{reference!r} does not lead to a schema")
            return found, local[1:]
        anchored = _anchored(self.root, local.removeprefix("#"))
        if len(anchored) > 1:
            self._fail(pointer, "$ref", f"{reference!r} may be any of {len(anchored)} subschemas")
        if not anchored:
            message = f"{reference!r} leads nowhere: only references inside the schema are followed"
            self._fail(pointer, "$ref", message)
        return anchored[0], local

    def flat(self, schema: Schema, pointer: str = "") -> Schema:
        """The schema itself, or what its `$ref` and `allOf` stand for."""
        found, at = self._without_reference(schema, pointer, pointer)
        return self._all_of(found, at) if isinstance(found, dict) and "allOf" in found else found

    def _without_reference(self, schema: Schema, at: str, pointer: str) -> tuple[Schema, str]:
        seen: list[str] = []
        while isinstance(schema, dict) and "$ref" in schema:
            if at in seen:
                self._fail(pointer, "$ref", "the reference leads back to itself")
            seen.append(at)
            siblings = {k: v for k, v in schema.items() if k != "$ref" and k not in _ANNOTATIONS}
            schema, at = self.resolve(schema["$ref"], pointer)
            if siblings:
                with self._deeper(pointer, "$ref", "references are nested too deep, or in a circle"):
                    schema, at = self._without_reference(schema, at, pointer)
                schema = self._merged(siblings, schema, pointer)
        return schema, at

    def _all_of(self, schema: dict[str, Any], pointer: str) -> Schema:
        members = schema["allOf"]
        if not isinstance(members, list) or not members:
            self._fail(pointer, "allOf", "must be a list of at least one schema")
        if id(schema) in self._conjunctions:
            return self._conjunctions[id(schema)][1]
        result: Schema = {k: v for k, v in schema.items() if k != "allOf"}
        with self._deeper(pointer, "allOf", "nested too deep, or in a circle"):
            for index, member in enumerate([result, *members]):
                at = f"{pointer}/allOf/{index - 1}" if index else pointer
                if not isinstance(member, dict | bool):
                    self._fail(at, None, f"a schema must be an object or a boolean, not {member!r:.60}")
                if isinstance(member, dict):
                    self._check_words(member, at)
                flat = self.flat(member, at)
                result = self._merged(result, flat, pointer) if index else flat
        self._conjunctions[id(schema)] = (schema, result)
        return result

    def _merged(self, a: Schema, b: Schema, pointer: str) -> Schema:
        try:
            return merge(a, b, closed=self.closed)
        except CannotMerge as error:
            raise UnsupportedSchemaError(str(error), tool=self.tool, pointer=pointer, keyword=error.keyword) from error
        except (AttributeError, TypeError) as error:
            self._fail(pointer, None, f"a keyword has a value of the wrong kind: {error}")

    def _union(self, schema: dict[str, Any], word: str, pointer: str, arguments: bool) -> list[int]:
        members = schema[word]
        if not isinstance(members, list) or not members:
            self._fail(pointer, word, "must be a list of at least one schema")
        base = {k: v for k, v in schema.items() if k != word and k not in _ANNOTATIONS}
        if word == "oneOf" and len(members) > 1:
            self._check_disjoint(members, pointer)
        options: list[int] = []
        impossible: Impossible | None = None
        for index, member in enumerate(members):
            at = f"{pointer}/{word}/{index}"
            if not isinstance(member, dict | bool):
                self._fail(at, None, f"a schema must be an object or a boolean, not {member!r:.60}")
            try:
                if base:
                    options += self._shared(self._merged(base, self.flat(member, at), pointer), at, arguments)
                else:
                    options += self._options(member, at, arguments)
            except Impossible as error:
                impossible = error
            self._check_count(options, word, pointer)
        if not options:
            raise impossible or Impossible("no alternative is possible", tool=self.tool, pointer=pointer, keyword=word)
        return list(dict.fromkeys(options))  # the same reference twice is one way to read a text, not two

    def _check_count(self, options: Sequence[int], word: str, pointer: str) -> None:
        if len(options) > MAX_ALTERNATIVES:
            raise self._over_budget(f"more than {MAX_ALTERNATIVES} alternatives", word, pointer)

    def _over_budget(self, message: str, keyword: str, pointer: str) -> BudgetExceeded:
        return BudgetExceeded(str(ToolSchemaError(message, tool=self.tool, pointer=pointer, keyword=keyword)))

    def _check_disjoint(self, members: Sequence[Any], pointer: str) -> None:
        if len(members) > MAX_DISJOINT:
            raise self._over_budget(f"more than {MAX_DISJOINT} alternatives; use anyOf", "oneOf", pointer)
        flat = [self.flat(member, f"{pointer}/oneOf/{index}") for index, member in enumerate(members)]
        for i, a in enumerate(flat):
            for j in range(i):
                if not _disjoint(a, flat[j], self.flat):
                    raise UnsupportedSchemaError(
                        f"alternatives {j} and {i} may both hold for one value, and oneOf allows exactly one; "
                        "use anyOf, or tell them apart by type or by a constant property",
                        tool=self.tool,
                        pointer=pointer,
                        keyword="oneOf",
                    )

    # ------------------------------------------------------------------ enumerations

    def _enumeration(self, schema: dict[str, Any], pointer: str, arguments: bool) -> list[int]:
        word = "enum" if "enum" in schema else "const"
        values = schema["enum"] if word == "enum" else [schema["const"]]
        if not isinstance(values, list):
            self._fail(pointer, "enum", f"must be a list of values, not {values!r:.60}")
        if not values:
            self._fail(pointer, "enum", "has no values")
        values = self._valid(values, {k: v for k, v in schema.items() if k != word}, word, pointer)
        options: list[int] = []
        numbers, others = set[bytes](), set[bytes]()
        for value in values:
            if isinstance(value, list):  # members may be written in any order, and white space be flexible
                items = [{"const": item} for item in value]
                exact: Schema = {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
                options += self._options(exact, pointer, False)
            elif isinstance(value, dict):
                members = {name: {"const": member} for name, member in value.items()}
                closed = {"type": "object", "properties": members, "additionalProperties": False}
                options += self._options({**closed, "required": list(members)}, pointer, arguments)
            else:
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                (numbers if is_number else others).update(self._written(value, word, pointer))
            self._check_count(options, word, pointer)
        # Numbers end with the byte after them, everything else with its own last one: two automata.
        return options + [
            self.builder.scalar(_strings_dfa(tuple(sorted(texts)))) for texts in (others, numbers) if texts
        ]

    def _valid(self, values: list[Any], rest: dict[str, Any], word: str, pointer: str) -> list[Any]:
        """Those of the values that fit the other keywords of their schema."""
        rest = {k: v for k, v in rest.items() if k not in _ANNOTATIONS}
        if not rest:
            return values
        if rest.keys() == {"type"}:
            types = {*self._type_names(rest, pointer)}
            types |= {"integer"} if "number" in types else set()
            return self._some([value for value in values if _type_of(value) in types], rest, word, pointer)
        from jsonschema import Draft202012Validator  # here: few schemas need it, and it is slow to import

        if isinstance(rest.get("pattern"), list):  # patterns that were merged
            rest["allOf"] = [*rest.get("allOf", []), *({"pattern": pattern} for pattern in rest.pop("pattern"))]
        check = Draft202012Validator(self.root).evolve(schema=rest)  # references start at the root
        try:
            return self._some([value for value in values if check.is_valid(value)], rest, word, pointer)
        except ToolSchemaError:
            raise
        except Exception as error:  # it does not look at keywords before it uses them, so any kind may come
            self._fail(pointer, word, f"its values cannot be checked against the keywords beside it: {error!s:.200}")

    def _some(self, values: list[Any], rest: dict[str, Any], word: str, pointer: str) -> list[Any]:
        if values:
            return values
        message = f"none of its values fits the other keywords ({', '.join(sorted(rest))})"
        raise Impossible(message, tool=self.tool, pointer=pointer, keyword=word)

    def _written(self, value: Any, word: str, pointer: str) -> set[bytes]:
        try:
            texts = {json.dumps(value, ensure_ascii=a, allow_nan=False) for a in (True, False)}
            if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
                texts.add(str(int(value)))
            elif isinstance(value, int) and not isinstance(value, bool):
                texts.add(f"{value}.0")
            if self.style == "python":
                texts.add(repr(value))
            return {text.encode() for text in texts}
        except (TypeError, ValueError) as error:
            self._fail(pointer, word, f"{value!r:.60} cannot be written as JSON: {error}")

    # ------------------------------------------------------------------ types

    def _typed(self, schema: dict[str, Any], pointer: str, arguments: bool) -> list[int]:
        types = self._type_names(schema, pointer)
        if "number" in types and "integer" in types:
            types = [t for t in types if t != "integer"]
        readers: dict[str, Callable[[], int]] = {
            "object": lambda: self._object(schema, pointer, arguments),
            "array": lambda: self._array(schema, pointer),
            "string": lambda: self._string(schema, pointer),
            "number": lambda: self._number(schema, pointer, integers=False),
            "integer": lambda: self._number(schema, pointer, integers=True),
            "boolean": lambda: self.builder.scalar(self._words("true", "false", "True", "False")),
            "null": lambda: self.builder.scalar(self._words("null", "None")),
        }
        options: list[int] = []
        impossible: Impossible | None = None
        for name in dict.fromkeys(types):
            try:
                options.append(readers[name]())
            except Impossible as error:
                impossible = error
        if impossible and not options:
            raise impossible
        return options

    def _type_names(self, schema: Mapping[str, Any], pointer: str) -> list[str]:
        types = schema.get("type", list(TYPES))
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not types:
            self._fail(pointer, "type", f"must be a type or a list of types, not {types!r:.60}")
        for name in types:
            if name not in TYPES:
                self._fail(pointer, "type", f"unknown type {name!r:.60}: use one of {', '.join(TYPES)}")
        return types

    def _words(self, *words: str) -> _core.Dfa:
        kept = [w for w in words if self.style == "python" or w[0].islower()]
        return _strings_dfa(tuple(w.encode() for w in kept))

    def any_value(self) -> int:
        """The node of any JSON value."""
        if self._any is None:
            self._any = self.builder.declare_rule("any value")
            self.builder.define_rule(self._any, self.builder.choice([self.any_object(), *self._any_others()]))
        return self._any

    def _any_others(self) -> list[int]:
        b = self.builder
        item = self.any_value()
        words = self._words("true", "false", "null", "True", "False", "None")
        return [
            b.array(*self._brackets("[", "]"), [], item),
            b.scalar(self._string_dfa()),
            b.scalar(regex_dfa(scalars.number())),
            b.scalar(words),
        ]

    def any_object(self, *, arguments: bool = False) -> int:
        """The node of any JSON object."""
        return self.builder.object(
            *self._brackets("{", "}"),
            [],
            other_key=self._string_dfa(),
            other_value=self._member(self.any_value()),
            arguments=arguments,
        )

    def _string_dfa(self) -> _core.Dfa:
        return regex_dfa(scalars.STRING if self.style == "json" else f"(?:{scalars.PY_STRING}|{scalars.STRING})")

    def _brackets(self, open: str, close: str) -> tuple[int, int, int]:
        b = self.builder
        if not self.flexible:
            return b.literal(open.encode()), b.literal(b", "), b.literal(close.encode())
        space = b.space()
        return (
            b.sequence([b.literal(open.encode()), space]),
            b.sequence([space, b.literal(b","), space]),
            b.sequence([space, b.literal(close.encode())]),
        )

    def _member(self, value: int) -> int:
        b = self.builder
        if not self.flexible:
            return b.sequence([b.literal(b": "), value])
        return b.sequence([b.space(), b.literal(b":"), b.space(), value])

    # ------------------------------------------------------------------ objects

    def _object(self, schema: dict[str, Any], pointer: str, arguments: bool) -> int:
        properties, others, low, high = self.members(schema, pointer)
        keyed = [(self._key(name), self._member(value), required) for name, value, required in properties]
        return self.builder.object(
            *self._brackets("{", "}"),
            keyed,
            other_key=None if others is None else self._string_dfa() if not properties else self._plain_key_dfa(),
            other_value=-1 if others is None else self._member(others),
            min=low,
            max=high,
            arguments=arguments,
        )

    def keywords(self, schema: Schema) -> int:
        """The node of what follows `name(` in a Pythonic call: the properties of the schema as name=value, and `)`."""
        root = self.flat(schema)
        assert isinstance(root, dict)
        self._check_words(root, "")
        if found := sorted({"anyOf", "oneOf", "enum", "const"} & root.keys()):
            raise UnsupportedSchemaError(
                "a Pythonic call needs plain properties at the root of its parameters; use a JSON format",
                tool=self.tool,
                keyword=found[0],
            )
        properties, others, low, high = self.members(root, "")
        if others is not None:
            raise UnsupportedSchemaError(
                "a Pythonic call cannot take arguments of any name; declare them, or use a JSON format",
                tool=self.tool,
                keyword="additionalProperties",
            )
        b = self.builder
        space = [b.space()] if self.flexible else []
        keyed: list[tuple[list[bytes], int, bool]] = []
        for name, value, required in properties:
            if not _KEYWORD.fullmatch(name):
                raise FormatError(f"tool {self.tool!r}: parameter {name!r} cannot be written as a keyword argument")
            keyed.append(([f"{name}=".encode()], b.sequence([*space, value]), required))
        _, comma, _ = self._brackets("(", ")")
        close = b.sequence([*space, b.literal(b")")])
        return b.object(b.sequence(space), comma, close, keyed, min=low, max=high, arguments=True)

    def members(
        self, schema: dict[str, Any], pointer: str
    ) -> tuple[list[tuple[str, int, bool]], int | None, int, int | None]:
        """What an object holds: properties, the value node of other members or None, fewest and most members.

        A property is its name, the node of its value, and whether it is required.
        """
        declared = schema.get("properties", {})
        if not isinstance(declared, dict):
            self._fail(pointer, "properties", f"must be an object of schemas, not {declared!r:.60}")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._fail(pointer, "required", f"must be a list of property names, not {required!r:.60}")
        extra = schema.get("additionalProperties", not (self.closed and declared))
        properties: list[tuple[str, int, bool]] = []
        for name, member in declared.items():
            self._check_name(name, pointer, "properties")
            at = f"{pointer}/properties/{name.replace('~', '~0').replace('/', '~1')}"
            try:
                properties.append((name, self.value(member, at), name in required))
            except Impossible:
                if member is not False or name in required:
                    raise  # but "false" on an optional property just forbids it
        others: int | None = None
        at = f"{pointer}/additionalProperties"
        if extra is not False:
            others = self.value(extra, at)
        for name in dict.fromkeys(required):
            if name in declared:
                continue
            self._check_name(name, pointer, "required")
            if others is None:
                self._fail(pointer, "required", f"property {name!r} is required but not defined")
            properties.append((name, self.value(extra, at), True))
        forbidden = [name for name, member in declared.items() if member is False]
        if forbidden and others is not None:
            raise UnsupportedSchemaError(
                "a forbidden property beside free ones cannot be enforced",
                tool=self.tool,
                pointer=pointer,
                keyword="properties",
            )
        low, high = self._bounds(schema, "minProperties", "maxProperties", pointer)
        if high is not None and sum(required for _, _, required in properties) > high:
            raise Impossible(
                "more properties are required than allowed", tool=self.tool, pointer=pointer, keyword="maxProperties"
            )
        if others is None and low > len(properties):
            raise Impossible(
                "more members are asked for than properties exist",
                tool=self.tool,
                pointer=pointer,
                keyword="minProperties",
            )
        return properties, others, low, high

    def _check_name(self, name: Any, pointer: str, keyword: str) -> None:
        try:
            name.encode()
        except (AttributeError, UnicodeEncodeError):
            self._fail(pointer, keyword, f"{name!r:.60} is no name of a property: it must be valid Unicode")

    def _key(self, name: str) -> list[bytes]:
        if self.style == "json":
            return spellings(name)
        single = "'" + name.translate(_SINGLE_QUOTED) + "'"
        return sorted({*spellings(name), repr(name).encode(), *([single.encode()] if "'" not in name else [])})

    def _plain_key_dfa(self) -> _core.Dfa:
        """Keys beside declared properties.

        They are written in the very ways that declared ones are, or `"\\u0061"` would pass for another key than `"a"`.
        """
        return regex_dfa(_PLAIN_KEY if self.style == "json" else f"(?:{_PLAIN_KEY}|{_PLAIN_PYTHON_KEY})")

    # ------------------------------------------------------------------ arrays

    def _array(self, schema: dict[str, Any], pointer: str) -> int:
        low, high = self._bounds(schema, "minItems", "maxItems", pointer)
        prefix, rest = schema.get("prefixItems"), schema.get("items", True)
        if isinstance(rest, list):  # before 2020-12: a list of items, then additionalItems
            prefix, rest = rest, schema.get("additionalItems", True)
        prefix = [] if prefix is None else prefix
        if not isinstance(prefix, list):
            self._fail(pointer, "prefixItems", f"must be a list of schemas, not {prefix!r:.60}")
        if schema.get("uniqueItems") and (high is None or high > 1):
            raise UnsupportedSchemaError(
                "unique items cannot be enforced; remove it", tool=self.tool, pointer=pointer, keyword="uniqueItems"
            )
        if high is not None:
            prefix = prefix[:high]
        firsts: list[int] = []
        item = -1
        try:
            for index, first in enumerate(prefix):
                firsts.append(self.value(first, f"{pointer}/prefixItems/{index}"))
            if rest is not False and (high is None or high > len(prefix)):
                item = self.value(rest, f"{pointer}/items")
        except Impossible:
            if low > len(firsts):
                raise
        if item < 0 and low > len(firsts):
            raise Impossible(
                "more items are asked for than are possible", tool=self.tool, pointer=pointer, keyword="minItems"
            )
        return self.builder.array(*self._brackets("[", "]"), firsts, item, min=low, max=high)

    def _bounds(self, schema: Mapping[str, Any], low: str, high: str, pointer: str) -> tuple[int, int | None]:
        for word in (low, high):
            bound = schema.get(word)
            whole = isinstance(bound, int) and not isinstance(bound, bool)
            whole = whole or (isinstance(bound, float) and bound.is_integer())
            if bound is not None and (not whole or not 0 <= bound <= 2**31):
                self._fail(pointer, word, f"must be a count (0 or more), not {bound!r:.60}")
        least, most = int(schema.get(low) or 0), schema.get(high)
        if most is not None and least > most:
            raise Impossible(
                f"contradicts {high}: at least {least}, at most {most}", tool=self.tool, pointer=pointer, keyword=low
            )
        return least, None if most is None else int(most)

    # ------------------------------------------------------------------ scalars

    def _string(self, schema: dict[str, Any], pointer: str) -> int:
        low, high = self._bounds(schema, "minLength", "maxLength", pointer)
        patterns = self._patterns(schema, pointer)
        counted = low > 0 or high is not None
        if not patterns and not counted:
            return self.builder.scalar(self._string_dfa())
        char = scalars.string_char('"', "json")
        chars = {'"': char}
        if self.style == "python":
            chars = {
                '"': f"(?:{char}|{scalars.string_char(chr(34), 'python')})",
                "'": scalars.string_char("'", "python"),
            }
        b = self.builder
        if not patterns:  # counting needs no automaton of its own
            texts = [
                b.sequence([b.literal(q.encode()), b.repeat(regex_dfa(c), low, high), b.literal(q.encode())])
                for q, c in chars.items()
            ]
            return texts[0] if len(texts) == 1 else b.choice(texts)
        if counted:
            count = f"{{{low},{'' if high is None else high}}}"
            regex = "|".join(f"{quote}(?:{char}){count}{quote}" for quote, char in chars.items())
            patterns.append(("minLength" if high is None else "maxLength", lambda: byte_fsm(regex)))
        fsm: ByteFSM | None = None
        for word, make in patterns:
            with self._scalar_errors(pointer, word):
                part = make()
                fsm = part if fsm is None else intersect(fsm, part)
        assert fsm is not None
        return self.builder.scalar(fsm_dfa(fsm))

    def _patterns(self, schema: Mapping[str, Any], pointer: str) -> list[tuple[str, Callable[[], ByteFSM]]]:
        found: list[tuple[str, Callable[[], ByteFSM]]] = []
        given = schema.get("pattern", [])
        for pattern in given if isinstance(given, list) else [given]:  # a list: patterns that were merged
            if not isinstance(pattern, str):
                self._fail(pointer, "pattern", f"must be a regular expression, not {pattern!r:.60}")
            found.append(("pattern", partial(self._pattern_fsm, pattern, anchored=False)))
        name = schema.get("format")
        if name is not None and not isinstance(name, str):
            self._fail(pointer, "format", f"must be the name of a format, not {name!r:.60}")
        if name and name not in _ANNOTATING_FORMATS and (regex := scalars.string_format(name)) is not None:
            found.append(("format", partial(self._pattern_fsm, regex, anchored=True)))
        return found

    def _pattern_fsm(self, pattern: str, *, anchored: bool) -> ByteFSM:
        fsm = scalars.pattern_fsm(pattern, style="json", anchored=anchored, escapes="needed")
        if self.style == "json":
            return fsm
        return union(fsm, scalars.pattern_fsm(pattern, style="python", anchored=anchored, escapes="needed"))

    def _number(self, schema: dict[str, Any], pointer: str, *, integers: bool) -> int:
        words = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        bounds = [schema.get(word) for word in words]
        if isinstance(bounds[2], bool):  # draft 4: a flag beside the bound
            bounds[0], bounds[2] = (None, bounds[0]) if bounds[2] else (bounds[0], None)
        if isinstance(bounds[3], bool):
            bounds[1], bounds[3] = (None, bounds[1]) if bounds[3] else (bounds[1], None)
        factor = schema.get("multipleOf")
        for word, bound in zip((*words, "multipleOf"), (*bounds, factor), strict=True):
            if bound is not None and (
                isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound)
            ):
                self._fail(pointer, word, f"must be a number, not {bound!r:.60}")
        if factor is not None and factor <= 0:
            self._fail(pointer, "multipleOf", f"must be above zero, not {factor!r}")
        used = [word for word, bound in zip(words, bounds, strict=True) if bound is not None]
        with self._scalar_errors(pointer, "multipleOf" if factor is not None else used[0] if used else None):
            if factor is not None and not (integers and factor == 1):
                return self.builder.scalar(fsm_dfa(scalars.multiple_of(factor, *bounds, integers=integers)))
            regex = scalars.integer(*bounds) if integers else scalars.number(*bounds)
            return self.builder.scalar(regex_dfa(regex))

    def _scalar_errors(self, pointer: str, keyword: str | None) -> _ScalarErrors:
        return _ScalarErrors(self.tool, pointer, keyword)

    def _fail(self, pointer: str, keyword: str | None, message: str) -> NoReturn:
        raise ToolSchemaError(message, tool=self.tool, pointer=pointer, keyword=keyword)


class _ScalarErrors:
    """Says where in the schema a scalar could not be made."""

    def __init__(self, tool: str | None, pointer: str, keyword: str | None):
        self.tool, self.pointer, self.keyword = tool, pointer, keyword

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        where: dict[str, Any] = {"tool": self.tool, "pointer": self.pointer, "keyword": self.keyword}
        if isinstance(error, EmptyLanguage):
            raise Impossible(str(error), **where) from error
        if isinstance(error, BudgetExceeded):
            raise BudgetExceeded(f"{ToolSchemaError(str(error), **where)}") from error
        if isinstance(error, ValueError) and not isinstance(error, ToolSchemaError):
            raise UnsupportedSchemaError(str(error), **where) from error


def _anchored(schema: Any, name: str) -> list[dict[str, Any]]:
    """The subschemas that go by a name instead of a pointer."""
    found: list[dict[str, Any]] = []
    open_: list[Any] = [schema]
    while open_:
        here = open_.pop()
        if isinstance(here, dict):
            names = (here.get("$anchor"), here.get("$dynamicAnchor"), here.get("$id"))
            if (name and name in names) or here.get("$id") == f"#{name}":  # the latter in draft 7
                found.append(here)
            open_.extend(v for k, v in here.items() if k not in ("enum", "const", "default", "examples"))
        elif isinstance(here, list):
            open_.extend(here)
    return found


def _types(schema: Schema) -> set[str]:
    if not isinstance(schema, dict):
        return set(TYPES) if schema else set()
    for word, values in (("enum", schema.get("enum")), ("const", [schema.get("const")])):
        if word in schema and isinstance(values, list):
            return {_type_of(v) for v in values}
    given = schema.get("type", list(TYPES))
    names = {given} if isinstance(given, str) else set(given) if isinstance(given, list) else set(TYPES)
    return names | {"integer"} if "number" in names else names


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    kinds = ((str, "string"), (float, "number"), (dict, "object"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _constants(schema: Schema) -> list[Any] | None:
    if isinstance(schema, dict):
        if "const" in schema:
            return [schema["const"]]
        if isinstance(schema.get("enum"), list):
            return list(schema["enum"])
    return None


def _disjoint(a: Schema, b: Schema, flat: Callable[[Schema], Schema], depth: int = 0) -> bool:
    """Whether it is plain to see that no value satisfies both."""
    if not _types(a) & _types(b):
        return True
    ours, theirs = _constants(a), _constants(b)
    if ours is not None and theirs is not None:
        return not any(equal(x, y) for x in ours for y in theirs)
    if not isinstance(a, dict) or not isinstance(b, dict) or _types(a) & _types(b) != {"object"} or depth > 3:
        return False
    mine, other = a.get("properties", {}), b.get("properties", {})
    if not isinstance(mine, dict) or not isinstance(other, dict):
        return False
    required: Iterable[str] = set(a.get("required", [])) & set(b.get("required", []))
    if any(n in mine and n in other and _disjoint(flat(mine[n]), flat(other[n]), flat, depth + 1) for n in required):
        return True
    # One requires what the other does not allow.
    for x, y in ((a, b), (b, a)):
        if y.get("additionalProperties") is False and set(x.get("required", [])) - set(y.get("properties", {})):
            return True
    return False
