"""The command line: JSON on stdout, everything else on stderr, and one line for what is wrong."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from safetensors.torch import load_file, save_file

from toolprm_decode import Decoder, Search, load_demo
from toolprm_decode.cli import main

from .search.models import SWAP, SWITCH, policy, reward, tokenizer

TOOLS = [SWITCH, SWAP]
QUICK = ["--beams", "2", "--width", "3", "--max-tokens", "40", "--require-call"]

pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a reward model and tools."""
    folder = tmp_path_factory.mktemp("cli")
    policy().save_pretrained(folder / "policy")
    tokenizer().save_pretrained(folder / "policy")
    reward().save_pretrained(folder / "prm")
    (folder / "tools.json").write_text(json.dumps(TOOLS))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_decode_prints_the_calls_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--model", folder / "policy", "--prm", folder / "prm", "--tools", folder / "tools.json"]
    code, out, err = run(capsys, "decode", *models, *QUICK, "Light in the hall")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    search = Search(beams=2, width=3, max_tokens=40, allow_no_call=False)
    expected = Decoder(policy(), reward(), tokenizer=tokenizer()).decode(TOOLS, "Light in the hall", search)
    assert json.loads(out) == expected.calls != []


def test_what_cannot_be_enforced_is_left_out_on_request(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    parameters = {"type": "object", "properties": {"names": listed}}
    (tmp_path / "tools.json").write_text(json.dumps([*TOOLS, {"name": "list_all", "parameters": parameters}]))
    options = ["decode", "--model", folder / "policy", "--tools", tmp_path / "tools.json", *QUICK, "Light"]
    code, out, err = run(capsys, *options)
    assert (code, out) == (2, "") and "uniqueItems" in err
    code, out, err = run(capsys, *options, "--lenient")
    assert code == 0 and json.loads(out)
    assert err.count("\n") == 1 and "'list_all', at /properties/names, keyword 'uniqueItems'" in err


def test_explain_draws_the_tree_on_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--model", folder / "policy", "--prm", folder / "prm", "--tools", folder / "tools.json"]
    plain = run(capsys, "decode", *models, *QUICK, "Light")
    code, out, err = run(capsys, "decode", *models, *QUICK, "--explain", "Light")
    assert (code, out) == plain[:2]
    for words in ("start", "FUNC_NAME", "TOTAL_FINISH", "answer", "policy and", "reward tokens", "no chat template"):
        assert words in err


def test_the_request_may_come_from_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["decode", "--model", folder / "policy", "--tools", folder / "tools.json", *QUICK]
    expected = run(capsys, *options, "Licht für Zürich")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Licht für Zürich".encode())))
    assert run(capsys, *options, "-") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    code, out, err = run(capsys, *options, "-")
    assert (code, out) == (2, "") and "not UTF-8" in err


def test_settings_reach_the_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "decode",
        "--model",
        folder / "policy",
        "--tools",
        folder / "tools.json",
        "--format",
        "pythonic",
        "Light",
    ]
    options += ["--strategy", "sample", "--width", "2", "--temperature", "1.5", "--seed", "7", "--aggregate", "min"]
    options += ["--policy-weight", "0.5", "--max-tokens", "50", "--max-calls", "1"]
    code, out, _ = run(capsys, *options)
    search = Search(
        "sample", width=2, temperature=1.5, seed=7, aggregate="min", policy_weight=0.5, max_tokens=50, max_calls=1
    )
    expected = Decoder(policy(), tokenizer=tokenizer(), format="pythonic").decode(TOOLS, "Light", search)
    assert code == 0 and json.loads(out) == expected.calls


def broken(folder: Path, target: Path, what: str) -> Path:
    """A copy of the policy's folder with something wrong in it."""
    shutil.copytree(folder / "policy", target)
    weights = target / "model.safetensors"
    if what == "config":
        (target / "config.json").write_text("{")
    elif what == "config type":
        (target / "config.json").write_text("[1]")
    elif what == "architecture":
        (target / "config.json").write_text('{"model_type": "no-such-model"}')
    elif what == "no architecture":
        (target / "config.json").write_text("{}")
    elif what == "encoder-decoder":
        hf.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=50).save_pretrained(target)
    elif what == "no weights":
        weights.unlink()
    elif what == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif what == "bad weights":
        weights.write_bytes(b"junk")
    elif what == "missing weights":
        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif what == "shapes":
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    elif what == "no tokenizer":
        for path in target.glob("tokenizer*"):
            path.unlink()
    elif what == "tokenizer":
        (target / "tokenizer.json").write_text("{}")
    return target


FAULTS = [
    "config",
    "config type",
    "architecture",
    "no architecture",
    "encoder-decoder",
    "no weights",
    "cut weights",
    "bad weights",
    "missing weights",
    "shapes",
    "no tokenizer",
    "tokenizer",
]


def assert_one_line(code: int, out: str, err: str) -> None:
    assert (code, out) == (2, ""), (out, err)
    assert err.startswith("toolprm: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert 20 < len(err) < 1000 and "Traceback" not in err, err


@pytest.mark.parametrize("what", FAULTS)
def test_a_bad_model_folder_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    bad = broken(folder, tmp_path / "bad", what)
    tools = ["--tools", folder / "tools.json", "Light"]
    assert_one_line(*run(capsys, "decode", "--model", bad, *tools))
    assert_one_line(*run(capsys, "decode", "--model", folder / "policy", "--prm", bad, *tools))


BAD_ARGUMENTS: dict[str, list[str]] = {
    "no command": [],
    "unknown command": ["fly"],
    "unknown option": ["demo", "--fast"],
    "no request": ["decode", "--model", "{policy}", "--tools", "{tools}"],
    "no model": ["decode", "--tools", "{tools}", "x"],
    "no tools": ["decode", "--model", "{policy}", "x"],
    "missing model": ["decode", "--model", "/no/such", "--tools", "{tools}", "x"],
    "unknown hub id": ["decode", "--model", "nobody/nothing", "--tools", "{tools}", "x"],
    "a file": ["decode", "--model", "{tools}", "--tools", "{tools}", "x"],
    "missing prm": ["decode", "--model", "{policy}", "--prm", "/no/such", "--tools", "{tools}", "x"],
    "missing tools": ["decode", "--model", "{policy}", "--tools", "/no/such.json", "x"],
    "folder for tools": ["decode", "--model", "{policy}", "--tools", "{policy}", "x"],
    "format": ["decode", "--model", "{policy}", "--tools", "{tools}", "--format", "xml", "x"],
    "strategy": ["decode", "--model", "{policy}", "--tools", "{tools}", "--strategy", "fast", "x"],
    "beams": ["decode", "--model", "{policy}", "--tools", "{tools}", "--beams", "two", "x"],
    "no beams": ["decode", "--model", "{policy}", "--tools", "{tools}", "--beams", "0", "x"],
    "temperature": ["decode", "--model", "{policy}", "--tools", "{tools}", "--temperature", "nan", "x"],
    "seed": ["decode", "--model", "{policy}", "--tools", "{tools}", "--seed", "-1", "x"],
    "max_tokens": ["decode", "--model", "{policy}", "--tools", "{tools}", "--max-tokens", "3", "--require-call", "x"],
    "request": ["decode", "--model", "{policy}", "--tools", "{tools}", "\udcff"],
    "demo seed": ["demo", "--seed", "-5"],
    "demo seed word": ["demo", "--seed", "x"],
    "demo request": ["demo", "\udcff"],
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    places = {"{policy}": folder / "policy", "{tools}": folder / "tools.json"}
    assert_one_line(*run(capsys, *(places.get(word, word) for word in BAD_ARGUMENTS[case])))


BAD_TOOLS: dict[str, bytes] = {
    "nothing": b"",
    "json": b'[{"name": ',
    "nan": b'[{"name": "f", "parameters": {"properties": {"x": {"enum": [NaN]}}}}]',
    "deep": b"[" * 100_000,
    "encoding": b'[{"name": "\xff"}]',
    "number": b"5",
    "no name": b'[{"parameters": {}}]',
    "surrogate": b'[{"name": "\\ud800"}]',
    "twice": b'[{"name": "f"}, {"name": "f"}]',
    "schema": b'[{"name": "f", "parameters": {"properties": {"x": {"type": "string", "pattern": "("}}}}]',
    "impossible": b'[{"name": "f", "parameters": {"properties": {"x": false}, "required": ["x"]}}]',
    "newline": b'[{"name": "f\\ng", "parameters": {"properties": {"x": {"type": "no\\nsuch"}}}}]',
}


@pytest.mark.parametrize("case", BAD_TOOLS)
def test_bad_tools_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    path = tmp_path / "tools.json"
    path.write_bytes(BAD_TOOLS[case])
    assert_one_line(*run(capsys, "decode", "--model", folder / "policy", "--tools", path, "x"))


@pytest.mark.parametrize("command", [[], *([name] for name in ("decode", "demo", "annotate", "train", "evaluate"))])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert out.startswith(" ".join(["usage: toolprm", *command]))


def test_demo_answers_a_request_of_your_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for request in ("book hotel in Rome staying 3 with breakfast", "Wake me [at] seven"):
        code, out, err = run(capsys, "demo", request)
        assert (code, err) == (0, "")
        assert request[:20] in out
        calls = json.loads(out.splitlines()[-1])
        assert {call["name"] for call in calls} <= {tool["function"]["name"] for tool in load_demo().tools}


def test_demo_answers_held_out_requests(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "demo")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert out.count("request: ") == 3 and "FUNC_NAME" in out
    assert lines.count("right") + lines.count("wrong") == 3 and lines.count("right") >= 2


def test_demo_lists_its_tools(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "demo", "--tools")
    assert (code, err) == (0, "")
    assert json.loads(out) == load_demo().tools


def test_the_program_as_it_is_started(folder: Path) -> None:
    command = [sys.executable, "-m", "toolprm_decode", "decode", "--tools", folder / "tools.json", *QUICK, "Light"]
    models = ["--model", folder / "policy", "--prm", folder / "prm"]
    good = subprocess.run([*command, *models], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)
    bad = subprocess.run([*command, "--model", "/no/such"], capture_output=True, text=True, check=False)
    assert_one_line(bad.returncode, bad.stdout, bad.stderr)


def test_an_early_end_of_the_reader_is_quiet() -> None:
    command = f"{sys.executable} -m toolprm_decode demo | head -c 10"
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, check=False)
    assert ended.stderr == b""
