"""Kernels run on the `device` of the root conftest."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'toolprm_decode[gpu]'")
