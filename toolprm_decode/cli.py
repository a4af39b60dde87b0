"""The command line: toolprm decode | demo."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolprm_decode.errors import ToolprmError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 on bad input with one line on stderr."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        result: int = options.run(options)
    except ToolprmError as error:
        print(f"toolprm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toolprm", description="Function calls that are legal and scored step by step.")
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
    _add_search(decode)
    decode.set_defaults(run=_decode)

    demo = commands.add_parser(
        "demo",
        help="see the decoder at work with a small model made on the spot",
        description="Decodes a request over two built-in tools and draws the tree of steps.",
    )
    demo.add_argument("request", nargs="?", help="your own request")
    demo.add_argument("--tools", action="store_true", help="list the built-in tools and stop")
    demo.add_argument("--seed", type=int, default=0, help="of the search (default 0)")
    demo.set_defaults(run=_demo)
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


def _decode(options: argparse.Namespace) -> int:
    from toolprm_decode.decoding import Decoder
    from toolprm_decode.search import Search

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
    tools = _read_tools(options.tools)
    request = sys.stdin.read() if options.request == "-" else options.request
    decoder = Decoder(options.model, options.prm, format=options.format)
    decoded = decoder.decode(tools, request, search)
    if options.explain:
        _explain(decoded, decoder.grammar(tools, search).format_reason)
    print(json.dumps(decoded.calls, ensure_ascii=False))
    return 0


def _read_tools(path: Path) -> Any:
    from toolprm_decode.errors import RequestError

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text ({error})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise RequestError(f"{path}: not JSON ({error})") from error


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


def _demo(options: argparse.Namespace) -> int:
    from rich.console import Console

    from toolprm_decode.decoding import decode
    from toolprm_decode.demo import TOOLS, load_demo
    from toolprm_decode.search import Search

    if options.tools:
        print(json.dumps(TOOLS, indent=2))
        return 0
    demo = load_demo()
    console = Console(highlight=False)
    request = options.request or demo.request
    console.print("The policy and the reward model of this demo are small random models made on the spot:")
    console.print("what they write is always legal for the tools, and means nothing.\n", style="dim")
    console.print(f"request: {request}\n", markup=False)
    search = Search(beams=2, width=4, seed=options.seed, max_tokens=96, max_calls=2, allow_no_call=False)
    decoded = decode(demo.model, demo.prm, demo.tools, request, search, tokenizer=demo.tokenizer)
    console.print(decoded.tree.to_rich())
    console.print("\ncalls: " + json.dumps(decoded.calls, ensure_ascii=False), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
