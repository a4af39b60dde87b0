"""Work spread over Ray actors, with texts that go out and come back in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from toolprm_decode.errors import RequestError, ToolprmError

# Answers one text with another.
Worker = Callable[[str], str]


def import_ray() -> Any:
    """The ray package with ray.data. Raises RequestError where it is missing."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RequestError(f"Ray is missing ({error}): pip install toolprm_decode[ray]") from error
    return ray


def map_on_ray(make: Callable[[], Worker], texts: Iterable[str], workers: int) -> Iterator[str]:
    """What a worker says to each text, in order.

    The texts come back here, so the nodes need no file system in common. Ray is started on this machine unless it runs.

    Args:
        make: makes a worker, in each actor, at its first text.
        workers: actors, of one processor each and what GPUs there are.

    Raises RequestError: Ray is missing, or what a worker refused, in its words.
    """
    import torch

    ray = import_ray()
    items = [{"text": text} for text in texts]
    if not items:
        return
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_args=(make, torch.get_num_threads()),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=1,
            num_cpus=1,
            num_gpus=min(1.0, ray.cluster_resources().get("GPU", 0.0) / workers),
        )
        for row in made.iter_rows():
            if row["error"]:
                raise RequestError(row["error"])
            yield row["text"]
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before


class _Actor:
    """Answers one text after the other with a worker of its own."""

    def __init__(self, make: Callable[[], Worker], threads: int):
        import torch

        torch.set_num_threads(threads)  # Ray's one, where this machine has more, would add up in another order
        self.make = make
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        text = error = ""
        try:
            self.worker = self.worker or self.make()
            text = self.worker(batch["text"][0])
        except ToolprmError as refused:  # said once where the run was started, without Ray's traces around it
            error = str(refused)
        return {"text": [text], "error": [error]}
