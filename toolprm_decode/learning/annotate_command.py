"""The subcommand toolprm annotate."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from toolprm_decode.models import MODELS

# As toolprm_decode.learning.served has it, which is too much to import for a help text.
KEY = "TOOLPRM_SERVER_KEY"

# Reasons shown of what was left out; all of them are in OUT/rollouts/skipped.jsonl.
_SHOWN = 5


def add_parser(commands: Any) -> None:
    """Adds the subcommand to the parsers of a command line."""
    parser = commands.add_parser(
        "annotate",
        help="make a labelled data set of a policy's rollouts",
        description="Reads questions with known answers, masks the names of their tools, lets a policy answer them "
        "under the grammar and marks every step right or wrong. Started again after a break, it goes on from there. "
        "Prints the counts as JSON.",
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="files, folders, or ids of Hugging Face data sets")
    parser.add_argument(
        "--policy", default=str(MODELS / "policy"), metavar="PATH", help="a folder or hub id (default: the package's)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the labelled data set")
    parser.add_argument("--shape", default="auto", help="shape of the rows (default: recognised by their fields)")
    parser.add_argument("--split", help="split of a data set, or the file of a folder by the end of its name")
    parser.add_argument("--limit", type=int, metavar="N", help="questions to read at most of each source")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="at a row that cannot be used")
    parser.add_argument("--masked-copies", type=int, default=3, metavar="N", help="0: no masking (default 3)")
    parser.add_argument(
        "--irrelevance",
        type=float,
        default=0.1,
        metavar="PART",
        help="part of the questions to ask again without the tools that answer them (default 0.1)",
    )
    parser.add_argument("--samples", type=int, default=10, metavar="N", help="answers a query (default 10)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the policy (default 1.0)")
    parser.add_argument("--seed", type=int, default=0, help="of masks and answers (default 0)")
    parser.add_argument("--format", default="auto", help="how the policy writes calls (default: by its chat template)")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of an answer (default 512)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="queries at once (default 32)")
    parser.add_argument(
        "--strategy",
        choices=["sample", "search"],
        default="sample",
        help="search: take the candidates of a step-beam search, also those that it gave up",
    )
    parser.add_argument("--beams", type=int, default=4, metavar="N", help="prefixes that the search keeps (default 4)")
    parser.add_argument("--prm", metavar="PATH", help="reward model of the search (default: log-probability)")
    parser.add_argument("--parquet", action="store_true", help="write Parquet instead of JSON lines")
    parser.add_argument("--shard-size", type=int, default=256, metavar="N", help="queries a shard (default 256)")
    parser.add_argument(
        "--max-total-tokens", type=int, metavar="N", help="begin no further shard after so many tokens of the policy"
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="roll out on a server of OpenAI's completions, such as http://host:8000/v1; of --policy only the "
        f"tokenizer is read; ${KEY} holds the server's key",
    )
    parser.add_argument("--server-model", metavar="NAME", help="the policy's name there (default: the first listed)")
    parser.add_argument("--server-options", metavar="JSON", help='more members of each request, e.g. {"top_p": 0.9}')
    parser.add_argument(
        "--constrained", action="store_true", help="the server is vLLM with this package: keep it within the grammar"
    )
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time (default 16)")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds a request (default 300)")
    parser.add_argument("--retries", type=int, default=5, metavar="N", help="tries after a failed one (default 5)")
    parser.add_argument("--ray", type=int, default=0, metavar="N", help="roll out with N Ray actors")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs it. Raises ToolprmError."""
    from toolprm_decode.learning.rollouts import RolloutSettings

    names = ("samples", "temperature", "seed", "format", "max_tokens", "batch_size", "strategy", "beams", "prm")
    settings = RolloutSettings(**{name: getattr(options, name) for name in names}, server=_server(options))

    from rich.console import Console
    from rich.progress import Progress

    from toolprm_decode.learning.annotate import annotate

    console = Console(stderr=True, highlight=False, markup=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done)

        made = annotate(
            options.source,
            options.policy,
            options.out,
            settings=settings,
            shape=options.shape,
            split=options.split,
            masked_copies=options.masked_copies,
            irrelevance=options.irrelevance,
            parquet=options.parquet,
            shard_size=options.shard_size,
            limit=options.limit,
            max_total_tokens=options.max_total_tokens,
            on_error=options.on_error,
            workers=options.ray,
            command=_command(options),
            progress=progress,
        )
    if made.dropped:
        console.print(f"{made.dropped:,} answers of the server were not legal, or cut off: they are left out")
    for what, skipped in (("rows", made.skipped_rows), ("queries", made.skipped_queries)):
        for where, reason in skipped[:_SHOWN]:
            console.print(f"left out: {where}: {reason}", soft_wrap=True)
        if len(skipped) > _SHOWN:
            console.print(f"{len(skipped):,} {what} were left out: see {made.out / 'rollouts' / 'skipped.jsonl'}")
    if made.stopped:
        console.print("the token budget ended the run before the last query; a larger one goes on from here")
    print(json.dumps(made.to_json()))


def _server(options: argparse.Namespace) -> Any:
    """The server that is asked for, if any. Raises RequestError."""
    from toolprm_decode.errors import RequestError
    from toolprm_decode.learning.served import Server

    if options.server is None:
        if options.server_model or options.server_options or options.constrained:
            raise RequestError(
                "--server-model, --server-options and --constrained are about a server: name it, --server"
            )
        return None
    try:
        more = json.loads(options.server_options or "{}")
    except ValueError as error:
        raise RequestError(f"--server-options: not JSON ({error})") from error
    names = ("concurrency", "timeout", "retries", "constrained")
    asked = {name: getattr(options, name) for name in names}
    return Server(options.server, options.server_model, options=more, **asked)


def _command(options: argparse.Namespace) -> str:
    """The command as it can be typed again, defaults included."""
    words = ["toolprm", "annotate", *options.source]
    for name, value in vars(options).items():
        if name in ("command", "run", "source") or value is None or value is False:
            continue
        if name == "policy" and value == str(MODELS / "policy"):
            continue  # wherever the package lies
        if options.server is None and name in ("concurrency", "timeout", "retries"):
            continue  # of a server
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)
