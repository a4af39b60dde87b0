"""Whether the kernels are right on this device: their tests, and whole decodes by all ways to compute."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.copies import computing
from benchmarks.gpu.decode import SMALL, TINY
from benchmarks.gpu.device import Device
from toolprm_decode.benchmark.models import random_model, with_tags
from toolprm_decode.decoding import Decoded, Decoder
from toolprm_decode.demo import held_out, load_demo
from toolprm_decode.engine.engine import load_tokenizer
from toolprm_decode.kernels.dispatch import VARIABLE
from toolprm_decode.models import MODELS
from toolprm_decode.rewards import ToolPRM
from toolprm_decode.search import Search

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/kernels", "tests/engine/test_kernel_passes.py")
# Scores and log-probabilities of the ways differ by the rounding of float32 alone.
TOLERANCE = 1e-3


def run_tests(device: Device, seconds: float) -> str:
    """Runs the tests of the kernels on the device; in a dry run the quickest ones. Returns pytest's last line.

    Raises AssertionError where a test fails, or skips for want of a GPU, or the time is up.
    """
    tests = ("tests/kernels/test_copying.py",) if device.dry else TESTS
    # Compiling for GPUs that need not be there says nothing about the one that is.
    command = [sys.executable, "-m", "pytest", "-q", *tests, "--ignore=tests/kernels/test_compile.py"]
    if device.cuda and find_spec("xdist"):  # most of their time is compiling, on the CPU
        command += ["-n", str(max(1, min(8, (os.cpu_count() or 1) - 1)))]
    unset = (VARIABLE, "TRITON_INTERPRET") if device.cuda else (VARIABLE,)
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"the tests were not done after {seconds:.0f} seconds") from error
    last = (done.stdout.strip() or done.stderr.strip() or "nothing was printed").splitlines()[-1]
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        raise AssertionError(f"{last}: {', '.join(failed) or 'see above'}")
    if device.cuda and "needs a GPU" in done.stdout:
        raise AssertionError(f"the tests did not find the GPU ({last})")
    return last


def compare_decodes(device: Device) -> str:
    """Decodes with the models of the package in float32, by the kernels, torch and the references; in a dry run with
    tiny ones. Returns what was compared.

    Raises AssertionError where an answer differs, or a score by more than rounding.
    """
    tokenizer = load_tokenizer(MODELS / "policy")
    if not device.dry:
        with computing("torch"):
            demo, (unseen,) = load_demo(), held_out(count=1)
        requests: list[tuple[Any, Any]] = [(demo.tools, demo.request), (unseen.tools, unseen.messages)]
        models, reward_tokenizer = (demo.model, demo.prm.engine.model), demo.prm.tokenizer
        distinct = Search(beams=2, width=4, distinct=True, policy_weight=0.3, max_tokens=120)
        searches = [demo.search, distinct, Search(strategy="greedy")]
    else:
        requests, searches = [(SMALL, "On")], [Search(beams=2, width=2, max_calls=1, max_tokens=40)]
        reward_tokenizer = with_tags(tokenizer)
        size = len(reward_tokenizer)
        models = tuple(random_model(TINY["tiny"], size, seed, torch.float32, vocabulary=1) for seed in (0, 1))
    policy, judge = (model.to(device.torch) for model in models)
    asked = [(tools, prompt, search) for tools, prompt in requests for search in searches]
    answers: dict[str, list[Decoded]] = {}
    # The last one twice, so that passes which were recorded are replayed from the first token on.
    for name in ("reference", "torch", "triton", "triton, again"):
        with computing(name.partition(",")[0]):
            if "again" not in name:
                decoder = Decoder(policy, ToolPRM(judge, reward_tokenizer), tokenizer=tokenizer)
            answers[name] = [decoder.decode(*of) for of in asked]
        for one, other in zip(answers[name], answers["reference"], strict=True):
            _compare(name, one, other)
    tokens = sum(len(answer.tokens) for answer in answers["triton"])
    return f"{len(asked)} decodes of {tokens} tokens in all, the same by {'; '.join(answers)}"


def _compare(name: str, one: Decoded, other: Decoded) -> None:
    texts, expected = [answer.text for answer in one.finished], [answer.text for answer in other.finished]
    if texts != expected:
        raise AssertionError(f"{name} wrote {texts[:2]}, the reference {expected[:2]}")
    pairs: list[tuple[Any, Any]] = [(one.score, other.score), (one.logprob, other.logprob)]
    for value, of in pairs:
        if (value is None) != (of is None) or (value is not None and abs(value - of) > TOLERANCE):
            raise AssertionError(f"{name} found {one.text!r} with {value}, the reference with {of}")
