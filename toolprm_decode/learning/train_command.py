"""The command `toolprm train`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from toolprm_decode.errors import RequestError
from toolprm_decode.files import read_json
from toolprm_decode.models import MODELS


def add_parser(commands: Any) -> None:
    """Adds the command to the subparsers of the command line."""
    parser = commands.add_parser(
        "train",
        help="train a reward model on labelled steps",
        description="Reads what `toolprm annotate` writes, saves a reward model as an ordinary transformers folder.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a labelled data set")
    parser.add_argument(
        "--base",
        default=str(MODELS / "toolprm"),
        metavar="PATH",
        help="base model: a folder or hub id (default: the package's reward model)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the reward model")
    parser.add_argument(
        "--kind",
        choices=("toolprm", "c-prm", "orm"),
        default="toolprm",
        help="which steps to judge: all, all but those of parameters, or the whole answer (default toolprm)",
    )
    # The defaults are those of TrainSettings, which is not imported before it is needed.
    numbers: list[tuple[str, type, str]] = [
        ("--epochs", float, "passes over the data (default 3)"),
        ("--max-steps", int, "steps of the optimizer, instead of epochs"),
        ("--learning-rate", float, "default 5e-5"),
        ("--warmup", float, "share of the steps (default 0.03)"),
        ("--weight-decay", float, "default 1e-5"),
        ("--max-grad-norm", float, "gradients are clipped to it (default 1)"),
        ("--row-tokens", int, "tokens of one packed row (default 1024)"),
        ("--batch-tokens", int, "tokens of one pass of one process (default 8192)"),
        ("--accumulate", int, "passes a step of the optimizer (default 1)"),
        ("--max-length", int, "leave out longer trajectories (default: the model's context)"),
        ("--lora-rank", int, "train adapters of this rank instead of all weights"),
        ("--checkpoint-every", int, "steps between checkpoints and evaluations (default: once an epoch)"),
        ("--patience", int, "evaluations without a better AUC before it stops, 0 for never (default 3)"),
        ("--seed", int, "default 0"),
    ]
    for name, kind, text in numbers:
        parser.add_argument(name, type=kind, default=argparse.SUPPRESS, metavar="N", help=text)
    parser.add_argument("--schedule", default=argparse.SUPPRESS, help="of the learning rate (default cosine)")
    parser.add_argument(
        "--weighting",
        choices=("count", "sqrt", "none"),
        default=argparse.SUPPRESS,
        help="of answers that were drawn more than once (default count)",
    )
    parser.add_argument(
        "--class-weights",
        choices=("none", "auto"),
        default=argparse.SUPPRESS,
        help="weigh right and wrong steps against how often they occur (default none)",
    )
    parser.add_argument(
        "--no-packing",
        dest="packing",
        action="store_false",
        default=argparse.SUPPRESS,
        help="one sequence a row, for models that take no tree mask",
    )
    parser.add_argument(
        "--full-vocabulary",
        action="store_true",
        default=argparse.SUPPRESS,
        help="normalise the labels over all tokens, not over the two labels",
    )
    parser.add_argument(
        "--arguments",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="JSON object of more TrainingArguments of transformers (FSDP, logging, ...)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Trains, and prints the metrics as a table. Raises ToolprmError."""
    from transformers.utils import logging

    from toolprm_decode.learning.training import TrainSettings, train

    logging.set_verbosity_error()  # its advice is not for those who only run the command
    given = {name: value for name, value in vars(options).items() if name in TrainSettings.__dataclass_fields__}
    if "arguments" in given:
        given["arguments"] = _read_arguments(Path(given["arguments"]))
    settings = TrainSettings(**given)
    result = train(
        options.base,
        options.dataset,
        options.out,
        kind=options.kind,
        settings=settings,
        resume=options.resume,
        command=shlex.join(["toolprm", *sys.argv[1:]]),
        progress=sys.stderr.isatty(),
    )
    _print(result)


def _read_arguments(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise RequestError(f"{path}: not a JSON object")
    return value


def _print(result: Any) -> None:
    from accelerate import PartialState
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from toolprm_decode.learning.training import format_number

    if not PartialState().is_main_process:
        return
    console = Console(highlight=False)
    for split, numbers in result.metrics.items():
        table = Table(title=split, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("kind", no_wrap=True)
        columns = ("steps", "wrong", "loss", "accuracy", "auc", "wrong_recall", "ece")
        for column in columns:
            table.add_column(column.replace("_", " "), justify="right")
        for kind, values in numbers.items():
            table.add_row(kind, *(format_number(column, values[column]) for column in columns))
        console.print(table)
        whole = numbers["all"]
        console.print(
            f"trajectories: {whole['trajectories']:.0f}; last step judged rightly "
            f"{format_number('accuracy', whole['trajectory_accuracy'])}, every step "
            f"{format_number('accuracy', whole['trajectory_all_steps'])}"
        )
    minutes = result.seconds / 60
    console.print(f"{result.steps} steps in {minutes:.1f} minutes; temperature {result.temperature:.3f}; {result.path}")
