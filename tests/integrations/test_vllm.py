"""The plug-in for vLLM: its two interfaces are driven as vLLM's runners do, and where vLLM is installed, by itself.

Without vLLM the interfaces are stand-ins with the classes and fields that are used here.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import types
from abc import ABC
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from toolprm_decode import CallGrammar

from ..search.models import SWAP, SWITCH, TOOLS, tokenizer

SIZE = len(tokenizer())
END = tokenizer().eos_token_id
ROOT = Path(__file__).resolve().parents[2]
WISHES = [
    {"tools": TOOLS, "format": "json-list", "max_calls": 1},
    json.dumps({"tools": [SWAP], "format": "hermes", "allow_no_call": False, "max_calls": 1}),
    {"schema": {"enum": ["a", 12, None]}, "flexible_whitespace": True},
    None,
]
V1 = "vllm.v1.sample.logits_processor"
V2 = "vllm.v1.worker.gpu.sample.logits_processor"


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: Any
    added: Any
    moved: Any


@dataclass
class Params:
    """What is read of vLLM's SamplingParams."""

    extra_args: dict[str, Any] | None = None
    all_stop_token_ids: set[int] = field(default_factory=lambda: {END})


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    """Our module, over vLLM or the stand-ins."""
    before = dict(sys.modules)
    if importlib.util.find_spec("vllm") is None:
        for name in (V1, V2):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
            sys.modules[name].LogitsProcessor = type("LogitsProcessor", (ABC,), {})  # type: ignore[attr-defined]
        vars(sys.modules[V1]).update(BatchUpdate=BatchUpdate, MoveDirectionality=MoveDirectionality)
    yield importlib.import_module("toolprm_decode.integrations.vllm")
    for name in set(sys.modules) - set(before):
        if (name.split(".")[0] == "vllm" and "vllm" not in before) or name == "toolprm_decode.integrations.vllm":
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def config(folder: Path) -> Any:
    class Config:  # one that can be referred to weakly
        model_config = SimpleNamespace(
            tokenizer=str(folder), tokenizer_revision=None, trust_remote_code=False, get_vocab_size=lambda: SIZE
        )

    return Config()


def grammar(wish: Any) -> CallGrammar:
    asked = dict(json.loads(wish) if isinstance(wish, str) else wish)
    if "schema" in asked:
        return CallGrammar.for_schema(asked.pop("schema"), tokenizer(), **asked)
    return CallGrammar(asked.pop("tools"), tokenizer(), **asked)


@dataclass(eq=False)
class Job:
    """A request, and what is right for it."""

    wish: Any
    prompt: int = 3
    output: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.matcher = None if self.wish is None else grammar(self.wish).matcher()

    @property
    def params(self) -> Params:
        return Params(None if self.wish is None else {"toolprm": self.wish})

    def legal(self, tokens: list[int] | None = None) -> set[int]:
        """After its output and further tokens. None of them: the end alone."""
        if self.matcher is None:
            return set(range(SIZE))
        matcher = self.matcher.fork()
        for token in tokens or []:
            if matcher.is_stopped or matcher.try_accept(token) is None:
                return {END}
        if matcher.is_stopped:
            return {END}
        row = np.zeros(-(-SIZE // 32), np.int32)
        matcher.fill_mask(row)
        return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())

    def accept(self, token: int) -> None:
        self.output.append(token)
        if self.matcher is not None:
            self.matcher.accept(token)

    @property
    def done(self) -> bool:
        return len(self.output) >= 40 or bool(self.output and self.output[-1] == END)


def finite(row: torch.Tensor) -> set[int]:
    return set((~torch.isneginf(row)).nonzero().flatten().tolist())


def draw(random_: random.Random, legal: set[int]) -> int:
    return END if END in legal and random_.random() < 0.2 else random_.choice(sorted(legal))


# ---------------------------------------------------------------------------------------------------------------------
# The V1 runner


@pytest.mark.parametrize("seed", range(6))
def test_requests_are_followed_through_the_batch(plugin: Any, config: Any, seed: int) -> None:
    """As vLLM's persistent batch does: removals leave holes, additions fill them, moves close them, and rows swap."""
    chance, interface = random.Random(seed), sys.modules[V1]
    processor = plugin.GrammarLogitsProcessor(config, torch.device("cpu"), False)
    moves = interface.MoveDirectionality
    rows: list[Job | None] = []
    waiting = [Job(chance.choice(WISHES)) for _ in range(24)]
    answers = 0
    while waiting or rows:
        removed = [i for i, job in enumerate(rows) if job is not None and job.done]
        if chance.random() < 0.1 and rows:  # preempted: it comes back with what it has
            victim = chance.randrange(len(rows))
            if victim not in removed:
                removed.append(victim)
                waiting.append(rows[victim])  # type: ignore[arg-type]
        for i in removed:
            answers += rows[i].done  # type: ignore[union-attr]
            rows[i] = None
        added = []
        while waiting and chance.random() < 0.6 and len(rows) < 8:
            job = waiting.pop(0)
            if removed:
                place = removed.pop()
                rows[place] = job
            else:
                place = len(rows)
                rows.append(job)
            added.append((place, job.params, [1] * job.prompt, job.output))
        moved = []
        while None in rows:
            if rows[-1] is None:
                rows.pop()
            else:
                hole = rows.index(None)
                moved.append((len(rows) - 1, hole, moves.UNIDIRECTIONAL))
                rows[hole] = rows.pop()
        if len(rows) > 1 and chance.random() < 0.4:
            a, b = chance.sample(range(len(rows)), 2)
            moved.append((a, b, moves.SWAP))
            rows[a], rows[b] = rows[b], rows[a]
        change = interface.BatchUpdate(len(rows), sorted(removed, reverse=True), added, moved)
        processor.update_state(change if added or removed or moved else None)
        if not rows:
            continue
        given = torch.randn(len(rows), SIZE, generator=torch.Generator().manual_seed(chance.randrange(2**30)))
        made = processor.apply(given.clone())
        for i, job in enumerate(rows):
            assert job is not None
            legal = sorted(job.legal())
            assert finite(made[i]) == set(legal), f"seed {seed}"
            assert torch.equal(made[i, legal], given[i, legal])
            job.accept(draw(chance, set(legal)))
    assert answers == 24


def alone(plugin: Any, config: Any, wish: Any, output: list[int] | None = None) -> tuple[Any, list[int]]:
    processor, output = plugin.GrammarLogitsProcessor(config, torch.device("cpu"), False), output or []
    added = [(0, Params({"toolprm": wish}), [1, 2], output)]
    processor.update_state(sys.modules[V1].BatchUpdate(1, [], added, []))  # type: ignore[attr-defined]
    return processor, output


def test_other_requests_cost_nothing(plugin: Any, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = plugin.GrammarLogitsProcessor(config, torch.device("cpu"), False)
    monkeypatch.setattr(plugin.GrammarLogitsProcessor, "_request", lambda *_: pytest.fail("nobody asked"))
    update = sys.modules[V1].BatchUpdate(2, [], [(0, Params(), [1], []), (1, Params({"other": 1}), [1], [])], [])  # type: ignore[attr-defined]
    processor.update_state(update)
    logits = torch.randn(2, SIZE)
    assert processor.apply(logits) is logits and not torch.isneginf(logits).any()
    assert not processor.is_argmax_invariant()


def test_importing_it_loads_no_grammar() -> None:
    """Only vLLM's own imports are paid for where no request asks."""
    code = (
        "import sys, types\n"
        f"for name in {V1!r}, {V2!r}:\n"
        "    parts = name.split('.')\n"
        "    for end in range(1, len(parts) + 1):\n"
        "        sys.modules.setdefault('.'.join(parts[:end]), types.ModuleType('.'.join(parts[:end])))\n"
        "    sys.modules[name].LogitsProcessor = type('LogitsProcessor', (), {})\n"
        "import torch; before = set(sys.modules)\n"
        "import toolprm_decode.integrations.vllm as plugin\n"
        "class Config: pass\n"
        "class Params: extra_args = None\n"
        "plugin.GrammarLogitsProcessor(Config(), 'cpu', False).validate_params(Params())\n"
        "print(*sorted(name for name in set(sys.modules) - before if 'toolprm' in name or 'transformers' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["toolprm_decode", "toolprm_decode.integrations", "toolprm_decode.integrations.vllm"]


def test_tokens_that_are_taken_back_are_unread(plugin: Any, config: Any) -> None:
    job = Job(WISHES[0])
    processor, output = alone(plugin, config, job.wish)
    for token in tokenizer()('[{"name"').input_ids:
        assert finite(processor.apply(torch.zeros(1, SIZE))[0]) == job.legal()
        job.accept(token)
        output.append(token)
    processor.apply(torch.zeros(1, SIZE))
    del output[2:]
    back = Job(WISHES[0])
    for token in output:
        back.accept(token)
    assert finite(processor.apply(torch.zeros(1, SIZE))[0]) == back.legal()


@pytest.mark.parametrize("place", ["first", "later"])
def test_tokens_that_vllm_does_not_tell_end_the_request(
    plugin: Any, config: Any, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Async scheduling without --logits-processors: placeholders stand for what was sampled."""
    processor, output = alone(plugin, config, WISHES[0])
    if place == "later":
        output.append(tokenizer()("[").input_ids[0])
        assert len(finite(processor.apply(torch.zeros(1, SIZE))[0])) > 1
    output.append(-1)
    for _ in range(3):
        assert finite(processor.apply(torch.zeros(1, SIZE))[0]) == {END}
        output.append(-1)
    assert caplog.text.count("--logits-processors toolprm_decode.integrations.vllm:GrammarLogitsProcessor") == 1


def test_illegal_tokens_and_grammars_that_cannot_be_had_end_their_request_alone(
    plugin: Any, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    processor, output = alone(plugin, config, WISHES[0])
    update = sys.modules[V1].BatchUpdate  # type: ignore[attr-defined]
    broken = Params({"toolprm": {"tools": [{"name": "never", "parameters": {"type": "objekt"}}]}})
    healthy = Job(WISHES[2])
    processor.update_state(update(3, [], [(1, broken, [1], []), (2, healthy.params, [1], healthy.output)], []))
    output.append(tokenizer()("}").input_ids[0])
    made = processor.apply(torch.zeros(3, SIZE))
    assert [finite(row) for row in made] == [{END}, {END}, healthy.legal()]
    assert "objekt" in caplog.text and "not legal after ''" in caplog.text


def test_a_model_with_too_few_logits_ends_the_request(
    plugin: Any, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config.model_config.get_vocab_size = lambda: SIZE - 1
    try:
        processor, _ = alone(plugin, config, WISHES[0])
    finally:
        config.model_config.get_vocab_size = lambda: SIZE
    assert finite(processor.apply(torch.zeros(1, SIZE))[0]) == {END}
    assert f"logits for {SIZE - 1} tokens" in caplog.text


def test_an_answer_that_can_only_end_does(plugin: Any, config: Any) -> None:
    """min_tokens has forbidden the end before."""
    logits = torch.randn(1, SIZE)
    logits[0, END] = -torch.inf
    processor, _ = alone(plugin, config, {"schema": {"const": None}}, tokenizer()("null").input_ids)
    made = processor.apply(logits.to(torch.bfloat16))
    assert finite(made[0]) == {END} and made.dtype == torch.bfloat16


def test_named_and_found_it_works_once(plugin: Any, config: Any) -> None:
    first, second = (plugin.GrammarLogitsProcessor(config, torch.device("cpu"), False) for _ in range(2))
    for processor in (first, second):
        processor.update_state(sys.modules[V1].BatchUpdate(1, [], [(0, Params({"toolprm": WISHES[0]}), [1], [])], []))  # type: ignore[attr-defined]
    assert len(finite(first.apply(torch.zeros(1, SIZE))[0])) < SIZE
    assert len(finite(second.apply(torch.zeros(1, SIZE))[0])) == SIZE
    assert not second.add_request(0, Params({"toolprm": WISHES[0]}))


@pytest.mark.parametrize("wish", [w for w in WISHES if w is not None])
def test_wishes_are_checked_when_they_come(plugin: Any, wish: Any) -> None:
    plugin.GrammarLogitsProcessor.validate_params(Params({"toolprm": wish}))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("{", "not JSON"),
        ([], '{"tools"'),
        ({"tools": [], "schema": {}}, '{"tools"'),
        ({"tools": TOOLS, "formt": "hermes"}, "unknown option 'formt'"),
        ({"schema": {}, "max_calls": 1}, "unknown option 'max_calls'"),
        ({"tools": TOOLS, "max_calls": "1"}, "max_calls must be of type int"),
        ({"tools": TOOLS, "max_calls": True}, "max_calls must be of type int"),
        ({"tools": TOOLS, "format": "none such"}, "none such"),
        ({"tools": [{"name": "a", "parameters": {"type": "objekt"}}]}, "objekt"),
        ({"schema": {"type": "string", "pattern": "("}}, "pattern"),
    ],
)
def test_what_is_wrong_with_a_wish_is_said_to_who_asked(plugin: Any, wish: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        plugin.GrammarLogitsProcessor.validate_params(Params({"toolprm": wish}))


# ---------------------------------------------------------------------------------------------------------------------
# The V2 runner


class Device:
    """The state of requests that the runner keeps on its device, and what it tells of a pass."""

    def __init__(self, slots: int = 8):
        self.prompt_len = SimpleNamespace(np=np.zeros(slots, np.int32))
        self.all_token_ids = SimpleNamespace(gpu=torch.full((slots, 200), -7, dtype=torch.int32))
        self.read: dict[int, int] = {}

    def pass_(self, rows: list[tuple[int, int, int, int]]) -> Any:
        """rows: slot, place in its draft, position, token fed there."""
        slot, draft, position, token = (torch.tensor(column, dtype=torch.int32) for column in zip(*rows, strict=True))
        return SimpleNamespace(
            expanded_idx_mapping=slot,
            idx_mapping_np=np.array(list(dict.fromkeys(slot.tolist()))),
            expanded_local_pos=draft,
            pos=position.long(),
            input_ids=token,
        )


@pytest.mark.parametrize("drafts", [0, 3], ids=["plain", "speculative"])
@pytest.mark.parametrize("seed", range(5))
def test_slots_are_followed(plugin: Any, config: Any, seed: int, drafts: int) -> None:
    """In any order of rows, with prompts read in parts, preemption, slots used again, and drafts right and wrong."""
    chance, device = random.Random(seed), Device()
    processor = plugin.GrammarLogitsProcessor(config, device)
    jobs: dict[int, Job] = {}
    waiting = [Job(chance.choice(WISHES), chance.randrange(1, 6)) for _ in range(20)]
    ended = 0
    while waiting or jobs:
        for slot in list(jobs):
            if jobs[slot].done:
                ended += 1
                del jobs[slot]
            elif chance.random() < 0.05:
                waiting.append(jobs.pop(slot))
        while waiting and len(jobs) < 5:
            slot = chance.choice([s for s in range(8) if s not in jobs])
            job = jobs[slot] = waiting.pop(0)
            tokens = [1] * job.prompt + job.output
            device.prompt_len.np[slot] = job.prompt
            device.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens)
            device.read[slot] = 0
            assert processor.add_request(slot, job.params) == (job.wish is not None)
        if not jobs:
            continue
        rows, expected = [], []
        for slot in chance.sample(sorted(jobs), chance.randrange(1, len(jobs) + 1)):
            job = jobs[slot]
            tokens = [1] * job.prompt + job.output
            if len(tokens) - device.read[slot] > 1 and chance.random() < 0.5:  # a part of what is to be read
                device.read[slot] += 1
                at = device.read[slot] - 1
                rows.append((slot, 0, at, tokens[at]))
                expected.append(None)
                continue
            device.read[slot] = len(tokens)
            draft: list[int] = []
            for _ in range(chance.randrange(drafts + 1)):
                draft.append(chance.choice([chance.randrange(SIZE), draw(chance, job.legal(draft))]))
            for place, token in enumerate([tokens[-1], *draft]):
                rows.append((slot, place, len(tokens) - 1 + place, token))
                expected.append((job, draft[:place]))
        logits = torch.randn(len(rows), SIZE)
        made = processor.apply(logits.clone(), device.pass_(rows))
        sampled: dict[int, int] = {}
        for i, wanted in enumerate(expected):
            if wanted is None:
                continue
            job, draft = wanted
            legal = job.legal(draft)
            assert finite(made[i]) == legal, f"seed {seed}, row {i}"
            assert torch.equal(made[i, sorted(legal)], logits[i, sorted(legal)])
            if not draft:
                sampled[rows[i][0]] = draw(chance, legal)
        for slot, token in sampled.items():
            job = jobs[slot]
            device.all_token_ids.gpu[slot, job.prompt + len(job.output)] = token
            job.accept(token)
    assert ended == 20


# ---------------------------------------------------------------------------------------------------------------------
# vLLM itself


def test_vllm_finds_it() -> None:
    found = [entry for entry in entry_points(group="vllm.logits_processors") if entry.name == "toolprm"]
    text = (ROOT / "pyproject.toml").read_text()
    assert 'toolprm = "toolprm_decode.integrations.vllm:GrammarLogitsProcessor"' in text
    if not found:
        pytest.skip("the package was installed before it had this entry point: install it anew")
    assert found[0].value == "toolprm_decode.integrations.vllm:GrammarLogitsProcessor"


ENGINE = """
import json, sys
from vllm import LLM, SamplingParams

def main(folder, jobs):
    llm = LLM(folder, max_model_len=512, max_num_seqs=4, enforce_eager=True, dtype="float32",
              logits_processors=json.loads(sys.argv[3]))
    params = [SamplingParams(max_tokens=150, temperature=1.0, seed=i, extra_args=wish and {"toolprm": wish})
              for i, (_, wish) in enumerate(jobs)]
    for made in llm.generate([prompt for prompt, _ in jobs], params):
        print("ANSWER" + json.dumps([made.outputs[0].text, made.outputs[0].finish_reason]))

if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
"""


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_engine_of_vllm(tmp_path: Path) -> None:
    """More requests than rows, of several wishes and of none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=SIZE, head_dim=64, eos_token_id=END, bos_token_id=None, **size))
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "run.py").write_text(ENGINE)
    wishes = [
        {"tools": [SWITCH], "format": "json-list", "max_calls": 1, "allow_no_call": False},
        None,
        {"schema": {"enum": ["attic", 125, None, ["a"]]}},
    ]
    jobs = [(f"Light {i} " * (1 + i % 4), wishes[i % 3]) for i in range(15)]
    found = entry_points(group="vllm.logits_processors")
    named = (
        []
        if any(entry.name == "toolprm" for entry in found)
        else ["toolprm_decode.integrations.vllm:GrammarLogitsProcessor"]
    )
    done = subprocess.run(
        [sys.executable, "run.py", "model", json.dumps(jobs), json.dumps(named)],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )  # fmt: skip
    answers = [json.loads(line[len("ANSWER") :]) for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert len(answers) == len(jobs), done.stdout[-3000:] + done.stderr[-3000:]
    checks: list[Callable[[str], bool] | None] = [wish and grammar(wish).accepts for wish in wishes]
    for i, (text, reason) in enumerate(answers):
        check = checks[i % 3]
        assert check is None or (check(text) if reason == "stop" else i % 3 == 0), text
    assert sum(reason == "stop" for _, reason in answers) > 6
