"""Reads the keywords of objects: what each member is, and how its key is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import TYPE_CHECKING, Any, NoReturn

from toolprm_decode import _core
from toolprm_decode.errors import FormatError, UnsupportedSchemaError
from toolprm_decode.grammar.automata import Impossible, fsm_dfa, regex_dfa
from toolprm_decode.grammar.checking import CannotTell, constants, holds
from toolprm_decode.grammar.fsm import ByteFSM, EmptyLanguage, byte_fsm, intersect
from toolprm_decode.grammar.merging import MORE, More, Schema
from toolprm_decode.grammar.negation import REWRITTEN
from toolprm_decode.grammar.objects import (
    NOTHING,
    Member,
    Members,
    Names,
    OtherKeys,
    classified,
    conditions,
    declared_names,
    escaped,
    kinds_of_keys,
    without,
)
from toolprm_decode.grammar.unevaluated import UNEVALUATED

if TYPE_CHECKING:
    from toolprm_decode.grammar.schema import SchemaCompiler

__all__ = ["ObjectReader", "spellings"]


def spellings(text: str) -> list[bytes]:
    """A string as json.dumps writes it, with and without ensure_ascii."""
    raw = encode_basestring(text).encode()
    return [raw] if text.isascii() else sorted({raw, encode_basestring_ascii(text).encode()})


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


class ObjectReader:
    """The objects of a schema, as nodes of the grammar that a SchemaCompiler builds."""

    def __init__(self, compiler: SchemaCompiler):
        self.c = compiler

    def read(self, schema: dict[str, Any], pointer: str, arguments: bool) -> int:
        members = self.members(schema, pointer)
        others = members.others
        more: dict[str, Any] = {}
        if others is not None and others.kinds:
            values = [self.c.member(value) for value in others.values]
            more = {"other_key": others.keys, "other_values": values, "other_kinds": others.kinds}
        elif others is not None:
            more = {"other_key": others.keys, "other_value": self.c.member(others.values[0])}
        return self.c.builder.object(
            *self.c.brackets("{", "}"),
            [(self.key(one.name), self.c.member(one.value), one.required) for one in members.properties],
            min=members.low,
            max=members.high,
            arguments=arguments,
            **more,
        )

    def keywords(self, schema: Schema) -> int:
        """The node of what follows `name(` in a Pythonic call: the properties of the schema as name=value, and `)`."""
        if isinstance(schema, dict) and (hard := sorted({*REWRITTEN, *UNEVALUATED} & schema.keys())):
            self._no_keywords(hard[0])
        root = self.c.flat(schema)
        assert isinstance(root, dict)
        self.c.check_words(root, "")
        if found := sorted({"anyOf", "oneOf", "enum", "const"} & root.keys()):
            self._no_keywords(found[0])
        members = self.members(root, "")
        if members.others is not None:
            sorted_ = "patternProperties" in root
            raise UnsupportedSchemaError(
                "a Pythonic call cannot take arguments of any name; declare them, or use a JSON format",
                tool=self.c.tool,
                keyword="patternProperties" if sorted_ else "additionalProperties",
            )
        b = self.c.builder
        space = [b.space()] if self.c.flexible else []
        keyed: list[tuple[list[bytes], int, bool]] = []
        for one in members.properties:
            if not _KEYWORD.fullmatch(one.name):
                raise FormatError(
                    f"tool {self.c.tool!r}: parameter {one.name!r} cannot be written as a keyword argument"
                )
            keyed.append(([f"{one.name}=".encode()], b.sequence([*space, one.value]), one.required))
        _, comma, _ = self.c.brackets("(", ")")
        close = b.sequence([*space, b.literal(b")")])
        return b.object(b.sequence(space), comma, close, keyed, min=members.low, max=members.high, arguments=True)

    def _no_keywords(self, keyword: str) -> NoReturn:
        raise UnsupportedSchemaError(
            "a Pythonic call needs plain properties at the root of its parameters; use a JSON format",
            tool=self.c.tool,
            keyword=keyword,
        )

    def members(self, schema: dict[str, Any], pointer: str) -> Members:
        """What an object holds."""
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self.c.fail(pointer, "required", f"must be a list of property names, not {required!r:.60}")
        if "patternProperties" in schema or "propertyNames" in schema or MORE in schema:
            members = self._sorted_members(schema, required, pointer)
        else:
            members = self._plain_members(schema, required, pointer)
        low, high = self.c.bounds(schema, "minProperties", "maxProperties", pointer)
        if high is not None and sum(one.required for one in members.properties) > high:
            raise Impossible(
                "more properties are required than allowed", tool=self.c.tool, pointer=pointer, keyword="maxProperties"
            )
        if members.others is None and low > len(members.properties):
            raise Impossible(
                "more members are asked for than properties exist",
                tool=self.c.tool,
                pointer=pointer,
                keyword="minProperties",
            )
        members.low, members.high = low, high
        return members

    def _plain_members(self, schema: dict[str, Any], required: list[str], pointer: str) -> Members:
        """The members where all other keys are of one kind."""
        declared = schema.get("properties", {})
        if not isinstance(declared, dict):
            self.c.fail(pointer, "properties", f"must be an object of schemas, not {declared!r:.60}")
        closed = self.c.closed and any(member is not False for member in declared.values())
        extra = schema.get("additionalProperties", not closed)
        properties: list[Member] = []
        forbidden: list[str] = []
        for name, member in declared.items():
            self._check_name(name, pointer, "properties")
            value = self.c.leaf(member)
            if value is None:
                try:
                    value = self.c.value(member, f"{pointer}/properties/{escaped(name)}")
                except Impossible:
                    if name in required:
                        raise
                    forbidden.append(name)
                    continue
            properties.append(Member(name, value, name in required))
        other: int | None = None
        if extra is not False:
            with suppress(Impossible):
                other = self.c.value(extra, f"{pointer}/additionalProperties")
        for name in dict.fromkeys(required):
            if name not in declared:
                self._check_name(name, pointer, "required")
                self._check_taken(name, other is not None, pointer)
                properties.append(Member(name, self.c.value(extra, pointer), True))
        if other is None:
            return Members(properties, None)
        properties += self._forbidden(forbidden)
        # Beside declared properties, keys are written in the very ways that those are, or `"\\u0061"` would pass for
        # another key than `"a"`.
        return Members(properties, OtherKeys(self._plain_key_dfa() if properties else self.c.string_dfa(), (other,)))

    def _check_taken(self, name: str, possible: bool, pointer: str) -> None:
        if not possible:
            self.c.impossible(f"property {name!r} is required but not defined", pointer, "required")

    def _forbidden(self, names: Iterable[str]) -> list[Member]:
        """Names that no other key may be, as properties whose value nothing satisfies."""
        return [Member(name, self.c.builder.choice([]), False) for name in names]

    def _sorted_members(self, schema: dict[str, Any], required: list[str], pointer: str) -> Members:
        """The members where patterns sort the keys."""
        self._check_conditions(schema, pointer)
        closed = self.c.closed and not any("additionalProperties" in one for one in conditions(schema))
        if closed and any(m is not False for one in conditions(schema) for m in one.get("properties", {}).values()):
            # To the one object that all conditions describe, keys that none of them mentions are unknown.
            mentioned: dict[str, dict[str, Any]] = {"properties": {}, "patternProperties": {}}
            for one in conditions(schema):
                for word, known in mentioned.items():
                    known.update(dict.fromkeys(one.get(word, {}), True))
            more = schema[MORE].conditions if MORE in schema else ()
            schema = {**schema, MORE: More((*more, {**mentioned, "additionalProperties": False}))}
        names = Names(partial(self._key_fsm, pointer=pointer))
        keys: ByteFSM | None = self._plain_key_fsm()
        listed: list[str] | None = None
        if "propertyNames" in schema:
            listed, keys = self._legal_names(schema["propertyNames"], pointer)
        properties: list[Member] = []
        forbidden: list[str] = []
        allowed = keys
        for name in dict.fromkeys((*declared_names(schema), *required, *(listed or ()))):
            self._check_name(name, pointer, "properties" if name not in required else "required")
            possible = name in listed if listed is not None else allowed is not None and self._is_key(name, allowed)
            try:
                if not possible:
                    self.c.impossible(f"{name!r} is no legal name", pointer, "propertyNames")
                value = self._conjunction(names.asked(name, schema), pointer)
                properties.append(Member(name, value, name in required))
            except Impossible:
                if name in required:
                    raise
                forbidden.append(name)
        taken = [*(one.name for one in properties), *forbidden]
        if keys is not None:
            with self.c.scalar_errors(pointer, "patternProperties"):
                keys = without(keys, (spelling for name in taken for spelling in self.key(name)))
        kinds: list[ByteFSM] = []
        values: list[int] = []
        if keys is not None:
            with self.c.scalar_errors(pointer, "patternProperties"):
                sorted_ = kinds_of_keys(keys, schema, names)
            for kind, asked in sorted_:
                try:
                    value = self._conjunction(asked, pointer)
                except Impossible:
                    continue
                kinds.append(kind)
                values.append(value)
        if not kinds:
            return Members(properties, None)
        if len(kinds) == 1:
            return Members(properties, OtherKeys(fsm_dfa(kinds[0]), (values[0],)))
        with self.c.scalar_errors(pointer, "patternProperties"):
            dfa, outcome = classified(tuple(kinds))
        return Members(properties, OtherKeys(dfa, tuple(values), outcome))

    def _check_conditions(self, schema: dict[str, Any], pointer: str) -> None:
        for one in conditions(schema):
            for word in ("properties", "patternProperties"):
                if not isinstance(one.get(word, {}), dict):
                    self.c.fail(pointer, word, f"must be an object of schemas, not {one[word]!r:.60}")
            for pattern in one.get("patternProperties", {}):
                if not isinstance(pattern, str):
                    self.c.fail(pointer, "patternProperties", f"must be a regular expression, not {pattern!r:.60}")

    def _conjunction(self, asked: Sequence[tuple[str, Schema]], pointer: str) -> int:
        """The node of the values that satisfy all of these schemas."""
        if not asked:
            return self.c.any_value()
        if len(asked) == 1:
            return self.c.value(asked[0][1], pointer + asked[0][0])
        return self.c.value({"allOf": [schema for _, schema in asked]}, pointer + asked[0][0])

    def _key_fsm(self, pattern: str, pointer: str) -> ByteFSM:
        with self.c.scalar_errors(pointer, "patternProperties"):
            try:
                return self.c.pattern_fsm(pattern, anchored=False)
            except EmptyLanguage:
                return NOTHING
        raise AssertionError  # the errors above are raised on

    def _legal_names(self, schema: Schema, pointer: str) -> tuple[list[str] | None, ByteFSM | None]:
        """The names that a schema lists, as good as declared, so that none comes twice; or the automaton of the keys.

        The keys are written as declared ones are. Neither: no name is legal.
        """
        try:
            flat = self.c.flat(schema, f"{pointer}/propertyNames")
            among = constants(flat)
            if among is not None:
                return [name for name in among if isinstance(name, str) and holds(flat, name, self.c)], None
            with self.c.scalar_errors(pointer, "propertyNames"):
                return None, intersect(self.c.string_fsm(flat, f"{pointer}/propertyNames"), self._plain_key_fsm())
        except Impossible:
            return [], None
        except (UnsupportedSchemaError, CannotTell) as error:
            message = error.message if isinstance(error, UnsupportedSchemaError) else str(error)
            raise UnsupportedSchemaError(message, tool=self.c.tool, pointer=pointer, keyword="propertyNames") from error
        raise AssertionError  # the errors above are raised on

    def _plain_key_fsm(self) -> ByteFSM:
        return byte_fsm(_PLAIN_KEY if self.c.style == "json" else f"(?:{_PLAIN_KEY}|{_PLAIN_PYTHON_KEY})")

    def _is_key(self, name: str, keys: ByteFSM) -> bool:
        return keys.matches(json.dumps(name, ensure_ascii=False).encode())

    def _check_name(self, name: Any, pointer: str, keyword: str) -> None:
        try:
            name.encode()
        except (AttributeError, UnicodeEncodeError):
            self.c.fail(pointer, keyword, f"{name!r:.60} is no name of a property: it must be valid Unicode")

    def key(self, name: str) -> list[bytes]:
        if self.c.style == "json":
            return spellings(name)
        single = "'" + name.translate(_SINGLE_QUOTED) + "'"
        return sorted({*spellings(name), repr(name).encode(), *([single.encode()] if "'" not in name else [])})

    def _plain_key_dfa(self) -> _core.Dfa:
        """Keys beside declared properties."""
        return regex_dfa(_PLAIN_KEY if self.c.style == "json" else f"(?:{_PLAIN_KEY}|{_PLAIN_PYTHON_KEY})")
