"""Checks all kernels on a GPU, then times them and whole decodes beside their rooflines and their peers.

    python -m benchmarks.gpu --json FILE --markdown FILE [--minutes 8]     # on a GPU
    python -m benchmarks.gpu --dry-run                                     # anywhere: all of it with tiny sizes

Measurements are made in the order of their importance until the time is up; what did not fit is listed. Both files are
written after each of them. The status is 1 where a check or a measurement of ours fails, 2 without a GPU; what a peer
cannot do is said in its place. README.md says more.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write its tables there")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it; what is under way is finished")
    parser.add_argument("--check-minutes", type=float, default=3.0, help="of them, for the tests (default 3)")
    parser.add_argument("--skip-checks", action="store_true", help="measure only")
    parser.add_argument("--keep-going", action="store_true", help="measure even where a check fails")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="default: $TOOLPRM_DATA/tokenizers/qwen2.5, else a made one"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, no figures; on a CPU interpreted")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is first imported

    import torch

    if not torch.cuda.is_available():
        if not options.dry_run:
            print(
                "there is no GPU that torch can use: --dry-run goes through all of it without figures", file=sys.stderr
            )
            return 2
        # Read where a kernel is defined, and where passes are run.
        os.environ.update(TRITON_INTERPRET="1", TOOLPRM_KERNELS="triton")

    from toolprm_decode.errors import ToolprmError

    try:
        return Suite(options).run()
    except ToolprmError as error:
        print(error, file=sys.stderr)
        return 2


class Suite:
    """A run and its record, which is written after each measurement."""

    def __init__(self, options: argparse.Namespace):
        from benchmarks.gpu.device import Device
        from benchmarks.gpu.report import empty
        from toolprm_decode.files import check_place

        for place in (options.json, options.markdown):
            check_place(place)
        self.options, self.began = options, time.monotonic()
        self.device = Device(dry=options.dry_run)
        self.record = empty() | {
            "dry_run": options.dry_run,
            "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
            "machine": self.device.describe(),
        }
        self.peaks = cache(self.device.peaks)

    def run(self) -> int:
        """Checks, then measures. Returns the exit status."""
        held = [] if self.options.skip_checks else list(self._checks())
        if not all(held) and not self.options.keep_going:
            self._save()
            print("a check failed: nothing was measured (--keep-going does all the same)", file=sys.stderr)
            return 1
        peaks = self.peaks()
        self.record["peaks"] = asdict(peaks)
        self._say(f"peaks: {peaks}")
        for unit in sorted(self._units(), key=lambda unit: unit.importance):
            name = f"{unit.table}: {unit.name}"
            if self._seconds() > 60 * self.options.minutes:
                self.record["not_run"].append(name)
                continue
            self._say(name)
            try:
                row = unit.run()
            except Exception as error:
                self._failed(name, error)
            else:
                rows = self.record["tables"][unit.table]
                rows[:] = [*(of for of in rows if of["name"] != unit.name), {"name": unit.name, **row}]
            self._save()
        self._save()
        self._end()
        return 1 if self.record["failed"] else 0

    def _units(self) -> Iterator[Any]:
        from benchmarks.gpu import attention, copies, decode, sampling
        from toolprm_decode.benchmark.models import VOCABULARY, find_tokenizer
        from toolprm_decode.engine.engine import load_tokenizer
        from toolprm_decode.models import MODELS

        if self.options.dry_run:
            tokenizer, name, vocabulary = load_tokenizer(MODELS / "policy"), "the demo's", 1100
        else:
            (tokenizer, name), vocabulary = find_tokenizer(self.options.tokenizer), VOCABULARY
        self.record["tokenizer"] = name
        yield from sampling.units(self.device, self.peaks, vocabulary)
        yield from attention.units(self.device, self.peaks)
        yield from copies.units(self.device, self.peaks)
        yield from decode.Decodes(self.device, self.peaks, tokenizer).units()

    def _checks(self) -> Iterator[bool]:
        """Whether each holds."""
        from benchmarks.gpu import check

        checks: dict[str, Callable[[], str]] = {
            "tests of the kernels": lambda: check.run_tests(self.device, 60 * self.options.check_minutes),
            "whole decodes by kernels, torch and references": lambda: check.compare_decodes(self.device),
        }
        for name, run in checks.items():
            self._say(name)
            try:
                self.record["checks"].append(f"{name}: {run()}")
            except Exception as error:
                self.record["checks"].append(f"{name}: FAILED")
                self._failed(name, error)
                yield False
            else:
                self._say(f"  {self.record['checks'][-1]}")
                yield True

    def _failed(self, name: str, error: Exception) -> None:
        from toolprm_decode.engine.support import first_line

        self.record["failed"].append(f"{name}: {type(error).__name__}: {first_line(error)}")
        self._say(f"FAILED {self.record['failed'][-1]}")

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _say(self, text: str) -> None:
        print(f"{self._seconds():6.1f} s  {text}", flush=True)

    def _save(self) -> None:
        from benchmarks.gpu.report import markdown
        from toolprm_decode.files import write_json, write_whole

        self.record["minutes"] = self._seconds() / 60
        write_json(self.options.json, self.record)
        if self.options.markdown is not None:
            write_whole(self.options.markdown, markdown(self.record).encode())

    def _end(self) -> None:
        from benchmarks.gpu.report import markdown

        page = markdown(self.record)
        print(page[: page.index("## Draws")] if not self.options.dry_run else "dry run, no figures")
        for name in ("failed", "not_run"):
            for item in self.record[name]:
                print(f"{name.replace('_', ' ')}: {item}")


if __name__ == "__main__":
    sys.exit(main())
