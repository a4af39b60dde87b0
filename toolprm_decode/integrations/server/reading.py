"""Reads the body of a chat completion request, and refuses by name what cannot be honoured."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

from toolprm_decode.errors import RequestError
from toolprm_decode.integrations.server.failures import Failure, refuse
from toolprm_decode.search import Search

# Fields that would change the answer, and the values that do not; null never does.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "answers are calls"),
    "frequency_penalty": ((0,), "calls repeat what they have to"),
    "function_call": ((), "use tool_choice"),
    "functions": ((), "use tools"),
    "logit_bias": (({},), "the grammar and the reward model say what is written"),
    "logprobs": ((False,), "the log-probability of each step is in choices[].toolprm"),
    "modalities": ((["text"],), "answers are calls"),
    "presence_penalty": ((0,), "calls repeat what they have to"),
    "reasoning_effort": ((), "search.beams and search.width say how much is looked at"),
    "response_format": (({"type": "text"},), "answers are calls; a tool with this schema for its parameters is one"),
    "stop": (([],), "an answer ends where its calls do; search.max_calls says how many"),
    "top_logprobs": ((0,), "the log-probability of each step is in choices[].toolprm"),
    "top_p": ((1,), "search.temperature and search.distinct say how candidates are drawn"),
    "verbosity": ((), "answers are calls"),
    "web_search_options": ((), "answers are calls of your tools"),
}
# Fields that no answer depends on.
_IDLE = {
    *("metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier"),
    *("store", "user"),
}
_KNOWN = (
    *("model", "messages", "tools", "tool_choice", "parallel_tool_calls", "n", "seed", "temperature", "max_tokens"),
    *("max_completion_tokens", "stream", "stream_options", "search", "timeout"),
)
_ROLES = ("system", "developer", "user", "assistant", "tool")
_MOST_CHOICES = 128


@dataclass(frozen=True)
class Asked:
    """A chat completion request.

    Attributes:
        model: the name that the client gave.
        tools, messages, search: as Decoder.decode() takes them.
        choices: most alternatives to answer with.
        stream: answer in pieces. include_usage: with the usage at their end.
        timeout: seconds, None for the server's own.
    """

    model: str
    tools: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    search: Search
    choices: int
    stream: bool
    include_usage: bool
    timeout: float | None


def read_chat(body: bytes, default: Search, candidates: int) -> Asked:
    """Reads a body.

    Args:
        default: the search of requests that say nothing else.
        candidates: most beams times width.

    Raises Failure with the field's name.
    """
    given = _without_neutral(_json_object(body))
    for name in given:
        if name not in _KNOWN:
            _refuse_unknown(name)
    model = _typed(given, "model", str, "a string")
    if model is None:
        raise refuse("model", "model is missing: GET /v1/models lists it")
    tools, choice = _choose(_tools(given.get("tools")), given.get("tool_choice"))
    stream = bool(_typed(given, "stream", bool, "true or false"))
    count = _typed(given, "n", int, "a whole number")
    if count is not None and not 1 <= count <= _MOST_CHOICES:
        raise refuse("n", f"n must be between 1 and {_MOST_CHOICES}, not {count}")
    timeout = _typed(given, "timeout", (int, float), "a number of seconds")
    if timeout is not None and not timeout > 0:
        raise refuse("timeout", f"timeout must be above 0 seconds, not {timeout!r}")
    return Asked(
        model=model,
        tools=tools,
        messages=_messages(given.get("messages")),
        search=_search(given, choice, default, candidates),
        choices=count or 1,
        stream=stream,
        include_usage=_include_usage(given, stream),
        timeout=timeout,
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise Failure(400, "the body is nested too deeply") from None
    except ValueError as error:  # of JSON, of Unicode, or a number of thousands of digits
        raise Failure(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Failure(400, "the body must be a JSON object")
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _without_neutral(given: dict[str, Any]) -> dict[str, Any]:
    rest = {}
    for name, value in given.items():
        if name in _NEUTRAL:
            values, reason = _NEUTRAL[name]
            # 1 == True, and neither means the other here.
            if value is not None and not any(
                value == one and isinstance(value, bool) == isinstance(one, bool) for one in values
            ):
                raise refuse(name, f"{name} cannot be honoured: {reason}")
        elif name not in _IDLE and value is not None:
            rest[name] = value
    return rest


def _same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)  # Python takes 1 for True


def _refuse_unknown(name: str) -> NoReturn:
    if name in _SETTINGS:
        raise refuse(name, f"unknown field {name!r}: settings of the search go into search, as search.{name}")
    close = difflib.get_close_matches(name, [*_KNOWN, *_NEUTRAL], n=1)
    raise refuse(name, f"unknown field {name!r:.80}" + (f"; did you mean {close[0]!r}?" if close else ""))


def _typed(given: dict[str, Any], name: str, kind: type | tuple[type, ...], words: str, at: str = "") -> Any:
    """A field of a type, None where it is missing or null."""
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise refuse(f"{at}{name}", f"{at}{name} must be {words}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------------------------------------------------------------
# Tools


def _tools(value: Any) -> list[dict[str, Any]]:
    if not value:
        raise refuse("tools", "tools are missing: this server writes function calls, and no free text")
    if not isinstance(value, list):
        raise refuse("tools", f"tools must be a list, not {_shown(value)}")
    for index, tool in enumerate(value):
        at = f"tools.{index}"
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise refuse(at, f'{at} must be {{"type": "function", "function": {{...}}}}, not {_shown(tool)}')
        if not isinstance(tool["function"].get("name"), str):
            raise refuse(f"{at}.function.name", f"{at}.function.name must be a string")
    return value


def _choose(tools: list[dict[str, Any]], choice: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The tools that may be called, and what tool_choice asks of the search."""
    if choice is None or choice == "auto":
        return tools, {}
    if choice == "none":
        raise refuse("tool_choice", 'tool_choice "none" asks for free text, and this server writes function calls only')
    if choice == "required":
        return tools, {"allow_no_call": False}
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        # The grammar leaves nothing but this tool, so the model need not read of others.
        return _named([choice], tools, "tool_choice"), {"allow_no_call": False, "max_calls": 1}
    if kind == "allowed_tools" and isinstance(allowed := choice.get("allowed_tools", choice), dict):
        mode, listed = allowed.get("mode"), allowed.get("tools")
        if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
            raise refuse(
                "tool_choice",
                'allowed_tools of tool_choice must have the mode "auto" or "required", and a list of tools',
            )
        return _named(listed, tools, "tool_choice"), {"allow_no_call": False} if mode == "required" else {}
    known = '"auto", "required", {"type": "function", "function": {"name": ...}} or allowed_tools'
    raise refuse("tool_choice", f"tool_choice must be {known}, not {_shown(choice)}")


def _named(wanted: list[Any], tools: list[dict[str, Any]], param: str) -> list[dict[str, Any]]:
    by_name = {tool["function"]["name"]: tool for tool in tools}
    names = []
    for one in wanted:
        function = one.get("function") if isinstance(one, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or name not in by_name:
            raise refuse(param, f"{param} names {_shown(name)}, which is not among the tools")
        names.append(name)
    return [by_name[name] for name in dict.fromkeys(names)]


# ---------------------------------------------------------------------------------------------------------------------
# Messages


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise refuse("messages", "messages must be a list with at least one message")
    called: dict[str, str] = {}  # names of functions by the ids of their calls
    return [_message(message, f"messages.{index}.", called) for index, message in enumerate(value)]


def _message(given: Any, at: str, called: dict[str, str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise refuse(at[:-1], f"{at[:-1]} must be an object, not {_shown(given)}")
    role = given.get("role")
    if role not in _ROLES:
        raise refuse(f"{at}role", f"{at}role must be one of {', '.join(_ROLES)}, not {_shown(role)}")
    for name in ("audio", "function_call"):
        if given.get(name) is not None:
            raise refuse(f"{at}{name}", f"{at}{name} cannot be honoured")
    # Few chat templates know of developers, and those that do not leave out what they say.
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    message["content"] = _content(given.get("content"), f"{at}content", optional=role == "assistant")
    if (name := _typed(given, "name", str, "a string", at)) is not None:
        message["name"] = name
    if role == "assistant" and given.get("tool_calls"):
        message["tool_calls"] = _tool_calls(given["tool_calls"], f"{at}tool_calls", called)
    if role == "tool":
        call = _typed(given, "tool_call_id", str, "a string", at)
        if call is None:
            raise refuse(f"{at}tool_call_id", f"{at}tool_call_id is missing")
        message["tool_call_id"] = call
        if call in called:
            message.setdefault("name", called[call])  # some chat templates tell results apart by it
    return message


def _content(value: Any, at: str, *, optional: bool) -> str:
    """The text. Parts are joined: most chat templates take nothing but strings."""
    if value is None and optional:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise refuse(at, f"{at} must be text, or a list of text parts, not {_shown(value)}")
    texts = []
    for index, part in enumerate(value):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise refuse(f"{at}.{index}", f'{at}.{index} must be {{"type": "text", "text": ...}}, not {_shown(part)}')
        texts.append(text)
    return "\n".join(texts)


def _tool_calls(value: Any, at: str, called: dict[str, str]) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise refuse(at, f"{at} must be a list, not {_shown(value)}")
    calls = []
    for index, one in enumerate(value):
        here = f"{at}.{index}"
        function = one.get("function") if isinstance(one, dict) and one.get("type", "function") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise refuse(here, f'{here} must be {{"type": "function", "id", "function": {{"name", "arguments"}}}}')
        # Chat templates write the arguments as JSON themselves.
        arguments = _arguments(function.get("arguments"), f"{here}.function.arguments")
        call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        if (id := _typed(one, "id", str, "a string", f"{here}.")) is not None:
            call["id"] = id
            called[id] = function["name"]
        calls.append(call)
    return calls


def _arguments(value: Any, at: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    try:
        read = json.loads(value, parse_constant=_no_constant) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise refuse(at, f"{at} is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise refuse(at, f"{at} must be a JSON object, not {_shown(read)}")
    return read


# ---------------------------------------------------------------------------------------------------------------------
# The search

_SETTINGS = tuple(field.name for field in fields(Search))


def _search(given: dict[str, Any], choice: dict[str, Any], default: Search, candidates: int) -> Search:
    settings = dict(_typed(given, "search", dict, "an object") or {})
    sources = {name: f"search.{name}" for name in settings}
    for name in settings:
        if name not in _SETTINGS:
            close = difflib.get_close_matches(name, _SETTINGS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(_SETTINGS)}"
            raise refuse(f"search.{name:.80}", f"unknown setting {name!r:.80} of the search{hint}")

    def take(name: str, value: Any, source: str) -> None:
        if name in settings and settings[name] != value:
            message = f"{source} and {sources[name]} do not agree: {_shown(value)} and {_shown(settings[name])}"
            raise refuse(source, message)
        settings[name], sources[name] = value, source

    for field, name in (
        ("seed", "seed"),
        ("temperature", "temperature"),
        ("max_completion_tokens", "max_tokens"),
        ("max_tokens", "max_tokens"),
    ):
        if field in given:
            take(name, given[field], field)
    if "allow_no_call" in choice:
        take("allow_no_call", choice["allow_no_call"], "tool_choice")
    if _typed(given, "parallel_tool_calls", bool, "true or false") is False:
        take("max_calls", 1, "parallel_tool_calls")
    if "max_calls" in choice:
        settings.setdefault("max_calls", choice["max_calls"])
    if settings.get("strategy", "step-beam") != "step-beam":  # the default's own extras go with its strategy
        settings = {"independent": False, "confidence": None, **settings}
    try:
        search = replace(default, **settings)
    except RequestError as error:
        message = str(error)
        at = next((name for name in sources if re.search(rf"\b{name}\b", message)), None)
        raise refuse(sources[at] if at else "search", message) from None
    beams = 1 if search.strategy in ("greedy", "sample") else search.beams
    width = search.width if search.strategy in ("sample", "step-beam") else 1
    if beams * width > candidates:
        message = f"search.beams x search.width is {beams} x {width}, and this server allows {candidates} candidates"
        raise refuse("search.beams" if beams > 1 else "search.width", message)
    return search


def _include_usage(given: dict[str, Any], stream: bool) -> bool:
    options = _typed(given, "stream_options", dict, "an object")
    if options is None:
        return False
    if not stream:
        raise refuse("stream_options", "stream_options go with stream: true")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise refuse(f"stream_options.{name:.80}", f"unknown field {name!r:.80} of stream_options")
    if _typed(options, "include_obfuscation", bool, "true or false", "stream_options."):
        raise refuse(
            "stream_options.include_obfuscation",
            "include_obfuscation cannot be honoured: pieces are not padded",
        )
    return bool(_typed(options, "include_usage", bool, "true or false", "stream_options."))
