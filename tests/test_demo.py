"""The demo decodes at once: no download, the same each time, and it can be saved and loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from toolprm_decode import Search, decode, load_demo
from toolprm_decode.tools import read_tools

from .grammar.bfcl import misfits

QUICK = Search(beams=2, width=3, max_tokens=64, allow_no_call=False)


def test_the_demo_decodes_legal_calls() -> None:
    demo = load_demo()
    for seed in range(3):
        search = Search(beams=2, width=4, seed=seed, max_tokens=64, allow_no_call=False)
        decoded = decode(demo.model, demo.prm, demo.tools, demo.request, search, tokenizer=demo.tokenizer)
        assert decoded.calls and not misfits(decoded.calls, read_tools(demo.tools))
        assert all(step.score is not None for step in decoded.steps)
    assert not demo.trained


def test_the_demo_is_the_same_each_time_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = load_demo(), load_demo(), load_demo(seed=9)
    assert torch.equal(torch.rand(3), expected)
    texts = [
        decode(demo.model, demo.prm, demo.tools, demo.request, QUICK, tokenizer=demo.tokenizer).text
        for demo in (one, two, other)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()


def test_the_demo_can_be_saved_and_decoded_from_its_folders(tmp_path: Path) -> None:
    demo = load_demo()
    demo.model.save_pretrained(tmp_path / "policy")
    demo.tokenizer.save_pretrained(tmp_path / "policy")
    demo.prm.save_pretrained(tmp_path / "prm")
    expected = decode(demo.model, demo.prm, demo.tools, demo.request, QUICK, tokenizer=demo.tokenizer)
    found = decode(tmp_path / "policy", tmp_path / "prm", demo.tools, demo.request, QUICK)
    assert (found.text, found.tokens) == (expected.text, expected.tokens)
