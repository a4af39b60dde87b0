"""The command line: toolprm demo | decode | annotate | train | evaluate | benchmark | serve."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from toolprm_decode.benchmark import command as benchmark_command
from toolprm_decode.errors import RequestError, ToolprmError
from toolprm_decode.evaluation import command as evaluate_command
from toolprm_decode.files import read_json
from toolprm_decode.integrations.server import command as serve_command
from toolprm_decode.learning import annotate_command, train_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 on bad input with one line on stderr."""
    try:
        options = _parser().parse_args(argv)
        options.argv = list(sys.argv[1:] if argv is None else argv)  # for what records its command
        if options.command not in ("decode", "demo"):  # which refuse what they can before transformers is imported
            _silence()
        options.run(options)
        sys.stdout.flush()
    except ToolprmError as error:
        print(f"toolprm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it ends
        return 141
    except KeyboardInterrupt:
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all other errors do."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message} (see {self.prog} --help)")


class _PrintFolder(argparse.Action):
    """Prints where a part of the package lies, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: Path, help: str):
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, const=const, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        if not self.const.is_dir():
            raise RequestError(f"{self.const} is not there: install the package, which builds its core")
        print(self.const)
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="toolprm", description="Function calls that are legal and scored step by step.")
    package = Path(__file__).resolve().parent
    cmake = package / "lib" / "cmake" / "toolprm"
    parser.add_argument("--cmake-dir", action=_PrintFolder, const=cmake, help="print toolprm_DIR for find_package()")
    include = package / "include"
    parser.add_argument("--include-dir", action=_PrintFolder, const=include, help="print where the C++ headers lie")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    decode = commands.add_parser(
        "decode",
        help="answer a request with calls of your tools",
        description="Prints the calls as JSON: [] when no tool fits.",
    )
    decode.add_argument("request", help="the request, or - for standard input")
    decode.add_argument("--model", required=True, metavar="PATH", help="policy: a transformers folder or hub id")
    decode.add_argument("--prm", metavar="PATH", help="reward model: a folder or hub id (default: log-probability)")
    decode.add_argument("--tools", required=True, type=Path, metavar="FILE", help="JSON list of tools, any dialect")
    decode.add_argument("--format", default="auto", help="how the policy writes calls (default: by its chat template)")
    decode.add_argument(
        "--lenient",
        action="store_true",
        help="leave out what the tools' schemas ask and no grammar can enforce, with a warning on stderr",
    )
    _add_search(decode)
    decode.set_defaults(run=_decode)

    demo = commands.add_parser(
        "demo",
        help="see the decoder at work with the small models of the package",
        description="Answers a few requests that the models never saw and draws the tree of steps; or your own "
        "request, over the tools that --tools lists.",
    )
    demo.add_argument("request", nargs="?", help="your own request, in the words of the tools' descriptions")
    demo.add_argument("--tools", action="store_true", help="list the tools for your own requests and stop")
    demo.add_argument("--seed", type=int, default=0, help="of the requests and the search (default 0)")
    demo.set_defaults(run=_demo)

    for command in (annotate_command, train_command, evaluate_command, benchmark_command, serve_command):
        command.add_parser(commands)
    return parser


def _add_search(parser: argparse.ArgumentParser) -> None:
    from toolprm_decode.search.settings import AGGREGATES, STRATEGIES, Search

    default = Search()
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default=default.strategy)
    parser.add_argument("--beams", type=int, default=default.beams, help=f"prefixes kept (default {default.beams})")
    parser.add_argument("--width", type=int, default=default.width, help=f"candidates a beam (default {default.width})")
    parser.add_argument("--temperature", type=float, default=default.temperature)
    parser.add_argument("--aggregate", choices=sorted(AGGREGATES), default=default.aggregate)
    parser.add_argument("--policy-weight", type=float, default=default.policy_weight)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens)
    parser.add_argument("--max-calls", type=int, default=None)
    parser.add_argument("--require-call", action="store_true", help="do not allow an answer without calls")
    parser.add_argument("--explain", action="store_true", help="draw the tree of steps with their scores on stderr")


def _decode(options: argparse.Namespace) -> None:
    from toolprm_decode.formats import get_format
    from toolprm_decode.search import Search
    from toolprm_decode.tools import read_tools

    # Everything that can be refused is read before the models, which take long to load.
    search = Search(
        strategy=options.strategy,
        beams=options.beams,
        width=options.width,
        temperature=options.temperature,
        aggregate=options.aggregate,
        policy_weight=options.policy_weight,
        seed=options.seed,
        max_tokens=options.max_tokens,
        max_calls=options.max_calls,
        allow_no_call=not options.require_call,
    )
    get_format(options.format)
    tools = read_tools(read_json(options.tools))
    request = _read_stdin() if options.request == "-" else options.request
    _silence()
    from toolprm_decode.decoding import Decoder

    decoder = Decoder(options.model, options.prm, format=options.format, strict=not options.lenient)
    decoded = decoder.decode(tools, request, search)
    for warning in decoded.warnings:
        print(f"toolprm: not enforced: {' '.join(str(warning).split())}", file=sys.stderr)
    if options.explain:
        _explain(decoded, decoder.grammar(tools, search).format_reason)
    _print_json(decoded.calls)


def _silence() -> None:
    """Leaves stderr to us: libraries report progress and advice there."""
    import logging

    from transformers.utils import logging as transformers_logging

    warnings.simplefilter("ignore")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input: not UTF-8 text ({error})") from error


def _print_json(value: Any) -> None:
    """One line, whatever the terminal's encoding and width."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


def _explain(decoded: Any, format_reason: str) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(decoded.tree.to_rich())
    stats = decoded.stats
    score = "" if decoded.score is None else f"score {decoded.score:.3f}, "
    console.print(
        f"{score}log-probability {decoded.logprob:.3f}; {stats.policy_tokens} policy and {stats.prm_tokens} reward "
        f"tokens, {stats.forced_tokens} forced; {stats.distinct_candidates} of {stats.candidates} candidates distinct; "
        f"{sum(stats.seconds.values()):.2f} s",
        style="dim",
    )
    console.print(f"format: {format_reason}", style="dim")


def _demo(options: argparse.Namespace) -> None:
    if not 0 <= options.seed < 2**32:
        raise RequestError(f"the seed must be between 0 and {2**32 - 1:,}, not {options.seed}")
    _silence()
    from rich.console import Console

    from toolprm_decode.demo import TOOLS, held_out, load_demo, one_thread

    if options.tools:
        print(json.dumps(TOOLS, indent=2))
        return
    from dataclasses import replace

    from toolprm_decode.decoding import Decoder
    from toolprm_decode.questions.labels import trajectory_right
    from toolprm_decode.tools import read_tools

    one_thread()
    demo = load_demo()
    decoder = Decoder(demo.model, demo.prm, tokenizer=demo.tokenizer, search=replace(demo.search, seed=options.seed))
    console = Console(highlight=False, markup=False)
    if options.request is not None:
        _show(console, decoder.decode(demo.tools, options.request), options.request)
        return
    console.print(
        "Requests that the models never saw, most with names that mean nothing: descriptions tell them apart."
    )
    for sample in held_out(options.seed):
        console.print()
        for tool in read_tools(sample.tools):
            told = ", ".join(f"{key}: {p.get('description')}" for key, p in tool.parameters["properties"].items())
            console.print(f"{tool.name}({told})  {tool.description}", style="dim")
        decoded = decoder.decode(sample.tools, sample.messages)
        _show(console, decoded, sample.messages[0]["content"])
        console.print("right" if trajectory_right(sample, decoded.calls) else "wrong", style="bold")
    console.print("\nYour own, over the tools of `toolprm demo --tools`:")
    console.print(f'toolprm demo "{demo.request}"')


def _show(console: Any, decoded: Any, request: str) -> None:
    console.print(f"request: {request}\n")
    console.print(decoded.tree.to_rich())
    console.print("\ncalls:")
    _print_json(decoded.calls)


if __name__ == "__main__":
    sys.exit(main())
