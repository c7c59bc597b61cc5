# The verbs of the project. Every one but help and clean does its own set-up.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
PYTHON_FILES = $(wildcard clients broker tools tests examples) setup.py

.PHONY: help setup demo test test-long check bench fuzz proto ext clean

help: ## list these verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: ## make .venv (and .venv/bin/towpath), with system packages where root and apt are there
	@tools/setup.sh

demo: setup ## watch real programs talk through Towpath; ends with a table of routes
	@$(BIN)/python examples/demo/demo.py

test: setup ## run the whole test suite
	@$(BIN)/python -m pytest

proto: setup ## generate clients/python/towpath/v1 from protos/ again
	@$(BIN)/python tools/generate_protos.py

ext: ## compile the C extension again, in place
	@tools/setup.sh --extension

clean: ## remove what these verbs made, .venv too
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find clients broker tests tools examples \( -name '*.so' -o -name '__pycache__' -o -name '*.egg-info' \) -prune -exec rm -rf {} +
