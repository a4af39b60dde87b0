"""Every kernel compiles for the GPUs that it is meant for, and fits into their shared memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.parametrize(
    ("backend", "architecture", "warp_size", "shared"),
    [("cuda", "80", 32, 166_912), ("cuda", "90", 32, 232_448), ("hip", "gfx942", 64, 65_536)],
    ids=["sm_80", "sm_90", "gfx942"],
)
def test_kernels_compile(backend: str, architecture: str, warp_size: int, shared: int, tmp_path: Path) -> None:
    """In a process of its own: in this one kernels may be interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), backend, architecture, str(warp_size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = re.findall(r"^(.+): (\d+) bytes, (\d+) of shared memory$", done.stdout, re.MULTILINE)
    assert len(sizes) == len(done.stdout.splitlines()) > 15
    print(done.stdout)
    for name, size, needed in sizes:
        assert int(size) > 1000 and int(needed) <= shared, name
