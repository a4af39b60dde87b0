"""Leaving out of a schema what cannot be enforced, so that nothing that satisfies the schema is refused for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from toolprm_decode.errors import ToolSchemaError, UnsupportedSchemaError
from toolprm_decode.grammar.merging import Schema
from toolprm_decode.grammar.objects import escaped, unescaped

__all__ = ["SchemaWarning", "leaving_out"]

_MOST = 500  # keywords left out of one schema

_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
# Below these words less of a condition may ask for more of the value.
_TURNED = ("not", "if", "contains", "dependentSchemas", "dependencies")
# These tell which members are left for the words beside them that deal with all others.
_TELLING = frozenset(
    {
        *("patternProperties", "$dynamicRef", "$ref", "allOf", "anyOf", "oneOf", "if", "contains", "dependentSchemas"),
        *("dependencies", "additionalProperties", "items", "prefixItems"),
    }
)
_UNITED = (
    "not",
    "if",
    "oneOf",
    "dependentSchemas",
    "dependentRequired",
    "dependencies",
    *_UNEVALUATED,
    "anyOf",
    "allOf",
)
_OTHERS = ("additionalProperties", *_UNEVALUATED)


@dataclass(frozen=True)
class SchemaWarning:
    """A keyword that is not enforced, because no grammar can, or this one cannot.

    Attributes:
        tool: the tool's name, or None.
        pointer: JSON pointer of the schema that has the keyword.
        keyword: the keyword that was left out.
        message: why.
    """

    tool: str | None
    pointer: str
    keyword: str
    message: str

    def __str__(self) -> str:
        return str(ToolSchemaError(self.message, tool=self.tool, pointer=self.pointer, keyword=self.keyword))


_Built = TypeVar("_Built")
_Path = tuple[Any, ...]


def leaving_out(build: Callable[[Any], _Built], schema: Schema) -> tuple[_Built, list[SchemaWarning]]:
    """What `build` makes of the schema, or of as much of it as it does not refuse with UnsupportedSchemaError."""
    warnings: list[SchemaWarning] = []
    while True:
        try:
            return build(schema), warnings
        except UnsupportedSchemaError as error:
            path = _place(schema, error.pointer, error.keyword or "")
            if path is None or len(warnings) > _MOST:
                raise
            for at in _with_what_depends(schema, path):
                pointer = "".join(f"/{escaped(str(part))}" for part in at[:-1])
                warnings.append(SchemaWarning(error.tool, pointer, at[-1], error.message))
                schema = _without(schema, at)


def _place(schema: Any, pointer: str, keyword: str) -> _Path | None:
    """The path of the keyword to leave out: the one at the pointer, or what brought it there by merging."""
    here: Any = schema
    path: list[Any] = []
    trail: list[tuple[_Path, Any]] = [((), schema)]
    for part in pointer.split("/")[1:]:
        part = unescaped(part)
        if isinstance(here, dict) and part in here:
            here = here[part]
            path.append(part)
        elif isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
            path.append(int(part))
        else:
            break
        trail.append((tuple(path), here))
    for at, found in reversed(trail):
        if isinstance(found, dict) and keyword in found:
            return _turned((*at, keyword))
    for word in (keyword, *_UNITED):  # unions multiply: one of what makes them has to go
        for at, found in reversed(trail):
            below = next(_holding(found, word), None)
            if below is not None:
                return _turned((*at, *below))
    return None


def _holding(schema: Any, keyword: str) -> Iterator[_Path]:
    """The paths at which a schema has a keyword."""
    open_: list[tuple[_Path, Any]] = [((), schema)]
    while open_:
        path, here = open_.pop()
        if isinstance(here, dict):
            if keyword in here:
                yield (*path, keyword)
            open_ += [((*path, word), value) for word, value in here.items() if word not in ("enum", "const")]
        elif isinstance(here, list):
            open_ += [((*path, index), value) for index, value in enumerate(here)]


def _turned(path: _Path) -> _Path:
    """The path of the outermost word on the way that turns a condition round, or the path itself."""
    for index, part in enumerate(path):
        named = index and path[index - 1] in ("properties", "patternProperties", "$defs", "definitions")
        if part in _TURNED and not named:
            return path[: index + 1]
    return path


def _with_what_depends(schema: Any, path: _Path) -> list[_Path]:
    """The path, and those of the words that would ask for more without what is there."""
    found = [path]
    here = schema
    for index, part in enumerate(path):
        if isinstance(here, dict):
            if part == "oneOf" and index < len(path) - 1:
                found.append(path[: index + 1])
            last = index == len(path) - 1
            if path[-1] in _TELLING:
                words = _OTHERS if last else _OTHERS[1:]
                found += [(*path[:index], word) for word in words if word in here and word != path[-1]]
        here = here[part]
    return sorted(dict.fromkeys(found), key=len, reverse=True)  # the deepest first: its path must still be there


def _without(schema: Any, path: _Path) -> Any:
    """A copy of the schema without the keyword at the path. Of oneOf it is left that one alternative holds."""
    copy: Any = dict(schema) if isinstance(schema, dict) else list(schema)
    if len(path) > 1:
        copy[path[0]] = _without(copy[path[0]], path[1:])
    elif path[0] == "oneOf":
        members = copy.pop("oneOf")
        if "anyOf" in copy:
            copy["allOf"] = [*copy.get("allOf", ()), {"anyOf": members}]
        else:
            copy["anyOf"] = members
    else:
        del copy[path[0]]
    return copy
