"""Passes of few tokens through fixed buffers, so that a GPU runs each as one recorded graph.

A decode step of a small model is hundreds of kernels of microseconds; launching them one by one takes longer than they
do. A graph replays the launches, but on the same addresses and shapes. What a pass is asked for is therefore padded to
powers of two and copied into buffers that stay where they are.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toolprm_decode.engine.attention import Layer, Pass
from toolprm_decode.engine.batch import Batch, Rows
from toolprm_decode.engine.kernel_pass import read
from toolprm_decode.engine.store import KVStore, Layout
from toolprm_decode.engine.tiles import TileArrays, cut
from toolprm_decode.kernels import attention as kernel

_LOG = logging.getLogger(__name__)

# Passes of more tokens keep the GPU busy by themselves.
MOST_TOKENS = 256

# Graphs that are kept of a store, and how often a shape has been asked for when it is recorded.
MOST_GRAPHS, TIMES = 64, 3

# Runs the model over ids and positions [T]: hidden states [T, hidden].
Forward = Callable[[torch.Tensor, torch.Tensor, Pass], torch.Tensor]

# Makes of a computation on fixed buffers one that does the same faster: `CudaGraphs`.
Record = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]


# Least tokens, small and large tiles, readings and entries of tables.
_LEAST = (1, 16, 16, 128, 256)


@dataclass(frozen=True)
class _Shape:
    """Sizes of the buffers: powers of two. Few of them: padding costs less than another graph."""

    tokens: int
    small: int
    large: int
    readings: int
    tables: int

    @classmethod
    def of(cls, tokens: int, tiles: TileArrays) -> _Shape:
        sizes = (tokens, len(tiles.small), len(tiles.large), len(tiles.readings), len(tiles.tables))
        return cls(*(1 << (max(size, least) - 1).bit_length() for size, least in zip(sizes, _LEAST, strict=True)))

    def parts(self) -> dict[str, tuple[int, ...]]:
        return {
            "ids": (self.tokens,),
            "slots": (self.tokens,),
            "positions": (self.tokens,),
            "small": (self.small, len(kernel.FIELDS)),
            "large": (self.large, len(kernel.FIELDS)),
            "readings": (self.readings, 2),
            "tables": (self.tables,),
            "parts": (self.tokens + 1,),
        }


class FixedPass:
    """A `Pass` that reads the same buffers whenever it is run. Padding is token 0 in slot 0, which reads nothing."""

    def __init__(self, shape: _Shape, group: int, store: KVStore, device: torch.device):
        self._group = group
        self._store = weakref.proxy(store)  # which outlives its graphs, and is not to be kept by them
        parts = shape.parts()
        sizes = [int(np.prod(size)) for size in parts.values()]
        self._host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        places = zip(parts, np.cumsum(sizes) - sizes, sizes, strict=True)
        where = {name: slice(int(first), int(first) + size) for name, first, size in places}
        self._filled = {name: self._host.numpy()[where[name]].reshape(parts[name]) for name in parts}
        held = {name: self._device[where[name]].view(parts[name]) for name in parts}
        self._ids, self._slots32 = held.pop("ids"), held.pop("slots")
        self._tiles = kernel.Tiles(**held, most_parts=shape.readings)
        self._slots: torch.Tensor | None = None
        self._sent = torch.cuda.Event() if device.type == "cuda" else None

    def fill(self, batch: Batch, tiles: TileArrays) -> None:
        """Put a pass into the buffers."""
        if self._sent is not None:
            self._sent.synchronize()  # what the host's buffer held before has left it
        self._host.zero_()
        for some in ("small", "large"):
            self._filled[some][:, kernel.FIELDS.index("block")] = 1
        arrays = {"ids": batch.tokens, "slots": batch.slots, **tiles.arrays()}
        for name, array in arrays.items():
            self._filled[name][: len(array)] = array
        self._filled["parts"][len(tiles.parts) :] = tiles.parts[-1]
        self._device.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device.device))

    def run(self, forward: Forward) -> torch.Tensor:
        """Hidden states [tokens of the shape, hidden] of what the buffers hold."""
        self._slots = self._slots32.long()
        return forward(self._ids.long(), self._tiles.positions.long(), self)

    def attend(self, layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As of `Pass`."""
        if query.shape[0] != self._group * key.shape[0]:
            raise ValueError(f"layer {layer.index} has other groups of query heads than the first one")
        assert self._slots is not None
        return read(self._store, kernel.attend, self._tiles, self._slots, layer, query, key, value)


_Graph = tuple[FixedPass, Callable[[], torch.Tensor]]


class Graphs:
    """The recorded passes of a model. Those over a store are gone when it is, or when its pools have moved.

    Args:
        forward: runs the model.
        group: query heads a key head, in all layers.
        device: of the model.
        record: how a pass becomes a graph.
    """

    def __init__(self, forward: Forward, group: int, device: torch.device, record: Record):
        self._forward, self._group, self._device, self._record = forward, group, device, record
        self._seen: WeakKeyDictionary[Layout, Counter[_Shape]] = WeakKeyDictionary()
        self._kept: WeakKeyDictionary[Layout, OrderedDict[_Shape, _Graph]] = WeakKeyDictionary()
        self._broken = False

    def run(self, store: KVStore, batch: Batch) -> torch.Tensor | None:
        """Hidden states [T, hidden] of a batch whose copies are made, good until the next run; None where the pass is
        not one for a graph (yet)."""
        count = len(batch.tokens)
        if self._broken or count > MOST_TOKENS or not store.settled:
            return None
        tiles = cut(Rows(batch, store.block_size), self._group)
        shape = _Shape.of(count, tiles)
        graphs = self._kept.setdefault(store.layout, OrderedDict())
        if shape not in graphs:
            seen = self._seen.setdefault(store.layout, Counter())
            seen[shape] += 1
            if seen[shape] < TIMES:
                return None
            fixed = FixedPass(shape, self._group, store, self._device)
            fixed.fill(batch, tiles)
            try:
                graphs[shape] = (fixed, self._record(lambda: fixed.run(self._forward)))
            except Exception as error:  # a model that looks at its numbers on the way, say
                self._broken = True
                _LOG.warning("this model's passes cannot be recorded as graphs, they run as they are: %s", error)
                return None
        graphs.move_to_end(shape)
        if len(graphs) > MOST_GRAPHS:
            graphs.popitem(last=False)
        fixed, replay = graphs[shape]
        fixed.fill(batch, tiles)
        return replay()[:count]


class CudaGraphs:
    """Records the computations of one device as CUDA graphs, which share the memory of what they hold on the way.

    So no two of them run at once, and what one returns, always in the same place, is good until the next one runs.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)  # one for all: libraries keep a workspace for each
        self._live: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """A graph of the computation. Raises RuntimeError for one that cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        with _RECORDING, torch.cuda.device(self._stream.device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            # Kernels are compiled and libraries set up before the recording.
            with torch.cuda.stream(self._stream), Recordable():
                compute()
            current.wait_stream(self._stream)
            known = next(iter(self._live), None)  # a pool ends with the last of its graphs
            pool = None if known is None else known.pool()
            try:
                # Other threads may ask of the driver what they like meanwhile.
                with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                    out = compute()
            finally:
                torch.cuda.set_stream(current)  # a recording that failed leaves its own one behind
        self._live.add(graph)

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


# torch records one graph at a time.
_RECORDING = threading.Lock()

_ATEN = torch.ops.aten
_INDEXING = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_)
_COPYING = (_ATEN.to, _ATEN._to_copy, _ATEN.copy_)


class Recordable(TorchDispatchMode):
    """Raises RuntimeError where a computation does what a graph cannot hold: waits for the device, to look at a number
    or at how many there are, or copies to it or from it.

    For a run before the recording: torch's memory does not recover from a recording that fails half-way. What happens
    inside an operator cannot be seen.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tensors = func.overloadpacket, [x for x in args if isinstance(x, torch.Tensor)]
        if name in _INDEXING:
            waits = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        else:
            waits = name is _ATEN.is_nonzero or not _WAITS.isdisjoint(func.tags)
        if waits:
            raise RuntimeError(f"{func} waits for the device")
        out = func(*args, **(kwargs or {}))
        copied = name is _ATEN.lift_fresh and tensors[0].device.type == "cuda"
        if copied or (name in _COPYING and len({x.device.type for x in (*tensors, out)}) > 1):
            raise RuntimeError(f"{func} copies from one device to another")
        return out


_WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
