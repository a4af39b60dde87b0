"""The models that ship with the package, and tools and requests of the world that they were trained in."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolprm_decode.engine.engine import load_model, load_tokenizer
from toolprm_decode.learning.world.world import World
from toolprm_decode.models import MODELS
from toolprm_decode.questions.samples import Sample
from toolprm_decode.rewards import ToolPRM
from toolprm_decode.search import Search

# Chosen on validation questions of the built-in world.
SEARCH = Search(beams=2, width=16, temperature=1.0, aggregate="min", policy_weight=0.15, max_tokens=160)


def _tool(name: str, description: str, required: str, **parameters: tuple[str, Any]) -> dict[str, Any]:
    properties = {
        key: {"type": kind, "description": about} if isinstance(kind, str) else {**kind, "description": about}
        for key, (about, kind) in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": required.split()}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS: list[dict[str, Any]] = [
    _tool(
        "book_hotel",
        "book hotel",
        "city",
        city=("city in", "string"),
        nights=("nights staying", "integer"),
        breakfast=("includes breakfast", "boolean"),
    ),
    _tool(
        "find_flight",
        "find flight",
        "to",
        **{"from": ("leaving from", "string"), "to": ("going to", "string"), "date": ("date on", "string")},
    ),
    _tool(
        "send_letter",
        "send letter",
        "recipient",
        recipient=("recipient reaching", "string"),
        topic=("about", "string"),
        urgent=("needs rush", "boolean"),
    ),
    _tool(
        "cancel_meeting",
        "cancel meeting",
        "person",
        person=("person for", "string"),
        room=("room inside", {"type": "string", "enum": ["kitchen", "bedroom", "office", "garage"]}),
    ),
]
REQUEST = "please find a flight from Oslo to Lima on March 14"


def one_thread() -> None:
    """Runs models in one thread from now on: the passes of the small ones are too short to be shared out."""
    torch.set_num_threads(1)


def held_out(seed: int = 0, count: int = 3) -> list[Sample]:
    """Questions with values and tools that the models never saw."""
    return World(seed, split="test", unseen_tools=True).samples(count)


class Demo(NamedTuple):
    """What load_demo() gives: decode(demo.model, demo.prm, demo.tools, demo.request, tokenizer=demo.tokenizer).

    Attributes:
        model: the policy. prm: the reward model.
        tools, request: something to try them on.
        search: the settings that did best on validation questions.
    """

    model: PreTrainedModel
    prm: ToolPRM
    tokenizer: PreTrainedTokenizerBase
    tools: list[dict[str, Any]]
    request: str
    search: Search


def load_demo(reward: str = "toolprm") -> Demo:
    """The policy and a reward model of the package, on the CPU; they know the built-in world alone.

    reward: "toolprm", "c-prm" or "orm".
    """
    folder = MODELS / "policy"
    model = load_model(folder, dtype="float32", device="cpu")
    prm = ToolPRM.from_pretrained(MODELS / reward, dtype="float32", device="cpu")
    return Demo(model, prm, load_tokenizer(folder), TOOLS, REQUEST, SEARCH)
