"""BFCL's single-turn questions with their gold calls, and what JSON Schema says of them."""

from __future__ import annotations

import copy
import datetime
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema

from toolprm_decode.tools import Tool, read_tools

Call = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A question: its tools, and the calls that answer it ([] where nothing is known of them)."""

    id: str
    tools: list[Tool]
    calls: list[Call]


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def tool_lists(data_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Every list of tools: one a question, and one a file of the multi-turn functions."""
    found = {}
    for path in sorted((data_dir / "bfcl").glob("BFCL_v4_*.json")):
        found.update({row["id"]: row["function"] for row in lines(path) if "function" in row})
    for path in sorted((data_dir / "bfcl" / "multi_turn_func_doc").glob("*.json")):
        found[path.stem] = lines(path)
    return found


@lru_cache(maxsize=2)
def answered(data_dir: Path) -> list[Entry]:
    """The answered single-turn questions."""
    tools = tool_lists(data_dir)
    entries = []
    for path in sorted((data_dir / "bfcl" / "possible_answer").glob("*.json")):
        for row in lines(path):
            if row["id"] in tools:
                read = read_tools(tools[row["id"]])
                by_name = {tool.name: tool.parameters for tool in read}
                calls = [
                    {"name": name, "arguments": _members(arguments, by_name.get(name, {}))}
                    for gold in row["ground_truth"]
                    for name, arguments in gold.items()
                ]
                entries.append(Entry(row["id"], read, calls))
    return entries


def _members(gold: dict[str, list[Any]], schema: dict[str, Any]) -> dict[str, Any]:
    """One allowed value each. An empty string in the first place says that the member may be left out."""
    properties = schema.get("properties", {})
    members = {}
    for name, allowed in gold.items():
        if allowed and allowed[0] == "" and name not in schema.get("required", []):
            continue
        value = next((value for value in allowed if value != ""), "")
        members[name] = _value(value, properties.get(name, {}))
    return members


def _value(value: Any, schema: dict[str, Any]) -> Any:
    # Inside an argument, objects hold lists of allowed values again; those values are plain.
    if isinstance(value, dict):
        return _members(value, schema)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [_members(item, schema.get("items", {})) for item in value]
    return value


def closed(schema: Any) -> Any:
    """The schema by the rule for tools: an object that declares properties takes no others, unless it says so."""
    schema = copy.deepcopy(schema)

    def close(node: Any, root: bool) -> None:
        if not isinstance(node, dict):
            return
        if (node.get("properties") or (root and "properties" in node)) and "additionalProperties" not in node:
            node["additionalProperties"] = False
        for word in ("properties", "$defs", "definitions"):
            for member in node.get(word, {}).values():
                close(member, False)
        for word in ("items", "additionalProperties"):
            close(node.get(word), False)
        for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for member in node.get(word, []):
                close(member, False)

    close(schema, True)
    return schema


FORMATS = jsonschema.FormatChecker(formats=["uuid", "ipv4"])


@FORMATS.checks("date")
def _is_date(value: object) -> bool:
    if not isinstance(value, str):
        return True
    if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        return False
    try:  # Python has no year 0, RFC 3339 has
        datetime.date(int(value[:4]) or 2000, int(value[5:7]), int(value[8:]))
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(closed(json.loads(schema)), format_checker=FORMATS)


def misfits(calls: list[Call], tools: list[Tool]) -> list[str]:
    """Why the calls break their tools' schemas; [] where they do not."""
    by_name = {tool.name: tool for tool in tools}
    found = []
    for call in calls:
        if call["name"] not in by_name:
            found.append(f"there is no tool {call['name']!r}")
            continue
        validator = _validator(json.dumps(by_name[call["name"]].parameters))
        found += [f"{error.json_path}: {error.message:.80}" for error in validator.iter_errors(call["arguments"])]
    return found
