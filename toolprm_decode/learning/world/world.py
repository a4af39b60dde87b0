"""The built-in world: random tool sets, requests over them that a person can read, and the calls they ask for."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Any

from toolprm_decode.errors import RequestError
from toolprm_decode.learning.world.lexicon import (
    ACTIONS,
    CITIES,
    FILLERS,
    MASKS,
    MONTHS,
    NAMES,
    OBJECTS,
    PEOPLE,
    SLOTS,
    THINGS,
    Slot,
)
from toolprm_decode.questions.samples import Sample, gold_call

SPLITS = ("train", "validation", "test")
_PARTS = 16  # of tools and of values: 2 are for tests, 1 for validation, the others for training

Kind = tuple[str, str]  # of tool: (action, object)
KINDS: list[Kind] = [(action, noun) for action in ACTIONS for noun in OBJECTS]


@dataclass(frozen=True)
class Level:
    """How hard requests are. Counts are (fewest, most), the others probabilities."""

    tools: tuple[int, int]
    parameters: tuple[int, int]
    synonym: float = 0.15  # a word of the request is not that of the description
    shuffled: float = 0.4  # the request's order is not the tool's
    distractor: float = 0.1  # the request names a thing that only another tool asks for
    tied: float = 0.5  # a slot has the same name in two tools
    optional: float = 0.3  # an optional parameter is left out
    filler: float = 0.5
    front: float = 0.1  # an argument comes before the action
    near: float = 0.7  # another tool has the action or the object of the one that is asked for
    natural: float = 0.3  # names are words rather than masks, in a whole tool set
    lists: float = 0.0  # list parameters are allowed
    objects: float = 0.0  # object parameters are allowed
    parallel: float = 0.0  # two calls
    no_call: float = 0.0  # no tool fits


LEVELS: tuple[Level, ...] = (
    Level((1, 1), (1, 1), 0, 0, 0, 1, 0, 0.2, 0, natural=0.0),
    Level((2, 2), (1, 2), 0.05, 0, 0, 1, 0.1, 0.3, 0, near=0.0, natural=0.0, no_call=0.05),
    Level((2, 3), (1, 3), 0.1, 0.15, 0.03, 0.9, 0.2, 0.4, 0.05, near=0.4, natural=0.15, no_call=0.05),
    Level((2, 4), (1, 4), 0.15, 0.3, 0.06, 0.7, 0.3, 0.5, 0.1, near=0.6, lists=0.2, parallel=0.05, no_call=0.05),
    Level((2, 4), (1, 4), lists=0.3, parallel=0.12, no_call=0.06),
    Level((3, 5), (2, 5), 0.2, 0.5, 0.2, 0.2, 0.35, 0.6, 0.15, lists=0.4, objects=0.4, parallel=0.2, no_call=0.06),
)
STANDARD = 4  # the level that models are measured at


def part_of(text: str) -> str:
    """The split that a tool kind or a value of several words belongs to."""
    part = zlib.crc32(text.encode()) % _PARTS
    return "test" if part < 2 else "validation" if part == 2 else "train"


def tool_kinds(split: str) -> list[Kind]:
    """The tool kinds of a split; those of validation and test never occur in training."""
    return [kind for kind in KINDS if part_of(" ".join(kind)) == split]


@dataclass(frozen=True)
class _Parameter:
    slot: Slot
    name: str
    required: bool
    about: str
    members: tuple[_Parameter, ...] = ()

    def schema(self) -> dict[str, Any]:
        return {**self._type(self.slot.values), "description": self.about}

    def _type(self, values: str) -> dict[str, Any]:
        if self.members:
            return {
                "type": "object",
                "properties": {member.name: member.schema() for member in self.members},
                "required": [member.name for member in self.members],
            }
        if values.startswith("*"):
            return {"type": "array", "items": self._type(values[1:]), "minItems": 1}
        if values == "number":
            return {"type": "integer"}
        if values == "decimal":
            return {"type": "number"}
        if values == "flag":
            return {"type": "boolean"}
        if "|" in values:
            return {"type": "string", "enum": values.split("|")}
        return {"type": "string"}


@dataclass(frozen=True)
class _Tool:
    kind: Kind
    name: str
    parameters: tuple[_Parameter, ...]

    def definition(self) -> dict[str, Any]:
        """The tool as OpenAI's API takes it."""
        parameters = {
            "type": "object",
            "properties": {parameter.name: parameter.schema() for parameter in self.parameters},
            "required": [parameter.name for parameter in self.parameters if parameter.required],
        }
        function = {"name": self.name, "description": " ".join(self.kind), "parameters": parameters}
        return {"type": "function", "function": function}


class World:
    """Draws questions.

    Args:
        seed: the same seed gives the same questions.
        level: how hard, an index of LEVELS.
        split: "train", "validation" or "test"; values of several tokens belong to one split each, and in validation
            and test every answer with calls holds such a value.
        unseen_tools: ask for tool kinds of the split itself, which training never saw, instead of training's.
        natural: all names are words (True) or masks (False), rather than as often as the level says.

    The meta of validation and test questions is {"tools": "unseen" or "seen", "names": "natural" or "masked"}; that of
    training's, where nothing is told apart by it, is empty.

    Raises:
        RequestError: an unknown level or split.
    """

    def __init__(
        self,
        seed: int,
        level: int = STANDARD,
        split: str = "train",
        unseen_tools: bool = False,
        natural: bool | None = None,
    ):
        if not 0 <= level < len(LEVELS):
            raise RequestError(f"unknown level {level!r}: use 0 to {len(LEVELS) - 1}")
        if split not in SPLITS:
            raise RequestError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
        self.level, self.split, self.unseen_tools, self.natural = LEVELS[level], split, unseen_tools, natural
        names = "" if natural is None else f"-{_names(natural)}"
        self._prefix = f"{split}-{level}-{'unseen' if unseen_tools else 'seen'}{names}-{seed}"
        self._random = random.Random(f"world {self._prefix}")
        self._known = tool_kinds("train")
        self._asked = tool_kinds(split) if unseen_tools else self._known

    def samples(self, count: int) -> list[Sample]:
        """Questions with a tool set each."""
        return [sample for index in range(count) for sample in self.group(1, f"{self._prefix}-{index}")]

    def group(self, requests: int, id: str) -> list[Sample]:
        """Several questions over one tool set, named id.0 and so on."""
        while True:
            tools, natural = self._tools()
            questions = [self._question(tools) for _ in range(requests)]
            if self.split == "train" or all(_is_new(calls) for _, calls in questions):
                break
        definitions = [tool.definition() for tool in tools]
        known = {"tools": "unseen" if self.unseen_tools else "seen", "names": _names(natural)}
        return [
            Sample(
                id=f"{id}.{index}",
                tools=definitions,
                messages=[{"role": "user", "content": text}],
                gold=[gold_call(call["name"], call["arguments"]) for call in calls],
                meta={} if self.split == "train" else dict(known),
            )
            for index, (text, calls) in enumerate(questions)
        ]

    # ------------------------------------------------------------------ tools

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _tools(self) -> tuple[list[_Tool], bool]:
        """One tool that is asked for, and others like it: the same action, the same object, or any.

        And whether their names are words.
        """
        rnd, level = self._random, self.level
        first = rnd.choice(self._asked)
        kinds = [first]
        wanted = rnd.randint(*level.tools)
        while len(kinds) < wanted:
            shared = rnd.random() < 0.57  # more often the object than the action
            near = [k for k in self._known if k[shared] == first[shared]] if self._chance(level.near) else []
            kind = rnd.choice(near or self._known)
            if kind not in kinds:
                kinds.append(kind)
        rnd.shuffle(kinds)
        masks = list(MASKS)
        rnd.shuffle(masks)
        natural = self._chance(level.natural)  # drawn in any case: what follows must not depend on self.natural
        natural = natural if self.natural is None else self.natural
        tied: dict[str, str] = {}
        return [self._tool(kind, masks, natural, tied) for kind in kinds], natural

    def _tool(self, kind: Kind, masks: list[str], natural: bool, tied: dict[str, str]) -> _Tool:
        rnd, level = self._random, self.level
        possible = [
            slot
            for slot in OBJECTS[kind[1]][1]
            if not (SLOTS[slot].values.startswith("*") and not self._chance(level.lists))
            and not (SLOTS[slot].values.startswith("{") and not self._chance(level.objects))
        ]
        inner = {
            m for slot in possible if SLOTS[slot].values.startswith("{") for m in SLOTS[slot].values[1:].split(",")
        }
        possible = [slot for slot in possible if slot not in inner]  # one cue, one meaning
        chosen = rnd.sample(possible, min(len(possible), rnd.randint(*level.parameters) + self._chance(0.3)))
        surely = rnd.choice(chosen)
        used: set[str] = set()
        parameters = tuple(
            self._parameter(slot, masks, natural, tied, slot == surely or self._chance(0.5), used) for slot in chosen
        )
        return _Tool(kind, "_".join(kind) if natural else masks.pop(), parameters)

    def _parameter(
        self, slot_name: str, masks: list[str], natural: bool, tied: dict[str, str], required: bool, used: set[str]
    ) -> _Parameter:
        slot = SLOTS[slot_name]
        if natural:
            name = slot.name
        else:
            tie = tied.get(slot_name)
            name = tie if tie is not None and tie not in used and self._chance(self.level.tied) else masks.pop()
            tied[slot_name] = name
        used.add(name)
        members: tuple[_Parameter, ...] = ()
        if slot.values.startswith("{"):
            inner: set[str] = set()
            members = tuple(
                self._parameter(member, masks, natural, {}, True, inner) for member in slot.values[1:].split(",")
            )
        about = slot.cue if self._chance(0.4) else f"{slot.about} {slot.cue}" if slot.about != slot.cue else slot.cue
        return _Parameter(slot, name, required, about, members)

    # ------------------------------------------------------------------ requests

    def _question(self, tools: list[_Tool]) -> tuple[str, list[dict[str, Any]]]:
        level, rnd = self.level, self._random
        words: list[str] = []
        if self._chance(level.filler):
            words.append(rnd.choice(FILLERS["opening"]))
        if self._chance(level.no_call):
            taken = {tool.kind for tool in tools}
            kind = rnd.choice([kind for kind in self._known if kind not in taken])
            spare = self._tool(kind, list(MASKS), True, {})
            calls: list[dict[str, Any]] = []
            words += self._clause(spare, tools)[0]
        else:
            fitting = [tool for tool in tools if not self.unseen_tools or tool.kind in self._asked]
            asked = [rnd.choice(fitting)]
            if self._chance(level.parallel):
                asked.append(rnd.choice(tools))
            calls = []
            for tool in asked:
                clause, arguments = self._clause(tool, tools)
                if calls:
                    words.append(rnd.choice(FILLERS["joining"]))
                words += clause
                calls.append({"name": tool.name, "arguments": arguments})
        if self._chance(level.filler):
            words.append(rnd.choice(FILLERS["closing"]))
        return " ".join(words).replace(" ,", ",").replace(" .", ".").replace(" ?", "?"), calls

    def _clause(self, tool: _Tool, tools: list[_Tool]) -> tuple[list[str], dict[str, Any]]:
        """Words that ask for one call, and its arguments in the tool's order."""
        level, rnd = self.level, self._random
        given = [p for p in tool.parameters if p.required or not self._chance(level.optional)]
        said: list[list[str]] = []
        arguments: dict[str, Any] = {}
        for parameter in given:
            words, arguments[parameter.name] = self._argument(parameter)
            said.append(words)
        if self._chance(level.shuffled):
            rnd.shuffle(said)
        if self._chance(level.distractor):
            own = {p.slot.cue for p in tool.parameters} | {m.slot.cue for p in tool.parameters for m in p.members}
            other = [p for t in tools for p in t.parameters if p.slot.cue not in own and not p.members]
            if other:
                said.insert(rnd.randint(0, len(said)), self._argument(rnd.choice(other))[0])
        action, noun = tool.kind
        head = [self._word(action, ACTIONS[action])]
        if self._chance(level.filler):
            head.append(rnd.choice(FILLERS["article"]))
        head.append(self._word(noun, OBJECTS[noun][0]))
        words = []
        if said and self._chance(level.front):
            words += [*said.pop(0), ",", *head]
        else:
            words += head
        for index, clause in enumerate(said):
            joint = rnd.random()
            words += (["and"] if index and joint < 0.15 else [","] if 0.15 <= joint < 0.3 else []) + clause
        return words, arguments

    def _word(self, word: str, synonym: str) -> str:
        return synonym if self._chance(self.level.synonym) else word

    def _argument(self, parameter: _Parameter) -> tuple[list[str], Any]:
        slot = parameter.slot
        cue = self._word(slot.cue, slot.synonym)
        if parameter.members:
            words, value = [cue], {}
            for member in parameter.members:
                said, value[member.name] = self._argument(member)
                words += said
            return words, value
        if slot.values == "flag":
            wanted = self._chance(0.6)
            return ["with" if wanted else "without", cue], wanted
        if slot.values.startswith("*"):
            values: list[Any] = []
            for _ in range(self._random.choice((1, 2, 2, 3))):
                value = self._value(slot.values[1:])
                if value not in values:
                    values.append(value)
            return [cue, " , ".join(values[:-1]) + (" and " if len(values) > 1 else "") + values[-1]], values
        value = self._value(slot.values)
        link = [self._random.choice(FILLERS["link"])] if self._chance(0.07) else []
        return [cue, *link, str(value)], value

    def _value(self, kind: str) -> Any:
        rnd = self._random
        if "|" in kind:
            return rnd.choice(kind.split("|"))
        if kind == "thing":
            return rnd.choice(THINGS)
        while True:
            value: Any
            if kind == "number":
                value = int(f"{rnd.randint(1, 99)}" + (f"{rnd.randint(0, 99):02d}" if self._chance(0.5) else ""))
            elif kind == "decimal":
                value = float(f"{rnd.randint(1, 99)}.{rnd.randint(1, 9)}")
            elif kind == "date":
                value = f"{rnd.choice(MONTHS)} {rnd.randint(1, 28)}"
            elif kind == "person":
                value = rnd.choice(PEOPLE) + (f" {rnd.choice(NAMES)}" if self._chance(0.6) else "")
            else:
                words = NAMES if kind == "title" else CITIES + NAMES
                value = " ".join(rnd.choice(words) for _ in range(rnd.choice((1, 2, 2, 3))))
            if not _is_apart(value) or part_of(str(value)) == self.split:
                return value


def _names(natural: bool) -> str:
    return "natural" if natural else "masked"


def _is_apart(value: Any) -> bool:
    """Whether a value belongs to one split: what is one token does not."""
    return not isinstance(value, bool) and len(str(value)) > 2 and not str(value).isalpha()


def _is_new(calls: list[dict[str, Any]]) -> bool:
    """Whether an answer holds a value that training cannot have held; one without calls always passes."""
    return not calls or any(_is_apart(leaf) for call in calls for leaf in _leaves(call["arguments"]))


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for member in value.values() for leaf in _leaves(member)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
