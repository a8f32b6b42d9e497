# What people do with this repository. Every target does the set-up it needs; nothing is done twice.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
BUILD := build/python
JOBS ?= $(shell nproc)
export PYTHON
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)
# Tools of the environment come first, so that their versions are the pinned ones.
export PATH := $(abspath $(BIN)):$(PATH)
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The package is installed again when one of its files changed, came or went.
SOURCES := $(shell find CMakeLists.txt pyproject.toml README.md LICENSE cmake foveate python tools/stubs.py -type f ! -name '*.pyc')
$(shell mkdir -p build && printf '%s\n' $(sort $(SOURCES)) | cmp -s - build/sources.txt || printf '%s\n' $(sort $(SOURCES)) > build/sources.txt)

.PHONY: help build test cpp-test py-test compare bench bench-softmax bench-linear bench-mechanisms lint format docs sanitize clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 18
	@echo "ARGS=... is handed to compare (foveate compare --help), pytest and the benchmark; JOBS=$(JOBS) compilers run at a time."

build: $(VENV)/.installed ## set up .venv, build, install into it

test: cpp-test py-test ## every test: C++ and Python

cpp-test: $(VENV)/.installed $(VENV)/.packages-test
	@$(BIN)/cmake -S . -B $(BUILD) -DFOVEATE_BUILD_TESTS=ON > build/configure.log 2>&1 || { cat build/configure.log; exit 1; }
	$(BIN)/cmake --build $(BUILD) --target foveate_cpp_tests
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --no-tests=error

py-test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses $(JOBS) $(ARGS)

compare: $(VENV)/.installed ## compare every mechanism on a text and a photo; writes report.html, report.json
	$(BIN)/foveate compare $(ARGS)

bench: $(VENV)/.installed $(VENV)/.packages-bench ## the primitives against what torch offers
	@$(BIN)/cmake -S . -B $(BUILD) -DFOVEATE_BUILD_BENCHMARKS=ON > build/configure.log 2>&1 || { cat build/configure.log; exit 1; }
	$(BIN)/cmake --build $(BUILD) --target foveate_bench
	$(BUILD)/foveate_bench $(ARGS)

bench-softmax: $(VENV)/.installed ## the softmax engine against SDPA, FlexAttention (ARGS=--flex) and code written by hand
	@for threads in 1 2; do $(BIN)/python bench/softmax.py --threads $$threads $(ARGS); done
	@$(BIN)/python bench/softmax.py --dtype bfloat16 --only forward $(ARGS)

bench-mechanisms: $(VENV)/.installed ## every mechanism against its equations written straight in torch
	@for threads in 1 2; do $(BIN)/python bench/mechanisms.py --threads $$threads $(ARGS); done

bench-linear: $(VENV)/.installed ## the linear engine against chunks written in torch, and exact attention
	@for threads in 1 2; do $(BIN)/python bench/linear.py --threads $$threads $(ARGS); done

lint: $(VENV)/.installed ## formatting, clang-tidy, ruff, mypy
	git ls-files --cached --others --exclude-standard '*.h' '*.cpp' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/tidy.py $(BUILD) --jobs $(JOBS)

format: $(VENV)/.set-up ## put C++ and Python into the house format
	git ls-files --cached --others --exclude-standard '*.h' '*.cpp' | xargs $(BIN)/clang-format -i
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format

docs: $(VENV)/.installed ## a page per mechanism, in build/docs
	$(BIN)/mkdocs build --quiet --strict

sanitize: $(VENV)/.set-up $(VENV)/.packages-test ## the C++ tests under address and undefined-behaviour sanitizers
	$(BIN)/cmake --preset sanitize -DCMAKE_PREFIX_PATH="$$($(BIN)/python -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	$(BIN)/cmake --build --preset sanitize
	$(BIN)/ctest --preset sanitize

clean: ## remove what was built; .venv stays
	rm -rf build dist $(VENV)/.installed

distclean: clean ## remove .venv, too
	rm -rf $(VENV)

$(VENV)/.set-up: requirements-torch.txt requirements.txt tools/setup.sh tools/packages.sh
	@tools/packages.sh build
	@tools/setup.sh $(VENV)
	@touch $@

$(VENV)/.packages-%: tools/packages.sh | $(VENV)/.set-up
	@tools/packages.sh $*
	@touch $@

$(VENV)/.installed: $(VENV)/.set-up build/sources.txt $(SOURCES)
	@echo "Building and installing foveate"
	@tools/install.sh $(VENV) build/install.log
	@touch $@
