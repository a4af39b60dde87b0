"""Training lowers the loss that it says, and an interrupted or a shared run ends in the same weights."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, TrainerCallback

from toolprm_decode.errors import CheckpointError, DataError, ModelNotSupported, RequestError, TokenizerError
from toolprm_decode.formats import get_format
from toolprm_decode.learning.collation import Collator, Row, fill_rows, read_pieces
from toolprm_decode.learning.training import KINDS, TrainSettings, _TagHead, add_tags, check_passes, train
from toolprm_decode.prompting import render
from toolprm_decode.rewards import DEFAULT_TAGS, STEP_KINDS, ToolPRM
from toolprm_decode.tools import read_tools

from .training_cases import TOOLS, many_answers, model, rows, save_base, tokenizer, write_dataset

pytest.importorskip("accelerate")

QUICK = TrainSettings(
    max_steps=4, learning_rate=3e-3, row_tokens=600, batch_tokens=1200, checkpoint_every=2, patience=0, warmup=0.0
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def assert_same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=0, atol=tolerance, msg=name)


def prompt_of(prm: ToolPRM, row: dict[str, Any]) -> str:
    messages = json.loads(row["messages"])
    return render(prm.tokenizer, read_tools(TOOLS), messages, get_format(row["format"]))[0]


def run(
    prm: ToolPRM, data: list[dict[str, Any]], row_tokens: int, packing: bool
) -> tuple[Any, list[Any], torch.Tensor]:
    """The pieces, and the labels' logits and the batch of all rows in one pass."""
    pieces = read_pieces(data, prm, row_tokens=row_tokens, packing=packing)
    filled = fill_rows(pieces.pieces, row_tokens if packing else 1, None)
    batch = Collator(pieces.pieces, 0, packing=packing)([Row(row) for row in filled])
    with torch.no_grad(), _TagHead(prm.engine.model, prm.label_ids) as head:
        logits = head.run(prm.engine.model, batch)
    plus, minus = batch["plus"].double(), batch["minus"].double()
    likely = logits.double().log_softmax(-1)
    loss = -(plus * likely[:, 0] + minus * likely[:, 1]).sum() / (plus + minus).sum()
    order = [i for row in filled for i in row]
    return pieces, [order, logits], loss


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("row_tokens", [1, 250, 2000])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_are_those_of_each_sequence_alone(kind: str, row_tokens: int, attention: str) -> None:
    base = model()
    base.set_attn_implementation(attention)
    prm, data = add_tags(base, tokenizer(), kind)[0], [*rows(3, 3), *many_answers(30)]
    _, _, unpacked = run(prm, data, 1, False)
    pieces, (order, logits), loss = run(prm, data, row_tokens, True)
    start = 0
    for index in order:
        piece = pieces.pieces[index]
        scores = prm.scores(logits[start : start + len(piece.nodes)])
        start += len(piece.nodes)
        for trajectory in piece.trajectories:
            row = data[trajectory.number]
            steps = [(step["kind"], step["text"]) for step in row["steps"]]
            alone = [score for score in prm.score(prompt_of(prm, row), steps) if not np.isnan(score)]
            assert scores[trajectory.tags].tolist() == pytest.approx(alone, abs=1e-4)
    assert loss.item() == pytest.approx(unpacked.item(), abs=1e-6)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_trained_model_is_an_ordinary_reward_model(kind: str, tmp_path: Path) -> None:
    base, data = save_base(tmp_path / "base"), write_dataset(tmp_path / "data")
    settings = replace(QUICK, max_steps=30, checkpoint_every=15, learning_rate=1e-2)
    result = train(base, data, tmp_path / "out", kind=kind, settings=settings, progress=False, command="the command")
    prm = ToolPRM.from_pretrained(result.path, device="cpu")
    assert tuple(prm.tags) == KINDS[kind]
    assert prm.temperature == pytest.approx(result.temperature, abs=1e-5)
    known = {*tokenizer().get_vocab(), *(DEFAULT_TAGS[k] for k in KINDS[kind])}
    assert set(prm.tokenizer.get_vocab()) == known
    assert result.steps == 30
    # What is reported of the test split is what the saved model says of it.
    likely, total, right = 0.0, 0, 0
    for row in rows(4, 2):
        steps = [(step["kind"], step["text"]) for step in row["steps"]]
        for step, score in zip(row["steps"], prm.score(prompt_of(prm, row), steps), strict=True):
            if step["kind"] in prm.tags:
                total += row["count"]
                likely -= row["count"] * np.log(score if step["label"] == "+" else 1 - score)
                right += row["count"] * ((score >= 0.5) == (step["label"] == "+"))
    reported = result.metrics["test"]["all"]
    assert reported["steps"] == total
    assert reported["loss"] == pytest.approx(likely / total, abs=1e-4)
    assert reported["accuracy"] == pytest.approx(right / total)
    assert set(result.metrics["test"]) == {"all", *KINDS[kind]}
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["test"]["all"]["accuracy"] == reported["accuracy"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the command" in card and "Limits" in card and "| all |" in card


def test_the_loss_falls_to_what_the_labels_allow(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", train=3, validation=0, test=0)
    (tmp_path / "data" / "trajectories" / "validation-00000.jsonl").write_bytes(
        (tmp_path / "data" / "trajectories" / "train-00000.jsonl").read_bytes()
    )
    settings = replace(QUICK, max_steps=120, checkpoint_every=60, learning_rate=1e-2)
    result = train(model(), data, tmp_path / "out", settings=settings, tokenizer=tokenizer(), progress=False)
    numbers = result.metrics["validation"]["all"]
    assert numbers["loss"] < 0.05 and numbers["trajectory_all_steps"] == 1 and numbers["auc"] == 1


class _Interrupt(TrainerCallback):
    def __init__(self, step: int):
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [3, 4, 7])
def test_an_interrupted_run_resumes_to_the_same_weights(at: int, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    settings = replace(QUICK, max_steps=9, batch_tokens=600, accumulate=2, warmup=0.2, patience=5)
    common: dict[str, Any] = {"settings": settings, "tokenizer": tokenizer(), "progress": False}

    def base() -> Any:
        return model(attention_dropout=0.3)  # so that the random state matters too

    whole = train(base(), data, tmp_path / "whole", **common)
    with pytest.raises(KeyboardInterrupt):
        train(base(), data, tmp_path / "parts", callbacks=[_Interrupt(at)], **common)
    newest = max((tmp_path / "parts" / "checkpoints").glob("checkpoint-*"))
    broken = newest.with_name("checkpoint-99")  # written by half
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    parts = train(base(), data, tmp_path / "parts", resume=True, **common)
    assert_same(whole.path, parts.path)
    assert parts.metrics == whole.metrics and parts.steps == whole.steps == 9
    again = train(base(), data, tmp_path / "parts", resume=True, **common)  # nothing is left to do
    assert again.metrics == whole.metrics
    assert_same(whole.path, again.path)


@pytest.mark.parametrize(
    "change",
    [{"max_steps": 5}, {"max_steps": 40, "checkpoint_every": 1, "patience": 2, "learning_rate": 1e-9}],
    ids=["last step", "early stop"],
)
def test_a_run_that_broke_off_before_it_was_saved_is_not_trained_on(change: dict[str, Any], tmp_path: Path) -> None:
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    common: dict[str, Any] = {"settings": replace(QUICK, **change), "tokenizer": tokenizer(), "progress": False}
    whole = train(model(), data, out, **common)
    before = weights(out)
    (out / "model.safetensors").unlink()
    again = train(model(), data, out, resume=True, **common)
    assert (again.steps, again.metrics, again.temperature) == (whole.steps, whole.metrics, whole.temperature)
    assert all(torch.equal(value, before[name]) for name, value in weights(out).items())


_PROCESS = """
import json, sys
import torch
from toolprm_decode.learning.training import TrainSettings, train

torch.set_num_threads(1)
base, data, out, settings = sys.argv[1:]
train(base, data, out, settings=TrainSettings(**json.loads(settings)), progress=False)
torch.distributed.destroy_process_group()
"""


def in_two_processes(base: Path, data: Path, out: Path, settings: TrainSettings) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", _PROCESS, str(base), str(data), str(out), json.dumps(asdict(settings))]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-4000:]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("arguments", [{}, {"fsdp": "full_shard", "fsdp_config": {"version": 2}}], ids=["ddp", "fsdp"])
def test_two_processes_give_the_weights_of_one(arguments: dict[str, Any], tmp_path: Path) -> None:
    base, data = save_base(tmp_path / "base", tie=False), write_dataset(tmp_path / "data", train=11)
    settings = replace(QUICK, batch_tokens=600, max_steps=5, accumulate=2, arguments={"logging_steps": 1})
    one = train(base, data, tmp_path / "one", settings=settings, progress=False)
    out = tmp_path / "two"
    more = {**settings.arguments, "use_cpu": True, "ddp_backend": "gloo", **arguments}
    in_two_processes(base, data, out, replace(settings, accumulate=1, arguments=more))
    assert_same(one.path, out, 1e-5)
    found = json.loads((out / "metrics.json").read_text())
    for split in ("validation", "test"):
        assert found[split]["all"]["loss"] == pytest.approx(one.metrics[split]["all"]["loss"], abs=1e-5)
    logs = [
        [e["loss"] for e in json.loads((newest(p) / "trainer_state.json").read_text())["log_history"] if "loss" in e]
        for p in (tmp_path / "one", out)
    ]
    assert len(logs[0]) == 5 and logs[0] == pytest.approx(logs[1], abs=1e-5)


def newest(out: Path) -> Path:
    return max((out / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))


def test_mixed_precision_gives_a_model_that_runs(tmp_path: Path) -> None:
    base, data = save_base(tmp_path / "base"), write_dataset(tmp_path / "data")
    result = train(base, data, tmp_path / "out", settings=replace(QUICK, bf16=True, max_steps=3), progress=False)
    prm = ToolPRM.from_pretrained(result.path, device="cpu")
    assert prm.engine.model.dtype == torch.float32
    row = rows(1, 2)[0]
    scores = prm.score(prompt_of(prm, row), [(step["kind"], step["text"]) for step in row["steps"]])
    assert all(0 < score < 1 for score in scores)


@pytest.mark.parametrize("tie", [True, False])
def test_adapters_are_merged_and_kept(tie: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, data = save_base(tmp_path / "base", tie=tie), write_dataset(tmp_path / "data")
    settings = replace(QUICK, lora_rank=4, learning_rate=2e-2, max_steps=10)
    result = train(base, data, tmp_path / "out", settings=settings, progress=False)
    prm = ToolPRM.from_pretrained(result.path, device="cpu")
    assert not [name for name in prm.engine.model.state_dict() if "lora" in name]
    fresh, _ = add_tags(model(tie=tie), tokenizer(), "toolprm")
    adapted = peft.PeftModel.from_pretrained(fresh.engine.model, tmp_path / "out" / "adapter").merge_and_unload()
    row = rows(1, 2)[0]
    steps = [(step["kind"], step["text"]) for step in row["steps"]]
    beside = ToolPRM(adapted, prm.tokenizer, temperature=prm.temperature)
    assert beside.score(prompt_of(prm, row), steps) == pytest.approx(prm.score(prompt_of(prm, row), steps), abs=1e-5)
    start, _ = add_tags(model(tie=tie), tokenizer(), "toolprm")
    tags = [prm.tag_ids(kind)[0] for kind in STEP_KINDS]
    before, after = (m.get_input_embeddings().weight for m in (start.engine.model, prm.engine.model))
    assert (before[tags] - after[tags]).abs().amax(1).min() > 0  # the new tags were learnt
    torch.testing.assert_close(before[: tags[0]], after[: tags[0]])  # all other embeddings were not


def test_training_stops_when_the_auc_no_longer_rises(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    settings = replace(QUICK, max_steps=40, checkpoint_every=1, patience=2, learning_rate=1e-9)
    result = train(model(), data, tmp_path / "out", settings=settings, tokenizer=tokenizer(), progress=False)
    assert result.steps <= 6


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("class_weights", ["none", "auto", (0.5, 2.0)])
def test_the_loss_is_the_weighted_mean_of_all_labels(full: bool, class_weights: Any, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", train=2, validation=0, test=0)
    settings = replace(
        QUICK,
        max_steps=1,
        full_vocabulary=full,
        class_weights=class_weights,
        arguments={"logging_steps": 1},
        batch_tokens=9999,
    )
    train(model(), data, tmp_path / "out", settings=settings, tokenizer=tokenizer(), progress=False)
    state = json.loads((newest(tmp_path / "out") / "trainer_state.json").read_text())
    prm, _ = add_tags(model(), tokenizer(), "toolprm")
    sums, counts = np.zeros(2), np.zeros(2)
    for row in rows(2, 0):
        tokens = prm.encode_prompt(prompt_of(prm, row))
        for step in row["steps"]:
            tokens += prm.encode_text(step["text"]) + prm.tag_ids(step["kind"])
            logits = prm.engine.model(torch.tensor([tokens])).logits[0, -1].detach().double()
            wrong = int(step["label"] == "-")
            likely = logits.log_softmax(0)[list(prm.label_ids)] if full else logits[list(prm.label_ids)].log_softmax(0)
            sums[wrong] -= row["count"] * likely[wrong].item()
            counts[wrong] += row["count"]
    given = {"none": (1.0, 1.0), "auto": 1 / counts}
    factors = np.array(given[class_weights] if isinstance(class_weights, str) else class_weights)
    expected = (factors * sums).sum() / (factors * counts).sum()
    assert state["log_history"][0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_without_validation_nothing_is_calibrated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_dataset(tmp_path / "data", validation=0, test=0)
    with caplog.at_level(logging.WARNING, "toolprm_decode"):
        result = train(model(), data, tmp_path / "out", settings=QUICK, tokenizer=tokenizer(), progress=False)
    assert result.temperature == 1.0 and not result.metrics
    assert "nothing is measured or calibrated" in caplog.text


def test_tags_start_from_what_spelled_them() -> None:
    base, words = model(tie=False), tokenizer()
    pieces = words("<ARG_VALUE>")["input_ids"]
    expected = base.get_input_embeddings().weight[pieces].mean(0).detach().clone()
    prm, added = add_tags(base, words, "toolprm")
    assert added == [prm.tag_ids(kind)[0] for kind in STEP_KINDS]
    torch.testing.assert_close(base.get_input_embeddings().weight[prm.tag_ids("ARG_VALUE")[0]], expected)
    assert base.get_output_embeddings().weight.shape[0] == len(words)
    again, more = add_tags(base, words, "toolprm")
    assert more == [] and again.record == prm.record


def test_a_reward_model_is_trained_on_with_its_own_tags() -> None:
    base, words = model(), tokenizer()
    first, _ = add_tags(base, words, "toolprm")
    base.config.toolprm = {**first.record, "temperature": 4.0}
    prm, added = add_tags(base, words, "orm")
    assert added == [] and tuple(prm.tags) == ("TOTAL_FINISH",) and prm.temperature == 1.0
    with pytest.raises(TokenizerError, match="saved with the model"):
        add_tags(base, tokenizer(), "toolprm")


def test_models_that_take_no_tree_are_refused() -> None:
    config = MistralConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=20,
    )
    prm, _ = add_tags(MistralForCausalLM(config), tokenizer(), "toolprm")
    check_passes(prm, packing=True, longest=20)
    with pytest.raises(ModelNotSupported, match=r"window of 20.*packing=False"):
        check_passes(prm, packing=True, longest=21)
    check_passes(prm, packing=False, longest=21)


def test_data_is_the_same_without_packing(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", train=3, validation=2, test=0)
    result = train(
        model(), data, tmp_path / "out", settings=replace(QUICK, packing=False), tokenizer=tokenizer(), progress=False
    )
    packed = train(model(), data, tmp_path / "packed", settings=QUICK, tokenizer=tokenizer(), progress=False)
    assert result.metrics["validation"]["all"]["steps"] == packed.metrics["validation"]["all"]["steps"]


def test_a_run_is_gone_on_with_only_as_it_was_begun(tmp_path: Path) -> None:
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    common: dict[str, Any] = {"settings": QUICK, "tokenizer": tokenizer(), "progress": False}
    train(model(), data, out, **common)
    with pytest.raises(CheckpointError, match="holds a training run"):
        train(model(), data, out, **common)
    with pytest.raises(CheckpointError, match=r"another base model \(its weights differ"):
        train(model(seed=1), data, out, resume=True, **common)
    with pytest.raises(CheckpointError, match=r"another base model \(its architecture or shape"):
        train(model(num_hidden_layers=1), data, out, resume=True, **common)
    other = tokenizer()
    other.add_tokens(["hello"])
    with pytest.raises(CheckpointError, match="another tokenizer"):
        train(model(), data, out, resume=True, **{**common, "tokenizer": other})
    with pytest.raises(CheckpointError, match=r"learning_rate = 0\.003, not 0\.1"):
        train(model(), data, out, resume=True, **{**common, "settings": replace(QUICK, learning_rate=0.1)})
    with pytest.raises(CheckpointError, match="another kind"):
        train(model(), data, out, resume=True, kind="orm", **common)
    with pytest.raises(CheckpointError, match="another data"):
        train(model(), write_dataset(tmp_path / "more", train=13), out, resume=True, **common)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="other files"):
        train(model(), data, tmp_path / "full", **common)
    assert (tmp_path / "full" / "mine").read_text() == "x"


def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path) -> None:
    common: dict[str, Any] = {"settings": QUICK, "tokenizer": tokenizer(), "progress": False}
    empty = tmp_path / "empty" / "trajectories" / "train-00000.jsonl"
    empty.parent.mkdir(parents=True)
    empty.write_text("")
    with pytest.raises(DataError):
        train(model(), tmp_path / "empty", tmp_path / "out", **common)
    with pytest.raises(DataError):
        train(model(), tmp_path / "nowhere", tmp_path / "out", **common)
    data = write_dataset(tmp_path / "data")
    with pytest.raises(RequestError, match="kind of reward model"):
        train(model(), data, tmp_path / "out", kind="prm", **common)
    with pytest.raises(TokenizerError, match="without a tokenizer"):
        train(model(), data, tmp_path / "out", settings=QUICK)
    with pytest.raises(RequestError, match="no_such"):
        train(model(), data, tmp_path / "out", **{**common, "settings": replace(QUICK, arguments={"no_such": 1})})
    fsdp = replace(QUICK, lora_rank=2, arguments={"fsdp": "full_shard"})
    with pytest.raises(RequestError, match="not trained under FSDP"):
        train(model(), data, tmp_path / "out", **{**common, "settings": fsdp})
    rows = data / "trajectories" / "train-00000.jsonl"
    damaged = rows.read_text().splitlines()
    damaged[2] = damaged[2].replace('"label": "+"', '"label": "x"').replace('"label": "-"', '"label": "x"')
    other = write_dataset(tmp_path / "damaged")
    (other / "trajectories" / rows.name).write_text("\n".join(damaged))
    with pytest.raises(DataError, match=r"train-00000.jsonl, line 3 .*neither"):
        train(model(), other, tmp_path / "out", **common)
    with pytest.raises(RequestError, match="min_lr"):
        train(model(), data, tmp_path / "out", **{**common, "settings": replace(QUICK, schedule="cosine_with_min_lr")})
    with pytest.raises(RequestError, match=r"schedule|slow"):
        train(model(), data, tmp_path / "out", **{**common, "settings": replace(QUICK, schedule="slow")})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("room", [100, 130_000], ids=["record", "checkpoint"])
def test_a_full_disk_is_said_and_the_run_goes_on(room: int, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    common: dict[str, Any] = {"settings": QUICK, "tokenizer": tokenizer(), "progress": False}
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # of a file; its error is another, and all else alike
    try:
        with pytest.raises((CheckpointError, DataError), match="cannot be written"):
            train(model(), data, out, **common)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert train(model(), data, out, resume=True, **common).steps == QUICK.max_steps
    (tmp_path / "file").write_text("x")
    for wrong in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises((CheckpointError, DataError), match="file"):
            train(model(), data, wrong, **common)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    settings = replace(QUICK, max_steps=20, learning_rate=1e30, max_grad_norm=1e30, checkpoint_every=50)
    with pytest.raises(RequestError, match=r"the loss is (nan|inf) at step \d+: lower the learning rate"):
        train(model(), data, tmp_path / "out", settings=settings, tokenizer=tokenizer(), progress=False)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"batch_tokens": 0},
        {"warmup": 1.5},
        {"weighting": "log"},
        {"class_weights": "some"},
        {"class_weights": (1.0, -1.0)},
        {"max_grad_norm": float("nan")},
        {"checkpoint_every": -1},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_settings_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        TrainSettings(**change)
