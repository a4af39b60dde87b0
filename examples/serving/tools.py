"""Writes the grammars of the tools that the example serves, as a front end would send them to its engines.

python tools.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from toolprm_decode import CallGrammar

TOOLS = {
    "weather": [
        {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["Oslo", "Lima", "Rome", "Cairo"]},
                    "day": {"type": "integer", "minimum": 0, "maximum": 14},
                    "unit": {"enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city"],
            },
        }
    ],
    "calendar": [
        {
            "name": "add_event",
            "parameters": {
                "type": "object",
                "properties": {
                    "title": {"type": "string", "maxLength": 24},
                    "minutes": {"type": "integer", "minimum": 5, "maximum": 480},
                    "guests": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
                },
                "required": ["title", "minutes"],
            },
        },
        {"name": "list_events", "parameters": {"type": "object", "properties": {"day": {"type": "integer"}}}},
    ],
    "search": [
        {
            "name": "search",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string", "minLength": 3}, "limit": {"type": "integer"}},
                "required": ["query"],
            },
        }
    ],
}


def any_tokenizer() -> Tokenizer:
    """Bytes as tokens. The grammars do not depend on it: an engine puts them together with its model's vocabulary."""
    vocabulary = {character: id for id, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def compile_tools(name: str, tokenizer: Tokenizer) -> CallGrammar:
    return CallGrammar(TOOLS[name], tokenizer, "json-list", max_calls=2, allow_no_call=False)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOOLS:
        (folder / f"{name}.grammar").write_bytes(compile_tools(name, any_tokenizer()).serialize())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: tools.py FOLDER")
    main(Path(sys.argv[1]))
