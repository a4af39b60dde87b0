"""Checks that the one wheel in a folder works without the source tree: check_wheel.py DIST."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON_CHECK = """
import importlib, sys
sys.path.insert(0, {target!r})
for name in ("toolprm_decode._core", "toolprm_decode.kernels", "toolprm_decode.__main__"):
    file = importlib.import_module(name).__file__
    assert file.startswith({target!r}), f"{{name}} came from {{file}}, not from the wheel"
"""

CONSUMER_CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(consumer CXX)
find_package(toolprm REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE toolprm::toolprm)
"""


def run(*command: str | Path, cwd: Path = Path("/")) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def check_contents(target: Path) -> None:
    package = target / "toolprm_decode"
    wanted = ["py.typed", "include/toolprm/*.h", "lib/*toolprm*", "lib/cmake/toolprm/toolprmConfig.cmake", "_core*"]
    wanted += [f"models/{name}/model.safetensors" for name in ("policy", "toolprm", "c-prm", "orm")]
    missing = [pattern for pattern in wanted if not list(package.glob(pattern))]
    if missing:
        sys.exit(f"the wheel lacks {', '.join(missing)}")
    strays = sorted(entry.name for entry in target.iterdir() if not entry.name.startswith("toolprm_decode"))
    if set(strays) - {"bin"}:
        sys.exit(f"the wheel installs more than toolprm_decode: {', '.join(strays)}")


def check_cmake_package(target: Path, scratch: Path) -> None:
    """Builds and runs a program that finds the core by CMake and includes each of its headers."""
    package = target / "toolprm_decode"
    headers = sorted((package / "include").rglob("*.h"))
    includes = "".join(f"#include <{header.relative_to(package / 'include').as_posix()}>\n" for header in headers)
    scratch.mkdir()
    (scratch / "CMakeLists.txt").write_text(CONSUMER_CMAKE)
    (scratch / "main.cpp").write_text(includes + "int main() {}\n")
    run("cmake", "-S", scratch, "-B", scratch / "build", f"-DCMAKE_PREFIX_PATH={package}")
    run("cmake", "--build", scratch / "build")
    run(scratch / "build" / "consumer")


def main(dist: Path) -> None:
    wheels = list(dist.resolve().glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"{dist} must hold exactly one wheel, it holds {len(wheels)}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder).resolve() / "site"
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheels[0])
        check_contents(target)
        run(sys.executable, "-c", PYTHON_CHECK.format(target=str(target)))
        check_cmake_package(target, Path(folder).resolve() / "consumer")
    print(f"{wheels[0].name}: {os.path.getsize(wheels[0]) // 1024} KiB, works on its own")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: check_wheel.py DIST")
    main(Path(sys.argv[1]))
