"""Makes the models that ship with the package: python -m toolprm_decode.learning.world.build WORK [STAGE ...]."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from toolprm_decode.demo import SEARCH
from toolprm_decode.errors import DataError
from toolprm_decode.evaluation.evaluate import Models, Outcome, evaluate
from toolprm_decode.evaluation.strategies import read_strategies
from toolprm_decode.evaluation.suites import load_suite
from toolprm_decode.files import write_json, write_whole
from toolprm_decode.learning.annotate import annotate
from toolprm_decode.learning.rollouts import RolloutSettings
from toolprm_decode.learning.training import TrainSettings, train
from toolprm_decode.learning.world.cards import UNSEEN, model_card
from toolprm_decode.learning.world.pretraining import Pretraining, pretrain
from toolprm_decode.learning.world.world import World
from toolprm_decode.models import MODELS
from toolprm_decode.questions.samples import Sample

# The policy is the teacher before its training ended: one that still errs leaves a search something to find.
TEACHER = Pretraining(tokens=7_000_000, early=0.72, seed=1)
# The reward models start from a deeper language model, which has seen answers with tags.
BASE = Pretraining(layers=7, tokens=5_500_000, learning_rate=1.5e-3, tagged=0.4, hardest=5, seed=2)
ROLLOUTS = RolloutSettings(samples=8, temperature=1.0, max_tokens=120, batch_size=64, seed=3)
QUESTIONS = 16_000  # of each round
REWARD = TrainSettings(
    learning_rate=5e-4,
    schedule="linear",
    warmup=0.03,
    row_tokens=512,
    batch_tokens=4096,
    weighting="sqrt",
    checkpoint_every=300,
    patience=0,
    bf16=True,
    seed=4,
)
# Epochs on the teacher's answers, then on those of the policy itself to other questions: three in all for each kind.
EPOCHS = {"toolprm": (2.0, 1.0), "c-prm": (1.0, 2.0), "orm": (1.0, 2.0)}
SECOND = replace(REWARD, learning_rate=4e-4, seed=5)
KINDS = tuple(EPOCHS)
TESTED, SEEDS = 800, (0, 1, 2)  # questions, and searches
STRATEGIES = {
    "toolprm": "greedy,sample,majority-vote:16,logprob-best-of-n:16,best-of-n:16,weighted-vote:16,logprob-step-beam,"
    "step-beam@0,step-beam,adaptive:1x16",
    "c-prm": "best-of-n:16/c-prm,step-beam/c-prm",
    "orm": "best-of-n:16/orm,weighted-vote:16/orm,step-beam/orm",
}
MOST_BYTES = 24_000_000


def questions(count: int, name: str = "rollout", seed: int = 11) -> list[Sample]:
    """Training questions, the most at the level that is measured, some easier and some harder."""
    rnd = random.Random(f"questions for {name}s")
    worlds = [World(seed, level) for level in (3, 4, 5)]
    return [rnd.choices(worlds, (0.15, 0.7, 0.15))[0].group(1, f"{name}-{index}")[0] for index in range(count)]


def _teacher(work: Path) -> None:
    pretrain(work / "teacher", TEACHER)
    shutil.copytree(work / "teacher" / "early", work / "policy", dirs_exist_ok=True)


def _base(work: Path) -> None:
    pretrain(work / "base", replace(BASE, grown_from=str(work / "teacher")))


def _labelled(work: Path) -> None:
    _annotate(questions(QUESTIONS), work / "teacher", work / "labelled")


def _labelled_own(work: Path) -> None:
    _annotate(questions(QUESTIONS, "own-rollout", 12), work / "policy", work / "labelled-own")


def _annotate(asked: list[Sample], policy: Path, out: Path) -> None:
    annotate(
        asked,
        policy,
        out,
        settings=ROLLOUTS,
        masked_copies=0,
        irrelevance=0.0,
        command="make models",
        progress=_report,
    )


def _reward(kind: str, work: Path) -> None:
    first, second = EPOCHS[kind]
    _train(kind, work / "base", work / "labelled", work / f"{kind}-first", replace(REWARD, epochs=first))
    _train(kind, work / f"{kind}-first", work / "labelled-own", work / kind, replace(SECOND, epochs=second))


def _train(kind: str, base: Path, data: Path, out: Path, settings: TrainSettings) -> None:
    if not (out / "metrics.json").exists():
        train(base, data, out, kind=kind, settings=settings, resume=True, command="make models", progress=False)


def _report(phase: str, done: int, total: int | None) -> None:
    if done % 512 == 0:
        print(f"{phase}: {done} of {total}", flush=True)


def _export(work: Path) -> None:
    """Copies the models into the package, in bfloat16, and checks that they are small enough."""
    for name in ("policy", *KINDS):
        source, target = work / name, work / "export" / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        weights = {key: value.to(torch.bfloat16) for key, value in load_file(source / "model.safetensors").items()}
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
        (target / "model.safetensors").chmod(0o644)  # it is written for its owner alone
        config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"  # what they are run in: on CPUs it is the faster for their size
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (source / file).exists():
                shutil.copy(source / file, target / file)
    size = sum(file.stat().st_size for file in (work / "export").rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise DataError(f"{work / 'export'}: the models take {size:,} bytes, and {MOST_BYTES:,} are allowed")
    shutil.copytree(work / "export", MODELS, dirs_exist_ok=True)


def _figures(work: Path) -> None:
    """Measures the exported models on held-out questions: values that they never saw, and tools."""
    models = Models(MODELS / "policy", {kind: MODELS / kind for kind in KINDS})
    suite = load_suite("built-in", limit=TESTED)
    outcomes: dict[str, list[Outcome]] = {}
    for kind, names in STRATEGIES.items():
        strategies = read_strategies(names, SEARCH, KINDS)
        outcomes[kind] = evaluate(suite, strategies, models, seeds=SEEDS, folder=work / "figures")
        print(kind, flush=True)
    found: dict[str, dict[str, Any]] = {}
    for words in UNSEEN:
        chosen = [i for i, group in enumerate(suite.groups) if group.startswith(words)]
        greedy: Outcome | None = None  # the first strategy of the first kind
        for kind, whole in outcomes.items():
            parts = [outcome.part(chosen) for outcome in whole]
            greedy = greedy or parts[0]
            found.setdefault(words, {})[kind] = [part.summary(greedy) for part in parts]
    write_json(work / "figures.json", found)


def _cards(work: Path) -> None:
    """Writes the model cards of the package from what was recorded."""
    figures = json.loads((work / "figures.json").read_text(encoding="utf-8"))
    for name in ("policy", *KINDS):
        write_whole(MODELS / name / "README.md", model_card(name, work, figures).encode())


STAGES: dict[str, Callable[[Path], None]] = {
    "teacher": _teacher,
    "base": _base,
    "labelled": _labelled,
    "labelled-own": _labelled_own,
    **{kind: partial(_reward, kind) for kind in KINDS},
    "export": _export,
    "figures": _figures,
    "cards": _cards,
}


def main() -> None:
    """Runs all stages, or those that are named; each goes on where it was interrupted, and a finished one is quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for checkpoints and data, to go on from later")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    options = parser.parse_args()
    unknown = sorted({*options.stages} - {*STAGES})
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for stage in options.stages or STAGES:
        print(f"== {stage}", flush=True)
        STAGES[stage](options.work)


if __name__ == "__main__":
    main()
