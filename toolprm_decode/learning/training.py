"""Trains a causal language model as a reward model: ToolPRM, C-PRM or ORM."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import AddedToken
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.trainer_callback import ExportableState, PrinterCallback

from toolprm_decode.engine.engine import load_model, load_tokenizer
from toolprm_decode.engine.support import first_line
from toolprm_decode.errors import CheckpointError, DataError, ModelNotSupported, RequestError, TokenizerError
from toolprm_decode.files import write_whole
from toolprm_decode.learning.collation import (
    WEIGHTINGS,
    BatchPlan,
    Collator,
    PieceBuilder,
    Pieces,
    Row,
    fill_rows,
    read_pieces,
    tree_mask,
)
from toolprm_decode.learning.judging import judged
from toolprm_decode.learning.metrics import Judged, fit_temperature, measure
from toolprm_decode.rewards import DEFAULT_TAGS, STEP_KINDS, ToolPRM

log = logging.getLogger(__name__)

# Which steps a reward model judges. The coarse one goes without the labels of parameters (PAPER: C-PRM).
KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "toolprm": STEP_KINDS,
        "c-prm": ("FUNC_NAME", "FUNC_FINISH", "TOTAL_FINISH"),
        "orm": ("TOTAL_FINISH",),
    }
)

_RUN = "run.json"


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        epochs, max_steps: how long; max_steps, where above 0, goes before epochs.
        learning_rate, schedule, warmup, weight_decay, max_grad_norm: of AdamW. schedule is a name of transformers'
            SchedulerType; warmup a share of the steps; gradients are clipped to max_grad_norm.
        row_tokens: tokens of one row, into which the trees of several queries are packed. Longer rows share longer
            prompts, and cost attention that grows with their square.
        batch_tokens: tokens of one pass of one process. accumulate: passes before a step of the optimizer.
        packing: trajectories of a query in one tree; else one sequence a row, for models that take no tree mask.
        max_length: trajectories of more tokens are left out; 0 for the model's context.
        weighting: how much a trajectory drawn `count` times weighs: "count", "sqrt" or "none".
        class_weights: "none"; "auto", inverse to how often right and wrong steps occur; or (right, wrong).
        full_vocabulary: normalise the labels' probabilities over all tokens rather than over the two labels.
        lora_rank: train adapters of this rank instead of the weights; 0 for the weights. lora_alpha: twice the rank
            where 0.
        checkpoint_every: optimizer steps from one checkpoint, and evaluation, to the next; 0 for once an epoch.
        patience: evaluations without a better AUC on the validation split before it stops; 0 for never.
        bf16: run passes in bfloat16; None for where the GPU can.
        seed: of the order and of all that is drawn.
        arguments: more of transformers' TrainingArguments, which go before all others (FSDP, logging, ...).
    """

    epochs: float = 3.0
    max_steps: int = 0
    learning_rate: float = 5e-5
    schedule: str = "cosine"
    warmup: float = 0.03
    weight_decay: float = 1e-5
    max_grad_norm: float = 1.0
    row_tokens: int = 1024
    batch_tokens: int = 8192
    accumulate: int = 1
    packing: bool = True
    max_length: int = 0
    weighting: str = "count"
    class_weights: str | tuple[float, float] = "none"
    full_vocabulary: bool = False
    lora_rank: int = 0
    lora_alpha: int = 0
    checkpoint_every: int = 0
    patience: int = 3
    bf16: bool | None = None
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive = ("epochs", "learning_rate", "max_grad_norm", "row_tokens", "batch_tokens", "accumulate")
        for name in (*positive, "max_steps", "weight_decay", "max_length", "lora_rank", "lora_alpha", "patience"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name in positive):
                raise RequestError(f"{name} must be {'above' if name in positive else 'at least'} zero, not {value}")
        if self.checkpoint_every < 0 or not 0 <= self.warmup < 1:
            raise RequestError("checkpoint_every must be at least zero, and warmup a share of the steps below one")
        if not 0 <= self.seed < 2**32:
            raise RequestError(f"the seed must be between 0 and {2**32 - 1:,}, not {self.seed}")
        if self.weighting not in WEIGHTINGS:
            raise RequestError(f"unknown weighting {self.weighting!r}; known: {', '.join(WEIGHTINGS)}")
        if isinstance(self.class_weights, str):
            if self.class_weights not in ("none", "auto"):
                raise RequestError(f"class_weights must be none, auto or two numbers, not {self.class_weights!r}")
        elif len(self.class_weights) != 2 or not all(0 <= w < math.inf for w in self.class_weights):
            raise RequestError(f"class_weights must be two numbers of at least zero, not {self.class_weights!r}")


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        path: the folder, for ToolPRM.from_pretrained.
        metrics: by split, what `measure` gives, under the temperature.
        temperature: fitted on the validation split; 1.0 without one.
        steps: of the optimizer. seconds: of training, interrupted parts included.
    """

    path: Path
    metrics: dict[str, dict[str, dict[str, float]]]
    temperature: float
    steps: int
    seconds: float


def train(
    model: PreTrainedModel | str | Path,
    dataset: str | Path,
    out: str | Path,
    *,
    kind: str = "toolprm",
    settings: TrainSettings | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    command: str = "",
    progress: bool = True,
) -> Trained:
    """Trains a reward model on a labelled data set, and saves it as an ordinary transformers folder.

    The loss is the negative log-likelihood of the label against the other one at every tag, and nothing else. Where
    the data has a validation split, the checkpoint with the best AUC on it is the one that is kept, and the scores'
    temperature is fitted on it. Several processes (accelerate, torchrun) each call this with the same arguments.

    Args:
        model: the base, a causal language model, its folder or hub id. One that is given loaded is trained in place.
        dataset: folder of a labelled data set. out: folder for the reward model, with its metrics.json, README.md
            (the model card), checkpoints/ and, with LoRA, adapter/.
        kind: which steps to judge, a name of KINDS.
        tokenizer: the base's, where it does not bring one; it is not changed.
        resume: go on from the newest checkpoint in `out`, to the weights of an uninterrupted run.
        callbacks: more of transformers' callbacks.
        command: the command line, for the model card.
        progress: show a progress bar.

    Raises:
        RequestError: a setting that cannot be used, a loss that is not finite, or a missing package.
        DataError: the data set is empty or malformed.
        ModelNotSupported, TokenizerError: the base cannot be a reward model, or not with packing.
        CheckpointError: `out` holds something else, or a run that was begun otherwise.
    """
    settings = settings or TrainSettings()
    _need("accelerate")
    if settings.lora_rank:
        _need("peft")
        if settings.arguments.get("fsdp") or os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise RequestError("adapters are not trained under FSDP: train without lora_rank, or without FSDP")
    if kind not in KINDS:
        raise RequestError(f"unknown kind of reward model {kind!r}; known: {', '.join(KINDS)}")
    out = Path(out)
    checkpoints = out / "checkpoints"

    base, tokenizer = _load(model, tokenizer)
    stored = base.dtype
    if not settings.lora_rank:
        base = base.float()  # AdamW's small steps are lost in the rounding of half precision
    fingerprint = _fingerprint(base, tokenizer)
    prm, added = add_tags(base, tokenizer, kind)

    arguments = _arguments(settings, checkpoints, progress)
    splits = {name: _read(dataset, name, prm, settings) for name in ("train", "validation", "test")}
    if not len(splits["train"]):
        raise DataError(
            f"{dataset}: the train split has no trajectory with a step that {kind} judges: nothing to learn"
        )
    check_passes(prm, settings.packing, max(pieces.longest for pieces in splits.values()))

    description = {
        "base": fingerprint,
        "kind": kind,
        "settings": json.loads(json.dumps(asdict(settings))),
        "data": _data_fingerprint(splits),
        "batches a step": arguments.world_size * settings.accumulate,
    }
    with _writing(out):
        checkpoint = _claim(out, description, resume)
        _wait()
        if arguments.process_index == 0:
            write_whole(checkpoints / _RUN, (json.dumps(description, indent=2) + "\n").encode())

        set_seed(settings.seed)
        trained: Any = _with_adapters(base, settings, added) if settings.lora_rank else base
        trainer = _RewardTrainer(trained, arguments, prm, splits["train"], splits["validation"], settings)
        clock = _Clock()
        trainer.add_callback(clock)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        with trainer.narrow_head():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            judged = {name: trainer.judge(splits[name]) for name in ("validation", "test") if len(splits[name])}
        seconds = next(c for c in trainer.callback_handler.callbacks if isinstance(c, _Clock)).total()
        temperature = fit_temperature(judged["validation"]) if "validation" in judged else 1.0
        if not judged:
            log.warning("%s has neither a validation nor a test split: nothing is measured or calibrated", dataset)
        metrics = {name: measure(part, temperature) for name, part in judged.items()}
        result = Trained(out, metrics, temperature, int(trainer.state.global_step), seconds)
        final = _gathered(trainer, base, out)
        if arguments.process_index == 0:
            _save(final, stored, prm, result, out)
            card = _card(kind, fingerprint["name"], dataset, settings, splits, result, command)
            write_whole(out / "README.md", card.encode())
            write_whole(out / "metrics.json", (json.dumps(_summary(kind, result, splits), indent=2) + "\n").encode())
        _wait()
    return result


def add_tags(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str) -> tuple[ToolPRM, list[int]]:
    """The model as a reward model of the kind, and the ids that had to be added to its tokenizer for that.

    A tag becomes one special token; its embedding starts as the mean of those of the tokens that spelled it. Both the
    model and the tokenizer are changed. Raises as ToolPRM does; TokenizerError where the model's configuration already
    records tags that the tokenizer lacks.
    """
    record = getattr(model.config, "toolprm", None) or {}
    tags, plus, minus = {k: DEFAULT_TAGS[k] for k in KINDS[kind]}, "+", "-"
    if record:
        known = ToolPRM(model, tokenizer)  # which refuses a tokenizer that is not its own
        tags = {k: known.tags.get(k, tag) for k, tag in tags.items()}
        plus, minus = known.plus, known.minus
    spelled = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*tags.values(), plus, minus)}
    missing = [text for text, ids in spelled.items() if len(ids) != 1]
    for text in missing:
        tokenizer.add_tokens([AddedToken(text, special=text in tags.values(), normalized=False)])
    embedding: Any = model.get_input_embeddings()
    if len(tokenizer) > embedding.weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    ids = [int(tokenizer.convert_tokens_to_ids(text)) for text in missing]  # type: ignore[arg-type]
    with torch.no_grad():
        for text, index in zip(missing, ids, strict=True):
            for weight in {id(end.weight): end.weight for end in ends}.values():
                weight[index] = weight[spelled[text]].mean(0)
    return ToolPRM(model, tokenizer, tags, plus, minus, temperature=1.0), ids


def check_passes(prm: ToolPRM, packing: bool, longest: int) -> None:
    """Compare passes as training makes them with the reward model's own. Raises ModelNotSupported where they differ.

    longest: tokens of the longest sequence; a sliding window that is shorter cannot be told to a tree.
    """
    model = prm.engine.model
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if packing and window and sliding and window < longest:
        raise ModelNotSupported(
            f"{type(model).__name__} has a sliding window of {window} tokens, and sequences of {longest} cannot be "
            "packed as trees under it: train with packing=False (--no-packing), or leave out longer ones by max_length"
        )
    random = np.random.default_rng(0)
    low, high = (3, min(1000, len(prm.tokenizer))) if len(prm.tokenizer) > 8 else (0, len(prm.tokenizer))
    words = random.integers(low, high, 24).tolist()
    tag_ids = [list(prm.tag_ids(k)) for k in prm.tags]
    answers = [
        (words[:5], [words[5:8], words[8:10]]),
        (words[:5], [words[5:8], words[10:14]]),
        (words[14:18], [words[18:]]),
    ]
    sequences, pieces = [], []
    builders: list[PieceBuilder] = []
    for number, (prompt, texts) in enumerate(answers):
        steps = [(0, [*text, *tag_ids[i % len(tag_ids)]], True) for i, text in enumerate(texts)]
        if not (packing and number == 1):
            builders.append(PieceBuilder(prompt))
        builders[-1].add(steps, 1, 1.0, number)
        sequences.append([*prompt, *(token for _, tokens, _ in steps for token in tokens)])
    pieces = [builder.finish() for builder in builders]
    rows = [Row([0, 1]), Row([1])] if packing else [Row([i]) for i in range(3)]
    batch = Collator(pieces, 0, packing=packing)(rows)
    with torch.no_grad(), _TagHead(model, prm.label_ids) as head, _evaluating(model):
        try:
            ours = head.run(model, {name: value.to(model.device) for name, value in batch.items()}).float().cpu()
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ModelNotSupported(
                f"{type(model).__name__} does not run {_way(packing)} ({first_line(error)})"
            ) from error
    own = [prm.engine.logits(sequence, [len(sequence) - 1], prm.label_ids)[0].float().cpu() for sequence in sequences]
    last, start = [], 0
    for piece in pieces:
        last += [start + trajectory.tags[-1] for trajectory in piece.trajectories]
        start += len(piece.nodes)
    difference = (ours[last] - torch.stack(own)).abs().max().item()
    bound = (1e-3 if model.dtype == torch.float32 else 0.1) * max(1.0, torch.stack(own).abs().max().item())
    if not difference <= bound:
        raise ModelNotSupported(
            f"{type(model).__name__} {_way(packing)} differs from one sequence alone by {difference:.2g} in its logits"
            + (": train with packing=False (--no-packing)" if packing else "")
        )


def _way(packing: bool) -> str:
    return "under a tree mask, as packing needs it," if packing else "on padded rows"


class _TagHead:
    """Within it, a model's head computes the two labels' logits at the tags, and no others.

    All else of the model's forward, wrapped or not, stays as it is: scaling and soft caps work on the smaller logits.

    ids: the labels'; None for the whole vocabulary.
    """

    def __init__(self, model: Any, ids: Sequence[int] | None):
        self._head: nn.Module = model.get_output_embeddings()
        self._own = self._head.forward
        self._ids = None if ids is None else list(ids)
        self._where: tuple[torch.Tensor, torch.Tensor] | None = None
        # The eager attention adds its mask to the scores; the others read a boolean one.
        self._additive = model.config._attn_implementation == "eager"

    def __enter__(self) -> _TagHead:
        self._head.forward = self._forward
        return self

    def __exit__(self, *_: object) -> None:
        del self._head.forward

    def run(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits [T, 2 or vocabulary] of a batch of a Collator, by `model`: the one given, or what wraps it."""
        if "ends" in batch:
            mask = tree_mask(batch["ends"])
            if self._additive:
                dtype = next(model.parameters()).dtype
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        else:
            mask = batch["attention_mask"]
        self._where = (batch["tag_rows"], batch["tag_columns"])
        try:
            output = model(
                input_ids=batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"], use_cache=False
            )
        finally:
            self._where = None
        logits: torch.Tensor = output.logits
        return logits

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._where is None:
            return self._own(hidden)
        hidden, head = hidden[self._where], self._head
        if self._ids is None:
            return self._own(hidden)
        if type(head) is nn.Linear:
            return F.linear(hidden, head.weight[self._ids], None if head.bias is None else head.bias[self._ids])
        return self._own(hidden)[:, self._ids]


class _Rows(Dataset):  # type: ignore[type-arg]
    """Rows by (number, active), as a BatchPlan asks for them."""

    def __init__(self, rows: Sequence[Sequence[int]]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: tuple[int, bool]) -> Row:
        number, active = item
        return Row(self._rows[number], active)


class _Loader(DataLoader):  # type: ignore[type-arg]
    def set_epoch(self, epoch: int) -> None:
        plan: Any = self.batch_sampler
        plan.set_epoch(epoch)


class _Clock(TrainerCallback, ExportableState):
    """Keeps the seconds of training, those before the checkpoint that a run went on from included."""

    def __init__(self) -> None:
        self.before = 0.0
        self._since = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._since = time.monotonic()

    def total(self) -> float:
        return self.before + time.monotonic() - self._since

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"before": self.total()}}


class _RewardTrainer(Trainer):
    """transformers' Trainer with our rows, loss and evaluation."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        prm: ToolPRM,
        train: Pieces,
        validation: Pieces,
        settings: TrainSettings,
    ):
        self._prm, self._settings, self._validation = prm, settings, validation
        self._train = train
        self._row_tokens = settings.row_tokens if settings.packing else 1
        self._rows = fill_rows(train.pieces, self._row_tokens, settings.seed)
        self._class_weights = _class_weights(settings.class_weights, train)
        self._tag_head: _TagHead | None = None
        measurable = _both_labels(validation)
        if len(validation) and not measurable:
            log.warning("all steps of the validation split have one label: the AUC cannot choose a checkpoint")
        when = ("steps" if settings.checkpoint_every else "epoch") if len(validation) else "no"
        arguments.eval_strategy = type(arguments.eval_strategy)(when)
        arguments.load_best_model_at_end = measurable
        arguments.metric_for_best_model = "eval_auc" if measurable else None
        arguments.greater_is_better = True if measurable else None
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=_Rows(self._rows),
            eval_dataset=_Rows([]),
            data_collator=Collator(train.pieces, self._pad, packing=settings.packing),
            callbacks=[EarlyStoppingCallback(settings.patience)] if settings.patience and measurable else None,
        )
        self.model_accepts_loss_kwargs = True  # so that compute_loss gets the weight of the whole step

    @property
    def _pad(self) -> int:
        pad = self._prm.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    @contextmanager
    def narrow_head(self) -> Iterator[None]:
        """Train and judge within it."""
        ids = None if self._settings.full_vocabulary else self._prm.label_ids
        with _TagHead(self.model, ids) as self._tag_head:
            yield

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that broke off behind its last step has only to choose its checkpoint; transformers would train on.
        waiting = [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
        stopped = any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in waiting)
        if stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        collator = Collator(
            self._train.pieces, self._pad, packing=self._settings.packing, class_weights=self._class_weights
        )
        return self._loader(self._train, self._rows, collator, self._settings.seed)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        assert self._tag_head is not None
        likely = self._label_logits(self._tag_head.run(model, inputs))
        loss = -(inputs["plus"] * likely[:, 0] + inputs["minus"] * likely[:, 1]).sum()
        total = (inputs["plus"] + inputs["minus"]).sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(total, device=loss.device).clamp_min(1e-12)
        if not torch.isfinite(loss):
            raise RequestError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: lower the learning rate, or clip "
                "gradients more; checkpoints before it are kept"
            )
        return loss * self.args.world_size  # gradients are averaged over the processes

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        numbers = measure(self.judge(self._validation))
        metrics = {f"eval_{name}": value for name, value in numbers.pop("all").items()}
        metrics |= {f"eval_{kind}_auc": values["auc"] for kind, values in numbers.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def judge(self, data: Pieces) -> Judged:
        """All judged steps of a split, the same on every process."""
        assert self._tag_head is not None
        rows = fill_rows(data.pieces, self._row_tokens, None)
        loader = self._loader(data, rows, Collator(data.pieces, self._pad, packing=self._settings.packing), None)
        model: Any = self.model_wrapped if self.is_fsdp_enabled else self.model
        margins: dict[int, np.ndarray] = {}  # by piece
        plan: Any = loader.batch_sampler
        with torch.no_grad(), _evaluating(model):
            for items, batch in zip(plan, loader, strict=True):
                with self.compute_loss_context_manager():
                    logits = self._tag_head.run(model, self._prepare_inputs(batch))
                likely = self._label_logits(logits).double().cpu().numpy()
                values, start = likely[:, 0] - likely[:, 1], 0
                for number, active in items:
                    for index in rows[number]:
                        count = len(data.pieces[index].nodes)
                        if active:
                            margins[index] = values[start : start + count]
                        start += count
        if self.args.world_size > 1:
            from accelerate.utils import gather_object

            parts = gather_object([margins])
            margins = {index: values for part in parts for index, values in part.items()}
        return judged(data, margins)

    def _label_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [T, 2] of plus and minus."""
        likely = logits.float().log_softmax(-1)
        return likely[:, list(self._prm.label_ids)] if self._settings.full_vocabulary else likely

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """The weight of the labels of one step of the optimizer, over all processes."""
        total = torch.stack([batch["plus"].sum() + batch["minus"].sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        return total

    def _loader(self, data: Pieces, rows: Sequence[Sequence[int]], collator: Collator, seed: int | None) -> DataLoader:  # type: ignore[type-arg]
        lengths = [sum(len(data.pieces[i]) for i in row) for row in rows]
        plan = BatchPlan(lengths, self._settings.batch_tokens, seed, self.args.process_index, self.args.world_size)
        pin = self.args.device.type == "cuda"
        return _Loader(_Rows(rows), batch_sampler=plan, collate_fn=collator, pin_memory=pin)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _label_weights(data: Pieces) -> tuple[float, float]:
    return sum(float(p.plus.sum()) for p in data.pieces), sum(float(p.minus.sum()) for p in data.pieces)


def _both_labels(data: Pieces) -> bool:
    return all(weight > 0 for weight in _label_weights(data))


def _class_weights(wanted: str | tuple[float, float], data: Pieces) -> tuple[float, float]:
    if not isinstance(wanted, str):
        return wanted
    plus, minus = _label_weights(data)
    if wanted == "none" or not plus or not minus:
        return (1.0, 1.0)
    return ((plus + minus) / (2 * plus), (plus + minus) / (2 * minus))


def _arguments(settings: TrainSettings, folder: Path, progress: bool) -> TrainingArguments:
    """transformers' arguments of a run; the ones of the evaluation follow when the data is known."""
    cuda = torch.cuda.is_available()
    when = "steps" if settings.checkpoint_every else "epoch"
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": (cuda and torch.cuda.is_bf16_supported()) if settings.bf16 is None else settings.bf16,
        "use_cpu": not cuda,
        "seed": settings.seed,
        "save_strategy": when,
        "save_total_limit": 2,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "restore_callback_states_from_checkpoint": True,
        "remove_unused_columns": False,
        "report_to": [],
        "disable_tqdm": not progress,
    }
    if settings.checkpoint_every:
        options |= {"save_steps": settings.checkpoint_every, "eval_steps": settings.checkpoint_every}
    try:
        arguments = TrainingArguments(**{**options, **settings.arguments})
        # A schedule that lacks an option of its own would only be refused after the data is read.
        probe, own = torch.optim.SGD([nn.Parameter(torch.zeros(1))]), cast(Any, arguments.lr_scheduler_kwargs)
        get_scheduler(arguments.lr_scheduler_type, probe, 1, 2, own)
    except (TypeError, ValueError, ImportError) as error:
        raise RequestError(f"the training settings cannot be used: {first_line(error)}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one GPU a process: a wrapper that splits batches would split rows
    return arguments


def _load(
    model: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | str | Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, (str, Path)):
        tokenizer = model if tokenizer is None else tokenizer
        model = load_model(model, device="cpu", dtype=None)
    if not isinstance(model, PreTrainedModel):
        raise RequestError(f"the base must be a causal language model, its folder or hub id, not {model!r:.80}")
    if tokenizer is None and model.name_or_path:
        tokenizer = model.name_or_path
    if tokenizer is None:
        raise TokenizerError("the base comes without a tokenizer: pass it as `tokenizer`")
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, (str, Path)) else copy.deepcopy(tokenizer)
    return model, loaded


def _read(dataset: str | Path, split: str, prm: ToolPRM, settings: TrainSettings) -> Pieces:
    from toolprm_decode.learning.records import locate, read_trajectories

    context = getattr(prm.engine.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    limits = [n for n in (settings.max_length, context, prm.engine.max_positions) if n]
    try:
        rows = read_trajectories(dataset, split)
    except DataError:  # there is none; what is damaged shows when it is read
        if split == "train":
            raise
        return Pieces([])
    pieces = read_pieces(
        rows,
        prm,
        row_tokens=settings.row_tokens,
        max_length=min(limits, default=None),
        packing=settings.packing,
        weighting=settings.weighting,
        where=lambda number: locate(dataset, "trajectories", split, number),
    )
    if pieces.too_long:
        log.warning(
            "%s: %d of %d trajectories are longer than %d tokens and left out",
            split,
            pieces.too_long,
            pieces.trajectories,
            min(limits),
        )
    return pieces


def _need(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise RequestError(f"training needs {package}: pip install toolprm_decode[train]") from error


def _with_adapters(model: PreTrainedModel, settings: TrainSettings, added: list[int]) -> Any:
    from peft import LoraConfig, get_peft_model

    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding).rpartition(".")[2]
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        target_modules="all-linear",
        trainable_token_indices={name: added} if added else None,  # a new tag has nothing to be frozen as
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _gathered(trainer: _RewardTrainer, base: PreTrainedModel, out: Path) -> PreTrainedModel:
    """The trained weights as an ordinary model, on the main process; adapters are saved and merged."""
    if trainer.is_fsdp_enabled:
        whole = out / "checkpoints" / "whole"
        trainer.save_model(str(whole))
        _wait()
        if trainer.args.process_index:
            return base
        model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype="auto")
        shutil.rmtree(whole)
        return model
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if hasattr(model, "merge_and_unload"):
        if trainer.args.process_index == 0:
            model.save_pretrained(str(out / "adapter"), save_embedding_layers=False)  # but the tags'
        return model.merge_and_unload()
    return model


def _save(model: Any, dtype: torch.dtype, prm: ToolPRM, result: Trained, out: Path) -> None:
    final = ToolPRM(
        model.to(dtype).eval(),
        prm.tokenizer,
        dict(prm.tags),
        prm.plus,
        prm.minus,
        temperature=round(result.temperature, 6),
    )
    final.save_pretrained(out)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Says in one way that the run's folder cannot be written, which each library says in its own."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # Of RuntimeErrors, those of the writer behind torch.save.
        if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(
            f"{out}: cannot be written ({reason}); checkpoints that were finished are kept: free space or mend the "
            "folder, and go on with the run (resume, --resume)"
        ) from error


def _wait() -> None:
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def _fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What tells a base from others: its name, and hashes of its shape, of samples of its weights and its tokenizer."""
    shape, weights = hashlib.sha256(type(model).__name__.encode()), hashlib.sha256()
    for name, parameter in model.named_parameters():
        shape.update(f"{name} {tuple(parameter.shape)}\n".encode())
        weights.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    spelled = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    spelled += json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    return {
        "name": str(model.name_or_path),
        "shape": shape.hexdigest()[:16],
        "weights": weights.hexdigest()[:16],
        "tokenizer": hashlib.sha256(spelled.encode()).hexdigest()[:16],
    }


def _data_fingerprint(splits: Mapping[str, Pieces]) -> str:
    digest = hashlib.sha256()
    for name, pieces in splits.items():
        digest.update(f"{name} {len(pieces)}\n".encode())
        for piece in pieces.pieces:
            for array in (piece.tokens, piece.ends, piece.plus, piece.minus):
                digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _claim(out: Path, description: Mapping[str, Any], resume: bool) -> Path | None:
    """The checkpoint to go on from, None for a new run. Raises CheckpointError where `out` is not this run's."""
    folder = out / "checkpoints"
    record = folder / _RUN
    if not record.is_file():
        # What a run leaves that was broken off before its record was whole is no other file.
        if out.exists() and not (out.is_dir() and all(p == folder or p.suffix == ".part" for p in out.rglob("*"))):
            raise CheckpointError(f"{out} holds other files and no training run: give another folder")
        return None
    if not resume:
        raise CheckpointError(f"{out} holds a training run: go on with it (resume, --resume), or give another folder")
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        differs = _difference(before, description)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{record} cannot be read ({error}): give another folder") from error
    if differs:
        raise CheckpointError(f"the run in {out} was begun with {differs}: give what it had, or another folder")
    done = [
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and _complete(path)
    ]
    if not done:
        log.warning("%s has no checkpoint yet: the run begins anew", out)
    return max(done)[1] if done else None


def _complete(checkpoint: Path) -> bool:
    """Whether it was written to its end: its state comes last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    labels = {
        "shape": "another base model (its architecture or shape differs)",
        "weights": "another base model (its weights differ)",
        "tokenizer": "another tokenizer",
    }
    for name, label in labels.items():
        if before["base"].get(name) != now["base"][name]:
            was = before["base"].get("name") or "a model without a name"
            return f"{label}: {was}, not {now['base']['name'] or 'a model without a name'}"
    for name in ("kind", "data", "batches a step"):
        if before.get(name) != now[name]:
            return f"another {name}" + ("" if name == "data" else f": {before.get(name)}, not {now[name]}")
    for name, value in now["settings"].items():
        if before["settings"].get(name) != value:
            return f"{name} = {before['settings'].get(name)}, not {value}"
    return ""


def _plain(value: Any) -> Any:
    """The same with None for nan, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(kind: str, result: Trained, splits: Mapping[str, Pieces]) -> dict[str, Any]:
    return {
        "kind": kind,
        "steps": result.steps,
        "hours": round(result.seconds / 3600, 4),
        "temperature": result.temperature,
        "data": {
            name: {"queries": part.queries, "trajectories": part.trajectories, "left_out": part.too_long}
            for name, part in splits.items()
        },
        **{name: _plain(numbers) for name, numbers in result.metrics.items()},
    }


def _card(
    kind: str,
    base: str,
    dataset: str | Path,
    settings: TrainSettings,
    splits: Mapping[str, Pieces],
    result: Trained,
    command: str,
) -> str:
    names = {"toolprm": "ToolPRM", "c-prm": "coarse ToolPRM (C-PRM)", "orm": "outcome reward model (ORM)"}
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [reward-model, function-calling, toolprm]",
        "---",
        f"# A {names[kind]}",
        "",
        "Judges the steps of function calls: it reads the prompt and the steps so far, then a tag, and the two logits",
        "of the labels after the tag are the score (arXiv 2510.14703). Load it with",
        '`toolprm_decode.ToolPRM.from_pretrained("...")`.',
        "",
        f"- Base: {(Path(base).name if Path(base).is_dir() else base) or 'a model given without a name'}",
        f"- Judges: {', '.join(KINDS[kind])}",
        f"- Data: {Path(dataset).name}",
        *(
            f"  - {name}: {part.queries} queries, {part.trajectories} different trajectories, {part.steps} judged steps"
            + (f", {part.too_long} too long and left out" if part.too_long else "")
            for name, part in splits.items()
            if part.queries
        ),
        f"- Training: {result.steps} steps in {result.seconds / 3600:.2f} hours",
        f"- Temperature of the scores: {result.temperature:.4f}" + (" (not fitted)" if not result.metrics else ""),
        *([f"- Command: `{command}`"] if command else []),
        "",
    ]
    for name, numbers in result.metrics.items():
        columns = ["steps", "wrong", "loss", "accuracy", "auc", "wrong_recall", "ece"]
        lines += [f"## Metrics: {name}", "", "| kind | " + " | ".join(columns) + " |", "|---" * 8 + "|"]
        lines += [
            f"| {group} | " + " | ".join(format_number(column, values[column]) for column in columns) + " |"
            for group, values in numbers.items()
        ]
        whole = numbers["all"]
        lines += [
            "",
            f"Trajectories: {whole['trajectories']:.0f}; the last step judged rightly in "
            f"{format_number('accuracy', whole['trajectory_accuracy'])}, every step in "
            f"{format_number('accuracy', whole['trajectory_all_steps'])}.",
            "",
        ]
    lines += [
        "## Settings",
        "",
        "```json",
        json.dumps(asdict(settings), indent=2),
        "```",
        "",
        "## Limits",
        "",
        "The labels are matches with one known answer: an equivalent value that the answer does not list counts as",
        "wrong. The metrics hold for answers drawn as those of the data were; other policies, tools and formats may be",
        "judged worse, and the scores are calibrated on the validation split alone.",
        "",
    ]
    return "\n".join(lines)


def format_number(name: str, value: float) -> str:
    """A metric as a table shows it."""
    if math.isnan(value):
        return "-"
    if name == "steps":
        return f"{value:.0f}"
    return f"{value:.4f}" if name in ("loss", "auc", "ece") else f"{100 * value:.2f} %"
