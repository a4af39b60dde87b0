"""Reads JSON Schema (draft 2020-12 and 7, as tools use them) and builds the nodes of the compiled grammar.

Scalars become byte automata; objects, arrays, unions, references and free values nodes of the pushdown automaton.
Every keyword is enforced, or it is an annotation, or it is an error: none is silently ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NoReturn

from toolprm_decode import _core
from toolprm_decode.errors import BudgetExceeded, ToolSchemaError, UnsupportedSchemaError
from toolprm_decode.grammar import scalars
from toolprm_decode.grammar.arrays import read_array
from toolprm_decode.grammar.automata import Impossible, fsm_dfa, regex_dfa, strings_dfa
from toolprm_decode.grammar.checking import TYPES, CannotTell, constants, holds, types_of
from toolprm_decode.grammar.fsm import ByteFSM, EmptyLanguage, byte_fsm, difference, from_strings, intersect, union
from toolprm_decode.grammar.members import ObjectReader, spellings
from toolprm_decode.grammar.merging import (
    MORE,
    NOT,
    CannotMerge,
    Factor,
    Negated,
    Schema,
    Text,
    merge,
    type_of,
)
from toolprm_decode.grammar.negation import REWRITTEN, rewritten
from toolprm_decode.grammar.objects import unescaped
from toolprm_decode.grammar.references import localised, needs_localising
from toolprm_decode.grammar.unevaluated import UNEVALUATED, evaluated

Style = Literal["json", "python"]

MAX_DEPTH = 200  # nested schemas; beyond it Python's own stack is at risk
MAX_DISJOINT = 500  # alternatives of a oneOf: each is compared with each
MAX_WORK = 5_000  # schemas that conjunctions and negations make, beyond those of the root itself
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
_UNSUPPORTED = frozenset({"$dynamicRef", "$recursiveRef"})
# Keywords that flat() takes away.
_FLATTENED = frozenset({"$ref", "allOf", *REWRITTEN, *UNEVALUATED})
_REWRITTEN = frozenset({*REWRITTEN, *UNEVALUATED})
# Formats of numbers and of strings that only annotate.
ANNOTATING_FORMATS = _word_set(
    """
    int8 int16 int32 int64 uint8 uint16 uint32 uint64 float double decimal
    password byte binary string text markdown html
    """
)


_LEAF_TYPES = frozenset({"string", "number", "integer", "boolean", "null"})
_LEAF_WORDS = frozenset({"type", "title", "description", "default", "examples", "example"})
# Words that the readers of types know, and annotations: beside these alone nothing has to be followed or rewritten.
_TYPED_WORDS = _LEAF_WORDS | _word_set("properties required additionalProperties items minimum maximum format optional")


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
        nodes: those that the schemas of one grammar share: give all its compilers the same dict.
    """

    Impossible = Impossible

    def __init__(
        self,
        builder: _core.GrammarBuilder,
        root: Schema,
        *,
        tool: str | None = None,
        style: Style = "json",
        flexible: bool = False,
        closed: bool = False,
        nodes: dict[Any, Any] | None = None,
    ):
        self._nodes: dict[Any, Any] = {} if nodes is None else nodes
        self.builder, self.tool, self.style = builder, tool, style
        self.flexible, self.closed = flexible, closed
        self._localised = isinstance(root, dict) and needs_localising(root)
        self.root: Schema = localised(root) if self._localised and isinstance(root, dict) else root
        self._given = root
        # Schemas that were read. Few documents come near the budget, so which of them are the root's own, and count for
        # nothing when they are met first, is looked up only there.
        self._work, self._most_work = 0, MAX_WORK
        self._met: set[int] = set()
        self._counted: list[int] = []
        self._own: set[int] | None = None
        self._flattening: set[int] = set()
        self._objects = ObjectReader(self)
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
        if self._localised and schema is self._given:  # references count from the rewritten root
            schema = self.root
        leaf = self.leaf(schema)
        if leaf is not None:
            return leaf
        options = self._options(schema, pointer, arguments)
        return options[0] if len(options) == 1 else self.builder.choice(options)

    def leaf(self, schema: Schema) -> int | None:
        """The node of a schema that is one type and annotations, as most of a tool's are: it is made once a grammar."""
        if type(schema) is not dict or not schema.keys() <= _LEAF_WORDS:
            return None
        kind = schema.get("type")
        if type(kind) is not str or kind not in _LEAF_TYPES:
            return None
        self._met.add(id(schema))
        if kind not in self._nodes:
            self._nodes[kind] = self._of_type(kind, schema, "", False)
        node: int = self._nodes[kind]
        return node

    def _options(self, schema: Schema, pointer: str, arguments: bool) -> list[int]:
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                self.fail(pointer, None, f"schemas are nested more than {MAX_DEPTH} deep")
            return self._read(schema, pointer, arguments)
        finally:
            self._depth -= 1

    def _count(self, schema: Schema) -> None:
        """Counts a schema that is read, unless it is one of the root's own that was not met before."""
        key = id(schema)
        fresh = key not in self._met
        self._met.add(key)
        if self._own is None:
            self._work += 1
            if fresh:
                self._counted.append(key)
        elif not fresh or key not in self._own:
            self._work += 1

    def _overworked(self) -> bool:
        if self._work > self._most_work and self._own is None:
            self._own, constants = _parts(self.root)
            self._work -= sum(key in self._own for key in self._counted)
            self._most_work += constants
        return self._work > self._most_work

    def _read(self, schema: Schema, pointer: str, arguments: bool) -> list[int]:
        self._count(schema)
        if self._work > self._most_work and self._overworked():
            message = f"alternatives, conjunctions and negations make more than {MAX_WORK} schemas of it"
            raise BudgetExceeded(str(ToolSchemaError(message, tool=self.tool, pointer=pointer)))
        if schema is True or schema == {}:
            return [self.any_object(arguments=True), *self._any_others()] if arguments else [self.any_value()]
        if schema is False:
            raise Impossible("the schema is false: no value is legal", tool=self.tool, pointer=pointer)
        if not isinstance(schema, dict):
            self.fail(pointer, None, f"a schema must be an object or a boolean, not {schema!r:.60}")
        return self._read_words(schema, pointer, arguments)

    def _read_words(self, schema: dict[str, Any], pointer: str, arguments: bool) -> list[int]:
        if schema.keys() <= _TYPED_WORDS:
            return self._typed(schema, pointer, arguments)
        self.check_words(schema, pointer)
        if not _REWRITTEN.isdisjoint(schema):
            return self._shared(self.flat(schema, pointer), pointer, arguments)
        if "$ref" in schema:
            return self._reference(schema, pointer, arguments)
        if "allOf" in schema:
            return self._shared(self.flat(schema, pointer), pointer, arguments)
        if "enum" in schema or "const" in schema:
            return self._enumeration(schema, pointer, arguments)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._union(schema, word, pointer, arguments)
        return self._typed(schema, pointer, arguments)

    def check_words(self, schema: Mapping[Any, Any], pointer: str) -> None:
        # Words outside JSON Schema's vocabulary are annotations by its own rules.
        for word in schema:
            if not isinstance(word, str):
                self.fail(pointer, None, f"a keyword must be a string, not {word!r:.60}")
        if not _UNSUPPORTED.isdisjoint(schema):
            word = min(_UNSUPPORTED.intersection(schema))
            raise UnsupportedSchemaError(
                f"{word} depends on how the schema is reached, which cannot be followed here; use $ref",
                tool=self.tool,
                pointer=pointer,
                keyword=word,
            )

    # ------------------------------------------------------------------ references and combinations

    def _reference(self, schema: dict[str, Any], pointer: str, arguments: bool) -> list[int]:
        target, at = self.resolve(schema["$ref"], pointer)
        self.flat(target, at)  # refuses circles
        if any(word != "$ref" and word not in _ANNOTATIONS for word in schema):
            return self._shared(self.flat(schema, pointer), pointer, arguments)
        return self._rule(at, target, at, arguments)

    def _shared(self, merged: Schema, pointer: str, arguments: bool) -> list[int]:
        """The options of a conjunction. Where it is recursive, the same one is met again inside itself."""
        name = json.dumps(merged, sort_keys=True, default=repr)
        self._work += len(name) // 1_000  # large ones cost more than small ones
        return self._rule(name, merged, pointer, arguments)

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
            self.fail(pointer, "$ref", f"a reference must be a string, not {reference!r:.60}")
        own = self.root.get("$id", self.root.get("id")) if isinstance(self.root, dict) else None
        local = reference.removeprefix(own) if isinstance(own, str) and own else reference
        if local in ("", "#"):
            return self.root, ""
        if local.startswith("#/"):
            found: Any = self.root
            for part in local[2:].split("/"):
                part = unescaped(part)
                if isinstance(found, dict) and part in found:
                    found = found[part]
                elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
                    found = found[int(part)]
                else:
                    self.fail(pointer, "$ref", f"{reference!r} leads nowhere: there is no {part!r}")
            if not isinstance(found, (dict, bool)):
                self.fail(pointer, "$ref", f"{reference!r} does not lead to a schema")
            return found, local[1:]
        anchored = _anchored(self.root, local.removeprefix("#"))
        if len(anchored) > 1:
            self.fail(pointer, "$ref", f"{reference!r} may be any of {len(anchored)} subschemas")
        if not anchored:
            message = f"{reference!r} leads nowhere: only references inside the schema are followed"
            self.fail(pointer, "$ref", message)
        return anchored[0], local

    def flat(self, schema: Schema, pointer: str = "") -> Schema:
        """The schema without references, conjunctions and the words that negation.py and unevaluated.py rewrite."""
        if not isinstance(schema, dict) or _FLATTENED.isdisjoint(schema):
            return schema
        key = id(schema)
        if key in self._conjunctions:
            return self._conjunctions[key][1]
        if key in self._flattening:
            self.fail(pointer, "$ref", "the reference leads back to itself")
        self._flattening.add(key)
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                self.fail(pointer, "allOf", "nested too deep, or in a circle")
            result = self._flattened(schema, pointer)
        except CannotMerge as error:
            at = pointer if error.pointer is None else error.pointer
            raise UnsupportedSchemaError(str(error), tool=self.tool, pointer=at, keyword=error.keyword) from error
        except UnsupportedSchemaError as error:
            keyword, at = _uniting(schema, pointer)
            if error.keyword != "anyOf" or keyword == "anyOf":
                raise
            raise UnsupportedSchemaError(error.message, tool=self.tool, pointer=at, keyword=keyword) from error
        except (AttributeError, TypeError) as error:
            self.fail(pointer, None, f"a keyword has a value of the wrong kind: {error}")
        finally:
            self._depth -= 1
            self._flattening.discard(key)
        self._conjunctions[key] = (schema, result)
        return result

    def _flattened(self, schema: dict[str, Any], pointer: str) -> Schema:
        if any(word in schema for word in UNEVALUATED):
            return self.flat(evaluated(schema, pointer, lambda to: self.resolve(to, pointer)[0]), pointer)
        if "$ref" in schema:
            target, at = self.resolve(schema["$ref"], pointer)
            siblings = {k: v for k, v in schema.items() if k != "$ref" and k not in _ANNOTATIONS}
            found = self.flat(target, at)
            return self._merged(self.flat(siblings, pointer), found, pointer) if siblings else found
        if not REWRITTEN.isdisjoint(schema):
            changed = rewritten(schema, pointer, ANNOTATING_FORMATS, self.resolve)
            return self.flat(changed, pointer)
        members = schema["allOf"]
        if not isinstance(members, list) or not members:
            self.fail(pointer, "allOf", "must be a list of at least one schema")
        result: Schema = {k: v for k, v in schema.items() if k != "allOf"}
        for index, member in enumerate(members):
            at = f"{pointer}/allOf/{index}"
            if not isinstance(member, (dict, bool)):
                self.fail(at, None, f"a schema must be an object or a boolean, not {member!r:.60}")
            if isinstance(member, dict):
                self.check_words(member, at)
            result = self._merged(result, self.flat(member, at), pointer)
        return result

    def _merged(self, a: Schema, b: Schema, pointer: str) -> Schema:
        try:
            return merge(a, b, closed=self.closed)
        except CannotMerge as error:
            raise UnsupportedSchemaError(str(error), tool=self.tool, pointer=pointer, keyword=error.keyword) from error
        except (AttributeError, TypeError) as error:
            self.fail(pointer, None, f"a keyword has a value of the wrong kind: {error}")

    def _union(self, schema: dict[str, Any], word: str, pointer: str, arguments: bool) -> list[int]:
        members = schema[word]
        if not isinstance(members, list) or not members:
            self.fail(pointer, word, "must be a list of at least one schema")
        base = {k: v for k, v in schema.items() if k != word and k not in _ANNOTATIONS}
        for index, member in enumerate(members):
            if not isinstance(member, (dict, bool)):
                at = f"{pointer}/{word}/{index}"
                self.fail(at, None, f"a schema must be an object or a boolean, not {member!r:.60}")
        if word == "oneOf" and len(members) > 1:
            members, base = self._exclusive(members, base, pointer), {}
        self._check_count(members, word, pointer)
        options: list[int] = []
        impossible: Impossible | None = None
        for index, member in enumerate(members):
            at = f"{pointer}/{word}/{index}"
            try:
                if base:
                    options += self._shared(self._merged(base, self.flat(member, at), pointer), at, arguments)
                else:
                    options += self._options(member, at, arguments)
            except Impossible as error:
                impossible = error
            self._check_count(options, word, pointer)
        if not options and word == "oneOf":
            self.impossible("no alternative is possible without another", pointer, word)
        if not options:
            raise impossible or Impossible("no alternative is possible", tool=self.tool, pointer=pointer, keyword=word)
        return list(dict.fromkeys(options))  # the same reference twice is one way to read a text, not two

    def _check_count(self, options: Sequence[Any], word: str, pointer: str) -> None:
        if len(options) > MAX_ALTERNATIVES:
            raise self.over_budget(f"more than {MAX_ALTERNATIVES} alternatives", word, pointer)

    def over_budget(self, message: str, keyword: str, pointer: str) -> BudgetExceeded:
        return BudgetExceeded(str(ToolSchemaError(message, tool=self.tool, pointer=pointer, keyword=keyword)))

    def _exclusive(self, members: Sequence[Schema], base: dict[str, Any], pointer: str) -> list[Schema]:
        """The alternatives of a oneOf, each without what others hold for too where they are not known to be apart."""
        if len(members) > MAX_DISJOINT:
            raise self.over_budget(f"more than {MAX_DISJOINT} alternatives; use anyOf", "oneOf", pointer)
        flat = [self.flat(member, f"{pointer}/oneOf/{index}") for index, member in enumerate(members)]
        if base:
            flat = [self._merged(base, member, pointer) for member in flat]
        exclusive: list[Schema] = []
        apart: dict[tuple[int, int], bool] = {}
        for i, a in enumerate(flat):
            others: list[Schema] = []
            for j, b in enumerate(flat):
                key = (min(i, j), max(i, j))
                if i != j and key not in apart:
                    apart[key] = self._disjoint(a, b, pointer)
                if i != j and not apart[key]:
                    others.append(b)
            if others:
                no = tuple(Negated(other, "oneOf", pointer) for other in others)
                exclusive.append({"allOf": [a, {NOT: no}]})
            else:
                exclusive.append(a if base else members[i])
        return exclusive

    def _disjoint(self, a: Schema, b: Schema, pointer: str) -> bool:
        """Whether it is certain that no value satisfies both: as far as can be told by looking, or by trying."""
        if _apart(a, b, self):
            return True
        kept = self.builder, self._nodes, self._rules, self._impossible, self._any
        self.builder, self._any = _core.GrammarBuilder(100_000), None
        self._nodes, self._rules, self._impossible = {}, {}, {}
        try:
            self.value(self._merged(a, b, pointer), pointer)
        except Impossible:
            return True
        except (ToolSchemaError, BudgetExceeded, _core.BudgetError):
            if self._overworked():
                raise
        finally:
            self.builder, self._nodes, self._rules, self._impossible, self._any = kept
        return False

    def possible(self, schema: Schema, pointer: str) -> int | None:
        """The node of the values of a schema, or None where it has none."""
        try:
            return self.value(schema, pointer)
        except Impossible:
            return None

    # ------------------------------------------------------------------ enumerations

    def _enumeration(self, schema: dict[str, Any], pointer: str, arguments: bool) -> list[int]:
        word = "enum" if "enum" in schema else "const"
        values = schema["enum"] if word == "enum" else [schema["const"]]
        if not isinstance(values, list):
            self.fail(pointer, "enum", f"must be a list of values, not {values!r:.60}")
        if not values:
            self.impossible("has no values", pointer, "enum")
        values = self._valid(values, schema, word, pointer)
        options: list[int] = []
        numbers, others = set[bytes](), set[bytes]()
        for value in values:
            if isinstance(value, str):
                others.update(self.written(value, word, pointer))
                continue
            if isinstance(value, list):  # members may be written in any order, and white space be flexible
                items = [{"const": item} for item in value]
                exact: Schema = {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
                options += self._options(exact, pointer, False)
            elif isinstance(value, dict):
                members = {name: {"const": member} for name, member in value.items()}
                closed = {"type": "object", "properties": members, "additionalProperties": False}
                options += self._options({**closed, "required": list(members)}, pointer, arguments)
            else:
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                (numbers if is_number else others).update(self.written(value, word, pointer))
            self._check_count(options, word, pointer)
        # Numbers end with the byte after them, everything else with its own last one: two automata.
        return options + [
            self.builder.scalar(strings_dfa(tuple(sorted(texts)))) for texts in (others, numbers) if texts
        ]

    def _valid(self, values: list[Any], schema: dict[str, Any], word: str, pointer: str) -> list[Any]:
        """Those of the values that fit the other keywords of their schema."""
        rest = {k: v for k, v in schema.items() if k != word and k not in _ANNOTATIONS}
        if not rest:
            return values
        if rest.keys() == {"type"}:
            types = {*self._type_names(rest, pointer)}
            types |= {"integer"} if "number" in types else set()
            return self._some([value for value in values if type_of(value) in types], rest, word, pointer)
        rest.pop("format", None)  # the listed values are what their author wants
        try:
            return self._some([value for value in values if holds(rest, value, self)], rest, word, pointer)
        except CannotTell as error:
            raise UnsupportedSchemaError(str(error), tool=self.tool, pointer=pointer, keyword=error.keyword) from error
        except ToolSchemaError:
            raise
        except (AttributeError, TypeError, ValueError) as error:  # keywords are not looked at before they are used
            self.fail(pointer, word, f"its values cannot be checked against the keywords beside it: {error!s:.200}")

    def _some(self, values: list[Any], rest: dict[str, Any], word: str, pointer: str) -> list[Any]:
        if values:
            return values
        message = f"none of its values fits the other keywords ({', '.join(sorted(rest))})"
        raise Impossible(message, tool=self.tool, pointer=pointer, keyword=word)

    def written(self, value: Any, word: str, pointer: str) -> set[bytes]:
        """The ways to write a value that is neither a list nor an object."""
        try:
            if isinstance(value, str):
                return {*spellings(value), repr(value).encode()} if self.style == "python" else {*spellings(value)}
            texts = {json.dumps(value, ensure_ascii=a, allow_nan=False) for a in (True, False)}
            if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
                texts.add(str(int(value)))
            elif isinstance(value, int) and not isinstance(value, bool):
                texts.add(f"{value}.0")
            if self.style == "python":
                texts.add(repr(value))
            return {text.encode() for text in texts}
        except (TypeError, ValueError) as error:
            self.fail(pointer, word, f"{value!r:.60} cannot be written as JSON: {error}")

    # ------------------------------------------------------------------ types

    def _typed(self, schema: dict[str, Any], pointer: str, arguments: bool) -> list[int]:
        types = self._type_names(schema, pointer)
        if "number" in types and "integer" in types:
            types = [t for t in types if t != "integer"]
        if len(types) == 1:
            return [self._of_type(types[0], schema, pointer, arguments)]
        options: list[int] = []
        impossible: Impossible | None = None
        for name in dict.fromkeys(types):
            try:
                options.append(self._of_type(name, schema, pointer, arguments))
            except Impossible as error:
                impossible = error
        if impossible and not options:
            raise impossible
        return options

    def _of_type(self, name: str, schema: dict[str, Any], pointer: str, arguments: bool) -> int:
        if name == "object":
            return self._objects.read(schema, pointer, arguments)
        if name == "array":
            return read_array(self, schema, pointer)
        if name == "string":
            return self._string(schema, pointer)
        if name in ("number", "integer"):
            return self._number(schema, pointer, integers=name == "integer")
        words = ("true", "false", "True", "False") if name == "boolean" else ("null", "None")
        return self.builder.scalar(self._words(*words))

    def _type_names(self, schema: Mapping[str, Any], pointer: str) -> list[str]:
        types = schema["type"] if "type" in schema else list(TYPES)
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not types:
            self.fail(pointer, "type", f"must be a type or a list of types, not {types!r:.60}")
        for name in types:
            if name not in TYPES:
                self.fail(pointer, "type", f"unknown type {name!r:.60}: use one of {', '.join(TYPES)}")
        return [*types, "null"] if schema.get("nullable") is True and "type" in schema else types

    def _words(self, *words: str) -> _core.Dfa:
        kept = [w for w in words if self.style == "python" or w[0].islower()]
        return strings_dfa(tuple(w.encode() for w in kept))

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
            b.array(*self.brackets("[", "]"), [], item),
            b.scalar(self.string_dfa()),
            b.scalar(regex_dfa(scalars.number())),
            b.scalar(words),
        ]

    def any_object(self, *, arguments: bool = False) -> int:
        """The node of any JSON object."""
        return self.builder.object(
            *self.brackets("{", "}"),
            [],
            other_key=self.string_dfa(),
            other_value=self.member(self.any_value()),
            arguments=arguments,
        )

    def string_dfa(self) -> _core.Dfa:
        return regex_dfa(scalars.STRING if self.style == "json" else f"(?:{scalars.PY_STRING}|{scalars.STRING})")

    def brackets(self, open: str, close: str) -> tuple[int, int, int]:
        if (open, close) not in self._nodes:
            b = self.builder
            made = b.literal(open.encode()), b.literal(b"," if self.flexible else b", "), b.literal(close.encode())
            if self.flexible:
                space = b.space()
                made = b.sequence([made[0], space]), b.sequence([space, made[1], space]), b.sequence([space, made[2]])
            self._nodes[open, close] = made
        found: tuple[int, int, int] = self._nodes[open, close]
        return found

    def member(self, value: int) -> int:
        key = ("member", value)
        if key not in self._nodes:
            b = self.builder
            colon = [b.space(), b.literal(b":"), b.space()] if self.flexible else [b.literal(b": ")]
            self._nodes[key] = b.sequence([*colon, value])
        node: int = self._nodes[key]
        return node

    def keywords(self, schema: Schema) -> int:
        """The node of what follows `name(` in a Pythonic call: the properties of the schema as name=value, and `)`."""
        return self._objects.keywords(schema)

    # ------------------------------------------------------------------ counts

    def bounds(self, schema: Mapping[str, Any], low: str, high: str, pointer: str) -> tuple[int, int | None]:
        if low not in schema and high not in schema:
            return 0, None
        for word in (low, high):
            bound = schema.get(word)
            whole = isinstance(bound, int) and not isinstance(bound, bool)
            whole = whole or (isinstance(bound, float) and bound.is_integer())
            if bound is not None and (not whole or not 0 <= bound <= 2**31):
                self.fail(pointer, word, f"must be a count (0 or more), not {bound!r:.60}")
        least, most = int(schema.get(low) or 0), schema.get(high)
        if most is not None and least > most:
            raise Impossible(
                f"contradicts {high}: at least {least}, at most {most}", tool=self.tool, pointer=pointer, keyword=low
            )
        return least, None if most is None else int(most)

    def impossible(self, message: str, pointer: str, keyword: str | None) -> NoReturn:
        """Raises Impossible."""
        raise Impossible(message, tool=self.tool, pointer=pointer, keyword=keyword)

    # ------------------------------------------------------------------ scalars

    def _string(self, schema: dict[str, Any], pointer: str) -> int:
        low, high = self.bounds(schema, "minLength", "maxLength", pointer)
        patterns = self._patterns(schema, pointer)
        counted = low > 0 or high is not None
        if not patterns and not counted:
            return self.builder.scalar(self.string_dfa())
        b = self.builder
        if not patterns:  # counting needs no automaton of its own
            texts = [
                b.sequence([b.literal(q.encode()), b.repeat(regex_dfa(c), low, high), b.literal(q.encode())])
                for q, c in self._chars().items()
            ]
            return texts[0] if len(texts) == 1 else b.choice(texts)
        return self.builder.scalar(fsm_dfa(self._text(schema, low, high, pointer)))

    def _text(self, schema: Mapping[str, Any], low: int, high: int | None, pointer: str) -> ByteFSM:
        """The automaton of the strings of some lengths with the schema's patterns."""
        fsm: ByteFSM | None = None
        parts: list[tuple[str, Callable[[], ByteFSM]]] = []
        unwanted: list[tuple[str, Text]] = []
        for word, text in self._patterns(schema, pointer):
            if text.wanted:
                parts.append((word, partial(self._wanted, text)))
            else:
                unwanted.append((word, text))
        if low > 0 or high is not None:
            word = "minLength" if high is None else "maxLength"
            parts.append((word, partial(byte_fsm, self._any_text(f"{{{low},{'' if high is None else high}}}"))))
        elif not parts:
            parts.append(("type", partial(byte_fsm, self._any_text("*"))))
        for word, make in parts:
            with self.scalar_errors(pointer, word):
                part = make()
                fsm = part if fsm is None else intersect(fsm, part)
        assert fsm is not None
        self._work += 5 * len(unwanted)  # as much time as so many schemas
        for word, text in unwanted:
            with self.scalar_errors(pointer, word):
                try:
                    part = self._wanted(text, escapes="all")
                except EmptyLanguage:
                    continue
                fsm = difference(fsm, part)
        return fsm

    def _any_text(self, count: str) -> str:
        return "|".join(f"{quote}(?:{char}){count}{quote}" for quote, char in self._chars().items())

    def _chars(self) -> dict[str, str]:
        """The regex of one character of a string, by its quote."""
        char = scalars.string_char('"', "json")
        if self.style == "json":
            return {'"': char}
        return {
            '"': f"(?:{char}|{scalars.string_char(chr(34), 'python')})",
            "'": scalars.string_char("'", "python"),
        }

    def _patterns(self, schema: Mapping[str, Any], pointer: str) -> list[tuple[str, Text]]:
        found: list[tuple[str, Text]] = []
        given = schema.get("pattern", [])
        for pattern in given if isinstance(given, list) else [given]:  # a list: conditions that were merged
            if isinstance(pattern, Text):
                found.append(("format" if pattern.kind == "format" else "pattern", pattern))
            elif isinstance(pattern, str):
                found.append(("pattern", Text("pattern", pattern)))
            else:
                self.fail(pointer, "pattern", f"must be a regular expression, not {pattern!r:.60}")
        name = schema.get("format")
        if name is not None and not isinstance(name, str):
            self.fail(pointer, "format", f"must be the name of a format, not {name!r:.60}")
        if name:
            found.append(("format", Text("format", name)))
        return [(word, text) for word, text in found if text.kind != "format" or _format(text.value) is not None]

    def text_fsm(self, text: Text) -> ByteFSM | None:
        """The automaton of the strings that satisfy a condition, or do not where it is not wanted; None: any do."""
        if text.kind == "format" and _format(text.value) is None:
            return None
        return self._wanted(text)

    def _wanted(self, text: Text, escapes: scalars.Escapes = "needed") -> ByteFSM:
        if text.kind == "one of":
            return self.pattern_fsm("|".join(map(_literal, text.value)), anchored=True, escapes=escapes)
        if text.kind == "format":
            regex = _format(text.value, wanted=text.wanted) or ""
            return self.pattern_fsm(regex, anchored=True, escapes=escapes)
        return self.pattern_fsm(text.value, anchored=False, escapes=escapes)

    def string_fsm(self, schema: Schema, pointer: str) -> ByteFSM:
        """The automaton of the strings that satisfy a schema. Raises as value(), Impossible where there are none."""
        schema = self.flat(schema, pointer)
        if schema is False or "string" not in types_of(schema):
            self.impossible("no string satisfies it", pointer, "type")
        if not isinstance(schema, dict):
            schema = {}
        for word in ("anyOf", "oneOf"):
            if word in schema:
                base = {k: v for k, v in schema.items() if k != word and k not in _ANNOTATIONS}
                members = self._exclusive(schema[word], base, pointer) if word == "oneOf" else schema[word]
                found: ByteFSM | None = None
                for index, member in enumerate(members):
                    with suppress(Impossible):
                        both = self._merged(base, self.flat(member, pointer), pointer) if word == "anyOf" else member
                        part = self.string_fsm(both, f"{pointer}/{word}/{index}")
                        found = part if found is None else union(found, part)
                if found is None:
                    self.impossible("no string satisfies it", pointer, word)
                return found
        values = constants(schema)
        if values is not None:
            rest = {k: v for k, v in schema.items() if k not in ("enum", "format")}
            strings = [v for v in values if isinstance(v, str) and holds(rest, v, self)]
            with self.scalar_errors(pointer, "enum"):
                return from_strings(spelling for text in strings for spelling in self._objects.key(text))
        low, high = self.bounds(schema, "minLength", "maxLength", pointer)
        return self._text(schema, low, high, pointer)

    def pattern_fsm(self, pattern: str, *, anchored: bool, escapes: scalars.Escapes = "needed") -> ByteFSM:
        fsm = scalars.pattern_fsm(pattern, style="json", anchored=anchored, escapes=escapes)
        if self.style == "json":
            return fsm
        return union(fsm, scalars.pattern_fsm(pattern, style="python", anchored=anchored, escapes=escapes))

    def _number(self, schema: dict[str, Any], pointer: str, *, integers: bool) -> int:
        words = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        bounds = [schema.get(word) for word in words]
        if isinstance(bounds[2], bool):  # draft 4: a flag beside the bound
            bounds[0], bounds[2] = (None, bounds[0]) if bounds[2] else (bounds[0], None)
        if isinstance(bounds[3], bool):
            bounds[1], bounds[3] = (None, bounds[1]) if bounds[3] else (bounds[1], None)
        given = schema.get("multipleOf", [])
        factors = [f if isinstance(f, Factor) else Factor(f) for f in (given if isinstance(given, list) else [given])]
        named = [("multipleOf", factor.value) for factor in factors]
        for word, bound in [*zip(words, bounds, strict=True), *named]:
            if bound is not None and (
                isinstance(bound, bool) or not isinstance(bound, (int, float)) or not math.isfinite(bound)
            ):
                self.fail(pointer, word, f"must be a number, not {bound!r:.60}")
            if word == "multipleOf" and (bound is None or bound <= 0):
                self.fail(pointer, "multipleOf", f"must be above zero, not {bound!r}")
        used = [word for word, bound in zip(words, bounds, strict=True) if bound is not None]
        with self.scalar_errors(pointer, "multipleOf" if factors else used[0] if used else None):
            regex = scalars.integer(*bounds) if integers else scalars.number(*bounds)
            if not factors or (integers and factors == [Factor(1)]):
                return self.builder.scalar(regex_dfa(regex))
            fsm: ByteFSM | None = None
            for factor in factors:
                if factor.wanted:
                    multiples = scalars.multiple_of(factor.value, *bounds, integers=integers)
                    fsm = multiples if fsm is None else intersect(fsm, multiples)
            if fsm is None:  # in decimal notation, as multiples are, so that none of them is another spelling of one
                fsm = intersect(byte_fsm(regex), byte_fsm("-?[0-9.]+"))
            for factor in factors:
                if not factor.wanted:
                    fsm = difference(fsm, scalars.multiple_of(factor.value))
            return self.builder.scalar(fsm_dfa(fsm))

    def scalar_errors(self, pointer: str, keyword: str | None) -> _ScalarErrors:
        return _ScalarErrors(self.tool, pointer, keyword)

    def fail(self, pointer: str, keyword: str | None, message: str) -> NoReturn:
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


def _parts(root: Schema) -> tuple[set[int], int]:
    """The identities of all objects of a schema, subschemas among them, and the number of values in its constants."""
    found, constants = set[int](), 0
    open_: list[tuple[Any, bool]] = [(root, False)]
    for here, constant in open_:
        constants += constant
        if isinstance(here, dict) and id(here) not in found:
            found.add(id(here))
            open_.extend((value, constant or word in ("enum", "const")) for word, value in here.items())
        elif isinstance(here, list):
            open_.extend((value, constant) for value in here)
    return found, constants


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


_SYNTAX = re.compile(r"[\^$\\.*+?()\[\]{}|/]")


def _literal(text: str) -> str:
    """The pattern of exactly this text."""
    return _SYNTAX.sub(lambda found: "\\" + found.group(), text)


def _uniting(schema: dict[str, Any], pointer: str) -> tuple[str, str]:
    """The keyword that was rewritten as the unions of which a conjunction has too many, and where it is."""
    for one in (schema, *(schema["allOf"] if isinstance(schema.get("allOf"), list) else ())):
        if isinstance(one, dict) and "anyOf" not in one:
            if NOT in one:
                return one[NOT][0].keyword, one[NOT][0].pointer
            if words := sorted(_REWRITTEN.intersection(one)):
                return words[0], pointer
    return "anyOf", pointer


def _format(name: Any, *, wanted: bool = True) -> str | None:
    """The regex of a format that asks for anything."""
    return (
        scalars.string_format(name, wanted=wanted) if isinstance(name, str) and name not in ANNOTATING_FORMATS else None
    )


def _apart(a: Schema, b: Schema, compiler: SchemaCompiler, depth: int = 0) -> bool:
    """Whether it is plain to see that no value satisfies both."""
    if not types_of(a) & types_of(b):
        return True
    for x, y in ((a, b), (b, a)):
        values = constants(x)
        if values is not None:
            try:
                return not any(holds(y, value, compiler) for value in values if holds(x, value, compiler))
            except (CannotTell, ToolSchemaError, AttributeError, TypeError, ValueError):
                return False
    if not isinstance(a, dict) or not isinstance(b, dict) or types_of(a) & types_of(b) != {"object"} or depth > 3:
        return False
    mine, other = a.get("properties", {}), b.get("properties", {})
    if not isinstance(mine, dict) or not isinstance(other, dict):
        return False
    flat = compiler.flat
    required = set(a.get("required", [])) & set(b.get("required", []))
    if any(n in mine and n in other and _apart(flat(mine[n]), flat(other[n]), compiler, depth + 1) for n in required):
        return True
    # One requires what the other does not allow.
    for x, y in ((a, b), (b, a)):
        if y.get("additionalProperties") is False and "patternProperties" not in y and MORE not in y:
            if set(x.get("required", [])) - set(y.get("properties", {})):
                return True
    return False
