"""toolprm benchmark: what decoding costs beside other ways to do it, in one run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolprm_decode.errors import RequestError
from toolprm_decode.files import check_place, read_json, write_json


def add_parser(commands: Any) -> None:
    """Adds the subcommand, with one of its own for each suite, to argparse's subparsers."""
    parser = commands.add_parser(
        "benchmark",
        help="measure what decoding costs beside other ways to do it",
        description="Runs this package and its peers beside each other and prints the ratios. The numbers of one run "
        "compare with each other and with nothing else: machines differ, and so do their loads.",
    )
    suites = parser.add_subparsers(dest="benchmark", required=True, metavar="SUITE")
    forks = suites.add_parser(
        "forks",
        help="many candidates at a time, beside loops over plain transformers",
        description="Decodes a request of about 1,000 tokens with two random models of the 0.5B Qwen2 shape, and the "
        "same with a plain and a careful loop over transformers and xgrammar. The whole takes about half an hour on "
        "one core; --quick takes less than a minute. In bfloat16 the loops round differently and may answer "
        "differently.",
    )
    forks.add_argument("--quick", action="store_true", help="smaller models and a shorter prompt")
    forks.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    forks.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of both models (default: bfloat16 where the processor has products for it, else float32)",
    )
    forks.add_argument("--beams", type=int, default=4, metavar="N", help="prefixes kept (default 4)")
    forks.add_argument("--width", type=int, default=8, metavar="M", help="candidates a beam (default 8)")
    forks.add_argument("--seed", type=int, default=0, help="of the models and the search (default 0)")
    forks.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of torch, and cores that may be used (default 1: passes that are shared out suffer from what else runs)",
    )
    forks.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a tokenizer's folder (default: $TOOLPRM_DATA/tokenizers/qwen2.5, else one that is made on the spot)",
    )
    forks.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of your own tools; with --request")
    forks.add_argument("--request", metavar="TEXT", help="the user's text that goes with --tools")
    forks.add_argument("--skip-plain", action="store_true", help="leave the plain loop out, which takes longest")
    forks.add_argument("--skip-careful", action="store_true", help="leave the careful loop out")
    forks.add_argument("--skip-widths", action="store_true", help="leave width 16 against width 1 out")
    forks.add_argument("--skip-batch", action="store_true", help="leave the batch of requests out")
    forks.add_argument(
        "--plain-rounds",
        type=int,
        metavar="K",
        help="stop the plain loop after K rounds and compare it with as many of ours (speedup_plain is then left out)",
    )
    forks.set_defaults(run=run_forks)
    masks = suites.add_parser(
        "masks",
        help="compiling, masks, forks and memory, beside xgrammar, llguidance and outlines_core",
        description="Compiles schemas of function calls and walks along texts that fit them, with this package and "
        "other grammar engines, on one core; each figure is the best of several turns. A quarter of an hour, --quick a "
        "few minutes. Needs $TOOLPRM_DATA, a folder with maskbench_fc, bfcl and a tokenizer.",
    )
    masks.add_argument("--quick", action="store_true", help="fewer schemas, tools and grammars, without outlines_core")
    masks.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    masks.add_argument(
        "--tokenizer", metavar="PATH", help="a tokenizer's folder (default: $TOOLPRM_DATA/tokenizers/qwen2.5)"
    )
    masks.add_argument("--skip-outlines", action="store_true", help="leave outlines_core out, which takes longest")
    masks.add_argument(
        "--outlines-seconds",
        type=float,
        metavar="S",
        default=10.0,
        help="leave schemas out of outlines_core's figures for which it takes longer (default 10)",
    )
    masks.set_defaults(run=run_masks)


def run_masks(options: argparse.Namespace) -> None:
    """Runs the suite on one core and prints its tables. Raises RequestError for what cannot be measured."""
    from toolprm_decode.benchmark.engines import ENGINES
    from toolprm_decode.benchmark.masks import MaskSettings, measure
    from toolprm_decode.benchmark.models import find_tokenizer
    from toolprm_decode.benchmark.report import print_masks

    if not options.outlines_seconds > 0:
        raise RequestError(f"--outlines-seconds must be above zero, not {options.outlines_seconds:g}")
    check_place(options.json)
    folder = os.environ.get("TOOLPRM_DATA")
    if not folder:
        raise RequestError("the schemas to measure with are looked for in $TOOLPRM_DATA, which is not set")
    path = options.tokenizer or str(Path(folder) / "tokenizers" / "qwen2.5")
    tokenizer, _ = find_tokenizer(path)
    quick = MaskSettings(schemas=10, counts=(1, 10), memory_sets=50, engines=ENGINES[:3])
    cores = _cores()
    if cores:  # the processes that are started take this over
        os.sched_setaffinity(0, sorted(cores)[-1:])
    try:
        with _progress() as report:
            settings = MaskSettings(
                engines=ENGINES[:3] if options.skip_outlines else ENGINES, outlines_seconds=options.outlines_seconds
            )
            record = measure(quick if options.quick else settings, Path(folder), tokenizer, path, report)
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
    write_json(options.json, record)  # first: it took a while
    print_masks(record)


def run_forks(options: argparse.Namespace) -> None:
    """Runs the suite and prints its tables. Raises RequestError for what cannot be measured."""
    import torch

    from toolprm_decode.benchmark.forks import Settings, measure
    from toolprm_decode.benchmark.models import FULL, QUICK, find_tokenizer
    from toolprm_decode.benchmark.report import print_forks
    from toolprm_decode.benchmark.workload import BATCH, QUICK_TOOLS, REQUESTS, TOOLS
    from toolprm_decode.search import Search

    for name in ("threads", "plain_rounds"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise RequestError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
    if (options.tools is None) != (options.request is None):
        raise RequestError("--tools and --request go together: give both or none")
    check_place(options.json)
    search = Search(beams=options.beams, width=options.width, seed=options.seed)  # refuses what cannot be
    tools, requests = (QUICK_TOOLS if options.quick else TOOLS), REQUESTS
    if options.tools is not None:
        tools = _read_tools(options.tools)
        requests = tuple(f"{options.request} ({n})" if n else options.request for n in range(BATCH))
    settings = Settings(
        QUICK if options.quick else FULL,
        tools,
        requests,
        dtype=_dtype(options.dtype),
        beams=search.beams,
        width=search.width,
        seed=options.seed,
        plain=not options.skip_plain,
        careful=not options.skip_careful,
        widths=not options.skip_widths,
        batch=not options.skip_batch,
        plain_rounds=options.plain_rounds,
    )
    tokenizer, name = find_tokenizer(options.tokenizer)
    before, cores = torch.get_num_threads(), _cores()
    torch.set_num_threads(options.threads)
    # Nobody gets more: the decoder would run its two models beside each other where there are cores for that.
    if cores:
        os.sched_setaffinity(0, sorted(cores)[-options.threads :])
    try:
        with _progress() as report:
            record = measure(settings, tokenizer, name, report)
    finally:
        torch.set_num_threads(before)
        if cores:
            os.sched_setaffinity(0, cores)
    print_forks(record)
    write_json(options.json, record)


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """What a suite tells its stages, and how much of them is done, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, share: float) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    progress.update(task, completed=1.0)
                    progress.stop_task(task)
                tasks[stage] = progress.add_task(stage, total=1.0)
            progress.update(tasks[stage], completed=share)

        yield report


def _cores() -> set[int]:
    """Those that this process may use; none where the system does not tell."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()


def _dtype(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "bfloat16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "float32"


def _read_tools(path: Path) -> list[Any]:
    tools = read_json(path)
    if not isinstance(tools, list) or not tools:
        raise RequestError(f"{path}: not a JSON list of tools")
    return tools
