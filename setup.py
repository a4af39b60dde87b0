"""Builds csrc with CMake into toolprm_decode._core, the headers, the libraries and the CMake package."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake and installs what it builds into the package: in the source tree for an editable install.

    Environment: CMAKE_ARGS adds arguments to the configure step, CMAKE_BUILD_PARALLEL_LEVEL sets the number of jobs.
    """

    def run(self) -> None:
        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit("toolprm_decode needs CMake >= 3.18 to build its core: pip install cmake ninja")
        import pybind11  # a build requirement, not there when setuptools only asks for metadata

        # setuptools builds editable installs in a fresh temporary folder; this one keeps the objects between builds.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        # The cache remembers tools of an isolated build environment that is gone by the next build.
        (build / "CMakeCache.txt").unlink(missing_ok=True)

        configure = [
            *("-S", str(ROOT), "-B", str(build)),
            "-DCMAKE_BUILD_TYPE=Release",
            "-DCMAKE_INSTALL_INCLUDEDIR=include",
            "-DCMAKE_INSTALL_LIBDIR=lib",
            "-DTOOLPRM_BUILD_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        if ninja := shutil.which("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        package = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "toolprm_decode"
        for stale in (package / "include", package / "lib"):
            shutil.rmtree(stale, ignore_errors=True)
        subprocess.run([cmake, *configure], check=True)
        subprocess.run([cmake, "--build", str(build), "--config", "Release", "--parallel", jobs], check=True)
        install = [cmake, "--install", str(build), "--config", "Release", "--prefix", str(package), "--strip"]
        subprocess.run(install, check=True)
        for link in (package / "lib").iterdir():
            if link.is_symlink():  # wheels hold none: it would be the library a second time
                link.unlink()

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in names what the sdist holds

    def get_outputs(self) -> list[str]:
        return []  # CMake installs into the tree that the wheel is made of; setuptools has nothing to copy

    def get_output_mapping(self) -> dict[str, str]:
        return {}


# kernels/ must not become a top-level package of that name: transformers uses one. It is mapped into ours.
setup(
    packages=[
        *find_packages(include=["toolprm_decode", "toolprm_decode.*"]),
        "toolprm_decode.kernels",
        *(f"toolprm_decode.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"toolprm_decode.kernels": "kernels"},
    ext_modules=[Extension("toolprm_decode._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
