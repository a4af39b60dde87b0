"""Language models of the built-in world, trained from nothing: the policy, and the base of the reward models."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from toolprm_decode.errors import CheckpointError, RequestError
from toolprm_decode.formats import FORMATS
from toolprm_decode.grammar.call_grammar import CallGrammar
from toolprm_decode.learning.packing import TokenTree
from toolprm_decode.learning.world.tokenizer import build_tokenizer
from toolprm_decode.learning.world.world import STANDARD, World
from toolprm_decode.prompting import render
from toolprm_decode.questions.labels import gold_calls
from toolprm_decode.questions.samples import Sample
from toolprm_decode.rewards import DEFAULT_TAGS
from toolprm_decode.tools import Tool, read_tools

FORMAT = FORMATS["json-list"]


@dataclass(frozen=True)
class Pretraining:
    """What a model is and how it is trained.

    Attributes:
        hidden, layers, heads, feedforward: its shape.
        tokens: forward tokens in all, after a warm-up.
        warm_up: steps of the warm-up, at most: random texts to copy, until it is learnt well enough.
        batch: tokens a step.
        learning_rate: its peak; it falls linearly over the last `decay` of the training.
        tagged: share of the answers with a reward model's tags after their steps, which a later reward model reads.
        threshold: share of answers predicted right, token by token, at which the next level begins.
        hardest: the level where the curriculum ends.
        seed: of the weights and the questions.
        early: share of the tokens after which the model is also saved as it is then, in OUT/early.
        grown_from: folder of a run whose newest checkpoint it starts from, in place of fresh weights and a warm-up. The
            layers that it has beyond that one's begin as ones that change nothing.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feedforward: int = 384
    tokens: int = 10_000_000
    warm_up: int = 300
    batch: int = 2000
    learning_rate: float = 2e-3
    decay: float = 0.4
    tagged: float = 0.0
    threshold: float = 0.6
    hardest: int = STANDARD
    seed: int = 0
    early: float | None = None
    grown_from: str | None = None


def answer_of(sample: Sample, tools: Sequence[Tool] | None = None) -> str:
    """The gold calls as a model should write them. tools: the sample's, where they are read already."""
    return FORMAT.render(gold_calls(sample, tools))


def build_model(tokenizer: PreTrainedTokenizerFast, settings: Pretraining) -> LlamaForCausalLM:
    """A fresh model with a head start at copying."""
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 16) * 16,
        hidden_size=settings.hidden,
        intermediate_size=settings.feedforward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config)
        _initialise(model, tokenizer)
    return model


@torch.no_grad()
def _initialise(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Random weights in which copying is easy to find.

    A word has much the same embedding with and without the space before it. The first head of layer 0 looks at the
    token before (by constant query and key biases, which RoPE turns) and writes it into a subspace of its own; two
    heads of each of the next two layers match that against the token at hand, and copy what followed it (induction).
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 1 / math.sqrt(2 * config.num_hidden_layers) if residual else 0.8
            torch.nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[1]))
        elif name.endswith(".bias"):
            parameter.zero_()
    embeddings = model.model.embed_tokens.weight
    torch.nn.init.normal_(embeddings, std=width**-0.5)
    space = torch.randn(width) * width**-0.5 * 0.5
    vocabulary = tokenizer.get_vocab()
    for text, index in vocabulary.items():
        spaced = vocabulary.get("Ġ" + text)
        if spaced is not None:
            word = embeddings[index].clone()
            embeddings[index] = (word - space) / math.sqrt(1.25)
            embeddings[spaced] = (word + space) / math.sqrt(1.25)

    frequencies = 1.0 / 1e5 ** (torch.arange(0, size, 2).float() / size)
    basis, _ = torch.linalg.qr(torch.randn(width, width))
    content, stored = basis[:size], basis[size : 2 * size]  # what a token is, and where the token before is noted
    fast = int((frequencies > 0.01).sum())
    turning = min(5, fast)
    half = size // 2
    attention = model.model.layers[0].self_attn
    strength = math.sqrt(8.0 * math.sqrt(size) / float((1 - frequencies[:turning].cos()).sum()))
    attention.q_proj.weight[:size] *= 0.1
    attention.k_proj.weight[:size] *= 0.1
    attention.q_proj.bias[:turning] = strength
    attention.k_proj.bias[:turning] = strength * frequencies[:turning].cos()
    attention.k_proj.bias[half : half + turning] = strength * frequencies[:turning].sin()
    attention.v_proj.weight[:size] = content
    attention.o_proj.weight[:, :size] = 1.13 / math.sqrt(size) * stored.T
    still = torch.cat([torch.arange(fast, half), torch.arange(fast + half, size)])  # hardly turned by RoPE
    for layer in model.model.layers[1:3]:
        attention = layer.self_attn
        copied, _ = torch.linalg.qr(torch.randn(width, 2 * size))
        for head in range(2):
            rows = slice(head * size, (head + 1) * size)
            some = torch.randperm(size)[: len(still)]
            for projection, read in ((attention.q_proj, content), (attention.k_proj, stored)):
                projection.weight[rows] *= 0.1
                projection.weight[head * size + still] = 2.2 * read[some]
            attention.v_proj.weight[rows] = copied[:, rows].T
            attention.o_proj.weight[:, rows] = 0.7 * copied[:, rows]


@torch.no_grad()
def _grow(model: LlamaForCausalLM, weights: dict[str, torch.Tensor]) -> None:
    """Gives a model the weights of a shallower one; the layers on top add nothing to what they read, at first."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    new = {int(name.split(".")[2]) for name in missing}
    if unexpected or new & {int(name.split(".")[2]) for name in weights if name.startswith("model.layers.")}:
        raise RequestError("a model grows from a shallower one of the same width")
    for index in new:
        layer = model.model.layers[index]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


@dataclass
class _Row:
    """Questions over one tool set, as one tree."""

    tree: TokenTree
    nodes: list[int]  # where a token of an answer is predicted
    targets: list[int]
    answers: list[int]  # which answer of the row it belongs to


class _Rows:
    """Makes rows of questions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, tagged: float):
        self.tokenizer, self.tagged = tokenizer, tagged
        self.tags = {kind: self._encode(tag) for kind, tag in DEFAULT_TAGS.items()}

    def row(self, samples: Sequence[Sample], rnd: random.Random) -> _Row:
        tools = read_tools(samples[0].tools)
        grammar = CallGrammar(tools, self.tokenizer, FORMAT) if self.tagged else None
        row = _Row(TokenTree(), [], [], [])
        for index, sample in enumerate(samples):
            prompt, _ = render(self.tokenizer, tools, sample.messages, FORMAT)
            text = answer_of(sample, tools)
            pieces: list[tuple[str, list[int]]] = [(text, [])]
            if grammar is not None and rnd.random() < self.tagged:
                pieces = [(step.text, self.tags[step.kind]) for step in grammar.steps(text)]
            node = row.tree.add(self._encode(prompt))[-1]
            for text, tag in pieces:
                for token in self._encode(text):
                    row.nodes.append(node)
                    row.targets.append(token)
                    row.answers.append(index)
                    (node,) = row.tree.add([token], node)
                node = row.tree.add(tag, node)[-1] if tag else node
            row.nodes.append(node)
            row.targets.append(int(self.tokenizer.eos_token_id))
            row.answers.append(index)
        return row

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _loss(model: LlamaForCausalLM, rows: Sequence[_Row]) -> tuple[torch.Tensor, list[bool]]:
    """Mean cross-entropy of the answers' tokens, and which answers were predicted right throughout."""
    length = math.ceil(max(len(row.tree) for row in rows) / 8) * 8
    tokens = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    mask = np.zeros((len(rows), 1, length, length), bool)
    nodes, targets, answers = [], [], []
    for index, row in enumerate(rows):
        size = len(row.tree)
        tokens[index, :size], positions[index, :size] = row.tree.tokens, row.tree.positions()
        mask[index, 0] = row.tree.mask(length)
        nodes += [index * length + node for node in row.nodes]
        targets += row.targets
        answers += [(index, answer) for answer in row.answers]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            input_ids=torch.from_numpy(tokens),
            position_ids=torch.from_numpy(positions),
            attention_mask=torch.from_numpy(mask),
            use_cache=False,
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[nodes]).float()
    wanted = torch.tensor(targets)
    right: dict[tuple[int, int], bool] = {}
    for answer, hit in zip(answers, (logits.argmax(-1) == wanted).tolist(), strict=True):
        right[answer] = right.get(answer, True) and hit
    return functional.cross_entropy(logits, wanted), list(right.values())


def teacher_forced_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], batch: int = 24
) -> float:
    """Share of the questions where every token of the gold answer is the likeliest one after those before it."""
    rows = _Rows(tokenizer, 0.0)
    found: list[bool] = []
    ready = [rows.row([sample], random.Random(0)) for sample in samples]
    ready.sort(key=lambda row: len(row.tree))
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(ready), batch):
            found += _loss(model, ready[start : start + batch])[1]
    model.train(training)
    return sum(found) / len(found)


class _Curriculum:
    """The level at hand: it rises when enough answers are predicted right."""

    def __init__(self, settings: Pretraining, state: dict[str, Any] | None = None):
        self.settings = settings
        self.level, self.since, self.right = 0, 0, 0.0
        if state:
            self.level, self.since, self.right = state["level"], state["since"], state["right"]

    def state(self) -> dict[str, Any]:
        return {"level": self.level, "since": self.since, "right": self.right}

    def update(self, share: float) -> bool:
        self.since += 1
        self.right = share if self.since == 1 else 0.97 * self.right + 0.03 * share
        if self.level < self.settings.hardest and self.since >= 75 and self.right > self.settings.threshold:
            self.level, self.since = self.level + 1, 0
            return True
        return False


def _batches(rows: _Rows, settings: Pretraining, step: int, level: int) -> Iterator[list[_Row]]:
    """Batches of about settings.batch tokens, of rows of similar lengths. They depend on the step alone."""
    rnd = random.Random(f"batches {settings.seed} {step}")
    made: list[_Row] = []
    while sum(len(row.tree) for row in made) < 8 * settings.batch:
        chosen = level if rnd.random() < 0.85 else rnd.randint(0, level)
        world = World(rnd.getrandbits(60), chosen)
        made.append(rows.row(world.group(4, ""), rnd))
    made.sort(key=lambda row: len(row.tree))
    batches: list[list[_Row]] = [[]]
    for row in made:
        if batches[-1] and (len(batches[-1]) + 1) * len(row.tree) > settings.batch * 1.15:
            batches.append([])
        batches[-1].append(row)
    rnd.shuffle(batches)
    yield from batches


def _copying(vocabulary: int, rnd: random.Random) -> _Row:
    """A row of random segments, and the same in another order: from its second token on, each can be copied."""
    segments = [[rnd.randrange(len(DEFAULT_TAGS), vocabulary) for _ in range(rnd.randint(2, 5))] for _ in range(6)]
    row = _Row(TokenTree(), [], [], [])
    node = row.tree.add([token for segment in segments for token in segment])[-1]
    rnd.shuffle(segments)
    for segment in segments:
        for index, token in enumerate(segment):
            if index:
                row.nodes.append(node)
                row.targets.append(token)
                row.answers.append(0)
            (node,) = row.tree.add([token], node)
    return row


def pretrain(out: str | os.PathLike[str], settings: Pretraining, *, evaluate_every: float = 180.0) -> Path:
    """Trains a model and saves it, with its tokenizer, as a transformers folder; goes on where it was interrupted.

    out: the folder; checkpoint.pt in it is the state to go on from, log.jsonl what happened.
    Raises CheckpointError where that was begun with other settings.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, settings).train()
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    step = round_ = seen = 0
    seconds = 0.0
    curriculum = _Curriculum(settings)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] != asdict(settings):
            raise CheckpointError(f"{checkpoint}: begun with other settings; use them, or another folder")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, round_, seen, seconds = state["step"], state["round"], state["seen"], state["seconds"]
        curriculum = _Curriculum(settings, state["curriculum"])
    elif settings.grown_from is not None:
        state = torch.load(Path(settings.grown_from) / "checkpoint.pt", weights_only=True)
        _grow(model, state["model"])
        curriculum = _Curriculum(settings, state["curriculum"])
    rows = _Rows(tokenizer, settings.tagged)
    validation = {
        "values": World(1, settings.hardest, "validation").samples(200),
        "tools": World(1, settings.hardest, "validation", unseen_tools=True).samples(200),
    }

    def log(**values: Any) -> None:
        line = json.dumps({"step": step, "tokens": seen, "minutes": round(seconds / 60, 2), **values})
        print(line, flush=True)
        with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def validate() -> None:
        right = {name: teacher_forced_accuracy(model, tokenizer, part) for name, part in validation.items()}
        log(**{f"validation_{name}": share for name, share in right.items()})

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "round": round_,
            "seen": seen,
            "seconds": seconds,
            "curriculum": curriculum.state(),
            "settings": asdict(settings),
        }
        torch.save(state, folder / "checkpoint.tmp")
        os.replace(folder / "checkpoint.tmp", checkpoint)

    def update(batch: Sequence[_Row], rate: float) -> tuple[float, list[bool]]:
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, right = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), right

    if step == 0 and settings.grown_from is None:
        started = time.perf_counter()
        rnd = random.Random(f"copying {settings.seed}")
        loss = math.inf
        for index in range(settings.warm_up):
            rows_to_copy = [_copying(len(tokenizer), rnd) for _ in range(settings.batch // 50)]
            loss, _ = update(rows_to_copy, settings.learning_rate * min(1.0, (index + 1) / 50))
            if loss < 0.5:
                break
        seconds += time.perf_counter() - started
        log(warm_up=index + 1, loss=round(loss, 4))

    losses: list[float] = []
    reported = evaluated = seconds
    while seen < settings.tokens:
        started = time.perf_counter()
        for batch in _batches(rows, settings, round_, curriculum.level):
            left = 1 - seen / settings.tokens
            rate = settings.learning_rate * min(1.0, (step + 1) / 50) * max(0.0, min(1.0, left / settings.decay))
            loss, right = update(batch, rate)
            step += 1
            seen += sum(len(row.tree) for row in batch)
            losses.append(loss)
            if curriculum.update(sum(right) / len(right)):
                log(level=curriculum.level)
        round_ += 1
        seconds += time.perf_counter() - started
        if settings.early is not None and seen >= settings.early * settings.tokens and not (folder / "early").exists():
            (folder / "early").mkdir()
            _save(model, tokenizer, folder / "early", settings, seconds)
        if seconds - reported > 30:
            reported = seconds
            share = round(curriculum.right, 3)
            log(loss=round(sum(losses) / len(losses), 4), right=share, level=curriculum.level, rate=seen / seconds)
            losses.clear()
        if seconds - evaluated > evaluate_every:
            evaluated = seconds
            save()
            validate()
    save()
    validate()
    _save(model, tokenizer, folder, settings, seconds)
    return folder


def _save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, settings: Pretraining, seconds: float
) -> None:
    """Saves a copy of a model in bfloat16, with its tokenizer and what it was trained by."""
    copied = copy.deepcopy(model).eval().to(torch.bfloat16)
    copied.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = {**asdict(settings), "hours": seconds / 3600}
    (folder / "pretraining.json").write_text(json.dumps(made, indent=2), encoding="utf-8")
