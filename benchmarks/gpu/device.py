"""Where the suite runs, and how it times work there: a GPU, or the CPU without figures, for dry runs."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from toolprm_decode.engine.graphs import CudaGraphs
from toolprm_decode.engine.support import first_line
from toolprm_decode.machine import describe_machine, package_versions

# A measurement is repeated this often at most, and for so many seconds.
MOST_REPEATS, SECONDS = 50, 0.25


@dataclass(frozen=True)
class Peaks:
    """What the device does at best, measured by the plainest means. None in a dry run.

    Attributes:
        bytes_per_second: moved by a copy, read and written. flops: a second, of a square bfloat16 product.
        launch: microseconds between the events around one kernel that does nothing to speak of.
    """

    bytes_per_second: float | None
    flops: float | None
    launch: float | None

    def microseconds(self, moved: float, flops: float = 0.0) -> float | None:
        """The least that work of so many bytes and operations takes."""
        if self.bytes_per_second is None or self.flops is None:
            return None
        return 1e6 * max(moved / self.bytes_per_second, flops / self.flops)


@dataclass(frozen=True)
class Timed:
    """The median of a measurement.

    Attributes:
        us: microseconds; None in a dry run.
        recorded: launched as one graph; otherwise one kernel after another, as fast as Python launches them.
    """

    us: float | None
    recorded: bool


class _HostEvent:
    """What a dry run has for torch.cuda.Event."""

    def record(self) -> None:
        self._at = time.perf_counter()

    def elapsed_time(self, end: _HostEvent) -> float:
        return 1e3 * (end._at - self._at)


class Device:
    """The GPU, or the CPU that stands in for it in a dry run.

    Attributes:
        torch: the device of tensors. dry: whether there are no figures.
    """

    def __init__(self, *, dry: bool):
        self.dry = dry
        self.cuda = torch.cuda.is_available()
        self.torch = torch.device("cuda", torch.cuda.current_device()) if self.cuda else torch.device("cpu")
        cache = torch.cuda.get_device_properties(self.torch).L2_cache_size if self.cuda else 1024
        self._flushed = torch.zeros(4 * cache, dtype=torch.uint8, device=self.torch)

    def describe(self) -> dict[str, Any]:
        """The machine, the device, its driver, and versions."""
        told = describe_machine() | package_versions("triton", "xgrammar") | {"device": "the CPU, in a dry run"}
        if self.cuda:
            of = torch.cuda.get_device_properties(self.torch)
            told |= {"device": of.name, "memory_gib": round(of.total_memory / 2**30, 1), "cuda": torch.version.cuda}
            told |= {"multiprocessors": of.multi_processor_count, "l2_mib": round(of.L2_cache_size / 2**20, 1)}
            told["driver"] = _driver()
        return told

    def wait(self) -> None:
        """Until all that was launched is done."""
        if self.cuda:
            torch.cuda.synchronize(self.torch)

    def record(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """A graph of a computation; in a dry run the computation itself."""
        return CudaGraphs(self.torch)(compute) if self.cuda else compute

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """By torch.compile; in a dry run the function itself."""
        return torch.compile(function, dynamic=False) if self.cuda else function

    def peak_memory(self, *, anew: bool = False) -> int | None:
        """Bytes of tensors at most, since it was last asked for anew."""
        if not self.cuda:
            return None
        if anew:
            torch.cuda.reset_peak_memory_stats(self.torch)
        return torch.cuda.max_memory_allocated(self.torch)

    def time(self, run: Callable[[], torch.Tensor], *, graph: bool = True) -> Timed:
        """What the device takes for what `run` launches, each time with nothing of it in the cache.

        By events around replays of a graph, so that Python's launches do not count; where it cannot be recorded
        (it waits for the device, say), or `graph` is false, around the launches themselves.
        """
        launch, recorded = run, False
        launch()
        self.wait()
        if graph:
            try:
                launch, recorded = self.record(run), True
            except Exception as error:
                print(f"    launched one by one: {first_line(error)}", flush=True)
        elapsed = [self._once(launch) for _ in range(1 if self.dry else 3)]
        if self.dry:
            return Timed(None, recorded)
        repeats = max(1, min(MOST_REPEATS, int(1e3 * SECONDS / max(min(elapsed), 1e-3))))
        return Timed(1e3 * statistics.median(self._once(launch) for _ in range(repeats)), recorded)

    def _once(self, launch: Callable[[], torch.Tensor]) -> float:
        """Milliseconds."""
        start, end = (torch.cuda.Event(enable_timing=True) if self.cuda else _HostEvent() for _ in range(2))
        self._flushed.zero_()  # the device is busy with it while what is to be timed is launched
        start.record()
        launch()
        end.record()
        self.wait()
        return start.elapsed_time(end)

    def wall(self, run: Callable[[], Any], repeats: int = 20) -> float | None:
        """Median microseconds from a call until the device is done."""
        spent = []
        for _ in range(1 if self.dry else 2 + repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            spent.append(time.perf_counter() - start)
        return None if self.dry else 1e6 * statistics.median(spent[2:])

    def peaks(self) -> Peaks:
        """Measures them: a copy of 2 GiB, and a product of two matrices of 8,192."""
        size, side = (1 << 30, 8192) if self.cuda and not self.dry else (1 << 10, 32)
        pair = [torch.randn(size, device=self.torch).to(torch.bfloat16) for _ in range(2)]
        copy = self.time(lambda: pair[0].copy_(pair[1]), graph=False).us
        pair = [torch.randn(side, side, device=self.torch).to(torch.bfloat16) for _ in range(2)]
        product = self.time(lambda: pair[0] @ pair[1], graph=False).us
        one = torch.zeros(1, device=self.torch)
        launch = self.time(lambda: one.add_(1)).us
        if copy is None or product is None:
            return Peaks(None, None, None)
        return Peaks(4e6 * size / copy, 2e6 * side**3 / product, launch)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
