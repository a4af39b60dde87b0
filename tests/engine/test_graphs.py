"""What a graph cannot hold is refused before it is recorded, and the models' passes do nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from toolprm_decode.engine import Engine

from .plans import Plan, make

pytest.importorskip("triton", reason="triton is not installed: pip install 'toolprm_decode[gpu]'")
from toolprm_decode.engine.graphs import Recordable


def assign(x: torch.Tensor) -> None:
    x[x > 0] = torch.ones(4)


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        (lambda x: x.sum().item(), "waits"),
        (lambda x: bool((x > 0).all()), "waits"),
        (lambda x: x.nonzero(), "waits"),
        (lambda x: x[x > 0], "waits"),
        (lambda x: torch.unique(x), "waits"),
        (assign, "waits"),
        (lambda x: x.to("meta"), "copies"),
        (lambda x: torch.empty(4, device="meta").copy_(x), "copies"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_what_a_graph_cannot_hold_is_refused(
    compute: Callable[[torch.Tensor], Any], said: str, inference: bool
) -> None:
    with torch.inference_mode(inference), Recordable(), pytest.raises(RuntimeError, match=said):
        compute(torch.ones(4))


def test_what_a_graph_can_hold_is_computed() -> None:
    x = torch.arange(6.0).view(2, 3)
    with torch.inference_mode(), Recordable():
        x[torch.tensor([0])] = 7
        out = torch.where(x > 3, x, -x)[torch.tensor([1, 0])].to(torch.bfloat16).softmax(-1).sum(-1)
    assert x.tolist() == [[7, 7, 7], [3, 4, 5]] and out.float().tolist() == pytest.approx([1, 1], abs=0.01)


def test_no_model_waits_for_the_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the layers' attention, which is left out here."""
    monkeypatch.setenv("TOOLPRM_KERNELS", "reference")
    engine = Engine(make(family), block_size=4)

    def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return query.new_ones(query.shape[1], query.shape[0], values.shape[-1])

    monkeypatch.setattr("toolprm_decode.kernels.attention.attend_reference", attend)
    forward = engine._runner._forward

    def refusing(*args: Any, **kwargs: Any) -> torch.Tensor:
        with Recordable():
            return forward(*args, **kwargs)

    engine._runner._forward = refusing  # type: ignore[method-assign]
    plan = Plan(engine, seed=0, prompts=(7, 4))
    plan.forward(plan.random_step()[0])
