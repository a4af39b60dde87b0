"""The one place that decides who computes what kernels exist for.

``torch``: torch's own products on the device of the model, and the compiled core for the draws. ``triton``: the kernels
of this package. ``reference``: the plain, slow torch code that lies beside each kernel.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal, cast, get_args

import torch

from toolprm_decode.errors import RequestError

Backend = Literal["torch", "triton", "reference"]

VARIABLE = "TOOLPRM_KERNELS"


def backend(device: torch.device) -> Backend:
    """Who computes on `device`: what the environment variable TOOLPRM_KERNELS names; without it triton on GPUs, where
    it is installed, and torch elsewhere.

    Raises RequestError for a name that is none of the three, and for triton where it cannot run: on a CPU it does under
    TRITON_INTERPRET=1 alone, slowly.
    """
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return "triton" if device.type == "cuda" and find_spec("triton") else "torch"
    if wanted not in get_args(Backend):
        raise RequestError(f"{VARIABLE} must be one of {', '.join(get_args(Backend))}, not {wanted!r}")
    if wanted == "triton":
        if not find_spec("triton"):
            raise RequestError(f"{VARIABLE}=triton, but triton is not installed: pip install 'toolprm_decode[gpu]'")
        if device.type == "cpu" and not interpreted():
            raise RequestError(f"{VARIABLE}=triton needs a GPU; on a CPU set TRITON_INTERPRET=1 as well, for tests")
    return cast(Backend, wanted)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter. It is read when a kernel's module is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
