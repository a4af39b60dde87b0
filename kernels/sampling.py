"""Draws tokens from logits under masks: the vocabulary is read once, whatever the number of draws.

The first kernel masks, scales by the temperature and sums a chunk of the vocabulary each; what follows reads the sums,
and of the logits the chunks that a draw falls into. Draws use the uniform numbers that the core hands out, by inversion
of the cumulative distribution in ascending order of token ids, exactly as the core's own sampler does: a GPU writes
what a CPU writes, up to rounding at the edge between two tokens, and no row depends on its neighbours. A number for
every token and row (Gumbel-max) would be the same distribution at a hundred instructions a logit, several times the
time that it takes to read it.

The draws without replacement are the Gumbel top-M (Kool et al. 2019, "Stochastic Beams and Where to Find Them"), from
the top down: each token from what is left, and its place in the race below the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from toolprm_decode.kernels.staging import to_device

# Tokens that are summed before a draw looks at single ones.
CHUNK = 1024

# How the draws of a row are made: the numbers of the core's Sampling.
INDEPENDENT, DISTINCT, LIKELIEST = 0, 1, 2

NAN = "the model's logits are not numbers (NaN)"
INFINITE = "no legal token has a finite logit"


@dataclass(frozen=True)
class Wanted:
    """What to draw from L rows of logits, S draws in all.

    Attributes:
        masks: int32 [K, W], bit i % 32 of word i // 32 is 1 where token i is legal; tokens beyond are not.
        mask_index: int32 [L] into masks.
        counts: int32 [L] draws of each row; those of a row lie one after another.
        methods: uint8 [L]: INDEPENDENT, DISTINCT (without replacement) or LIKELIEST (the likeliest, best first).
        temperatures: float64 [L]; 0 for the likeliest token, above 0 for DISTINCT.
        uniforms, gumbel_uniforms: float64 [S] in [0, 1); the latter for DISTINCT rows.
        parents: float64 [L, 2] log-probability and perturbed one of the prefix, for DISTINCT rows.
        ids: int32 [V], ascending, the token of each logit; None where logit i is token i's.
    """

    masks: np.ndarray
    mask_index: np.ndarray
    counts: np.ndarray
    methods: np.ndarray
    temperatures: np.ndarray
    uniforms: np.ndarray
    gumbel_uniforms: np.ndarray
    parents: np.ndarray
    ids: np.ndarray | None = None


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        tokens: int32 [S]; -1 where fewer are legal than are wanted.
        logprobs: float64 [S], at temperature 1, among the legal tokens.
        perturbed: float64 [S, 2] log-probability at the temperature and perturbed one; zeros but for DISTINCT rows.
        failures: what is wrong with the logits of a row, by its number.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    perturbed: np.ndarray
    failures: dict[int, str]


@triton.jit
def _legal_logits(logits, ids, mask, at, width, words, IDS: tl.constexpr):
    """float32 logits of the columns `at` of a row, -inf where illegal.

    Illegal ones are read as well: loads that ask each token for its bit first are of one logit each, not of 16 bytes.
    """
    inside = at < width
    x = tl.load(logits + at, mask=inside, other=-float("inf")).to(tl.float32)
    token = tl.load(ids + at, mask=inside, other=0) if IDS else at
    inside = inside & (token < words * 32)
    word = tl.load(mask + token // 32, mask=inside, other=0)
    return tl.where(inside & ((word >> (token % 32)) & 1 != 0), x, -float("inf"))


@triton.jit
def _finite_or(x, other):
    """x, or `other` where it is infinite: -inf - -inf would be NaN."""
    return tl.where(tl.abs(x) == float("inf"), other, x)


@triton.jit
def _sum_kernel(
    logits, stride, ids, masks, mask_index, temperatures, tops, plain, heated, width, words,
    CHUNK: tl.constexpr, IDS: tl.constexpr,
):  # fmt: skip
    """Program (row, chunk): the chunk's largest logit, and its sums of exp(logit - largest), at temperature 1 and at
    the row's."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    mask = masks + tl.load(mask_index + row).to(tl.int64) * words
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = _legal_logits(logits + row.to(tl.int64) * stride, ids, mask, at, width, words, IDS)
    broken = tl.max((x != x).to(tl.int32))
    x = tl.where(x != x, -float("inf"), x)
    top = tl.max(x)
    below = x - _finite_or(top, 0.0)
    temperature = tl.load(temperatures + row).to(tl.float32)
    hot = tl.exp(below / tl.where(temperature > 0, temperature, 1.0))
    to = row * tl.num_programs(1) + chunk
    tl.store(tops + to, tl.where(broken != 0, float("nan"), top))
    tl.store(plain + to, tl.sum(tl.exp(below)))
    tl.store(heated + to, tl.sum(hot))


@triton.jit
def _sums_of_row(tops, plain, heated, row, chunks, CHUNKS: tl.constexpr):
    """What the chunks of a row have: largest logits, sums of the heated weights [CHUNKS]; of all: the largest logit,
    the logarithm of the sum at temperature 1 (less the largest), and what is wrong: 0, -2 (NaN) or -3 (infinite)."""
    c = tl.arange(0, CHUNKS)
    there = c < chunks
    t = tl.load(tops + row * chunks + c, mask=there, other=-float("inf"))
    p = tl.load(plain + row * chunks + c, mask=there, other=0.0).to(tl.float64)
    h = tl.load(heated + row * chunks + c, mask=there, other=0.0).to(tl.float64)
    broken = tl.max((t != t).to(tl.int32))
    t = tl.where(t != t, -float("inf"), t)
    top = tl.max(t)
    base = _finite_or(top, 0.0)
    log_total = tl.log(tl.sum(tl.where(t == -float("inf"), 0.0, p * tl.exp((t - base).to(tl.float64)))))
    wrong = tl.where(broken != 0, -2, tl.where(tl.abs(top) == float("inf"), -3, 0))
    return t, h, base, log_total, wrong


@triton.jit
def _chunk_of(weights, height, chunks, CHUNKS: tl.constexpr):
    """The first chunk up to which more than `height` is heaped up (the last with any weight, where rounding leaves
    none), and what is heaped up before it."""
    c = tl.arange(0, CHUNKS)
    heaped = tl.cumsum(weights, 0)
    chunk = tl.sum((heaped <= height).to(tl.int32))
    chunk = tl.minimum(chunk, tl.max(tl.where(weights > 0, c, -1)))
    chunk = tl.maximum(chunk, 0)
    return chunk, tl.sum(tl.where(c < chunk, weights, 0.0))


@triton.jit
def _place_of(weights, height, CHUNK: tl.constexpr):
    """The same inside a chunk; never a token without weight."""
    i = tl.arange(0, CHUNK)
    place = tl.sum((tl.cumsum(weights, 0) <= height).to(tl.int32))
    place = tl.minimum(place, tl.max(tl.where(weights > 0, i, -1)))
    return tl.maximum(place, tl.min(tl.where(weights > 0, i, CHUNK - 1)))


@triton.jit
def _independent_kernel(
    logits, stride, ids, masks, mask_index, temperatures, tops, plain, heated, rows, samples, uniforms, drawn,
    width, words, chunks, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, IDS: tl.constexpr,
):  # fmt: skip
    """Program: a draw."""
    row = tl.load(rows + tl.program_id(0)).to(tl.int64)
    sample = tl.load(samples + tl.program_id(0))
    t, h, top, log_total, wrong = _sums_of_row(tops, plain, heated, row, chunks, CHUNKS)
    temperature = tl.load(temperatures + row).to(tl.float32)
    heat = tl.where(temperature > 0, temperature, 1.0)
    weights = tl.where(t == -float("inf"), 0.0, h * tl.exp(((t - top) / heat).to(tl.float64)))
    height = tl.load(uniforms + sample) * tl.sum(weights)
    chunk, before = _chunk_of(weights, height, chunks, CHUNKS)
    c = tl.arange(0, CHUNKS)
    chunk = tl.where(temperature > 0, chunk, tl.min(tl.where(t == top, c, CHUNKS - 1)))

    mask = masks + tl.load(mask_index + row).to(tl.int64) * words
    i = tl.arange(0, CHUNK)
    x = _legal_logits(logits + row * stride, ids, mask, chunk * CHUNK + i, width, words, IDS)
    place = _place_of(tl.exp((x - top) / heat).to(tl.float64), height - before, CHUNK)
    place = tl.where(temperature > 0, place, tl.min(tl.where(x == top, i, CHUNK - 1)))
    value = tl.max(tl.where(i == place, x, -float("inf")))
    at = chunk * CHUNK + place
    token = tl.load(ids + tl.minimum(at, width - 1)) if IDS else at
    to = drawn + sample * 4
    tl.store(to, tl.where(wrong < 0, wrong, token).to(tl.float64))
    tl.store(to + 1, (value - top).to(tl.float64) - log_total)


@triton.jit
def _in_turn_kernel(
    logits, stride, ids, masks, mask_index, temperatures, tops, plain, heated, rows, firsts, counts, methods,
    uniforms, gumbel_uniforms, parents, taken, drawn, width, words, chunks,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, IDS: tl.constexpr,
):  # fmt: skip
    """Program: a row whose draws depend on the ones before them."""
    row = tl.load(rows + tl.program_id(0)).to(tl.int64)
    first, count = tl.load(firsts + row), tl.load(counts + row)
    distinct = tl.load(methods + row) == 1
    t, h, top, log_total, wrong = _sums_of_row(tops, plain, heated, row, chunks, CHUNKS)
    temperature = tl.load(temperatures + row).to(tl.float32)
    heat = tl.where(temperature > 0, temperature, 1.0)
    log_all = tl.log(tl.sum(tl.where(t == -float("inf"), 0.0, h * tl.exp(((t - top) / heat).to(tl.float64)))))
    parent = tl.load(parents + 2 * row)
    gumbel = tl.load(parents + 2 * row + 1)

    mask = masks + tl.load(mask_index + row).to(tl.int64) * words
    c = tl.arange(0, CHUNKS)
    i = tl.arange(0, CHUNK)
    taken += first
    for number in range(count):
        # Weights are relative to the best of what is left: however unlikely, they do not get lost.
        best = tl.max(t)
        left = best > -float("inf")
        base = _finite_or(best, 0.0)
        weights = tl.where(t == -float("inf"), 0.0, h * tl.exp(((t - base) / heat).to(tl.float64)))
        rest = tl.sum(weights)
        height = tl.load(uniforms + first + number) * rest
        chunk, before = _chunk_of(weights, height, chunks, CHUNKS)
        chunk = tl.where(distinct, chunk, tl.min(tl.where(t == best, c, CHUNKS - 1)))
        at = chunk * CHUNK + i
        x = _legal_logits(logits + row * stride, ids, mask, at, width, words, IDS)
        for earlier in range(number):
            x = tl.where(at == tl.load(taken + earlier), -float("inf"), x)
        place = _place_of(tl.exp((x - base) / heat).to(tl.float64), height - before, CHUNK)
        place = tl.where(distinct, place, tl.min(tl.where(x == best, i, CHUNK - 1)))
        value = tl.max(tl.where(i == place, x, -float("inf")))
        column = chunk * CHUNK + place
        token = tl.load(ids + tl.minimum(column, width - 1)) if IDS else column

        # The largest of a Gumbel's worth of the rest, below the one before; the first has its parent's.
        log_place = parent + ((base - top) / heat).to(tl.float64) + tl.log(rest) - log_all
        a = log_place - gumbel
        number_of_it = tl.load(gumbel_uniforms + first + number)
        b = tl.log(-tl.log(tl.maximum(number_of_it, 8.673617379884035e-19)))
        high = tl.maximum(a, b)
        next_gumbel = log_place - (high + tl.log(tl.exp(a - high) + tl.exp(b - high)))
        gumbel = tl.where(number == 0, gumbel, next_gumbel)

        to = drawn + (first + number) * 4
        tl.store(to, tl.where(wrong < 0, wrong, tl.where(left, token, -1)).to(tl.float64))
        tl.store(to + 1, tl.where(left, (value - top).to(tl.float64) - log_total, 0.0))
        tl.store(to + 2, tl.where(left & distinct, parent + ((value - top) / heat).to(tl.float64) - log_all, 0.0))
        tl.store(to + 3, tl.where(left & distinct, gumbel, 0.0))

        tl.store(taken + number, column)
        tl.debug_barrier()  # all threads of the program are to see it
        x = tl.where(i == place, -float("inf"), x)
        new_top = tl.max(x)
        t = tl.where(c == chunk, new_top, t)
        h = tl.where(c == chunk, tl.sum(tl.exp((x - _finite_or(new_top, 0.0)) / heat)).to(tl.float64), h)


def draw(logits: torch.Tensor, wanted: Wanted) -> Drawn:
    """Draw from logits [L, V], of any floating dtype, where they are; what was drawn comes to the host."""
    drawn = prepare(logits, wanted)().cpu().numpy() if len(wanted.uniforms) else np.zeros((0, 4))
    return _result(wanted, drawn)


def prepare(logits: torch.Tensor, wanted: Wanted) -> Callable[[], torch.Tensor]:
    """Sends what is asked for to where the logits [L, V] are. The function returned launches the kernels, waits for
    nothing, and gives float64 [S, 4] there: token, log-probability, and the perturbed ones."""
    n_rows, width = logits.shape
    samples, device = len(wanted.uniforms), logits.device
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    firsts = np.cumsum(wanted.counts) - wanted.counts
    row_of = np.repeat(np.arange(n_rows), wanted.counts)
    alone = wanted.methods == INDEPENDENT
    independent = np.flatnonzero(alone[row_of])
    in_turn = np.flatnonzero(~alone & (wanted.counts > 0))
    arrays = {
        "masks": wanted.masks,
        "mask_index": wanted.mask_index.astype(np.int32),
        "temperatures": wanted.temperatures.astype(np.float32),
        "uniforms": wanted.uniforms,
        "gumbel_uniforms": wanted.gumbel_uniforms,
        "parents": wanted.parents,
        "rows": row_of[independent].astype(np.int32),
        "samples": independent.astype(np.int32),
        "in_turn": in_turn.astype(np.int32),
        "firsts": firsts.astype(np.int32),
        "counts": wanted.counts.astype(np.int32),
        "methods": wanted.methods.astype(np.uint8),
        "ids": np.zeros(1, np.int32) if wanted.ids is None else wanted.ids.astype(np.int32),
    }
    on = to_device(arrays, device)
    words = wanted.masks.shape[1]
    chunks = triton.cdiv(width, CHUNK)
    # One by one: a kernel is compiled anew for an address that is not a multiple of 16.
    sums = [torch.empty(n_rows, chunks, dtype=torch.float32, device=device) for _ in range(3)]
    drawn = torch.zeros(samples, 4, dtype=torch.float64, device=device)
    taken = torch.empty(samples, dtype=torch.int32, device=device)
    given = (logits, logits.stride(0), on["ids"], on["masks"], on["mask_index"], on["temperatures"], *sums)
    has_ids = wanted.ids is not None
    block = triton.next_power_of_2(chunks)

    def launch() -> torch.Tensor:
        with torch.cuda.device_of(logits):  # kernels run on the current device, wherever their tensors are
            _sum_kernel[(n_rows, chunks)](*given, width, words, CHUNK=CHUNK, IDS=has_ids)
            if len(independent):
                _independent_kernel[(len(independent),)](
                    *given, on["rows"], on["samples"], on["uniforms"], drawn, width, words, chunks,
                    CHUNK=CHUNK, CHUNKS=block, IDS=has_ids,
                )  # fmt: skip
            if len(in_turn):
                _in_turn_kernel[(len(in_turn),)](
                    *given, on["in_turn"], on["firsts"], on["counts"], on["methods"], on["uniforms"],
                    on["gumbel_uniforms"], on["parents"], taken, drawn, width, words, chunks,
                    CHUNK=CHUNK, CHUNKS=block, IDS=has_ids,
                )  # fmt: skip
        return drawn

    return launch


def _result(wanted: Wanted, drawn: np.ndarray) -> Drawn:
    """drawn: float64 [S, 4]; a token of -2 stands for NaN, one of -3 for infinite logits."""
    tokens = drawn[:, 0].astype(np.int32)
    row_of = np.repeat(np.arange(len(wanted.counts)), wanted.counts)
    failures = {int(row_of[s]): NAN if tokens[s] == -2 else INFINITE for s in np.flatnonzero(tokens < -1).tolist()}
    failed = tokens < -1
    tokens[failed] = -1
    rest = np.where(failed[:, None], 0.0, drawn[:, 1:])
    return Drawn(tokens, np.ascontiguousarray(rest[:, 0]), np.ascontiguousarray(rest[:, 1:]), failures)


def draw_reference(logits: torch.Tensor, wanted: Wanted) -> Drawn:
    """The same in torch, in float64, a row after another."""
    drawn = np.zeros((len(wanted.uniforms), 4))
    drawn[:, 0] = -1
    width = logits.shape[1]
    token = torch.arange(width) if wanted.ids is None else torch.from_numpy(wanted.ids.astype(np.int64))
    word, bit = token // 32, token % 32
    first = 0
    for row, count in enumerate(wanted.counts.tolist()):
        mask = torch.from_numpy(wanted.masks[wanted.mask_index[row]])
        legal = (word < len(mask)) & ((mask[word.clamp_max(len(mask) - 1)] >> bit) & 1 != 0)
        x = logits[row].cpu().double().masked_fill(~legal, -torch.inf)
        to, first = drawn[first : first + count], first + count
        u, gumbel_u = wanted.uniforms[first - count : first], wanted.gumbel_uniforms[first - count : first]
        if x.isnan().any() or not x.max().isfinite():
            to[:, 0] = -2 if x.isnan().any() else -3
            continue
        logprob = x.log_softmax(0)
        method, temperature = int(wanted.methods[row]), float(wanted.temperatures[row])
        if method == LIKELIEST or temperature <= 0:
            order = x.sort(descending=True, stable=True).indices
            picked = order[:count] if method == LIKELIEST else order[:1].repeat(count)
            picked = picked[x[picked] > -torch.inf]
            to[: len(picked), 0], to[: len(picked), 1] = token[picked], logprob[picked]
            continue
        hot = (x / temperature).log_softmax(0)
        left = hot.clone()
        parent, gumbel = wanted.parents[row].tolist()
        for number in range(count):
            rest = left.logsumexp(0)
            if rest == -torch.inf:
                break
            at = _inverted((left - left.max()).exp(), float(u[number]))
            to[number, 0], to[number, 1] = token[at], logprob[at]
            if method == DISTINCT:
                if number:
                    place = parent + float(rest)
                    spread = -np.log(max(float(gumbel_u[number]), 2.0**-60))
                    gumbel = place - np.logaddexp(place - gumbel, np.log(spread))
                to[number, 2], to[number, 3] = parent + float(hot[at]), gumbel
                left[at] = -torch.inf
    return _result(wanted, drawn)


def _inverted(weights: torch.Tensor, uniform: float) -> int:
    heaped = weights.cumsum(0)
    at = int(torch.searchsorted(heaped, uniform * heaped[-1], right=True))
    return min(at, int(weights.nonzero().max()))
