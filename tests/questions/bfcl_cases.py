"""BFCL's questions with right and wrong calls, and the leaderboard's own checker where it is installed."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import random
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Answer = dict[str, dict[str, list[Any]]]
Question = tuple[str, str, list[dict[str, Any]], list[Answer]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def questions(data_dir: Path) -> list[Question]:
    """(category, language, tools, ground truth) of every answered question."""
    found = []
    for path in sorted((data_dir / "bfcl" / "possible_answer").glob("BFCL_v4_*.json")):
        category = path.stem.removeprefix("BFCL_v4_")
        if category.startswith("multi_turn"):
            continue
        asked = {row["id"]: row["function"] for row in lines(data_dir / "bfcl" / path.name)}
        language = {"simple_java": "java", "simple_javascript": "javascript"}.get(category, "python")
        for row in lines(path):
            if row["id"] in asked:
                found.append((category, language, asked[row["id"]], row["ground_truth"]))
    return found


def calls_of(answers: list[Answer], rng: random.Random, language: str) -> list[dict[str, Any]]:
    """Calls with a random allowed value of each parameter."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            chosen = {key: rng.choice(choices or [""]) for key, choices in value.items()}
            return {key: plain(one) for key, one in chosen.items() if one != "" or rng.random() < 0.3}
        return [plain(item) for item in value] if isinstance(value, list) else value

    calls = []
    for answer in answers:
        for name, allowed in answer.items():
            chosen = {key: rng.choice(values or [""]) for key, values in allowed.items()}
            arguments = {key: plain(one) for key, one in chosen.items() if one != "" or rng.random() < 0.3}
            if language != "python":
                arguments = {key: literal(value, rng, language) for key, value in arguments.items()}
            calls.append({"name": name, "arguments": arguments})
    return calls


def literal(value: Any, rng: random.Random, language: str) -> str:
    """A source literal that may stand for the value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value) + rng.choice(["", "", "L", "f", "n"])
    if isinstance(value, list):
        inner = ", ".join(literal(item, rng, language) if not isinstance(item, str) else f'"{item}"' for item in value)
        if language == "javascript":
            return rng.choice([f"[{inner}]", f"new Array({inner})"])
        return rng.choice([f"new Object[]{{{inner}}}", f"new ArrayList<Object>(Arrays.asList({inner}))"])
    if isinstance(value, dict):
        if language == "javascript":
            return json.dumps(value)
        puts = " ".join(f'put("{key}", {json.dumps(one)});' for key, one in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    return str(value)


ODD: list[Any] = ["", " ", "x", 0, 1, -1, 2.5, 1.0, True, False, None, [], ["a"], [1], [1.0], {}, {"a": 1}, [{}]]


def mutated(
    calls: list[dict[str, Any]], rng: random.Random, language: str, tools: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The calls with one change: to a call, its name, its arguments, their order, or inside a value."""
    calls = copy.deepcopy(calls)
    kind = rng.randrange(12)
    call = rng.choice(calls)
    arguments = call["arguments"]
    key = rng.choice(sorted(arguments)) if arguments else None
    if kind == 0:
        calls.append(copy.deepcopy(call))
    elif kind == 1:
        calls.remove(call)
    elif kind == 2:
        rng.shuffle(calls)
    elif kind == 3:
        call["name"] += "x"
    elif kind == 4:
        arguments["unheard_of"] = "x"
    elif kind == 5:  # a parameter that there is, left out or given by the gold
        name = rng.choice(sorted(rng.choice(tools)["parameters"]["properties"]) or ["x"])
        arguments[name] = rng.choice(ODD) if language == "python" else rng.choice(["", "x", "1", "true"])
    elif kind == 6:
        other = rng.choice(calls)
        call["arguments"], other["arguments"] = other["arguments"], arguments
    elif kind == 7 and key is not None:
        call["arguments"] = {one: arguments[one] for one in sorted(arguments, reverse=True)}
        call["arguments"][key.upper() if rng.random() < 0.5 else key] = call["arguments"].pop(key)
    elif key is not None and kind == 8:
        del arguments[key]
    elif key is not None:
        arguments[key] = altered(arguments[key], rng)
        if language != "python" and not isinstance(arguments[key], str):
            arguments[key] = literal(arguments[key], rng, language)
    return calls


def altered(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str) and rng.random() < 0.6:
        spelled = [value.upper(), value.replace(" ", ""), value + ".", f"'{value}'", value.replace(",", ", ")]
        spelled += [value.replace(" ", "_"), value.replace("'", '"'), "-".join(value), value + "!", value[:-1]]
        return rng.choice(spelled)
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.6:
        return rng.choice([float(value), int(value), value + 1, str(value), -value, bool(value), [value]])
    if isinstance(value, list) and value and rng.random() < 0.6:
        index = rng.randrange(len(value))
        return rng.choice([value[::-1], value + value[:1], value[:-1], [*value[:index], altered(value[index], rng)]])
    if isinstance(value, dict) and value and rng.random() < 0.6:
        key = rng.choice(sorted(value))
        without = {name: one for name, one in value.items() if name != key}
        return rng.choice([{**value, key: altered(value[key], rng)}, without, {**without, f"{key}s": value[key]}])
    return rng.choice(ODD)


Checker = Callable[[str, str, list[dict[str, Any]], list[Answer], list[dict[str, Any]]], bool | None]


def official(*modules: str) -> list[Any]:
    """Modules of bfcl-eval, without its list of models, which would load every vendor's client.

    The test is skipped where it is not installed.
    """
    if importlib.util.find_spec("bfcl_eval") is None:
        pytest.skip("bfcl-eval is not installed: pip install --no-deps bfcl-eval")
    name = "bfcl_eval.constants.model_config"
    before = sys.modules.get(name)
    os.environ.setdefault("BFCL_PROJECT_ROOT", f"{tempfile.gettempdir()}/bfcl-eval")  # it makes folders there
    stub = types.ModuleType(name)
    stub.__dict__["MODEL_CONFIG_MAPPING"] = {"model": types.SimpleNamespace(underscore_to_dot=False)}
    sys.modules[name] = stub
    try:
        return [importlib.import_module(f"bfcl_eval.{module}") for module in modules]
    except ModuleNotFoundError as error:
        pytest.skip(f"bfcl-eval cannot be imported: {error}")
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def official_checker() -> Checker:
    """bfcl-eval's verdict, by (category, language, tools, answers, calls); None where it fails itself."""
    checking, enums, utils = official("eval_checker.ast_eval.ast_checker", "constants.enums", "utils")

    def check(
        category: str, language: str, tools: list[dict[str, Any]], answers: list[Answer], calls: list[dict[str, Any]]
    ) -> bool | None:
        output = [{call["name"]: copy.deepcopy(call["arguments"])} for call in calls]
        if "relevance" in category:
            return bool(utils.is_empty_output(output)) == ("irrelevance" in category)
        try:
            written = enums.Language[language.upper()]
            return bool(checking.ast_checker(tools, output, answers, written, category, "model")["valid"])
        except (AttributeError, IndexError, KeyError, TypeError):
            return None

    return check
