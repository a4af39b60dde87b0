"""`toolprm train` trains with the options it is given, and says what came out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from toolprm_decode.errors import RequestError
from toolprm_decode.learning import train_command
from toolprm_decode.rewards import ToolPRM

from .training_cases import save_base, write_dataset

pytest.importorskip("accelerate")


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_command.add_parser(parser.add_subparsers())
    return parser.parse_args([str(word) for word in words])


def test_train_writes_a_reward_model_and_prints_its_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data, out = save_base(tmp_path / "base"), write_dataset(tmp_path / "data"), tmp_path / "out"
    (tmp_path / "more.json").write_text('{"adam_beta2": 0.99}')
    words = ("train", data, "--base", base, "--out", out, "--kind", "c-prm", "--max-steps", 2, "--row-tokens", 500)
    options = parse(*words, "--learning-rate", 1e-3, "--no-packing", "--arguments", tmp_path / "more.json")
    options.run(options)
    printed = capsys.readouterr().out
    for word in ("validation", "test", "FUNC_FINISH", "recall", "temperature", "2 steps"):
        assert word in printed
    assert "ARG_VALUE" not in printed
    settings = json.loads((out / "checkpoints" / "run.json").read_text())["settings"]
    assert (settings["row_tokens"], settings["packing"], settings["arguments"]) == (500, False, {"adam_beta2": 0.99})
    assert settings["epochs"] == 3.0  # what is not given stays as it was
    assert len(ToolPRM.from_pretrained(out, device="cpu").tags) == 3


@pytest.mark.parametrize("text", ["[1]", "{", None])
def test_bad_arguments_are_refused(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "more.json"
    if text is not None:
        file.write_text(text)
    options = parse("train", tmp_path, "--base", tmp_path, "--out", tmp_path / "out", "--arguments", file)
    with pytest.raises(RequestError, match=r"more\.json"):
        options.run(options)
