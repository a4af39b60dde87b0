"""What is installed, and what the README promises about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def ci_variable(name: str) -> str:
    found = re.search(rf'^{name}="(.*?)"', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert found, f".ci/run sets no {name}"
    return found[1]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    first_screen = (ROOT / "README.md").read_text().splitlines()[:30]
    assert ci_variable("test_command") in first_screen


def test_kernels_are_a_part_of_the_package() -> None:
    kernels = importlib.import_module("toolprm_decode.kernels")
    # transformers takes a top-level package `kernels` for another project, and reads its version.
    assert not hasattr(kernels, "__version__")
    installed = importlib.metadata.packages_distributions()
    assert "toolprm_decode" not in installed.get("kernels", [])


def test_core_is_compiled() -> None:
    spec = importlib.util.find_spec("toolprm_decode._core")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).suffix in {".so", ".pyd"}


def test_headers_library_and_cmake_package_lie_in_the_package() -> None:
    spec = importlib.util.find_spec("toolprm_decode")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(next(iter(spec.submodule_search_locations)))
    assert {header.name for header in (package / "include" / "toolprm").glob("*.h")} == {
        header.name for header in (ROOT / "csrc" / "include" / "toolprm").glob("*.h")
    }
    assert list((package / "lib").glob("*toolprm.a")) + list((package / "lib").glob("toolprm.lib"))  # static
    assert list((package / "lib").glob("*toolprm.*[0-9]*")) + list((package / "lib").glob("*.dylib"))  # shared
    assert not [entry for entry in (package / "lib").iterdir() if entry.is_symlink()]  # a wheel would hold copies
    assert (package / "lib" / "cmake" / "toolprm" / "toolprmConfig.cmake").is_file()
    assert (package / "py.typed").is_file()


def test_no_requirement_pulls_cuda() -> None:
    requirements = importlib.metadata.requires("toolprm_decode")
    assert requirements
    names = [re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in requirements]
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "cupy"))]
    torch = next(requirement for requirement in requirements if requirement.startswith("torch"))
    assert "<2.14" in torch


SCRIPT = str(Path(sysconfig.get_path("scripts")) / "toolprm")


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "toolprm_decode"]], ids=["script", "module"])
def test_command_line_answers(command: list[str], tmp_path: Path) -> None:
    """Run from another folder, as a user would."""
    done = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "toolprm" in done.stdout


TOLD_WITHOUT_TORCH = """
import runpy, sys
try:
    runpy.run_module("toolprm_decode", run_name="__main__")
finally:
    assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("option", "file"), [("--cmake-dir", "toolprmConfig.cmake"), ("--include-dir", "toolprm/toolprm.h")]
)
def test_folders_of_the_sdk_are_told_without_torch(option: str, file: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOLD_WITHOUT_TORCH, option]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / file).is_file()
    assert done.stdout.count("\n") == 1
