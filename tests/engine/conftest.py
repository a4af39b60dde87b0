"""Fixtures of the engine's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from .plans import FAMILIES


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plain() -> Callable[[PreTrainedModel], PreTrainedModel]:
    """A copy of a model under transformers' eager attention, independent of the one that the engine runs."""

    def build(model: PreTrainedModel) -> PreTrainedModel:
        other = copy.deepcopy(model)
        other.set_attn_implementation("eager")
        return other.eval()

    return build
