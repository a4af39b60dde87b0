"""The suite for GPUs goes through all of its measurements without one, and its page says what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TOOLPRM_DATA", "TOOLPRM_KERNELS")}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_dry_run_measures_everything_and_shows_no_figures(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'toolprm_decode[gpu]'")
    done = run("--dry-run", "--json", str(tmp_path / "record.json"), "--markdown", str(tmp_path / "page.md"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("dry run, no figures")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["dry_run"] and not record["failed"] and not record["not_run"]
    assert len(record["checks"]) == 2 and not any("FAILED" in check for check in record["checks"])
    for name, rows in record["tables"].items():
        assert rows, name
        for row in rows:
            timed = [key for key in row if key.endswith(("_us", "_ms", "seconds", "_over_ours", "_over_greedy"))]
            assert timed and all(row[key] is None for key in timed), name
    by_graphs, as_they_are = record["tables"]["decode"]
    assert by_graphs["graphs_kept"] > 0 and as_they_are["graphs_kept"] == 0
    page = (tmp_path / "page.md").read_text()
    assert "Dry run, no figures" in page and "| tiny |" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and "--dry-run" in done.stderr


def test_a_place_that_is_not_there_is_refused_before_anything_is_measured() -> None:
    done = run("--dry-run", "--json", "no-such-folder/x.json")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no-such-folder" in done.stderr


@pytest.fixture
def report() -> Any:
    """Its module; benchmarks/ is no installed package."""
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.gpu import report
    finally:
        sys.path.remove(str(ROOT))
    return report


def test_targets_are_held_to_the_worst_row(report: Any) -> None:
    record = report.empty()
    record["machine"] = {"date": "2000-01-01T00:00", "device": "a GPU"} | dict.fromkeys(
        ("torch", "triton", "transformers"), "1"
    )
    row = {"rows": 64, "prefix": 2000, "best_torch_over_ours": 3.5}
    record["tables"]["attention"] = [
        row | {"shape": "7B", "share_of_roofline": 0.75},
        row | {"shape": "0.5B", "share_of_roofline": 0.5, "sdpa_math_us": 70.25, "sdpa_flash_failed": "no such kernel"},
        row | {"rows": 8, "share_of_roofline": 0.1},
    ]
    record["tables"]["sampling"] = [{"rows": 64, "draws": 1, "dtype": "float32", "ours_over_roofline": 1.5}]
    record["not_run"] = ["decode: some"]
    page = report.markdown(record)
    lines = page.splitlines()
    assert any("share of its roofline | at least 0.6 | 0.5 | missed |" in line for line in lines)
    assert any("best of torch's ways | at least 3 | 3.5 | met |" in line for line in lines)
    assert any("logits and masks | at most 2 | 1.5 | met |" in line for line in lines)
    assert any("at most 200 | - |  |" in line for line in lines)
    (last,) = [line for line in lines if line.startswith("| 0.5B | 64 |")]
    assert "| 50.0% |" in last and "| 70.2 |" in last and "| fails |" in last
    assert page.index("## Targets") < page.index("## Draws") < page.index("- decode: some")


def test_the_page_that_is_kept_claims_nothing_that_was_not_measured(report: Any) -> None:
    """Until a machine with a GPU has filled it."""
    page = (ROOT / "benchmarks" / "results" / "gpu.md").read_text()
    assert page == report.markdown(report.empty()) or "Made on 20" in page
