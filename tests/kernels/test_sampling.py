"""Draws from logits against float64 computations written out here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolprm_decode.kernels.sampling import (
    CHUNK,
    DISTINCT,
    INDEPENDENT,
    INFINITE,
    LIKELIEST,
    NAN,
    Drawn,
    Wanted,
    draw,
    draw_reference,
)

# The interpreter's numpy warns of what a GPU computes in silence: the logarithm of 0, and what comes of rows that fail.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

DRAWS = [pytest.param(draw, id="triton"), pytest.param(draw_reference, id="reference")]


def packed(legal: np.ndarray) -> np.ndarray:
    """int32 [K, words] of bool [K, V]."""
    padded = np.pad(legal, ((0, 0), (0, -legal.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


def wanted(
    legal: np.ndarray,
    counts: list[int],
    methods: list[int],
    temperatures: list[float],
    seed: int,
    ids: np.ndarray | None = None,
) -> Wanted:
    """A mask a row, of all tokens."""
    random = np.random.default_rng(seed)
    samples = sum(counts)
    return Wanted(
        masks=packed(legal),
        mask_index=np.arange(len(legal), dtype=np.int32),
        counts=np.array(counts, np.int32),
        methods=np.array(methods, np.uint8),
        temperatures=np.array(temperatures),
        uniforms=random.random(samples),
        gumbel_uniforms=random.random(samples),
        parents=np.stack([-random.random(len(legal)), random.random(len(legal))], 1),
        ids=ids,
    )


def one_row(of: Wanted, row: int) -> Wanted:
    ends = np.cumsum(of.counts)
    samples, rows = slice(int(ends[row] - of.counts[row]), int(ends[row])), slice(row, row + 1)
    return Wanted(
        masks=of.masks[of.mask_index[rows]],
        mask_index=np.zeros(1, np.int32),
        counts=of.counts[rows],
        methods=of.methods[rows],
        temperatures=of.temperatures[rows],
        uniforms=of.uniforms[samples],
        gumbel_uniforms=of.gumbel_uniforms[samples],
        parents=of.parents[rows],
        ids=of.ids,
    )


def check_row(logits: np.ndarray, legal: np.ndarray, of: Wanted, drawn: Drawn) -> None:
    """The only row of `of`, whose logits and legality are by token id, in float64."""
    method, temperature = int(of.methods[0]), float(of.temperatures[0])
    x = np.where(legal, logits, -np.inf)
    logprob = x - np.logaddexp.reduce(x)
    possible = int((x > -np.inf).sum())
    tokens = drawn.tokens.tolist()
    if method != INDEPENDENT:
        some = min(len(tokens), possible)
        assert tokens[some:] == [-1] * (len(tokens) - some) and len(set(tokens[:some])) == some
    else:
        some = len(tokens)
    assert min(tokens[:some], default=0) >= 0 and legal[tokens[:some]].all()
    np.testing.assert_allclose(drawn.logprobs[:some], logprob[tokens[:some]], atol=2e-5, rtol=1e-5)
    if method == LIKELIEST:
        order = sorted(range(len(x)), key=lambda token: (-x[token], token))
        assert tokens[:some] == order[:some]
        return
    if temperature == 0:
        assert tokens == [int(np.argmax(x))] * len(tokens)
        return
    hot = x / temperature - np.logaddexp.reduce(x / temperature)
    left, before = hot.copy(), 0.0
    for number, token in enumerate(tokens[:some]):
        rest = np.logaddexp.reduce(left)
        shares = np.exp(left - rest)
        heap = np.cumsum(shares)
        low, high = heap[token] - shares[token], heap[token]
        assert low - 1e-5 <= of.uniforms[number] <= high + 1e-5 or shares[token] > 0.99
        assert left[token] > -np.inf
        if method == DISTINCT:
            logprob_of_prefix, gumbel = of.parents[0].tolist()
            if number:
                # The maximum of Gumbels with this location, given that it is below the one before.
                place = logprob_of_prefix + rest
                gumbel = place - math.log(math.exp(place - before) - math.log(of.gumbel_uniforms[number]))
            before = gumbel
            np.testing.assert_allclose(
                drawn.perturbed[number], [logprob_of_prefix + hot[token], gumbel], atol=1e-4, rtol=1e-5
            )
            left[token] = -np.inf


@pytest.mark.parametrize("compute", DRAWS)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    width=st.sampled_from([1, 31, 33, 300, CHUNK, CHUNK + 1, 2500]),
    rows=st.lists(
        st.tuples(
            st.sampled_from([INDEPENDENT, DISTINCT, LIKELIEST]),
            st.integers(0, 6),
            st.sampled_from([0.0, 0.3, 1.0, 2.5]),
            st.sampled_from([1, 2, 5, 0.5, 1.0]),  # legal tokens, or their share
        ),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    few=st.booleans(),
)
def test_draws_invert_the_distribution(
    compute: object, device: torch.device, seed: int, width: int, rows: list[tuple[int, int, float, float]],
    dtype: torch.dtype, spread: float, few: bool,
) -> None:  # fmt: skip
    random = np.random.default_rng(seed)
    size = 3 * width if few else width
    ids = np.sort(random.choice(size, width, replace=False)).astype(np.int32) if few else None
    tokens = np.arange(size) if ids is None else ids
    legal = np.zeros((len(rows), size), bool)
    for row, (_, _, _, share) in enumerate(rows):
        count = share if isinstance(share, int) else max(1, int(share * width))
        legal[row, random.choice(tokens, min(count, width), replace=False)] = True
    logits = torch.from_numpy(spread * random.standard_normal((len(rows), width))).to(dtype)
    logits[torch.from_numpy(random.random((len(rows), width)) < 0.1)] = -torch.inf
    held = np.full((len(rows), size), -np.inf)
    held[:, tokens] = logits.double().numpy()
    for row in range(len(rows)):  # a row needs one token that can be drawn
        if not (held[row][legal[row]] > -np.inf).any():
            token = int(np.flatnonzero(legal[row])[0])
            held[row, token] = 0
            logits[row, np.flatnonzero(tokens == token)[0]] = 0
    heat = [0.7 if method == DISTINCT and t == 0 else t for method, _, t, _ in rows]
    of = wanted(legal, [count for _, count, _, _ in rows], [method for method, *_ in rows], heat, seed, ids)
    drawn = compute(logits.to(device), of)  # type: ignore[operator]
    assert not drawn.failures
    ends = np.cumsum(of.counts)
    for row in range(len(rows)):
        at = slice(int(ends[row] - of.counts[row]), int(ends[row]))
        alone = Drawn(drawn.tokens[at], drawn.logprobs[at], drawn.perturbed[at], {})
        check_row(held[row], legal[row], one_row(of, row), alone)


@pytest.mark.parametrize("compute", DRAWS)
def test_a_row_draws_the_same_in_any_company(compute: object, device: torch.device) -> None:
    random = np.random.default_rng(3)
    width, rows = 2 * CHUNK + 77, 6
    logits = torch.from_numpy(random.standard_normal((rows, width))).float().to(device)
    legal = random.random((rows, width)) < 0.4
    methods = [INDEPENDENT, DISTINCT, LIKELIEST] * 2
    of = wanted(legal, [4] * rows, methods, [1.0, 0.8, 1.0] * 2, 4)
    together = compute(logits, of)  # type: ignore[operator]
    for row in range(rows):
        alone = compute(logits[row : row + 1], one_row(of, row))  # type: ignore[operator]
        at = slice(4 * row, 4 * row + 4)
        assert np.array_equal(alone.tokens, together.tokens[at])
        assert np.array_equal(alone.logprobs, together.logprobs[at])
        assert np.array_equal(alone.perturbed, together.perturbed[at])


def test_a_large_vocabulary(device: torch.device) -> None:
    random = np.random.default_rng(5)
    width = 151_936
    logits = torch.from_numpy(3 * random.standard_normal((2, width))).float()
    legal = random.random((2, width)) < 0.7
    of = wanted(legal, [3, 3], [INDEPENDENT, DISTINCT], [0.9, 0.9], 6)
    drawn = draw(logits.to(device), of)
    for row in range(2):
        at = slice(3 * row, 3 * row + 3)
        check_row(
            logits[row].double().numpy(),
            legal[row],
            one_row(of, row),
            Drawn(drawn.tokens[at], drawn.logprobs[at], drawn.perturbed[at], {}),
        )


def chi_square_is_plausible(observed: np.ndarray, expected: np.ndarray) -> bool:
    """Below five deviations of the statistic's normal approximation."""
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    return statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by their size."""
    monkeypatch.setattr("toolprm_decode.kernels.sampling.CHUNK", 4)


@pytest.mark.parametrize("compute", DRAWS)
@pytest.mark.usefixtures("small_chunks")
def test_independent_draws_have_the_distribution(compute: object, device: torch.device) -> None:
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))
    legal = np.array([[True, True, False, True, True]])
    rows = 4
    of = wanted(legal, [80 * rows], [INDEPENDENT], [0.7], 7)
    cut = Wanted(
        masks=of.masks,
        mask_index=np.zeros(rows, np.int32),
        counts=np.full(rows, 80, np.int32),
        methods=np.zeros(rows, np.uint8),
        temperatures=np.full(rows, 0.7),
        uniforms=of.uniforms,
        gumbel_uniforms=of.gumbel_uniforms,
        parents=np.zeros((rows, 2)),
    )
    tokens = compute(torch.from_numpy(np.tile(logits, (rows, 1))).float().to(device), cut).tokens  # type: ignore[operator]
    weights = np.where(legal[0], np.exp(logits / 0.7), 0)
    expected = (weights / weights.sum() * 80 * rows)[legal[0]]
    assert chi_square_is_plausible(np.bincount(tokens, minlength=5)[legal[0]], expected)


@pytest.mark.parametrize("compute", DRAWS)
@pytest.mark.usefixtures("small_chunks")
def test_distinct_draws_are_sampling_without_replacement(compute: object, device: torch.device) -> None:
    share = np.array([0.5, 0.25, 0.15, 0.1])
    rows = 150
    legal = np.ones((1, 4), bool)
    random = np.random.default_rng(8)
    of = Wanted(
        masks=packed(legal),
        mask_index=np.zeros(rows, np.int32),
        counts=np.full(rows, 2, np.int32),
        methods=np.full(rows, DISTINCT, np.uint8),
        temperatures=np.ones(rows),
        uniforms=random.random(2 * rows),
        gumbel_uniforms=random.random(2 * rows),
        parents=np.zeros((rows, 2)),
    )
    logits = torch.from_numpy(np.tile(np.log(share), (rows, 1))).float().to(device)
    drawn = compute(logits, of)  # type: ignore[operator]
    pairs = list(itertools.permutations(range(4), 2))
    exact = [share[a] * share[b] / (1 - share[a]) for a, b in pairs]
    seen = [tuple(pair) for pair in drawn.tokens.reshape(-1, 2).tolist()]
    assert chi_square_is_plausible(np.array([seen.count(pair) for pair in pairs]), rows * np.array(exact))


@pytest.mark.parametrize("compute", DRAWS)
def test_many_dependent_draws(compute: object, device: torch.device) -> None:
    count = 67
    legal = np.ones((1, 200), bool)
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(9)).double()
    of = wanted(legal, [count], [DISTINCT], [1.0], 9)
    check_row(logits[0].numpy(), legal[0], of, compute(logits.float().to(device), of))  # type: ignore[operator]


@pytest.mark.parametrize("compute", DRAWS)
@pytest.mark.parametrize("method", [INDEPENDENT, DISTINCT, LIKELIEST])
def test_logits_that_cannot_be_drawn_from_are_told_by_row(compute: object, device: torch.device, method: int) -> None:
    logits = torch.zeros(4, 40)
    logits[0, 3] = torch.nan
    logits[1, 5] = torch.inf
    logits[2] = -torch.inf
    logits[3, 7] = torch.nan  # illegal: nobody asks
    legal = np.ones((4, 40), bool)
    legal[3, 7] = False
    drawn = compute(logits.to(device), wanted(legal, [2] * 4, [method] * 4, [1.0] * 4, 1))  # type: ignore[operator]
    assert drawn.failures == {0: NAN, 1: INFINITE, 2: INFINITE}
    assert (drawn.tokens[:6] == -1).all() and (drawn.tokens[6:] >= 0).all()


def test_nothing_to_draw(device: torch.device) -> None:
    assert draw(torch.zeros(1, 8, device=device), wanted(np.ones((1, 8), bool), [0], [0], [1.0], 0)).tokens.shape == (
        0,
    )
