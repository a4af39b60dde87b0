"""The sans-IO search for engines of one's own: its arrays, and what it takes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolprm_decode import CallGrammar, Search
from toolprm_decode.integrations import sansio

from ..search.models import TOOLS, tokenizer

ROOT = Path(__file__).resolve().parents[2]
GRAMMAR = CallGrammar(TOOLS, tokenizer(), format="json-list", allow_no_call=False, max_calls=1)
PROMPT = [9, 8, 7, 6, 5]


class Foreign:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, values: Any):
        self._values = np.array(values)

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()


def begun(**settings: Any) -> tuple[sansio.Search, int]:
    search = sansio.Search()
    id = search.add(GRAMMAR.matcher(), Search(**settings).core_options(48), PROMPT)
    return search, id


def logits_of(plan: sansio.Plan) -> tuple[np.ndarray, np.ndarray]:
    """Logits that depend on a token's position and nothing else."""
    positions = plan.positions[plan.outputs]
    full = np.stack(
        [np.random.default_rng(int(p)).normal(size=GRAMMAR.vocabulary_size) for p in positions]
    ) if len(positions) else np.zeros((0, GRAMMAR.vocabulary_size))  # fmt: skip
    full = full.astype(np.float32)
    few = np.ascontiguousarray(full[plan.full_outputs :, plan.few_ids])
    return np.ascontiguousarray(full[: plan.full_outputs]), few


def arrays(plan: sansio.Plan) -> dict[str, np.ndarray]:
    found = {
        name: getattr(plan, name) for name in dir(plan) if not name.startswith("_") and name != "prefixes_to_score"
    }
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def finish(search: sansio.Search, id: int, give: Callable[[np.ndarray], Any] = lambda x: x) -> list[bytes]:
    """Runs a search to its end, handing logits in and results back as `give` makes them."""
    while (plan := search.plan()).kind == sansio.PlanKind.DECODE:
        drawn = sansio.sample_plan(plan, *(give(logits) for logits in logits_of(plan)))
        assert not drawn[3]
        search.commit_tokens(*(give(values) for values in drawn[:3]))
    return [answer.text for answer in search.take(id).answers]


def test_arrays_are_as_documented() -> None:
    page = (ROOT / "docs" / "custom_engines.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| (int32|uint8|float64) `\[", page, re.MULTILINE))
    search, _ = begun(distinct=True, beams=2, width=3)
    plan = search.plan()
    found = {name: str(array.dtype) for name, array in arrays(plan).items()}
    assert documented == found
    one = len(plan.outputs)
    for name in ("mask_index", "draws", "temperatures", "sampling", "parents"):
        assert len(getattr(plan, name)) == one, name
    assert len(plan.uniforms) == len(plan.gumbel_uniforms) == plan.draws.sum()
    assert plan.sampling.tolist() == [1] and plan.parents.shape == (1, 2)


def test_arrays_go_to_other_packages_without_a_copy_and_outlive_the_plan() -> None:
    search, id = begun(beams=2, width=3, seed=4)
    kept: list[tuple[np.ndarray, torch.Tensor, np.ndarray]] = []
    while (plan := search.plan()).kind == sansio.PlanKind.DECODE:
        for array in arrays(plan).values():
            tensor = torch.from_dlpack(array)
            if array.size:
                assert tensor.data_ptr() == array.ctypes.data
            kept.append((array, tensor, array.copy()))
        tokens, logprobs, perturbed, _ = sansio.sample_plan(plan, *logits_of(plan))
        search.commit_tokens(tokens, logprobs, perturbed)
    search.take(id)
    del search, plan
    assert len(kept) > 20
    for array, tensor, then in kept:
        assert np.array_equal(array, then) and np.array_equal(tensor.numpy(), then)
        tensor.zero_()  # they are the caller's: nothing reads them again


@pytest.mark.parametrize("settings", [{}, {"distinct": True}, {"strategy": "token-beam"}], ids=str)
def test_results_may_come_in_any_package_s_arrays(settings: dict[str, Any]) -> None:
    expected = finish(*begun(**settings))
    assert finish(*begun(**settings), torch.from_numpy) == expected
    assert finish(*begun(**settings), Foreign) == expected


def test_lists_and_wide_integers_are_tokens() -> None:
    expected = finish(*begun())
    search, id = begun()
    while (plan := search.plan()).kind == sansio.PlanKind.DECODE:
        tokens, logprobs, _, _ = sansio.sample_plan(plan, *logits_of(plan))
        search.commit_tokens(torch.from_numpy(tokens).long(), logprobs.tolist())
    assert [answer.text for answer in search.take(id).answers] == expected


@pytest.mark.parametrize(
    "wrong", [lambda t: t.astype(np.float32), lambda t: t.astype(np.int64) + 2**32], ids=["float", "wide"]
)
def test_what_is_no_token_is_refused_and_the_plan_stays_open(wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    search, _ = begun()
    plan = search.plan()
    tokens, logprobs, _, _ = sansio.sample_plan(plan, *logits_of(plan))
    with pytest.raises((TypeError, ValueError), match="token"):
        search.commit_tokens(wrong(tokens), logprobs)
    search.commit_tokens(tokens, logprobs)


def test_logits_are_not_converted_silently() -> None:
    search, _ = begun()
    plan = search.plan()
    full, few = logits_of(plan)
    with pytest.raises(TypeError, match="float32"):
        sansio.sample_plan(plan, full.astype(np.float64), few)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_sampler_of_one_s_own_draws_the_same(temperature: float) -> None:
    """By the documented arrays alone: inversion of the cumulative distribution, tokens ascending."""
    search, _ = begun(strategy="sample", width=6, temperature=temperature)
    while (plan := search.plan()).kind == sansio.PlanKind.DECODE:
        full, few = logits_of(plan)
        tokens, logprobs, _, _ = sansio.sample_plan(plan, full, few)
        at = 0
        for output, draws in enumerate(plan.draws):
            mask = plan.masks[plan.mask_index[output]]
            legal = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if output < plan.full_outputs:
                own = full[output, legal].astype(np.float64)
            else:
                assert np.isin(legal, plan.few_ids).all()
                own = few[output - plan.full_outputs, np.searchsorted(plan.few_ids, legal)].astype(np.float64)
            logp = own - np.logaddexp.reduce(own)
            for uniform in plan.uniforms[at : at + draws]:
                if temperature == 0:
                    place = int(own.argmax())
                else:
                    weights = np.exp((own - own.max()) / plan.temperatures[output])
                    place = int(np.searchsorted(np.cumsum(weights), uniform * weights.sum(), side="right"))
                assert tokens[at] == legal[place] and logprobs[at] == pytest.approx(logp[place], abs=1e-9)
                at += 1
        search.commit_tokens(tokens, logprobs)
