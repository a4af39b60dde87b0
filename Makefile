# The daily commands; .ci/run runs the same ones in a clean environment.
PYTHON ?= python

.PHONY: help install test test-cpp sanitize fuzz lint format bench bench-cpp models wheel clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

install:  ## build the core and install the package, editable, with the tools for tests and linting
	$(PYTHON) -m pip install -e '.[test,dev]'

test:  ## run the Python tests
	$(PYTHON) -m pytest -q

test-cpp:  ## build and run the C++ tests
	.ci/test-cpp

sanitize:  ## build and run the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer
	.ci/test-cpp address,undefined

fuzz:  ## fuzz the core for five minutes
	.ci/fuzz 300

lint:  ## ruff, mypy and clang-format, changing nothing
	.ci/lint

format:  ## rewrite Python and C++ sources in the project's format
	ruff check --fix .
	ruff format .
	find csrc examples \( -name '*.h' -o -name '*.c' -o -name '*.cpp' \) -exec clang-format -i {} +

bench:  ## run the benchmarks
	$(PYTHON) -m pytest benchmarks --benchmark-only

bench-cpp:  ## run the micro-benchmarks of the core
	cmake -S . -B build/bench -DTOOLPRM_BUILD_BENCHMARKS=ON
	cmake --build build/bench --parallel
	build/bench/fork

models:  ## make the models of the package anew, in build/models; goes on where it was interrupted
	OMP_NUM_THREADS=1 $(PYTHON) -m toolprm_decode.learning.world.build build/models

wheel:  ## build the sdist, the wheel from it, and check the wheel on its own
	$(PYTHON) -m build
	$(PYTHON) .ci/check_wheel.py dist

clean:  ## remove what building leaves
	rm -rf build dist *.egg-info toolprm_decode/include toolprm_decode/lib toolprm_decode/_core*.so
