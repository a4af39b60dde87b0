"""Settings and data that all tests and benchmarks share."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is defined

# Hypothesis' deadline and its too_slow check judge by the clock, which a busy machine fails without a defect.
hypothesis.settings.register_profile(
    "toolprm", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("toolprm")


def unpacked(source: Path) -> Path:
    """The folder with the data of `source`: itself, or build/data where it holds archives and their unpack script."""
    script = source / "unpack"
    if not script.is_file():
        return source
    target = ROOT / "build" / "data"
    target.mkdir(parents=True, exist_ok=True)
    with (ROOT / "build" / "data.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test runs must not read half an archive
        subprocess.run([str(script), str(target)], check=True, stdout=subprocess.DEVNULL)
    return target


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: a GPU where there is one, else the CPU, in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def own_logging() -> Iterator[None]:
    """The command line silences transformers, for its own process only: for tests that call it in this one."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the public data sets and tokenizers; the test is skipped where there is none."""
    given = os.environ.get("TOOLPRM_DATA")
    candidates = [Path(given)] if given else []
    candidates.append(ROOT.parent / "shared" / "data")
    for source in candidates:
        if source.is_dir() and any(source.iterdir()):
            return unpacked(source)
    looked = " and ".join(str(source) for source in candidates)
    pytest.skip(f"no data in {looked}: set TOOLPRM_DATA to a folder with the data sets, unpacked or with `unpack`")


def load_tokenizer(data_dir: Path, name: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    folder = data_dir / "tokenizers" / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"the data has no tokenizers/{name}/tokenizer.json")
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="session")
def qwen_tokenizer(data_dir: Path) -> PreTrainedTokenizerFast:
    """Qwen2.5: byte-level BPE of 151,665 tokens, with a chat template."""
    return load_tokenizer(data_dir, "qwen2.5")


@pytest.fixture(scope="session")
def gpt2_tokenizer(data_dir: Path) -> PreTrainedTokenizerFast:
    """GPT-2: byte-level BPE of 50,257 tokens, without a chat template."""
    return load_tokenizer(data_dir, "gpt2")


@pytest.fixture(scope="session")
def phi3_tokenizer(data_dir: Path) -> PreTrainedTokenizerFast:
    """Phi-3 mini: SentencePiece-style BPE of 32,011 tokens with byte fallback."""
    return load_tokenizer(data_dir, "phi3-mini")
