"""What a question with a known answer is: tools, a request, and the calls it asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A gold call: {"name": str, "arguments": {parameter: [allowed value, ...]}, "optional": [parameter, ...]}.
# Every value of a list counts as right; a parameter named in "optional" may also be left out.
GoldCall = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: unique in its dataset.
        tools: in any dialect that `read_tools` takes, as plain JSON.
        messages: the chat messages of the request.
        gold: the calls that answer it, in any order; empty where no tool fits.
        match: how a call is compared with the gold: a name of `labels.RULES`; or "any-call" where all that is known is
            that something is to be called.
        meta: anything else that is known of it, as plain JSON.
    """

    id: str
    tools: list[Any]
    messages: list[dict[str, Any]]
    gold: list[GoldCall]
    match: str = "exact"
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as `from_json` reads it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sample:
        """Reads what `to_json` gives."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__})


def digest(samples: Sequence[Sample]) -> str:
    """Tells these samples from others."""
    text = json.dumps([sample.to_json() for sample in samples], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def gold_call(name: str, arguments: Mapping[str, Any]) -> GoldCall:
    """A gold call with one allowed value a parameter."""
    return {"name": name, "arguments": {key: [value] for key, value in arguments.items()}, "optional": []}
