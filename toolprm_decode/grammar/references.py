"""References of a schema with subschemas that have an identity of their own, as pointers from its root.

`$id` inside a document changes what relative references and anchors mean below it, and `$dynamicRef` depends on how it
was reached. Such documents, which are rare, are rewritten once before they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from toolprm_decode.grammar.merging import Schema
from toolprm_decode.grammar.objects import escaped

__all__ = ["localised", "needs_localising"]

_VALUES = frozenset({"enum", "const", "default", "examples", "example"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_SINGLE = frozenset(
    {
        *("items", "additionalItems", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else"),
        *("unevaluatedProperties", "unevaluatedItems", "contentSchema"),
    }
)


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas right inside one, each with its pointer from there."""
    for word, value in schema.items():
        if word in _NAMED and isinstance(value, dict):
            for name, member in value.items():
                if isinstance(name, str):
                    part = escaped(name).replace("%", "%25")
                    yield f"/{word}/{part}", member
        elif word in _LISTED and isinstance(value, list):
            for index, member in enumerate(value):
                yield f"/{word}/{index}", member
        elif word in _SINGLE:
            yield f"/{word}", value


def needs_localising(root: Schema) -> bool:
    """Whether a document has identities below its root, or dynamic references."""
    open_: list[Any] = [root]
    for here in open_:  # this runs for every schema, so plainly
        if isinstance(here, dict):
            if "$dynamicRef" in here or "$recursiveRef" in here:
                return True
            if "$id" in here and here is not root and isinstance(here["$id"], str):
                return True
            here = here.values()
        for value in here:
            if type(value) is not str and isinstance(value, (dict, list)):  # most are strings
                open_.append(value)
    return False


def localised(root: dict[str, Any]) -> dict[str, Any]:
    """A copy of the document in which every reference that leads inside it is a pointer from its root.

    What leads elsewhere, or depends on how it is reached, stays as it is.
    """
    return _Document(root).rewritten(root)


class _Document:
    def __init__(self, root: dict[str, Any]):
        # Up to draft 7 a reference overrides what stands beside it; of that only the identity matters here.
        self.old = (
            re.search(r"draft-0[3-7]/", str(root.get("$schema", "draft-07/" * ("definitions" in root)))) is not None
        )
        self.base: dict[int, str] = {}  # by id of a schema
        self.at: dict[str, str] = {"": ""}  # pointers of resources and anchors, by URI
        self.dynamic: dict[str, list[str]] = {}  # URIs of dynamic anchors, by name
        open_: list[tuple[Any, str, str]] = [(root, "", "")]
        while open_:
            schema, pointer, base = open_.pop()
            if not isinstance(schema, dict):
                continue
            own = schema.get("$id")
            if isinstance(own, str) and not (self.old and "$ref" in schema):
                if own.startswith("#"):  # draft 7's anchors; urljoin() would drop them from a URN
                    self.at.setdefault(base + own, pointer)
                else:
                    base = urldefrag(urljoin(base, own)).url
                    self.at.setdefault(base, pointer)
            self.base[id(schema)] = base
            for word in ("$anchor", "$dynamicAnchor"):
                name = schema.get(word)
                if isinstance(name, str):
                    self.at.setdefault(f"{base}#{name}", pointer)
                    if word == "$dynamicAnchor":
                        self.dynamic.setdefault(name, []).append(f"{base}#{name}")
            open_.extend((member, pointer + at, base) for at, member in subschemas(schema))
        self.root_base = self.base[id(root)]

    def rewritten(self, schema: Any) -> Any:
        """The copy of a schema. Only what subschemas() knows as schemas is looked into."""
        if not isinstance(schema, dict):
            return schema
        copy: dict[str, Any] = {}
        for word, value in schema.items():
            if word in _NAMED and isinstance(value, dict):
                copy[word] = {name: self.rewritten(member) for name, member in value.items()}
            elif word in _LISTED and isinstance(value, list):
                copy[word] = [self.rewritten(member) for member in value]
            elif word in _SINGLE:
                copy[word] = self.rewritten(value)
            else:
                copy[word] = value
        for word in ("$ref", "$dynamicRef"):
            if isinstance(schema.get(word), str) and (found := self.target(schema, word)) is not None:
                if word != "$ref" and "$ref" in copy:
                    copy["allOf"] = [*copy.get("allOf", ()), {"$ref": f"#{found}"}]
                else:
                    copy["$ref"] = f"#{found}"
                if word != "$ref":
                    del copy[word]
        copy.pop("$id", None)
        for word in ("$anchor", "$dynamicAnchor"):
            copy.pop(word, None)
        return copy

    def target(self, schema: dict[str, Any], word: str) -> str | None:
        """The pointer that a reference leads to, or None."""
        uri = urljoin(self.base.get(id(schema), ""), schema[word])
        if schema[word].startswith("#"):  # urljoin() drops the fragment of an opaque base such as a URN
            uri = self.base.get(id(schema), "") + schema[word]
        resource, fragment = urldefrag(uri)
        fragment = unquote(fragment)
        if word == "$dynamicRef" and f"{resource}#{fragment}" in self.dynamic.get(fragment, ()):
            # The outermost resource on the way here that has such an anchor; the way always begins at the root.
            candidates = self.dynamic[fragment]
            if f"{self.root_base}#{fragment}" in candidates:
                return self.at[f"{self.root_base}#{fragment}"]
            return self.at[candidates[0]] if len(candidates) == 1 else None
        if fragment and not fragment.startswith("/"):
            return self.at.get(f"{resource}#{fragment}")
        pointer = self.at.get(resource)
        if pointer is None:
            return None
        # A pointer that crosses another identity still leads to the same place of the document.
        return pointer + urldefrag(uri).fragment
