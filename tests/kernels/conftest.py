"""Kernels run on a GPU where there is one, and in Triton's interpreter on the CPU elsewhere (see the root conftest)."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'toolprm_decode[gpu]'")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
