"""Cuts what the rows of a pass read into the tiles of the attention kernel."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from toolprm_decode.engine.batch import Rows
from toolprm_decode.kernels.attention import KEYS_OF_TILE, MOST_PARTS, rows_of_tiles


@dataclass(frozen=True)
class TileArrays:
    """The int32 arrays of `kernels.attention.Tiles`."""

    small: np.ndarray
    large: np.ndarray
    readings: np.ndarray
    tables: np.ndarray
    positions: np.ndarray
    parts: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def cut(rows: Rows, group: int) -> TileArrays:
    """The tiles of a pass, where `group` query heads share a key head."""
    batch = rows.batch
    n_tokens = len(batch.tokens)
    busy = np.flatnonzero(rows.counts > 0)
    lengths = batch.lengths.astype(np.int64)[busy]
    counts = rows.counts[busy]
    # A row without blocks has all its own tokens in this pass, in their slots: blocks of a single slot.
    paged = lengths > counts
    width = batch.block_tables.shape[1]
    tables = np.concatenate([batch.block_tables.reshape(-1), batch.slots])
    own = _Runs(
        first=rows.starts[busy],
        tokens=counts,
        keys=lengths,
        run=np.full(len(busy), -1),
        table=np.where(paged, busy * width, batch.block_tables.size + rows.starts[busy]),
        block=np.where(paged, rows.block_size, 1),
        place=rows.held[busy],
        ahead=lengths - counts,
    )
    readers = rows.readers()
    sizes = np.array([len(of) for of in readers], np.int64)
    read = np.flatnonzero((sizes > 0) & (rows.segments[:, 1] > 0)) if len(readers) else np.zeros(0, np.int64)
    some = sizes[read]
    shared = _Runs(
        first=n_tokens + np.cumsum(some) - some,
        tokens=some,
        keys=rows.segments[read, 1],
        run=rows.segments[read, 0],
        table=np.zeros(len(read), np.int64),
        block=np.ones(len(read), np.int64),
        place=rows.places()[read],
        ahead=rows.segments[read, 1],  # all of them are before any token that reads them
    )
    listed = np.concatenate([np.arange(n_tokens), *(readers[k] for k in read.tolist())])
    tiles, large = _tiles(own.joined(shared), group)
    tokens = _ranges(listed, tiles[:, 0], tiles[:, 1])
    tiles[:, 0] = np.cumsum(tiles[:, 1]) - tiles[:, 1]
    parts = np.zeros(n_tokens + 1, np.int64)
    np.cumsum(np.bincount(tokens, minlength=n_tokens), out=parts[1:])
    readings = np.empty((len(tokens), 2), np.int32)
    readings[:, 0] = tokens
    readings[np.argsort(tokens, kind="stable"), 1] = np.arange(len(tokens))
    return TileArrays(
        small=tiles[~large].astype(np.int32),
        large=tiles[large].astype(np.int32),
        readings=readings,
        tables=tables.astype(np.int32),
        positions=batch.positions.astype(np.int32),
        parts=parts.astype(np.int32),
    )


@dataclass(frozen=True)
class _Runs:
    """Runs of keys and the tokens that read each: int64 arrays of one length.

    Attributes:
        first, tokens: of the listing, the tokens in it.
        keys: of the run. run, table, block, place: as in a tile.
        ahead: keys that the first token sees, not counting itself, where the keys are the tokens' own.
    """

    first: np.ndarray
    tokens: np.ndarray
    keys: np.ndarray
    run: np.ndarray
    table: np.ndarray
    block: np.ndarray
    place: np.ndarray
    ahead: np.ndarray

    def joined(self, other: _Runs) -> _Runs:
        return _Runs(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


def _tiles(runs: _Runs, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles int64 [N, 8] whose readings are still ranges of the listing, and which are large ones."""
    small_rows, large_rows = rows_of_tiles(group)
    large = runs.tokens * group > small_rows
    most = np.where(large, large_rows // group, small_rows // group)
    # First by tokens, then each of those by keys.
    by_tokens = -(-runs.tokens // most)
    of = np.repeat(np.arange(len(runs.tokens)), by_tokens)
    begin = _counted(by_tokens) * most[of]
    end = np.minimum(begin + most[of], runs.tokens[of])
    visible = np.minimum(runs.keys[of], runs.ahead[of] + end)  # what comes after the last token is not read
    step = np.maximum(KEYS_OF_TILE, -(-runs.keys // MOST_PARTS))[of]
    by_keys = -(-visible // step)
    again = np.repeat(np.arange(len(of)), by_keys)
    of, begin, end, visible, step = of[again], begin[again], end[again], visible[again], step[again]
    key = _counted(by_keys) * step
    count = np.minimum(step, visible - key)
    place = runs.place[of]
    tiles = [runs.first[of] + begin, end - begin, key, count, runs.run[of], runs.table[of], runs.block[of], place]
    return np.stack(tiles, 1), large[of]


def _counted(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... count - 1 for each count, one after another."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _ranges(listed: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """listed[first : first + count] for each, one after another."""
    return listed[np.repeat(first, counts) + _counted(counts)]
