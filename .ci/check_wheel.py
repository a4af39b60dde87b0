"""Checks that the one wheel in a folder works without the source tree: check_wheel.py DIST."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PYTHON_CHECK = """
import importlib, sys
sys.path.insert(0, {target!r})
for name in ("toolprm_decode._core", "toolprm_decode.kernels", "toolprm_decode.__main__"):
    file = importlib.import_module(name).__file__
    assert file.startswith({target!r}), f"{{name}} came from {{file}}, not from the wheel"
"""

# A C program without a C++ compiler, then each header by itself.
CONSUMER_CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(consumer C)
find_package(toolprm 0.0 QUIET)
if(toolprm_FOUND)
  message(FATAL_ERROR "version {version} says that it is 0.0")
endif()
find_package(toolprm {version} REQUIRED)
add_executable(consumer main.c)
target_compile_definitions(consumer PRIVATE VERSION="{version}")
target_link_libraries(consumer PRIVATE toolprm::toolprm_shared)
enable_language(CXX)
add_library(headers OBJECT {headers})
target_link_libraries(headers PRIVATE toolprm::toolprm)
"""
CONSUMER_C = """
#include <string.h>
#include <toolprm/toolprm.h>
int main(void) { return strcmp(toolprm_version(), VERSION) || toolprm_abi_version() != TOOLPRM_ABI_VERSION; }
"""


def run(*command: str | Path, cwd: Path = Path("/")) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def check_contents(target: Path) -> None:
    package = target / "toolprm_decode"
    wanted = ["py.typed", "include/toolprm/*.h", "lib/libtoolprm.a", "lib/libtoolprm.so.*", "_core*"]
    wanted += ["lib/cmake/toolprm/toolprmConfig.cmake"]
    wanted += [f"models/{name}/model.safetensors" for name in ("policy", "toolprm", "c-prm", "orm")]
    missing = [pattern for pattern in wanted if not list(package.glob(pattern))]
    if missing:
        sys.exit(f"the wheel lacks {', '.join(missing)}")
    strays = sorted(entry.name for entry in target.iterdir() if not entry.name.startswith("toolprm_decode"))
    if set(strays) - {"bin"}:
        sys.exit(f"the wheel installs more than toolprm_decode: {', '.join(strays)}")


def check_sdk(target: Path, scratch: Path, version: str) -> None:
    """Builds programs that find the core by CMake, and runs them: C and C++, with the static and the shared library."""
    package = target / "toolprm_decode"
    ask, here = [sys.executable, "-m", "toolprm_decode", "--cmake-dir"], {**os.environ, "PYTHONPATH": str(target)}
    told = subprocess.run(ask, cwd="/", env=here, stdout=subprocess.PIPE, text=True, check=True)
    found = f"-DCMAKE_PREFIX_PATH={told.stdout.strip()}"
    if not found.endswith(str(package / "lib" / "cmake" / "toolprm")):
        sys.exit(f"--cmake-dir says {found}")

    example = ROOT / "examples" / "serving"
    for library in ("toolprm", "toolprm_shared"):
        build = scratch / library
        run("cmake", "-S", example, "-B", build, found, f"-DTOOLPRM_TARGET=toolprm::{library}")
        run("cmake", "--build", build, "--parallel", "2")
        for program in ("serving", "serving_c"):
            run(build / program, example / "tools")

    consumer = scratch / "consumer"
    consumer.mkdir()
    headers = [header.relative_to(package / "include") for header in sorted((package / "include").rglob("*.h"))]
    for header in headers:
        (consumer / f"{header.stem}.cpp").write_text(f"#include <{header.as_posix()}>\n")
    sources = " ".join(f"{header.stem}.cpp" for header in headers)
    (consumer / "CMakeLists.txt").write_text(CONSUMER_CMAKE.format(version=version, headers=sources))
    (consumer / "main.c").write_text(CONSUMER_C)
    run("cmake", "-S", consumer, "-B", consumer / "build", found)
    run("cmake", "--build", consumer / "build", "--parallel", "2")
    run(consumer / "build" / "consumer")


def main(dist: Path) -> None:
    wheels = list(dist.resolve().glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"{dist} must hold exactly one wheel, it holds {len(wheels)}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder).resolve() / "site"
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheels[0])
        check_contents(target)
        run(sys.executable, "-c", PYTHON_CHECK.format(target=str(target)))
        check_sdk(target, Path(folder).resolve(), wheels[0].name.split("-")[1])
    print(f"{wheels[0].name}: {os.path.getsize(wheels[0]) // 1024} KiB, works on its own")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: check_wheel.py DIST")
    main(Path(sys.argv[1]))
