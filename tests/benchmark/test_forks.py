"""The loops of the benchmark find what the decoder finds, and its record has what it promises."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolprm_decode import CallGrammar
from toolprm_decode.benchmark import models
from toolprm_decode.benchmark.careful_loop import CarefulLoop
from toolprm_decode.benchmark.forks import FORMAT, Forks, Settings, measure, round_ends
from toolprm_decode.benchmark.models import Shape, make_tokenizer
from toolprm_decode.benchmark.peer_grammar import PeerGrammar, bits, call_ebnf
from toolprm_decode.benchmark.plain_loop import PlainLoop
from toolprm_decode.benchmark.report import print_forks
from toolprm_decode.benchmark.workload import QUICK_TOOLS, REQUESTS, TOOLS
from toolprm_decode.cli import main
from toolprm_decode.errors import RequestError
from toolprm_decode.tools import read_tools

TINY = Shape(2, 64, 128, 4, 2)
RATIOS = {
    "speedup_plain",
    "speedup_plain_after_prefill",
    "speedup_careful",
    "speedup_careful_after_prefill",
    "speedup_careful_jump_forward",
    "speedup_careful_jump_forward_after_prefill",
    "width16_over_width1",
    "width16_over_width1_after_prefill",
    "width16_over_width1_per_token",
    "prm_over_policy_tokens",
    "prm_over_policy_tokens_with_prompts",
    "outside_model_share",
    "batch16_throughput",
}
# Optional parameters and numbers among them, of which "3" and "3.0" are the same decision.
FEW = [QUICK_TOOLS[1], TOOLS[0]]


def quiet(stage: str, share: float) -> None:
    assert stage and 0 <= share <= 1


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def forks(tokenizer: Any) -> Forks:
    return Forks(Settings(TINY, FEW, REQUESTS[:2], beams=3, width=6), tokenizer, quiet)


@pytest.fixture(scope="module")
def masks(forks: Forks) -> PeerGrammar:
    pytest.importorskip("xgrammar")
    return PeerGrammar(forks.grammar.tools, forks.tokenizer, forks.policy.vocab_size)


def test_xgrammar_allows_what_the_call_grammar_allows(tokenizer: Any) -> None:
    pytest.importorskip("xgrammar")
    grammar = CallGrammar(TOOLS, tokenizer, FORMAT, max_calls=1, allow_no_call=False)
    masks = PeerGrammar(grammar.tools, tokenizer, len(tokenizer))
    compiled = masks.compile()
    row = np.zeros((len(tokenizer) + 31) // 32, np.int32)
    rng = np.random.default_rng(0)
    for _ in range(8):
        ours, theirs = grammar.matcher(), masks.matcher(compiled)
        while not theirs.is_terminated():
            ours.fill_mask(row)
            legal = bits(row, len(tokenizer))
            assert legal.tolist() == masks.legal(theirs).tolist(), ours.text
            token = int(rng.choice(legal))
            ours.accept(token)
            assert theirs.accept_token(token)
        assert ours.is_complete and grammar.accepts(ours.text)


@pytest.mark.parametrize("seed", range(4))
def test_all_loops_find_the_same_answers(forks: Forks, masks: PeerGrammar, seed: int) -> None:
    # Hot enough that candidates part, and with different weights on score and log-probability.
    forks.search = replace(forks.search, temperature=0.25, seed=seed, policy_weight=0.0 if seed % 2 else 0.3)
    print(forks.search)
    ours = forks.ours(REQUESTS[0])
    plain, careful = forks.peer(PlainLoop, masks), forks.peer(CarefulLoop, masks)
    expected = [answer.text for answer in ours.decoded.finished]
    assert ours.decoded.stats.distinct_candidates > ours.decoded.stats.rounds
    assert plain.texts == careful.texts == expected
    assert plain.complete and careful.complete
    assert (
        len(plain.rounds)
        == len(careful.rounds)
        == ours.decoded.stats.rounds
        == len(round_ends(ours, forks.reward.engine.model))
    )
    assert plain.candidates == careful.candidates == ours.decoded.stats.candidates
    assert plain.prm_tokens > careful.prm_tokens >= ours.decoded.stats.prm_tokens
    assert plain.policy_tokens >= careful.policy_tokens >= ours.decoded.stats.policy_tokens


def test_every_pass_of_the_models_is_timed(forks: Forks) -> None:
    run = forks.ours(REQUESTS[1])
    stats = run.decoded.stats
    for model, tokens in ((forks.policy.model, stats.policy_tokens), (forks.reward.engine.model, stats.prm_tokens)):
        mine = [p for p in run.passes if p.model is model]
        assert sum(p.tokens for p in mine) == tokens
        assert all(0 < p.rows <= p.tokens <= p.keys for p in mine)
    assert 0 < run.models < run.total


def test_the_record_has_all_ratios(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xgrammar")
    settings = Settings(TINY, FEW, REQUESTS[:3], beams=2, width=4)
    record = json.loads(json.dumps(measure(settings, tokenizer, "made", quiet)))
    assert set(record) >= RATIOS and all(record[key] > 0 for key in RATIOS)
    assert record["answers_agree"] is True
    assert 0 <= record["widths"]["same_answers"] <= record["widths"]["requests"] == 3
    assert record["config"]["shape"] == str(TINY) and record["machine"]["torch_threads"] >= 1
    print_forks(record)
    out = capsys.readouterr().out
    assert out.index("Ratios") < out.index("Runs") < out.index("Breakdown") < out.index("machine:")
    assert record["answer"] in out


def test_what_is_left_out_is_null(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(TINY, FEW, REQUESTS[:2], plain=False, careful=False, widths=False, batch=False)
    record = measure(settings, tokenizer, "made", quiet)
    assert {key for key in RATIOS if record[key] is not None} == {
        "prm_over_policy_tokens",
        "prm_over_policy_tokens_with_prompts",
        "outside_model_share",
    }
    assert record["answers_agree"] is None
    print_forks(record)
    assert "Ratios" in capsys.readouterr().out


def test_a_plain_loop_that_is_stopped_early_has_a_ratio_of_its_own(tokenizer: Any) -> None:
    pytest.importorskip("xgrammar")
    settings = Settings(
        TINY, FEW, REQUESTS[:2], beams=2, width=4, careful=False, widths=False, batch=False, plain_rounds=1
    )
    record = measure(settings, tokenizer, "made", quiet)
    assert record["speedup_plain"] is None and record["answers_agree"] is None
    assert record["speedup_plain_first_rounds"]["rounds"] == 1
    assert len(record["seconds"]["plain_rounds"]) == 1
    print_forks(record)


def test_the_command_writes_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xgrammar")
    monkeypatch.setattr(models, "QUICK", TINY)
    monkeypatch.delenv("TOOLPRM_DATA", raising=False)
    target, tools = tmp_path / "forks.json", tmp_path / "tools.json"
    tools.write_text(json.dumps(FEW[:1]))
    arguments = ["--quick", "--beams", "2", "--width", "3", "--skip-plain", "--skip-widths", "--json", str(target)]
    arguments += ["--tools", str(tools), "--request", "Full light in the hall", "--dtype", "bfloat16"]
    assert main(["benchmark", "forks", *arguments]) == 0
    assert "Ratios" in capsys.readouterr().out
    record = json.loads(target.read_text())
    assert set(record) >= RATIOS and record["speedup_careful"] > 0
    assert record["config"]["dtype"] == "bfloat16" and record["config"]["tools"] == 1
    assert "made by the benchmark" in record["config"]["tokenizer"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tools", "no-such.json", "--request", "x"], "no-such.json"),
        (["--tools", "{broken}", "--request", "x"], "not JSON"),
        (["--tools", "{object}", "--request", "x"], "not a JSON list"),
        (["--tools", "{free}", "--request", "x"], "parameter 'note' of tool 'write'"),
        (["--tools", "{many}", "--request", "x"], "has 7 parameters"),
        (["--request", "x"], "--tools and --request go together"),
        (["--tokenizer", "no-such-tokenizer"], "no-such-tokenizer"),
        (["--json", "no-such-folder/x.json"], "no such folder"),
        (["--plain-rounds", "0"], "--plain-rounds must be 1 or more"),
        (["--threads", "0"], "--threads must be 1 or more"),
        (["--beams", "0"], "beams must be"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TOOLPRM_DATA", raising=False)
    flag = {"type": "boolean"}
    files: dict[str, Any] = {
        "broken": "[",
        "object": "{}",
        "free": [{"name": "write", "parameters": {"type": "object", "properties": {"note": {"type": "string"}}}}],
        "many": [{"name": "f", "parameters": {"type": "object", "properties": dict.fromkeys("abcdefg", flag)}}],
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    arguments = [str(tmp_path / a[1:-1]) if a.startswith("{") else a for a in arguments]
    capsys.readouterr()
    code = main(["benchmark", "forks", "--quick", *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.count("\n") == 1 and said in err


def test_without_xgrammar_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    monkeypatch.delenv("TOOLPRM_DATA", raising=False)
    assert main(["benchmark", "forks", "--quick"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install 'toolprm_decode[bench]'" in err


@pytest.mark.parametrize("pattern", ["abc", "^a|b$", "^[^a]$", r"^\d$", "^(ab)$", "^a.$", "^[a-z]+$", "^$"])
def test_patterns_that_xgrammar_might_read_otherwise_are_refused(pattern: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}}
    with pytest.raises(RequestError, match="parameter 'x'"):
        call_ebnf(read_tools([{"name": "f", "parameters": schema}]))
