# The verbs of the project. Every one but help and clean does its own set-up.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
# How many files of tests run at a time; 0: one after the other. Tests wait more than they compute, so it is about twice
# as many as there are cores.
TEST_JOBS := 4
# For instance PYTEST_ARGS="tests/core": one folder.
PYTEST_ARGS :=
FUZZ_SECONDS := 60
# Where `make install-c` puts the C client; DESTDIR is put before it.
PREFIX := /usr/local
# For instance BENCH_ARGS="--quick --only local,peers"; --help lists them.
BENCH_ARGS :=
# What is ours and Python; mypy, ruff and the rest skip generated code by their own settings.
SOURCES := $(wildcard clients broker tools tests examples) setup.py

.PHONY: help setup demo evolution test test-long check bench fuzz proto man ext install-c format clean

help: ## list these verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: ## make .venv (with .venv/bin/towpath), and system packages where root and apt are there
	@tools/setup.sh

demo: setup ## watch real programs talk through Towpath; ends with a table of routes
	@$(BIN)/python examples/demo/demo.py

evolution: setup ## watch one conversation move from a pipe to gRPC, step by step, no line lost
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/evolution/evolution.py

test: setup ## run the whole test suite, TEST_JOBS files at a time
	@$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-long: setup ## run the suite with its long tests and far more generated examples
	@tools/stress.sh
	@$(BIN)/python -m pytest -m "" --timeout=1800 --hypothesis-profile=long

check: setup ## formatting, lint, types, layers, protos, generated code, C headers
	@tools/check.sh

bench: setup ## Towpath beside other mechanisms, from an installed wheel, as ratios; results in build/bench
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

fuzz: setup ## look for input that breaks a decoder: far more examples, then atheris, FUZZ_SECONDS per target
	@$(BIN)/python -m pytest -m hypothesis --timeout=1800 --hypothesis-profile=long
	@tools/fuzz.sh $(FUZZ_SECONDS)

proto: setup ## generate clients/python/towpath/v1 from protos/ again
	@$(BIN)/python tools/generate_protos.py

man: setup ## write deploy/man from the command line's own parsers again
	@$(BIN)/python tools/generate_manual.py

ext: ## compile the C extension again, in place
	@tools/setup.sh --extension

install-c: ## the C client below PREFIX (/usr/local): headers, pkg-config file, towpath.h(3)
	@tools/install_c.sh "$(PREFIX)"

format: setup ## format and sort imports
	@$(BIN)/ruff check -q --select I --fix $(SOURCES)
	@$(BIN)/ruff format -q $(SOURCES)

clean: ## remove what these verbs made, .venv too
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) \( -name '*.so' -o -name '__pycache__' -o -name '*.egg-info' \) -prune -exec rm -rf {} +
