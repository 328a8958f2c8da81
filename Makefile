# Everything here sets itself up: the environment is .venv in this checkout, made from pyproject.toml.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
VLLM_PYTHON ?=
LLAMACPP_PYTHON ?=

.DEFAULT_GOAL := help
.PHONY: help serve chat test test-gpu test-vllm lint typecheck unit unit-edge unit-core fuzz demo-model bench-engine bench-streaming bench-accuracy bench-constrained bench-tokenize bench-batch bench-gpu clean

help:  ## say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "penstock: needs Python 3.11 to 3.13, but $(PYTHON) is $$($(PYTHON) -V 2>&1); say which with make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "penstock: making the environment in $(VENV) (once; a few minutes)" >&2
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "penstock: could not make it; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# torch comes first and pinned: what follows is then satisfied by it and pulls in no other build.
$(VENV)/.serve: pyproject.toml | $(BIN)/python
	@echo "penstock: installing $(TORCH) and what serving needs" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	@echo "penstock: installing what the tests need" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,gpu]'
	@touch $@

serve: $(VENV)/.serve  ## serve the demo model on 127.0.0.1:8000 (ARGS="--port 9000 ./folder" for more)
	@exec $(BIN)/penstock serve $(ARGS)

chat: $(VENV)/.serve  ## talk to what `make serve` serves
	@exec $(BIN)/penstock chat $(ARGS)

test: lint typecheck unit  ## lint, check types, run the whole suite, report coverage

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.dev  ## mypy, strict, tests included
	$(BIN)/mypy

unit: $(VENV)/.dev  ## the suite alone (ARGS="tests/engine -k loader" for a part)
	$(BIN)/coverage erase
	@$(if $(ARGS),$(BIN)/coverage run -m pytest $(ARGS),$(MAKE) --no-print-directory --jobs=2 --output-sync=target unit-edge unit-core)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report | tail -n 40

# The two halves run at the same time: one mostly waits for servers, the other computes.
unit-edge: $(VENV)/.dev
	$(BIN)/coverage run -m pytest tests/gateway tests/test_*.py

unit-core: $(VENV)/.dev
	$(BIN)/coverage run -m pytest tests --ignore tests/gateway --ignore-glob 'tests/test_*.py'

test-gpu: $(VENV)/.dev  ## kernels, models and engine on this machine's GPU, which make test leaves alone where there is none
	$(BIN)/python -m pytest tests/kernels tests/engine $(ARGS)

test-vllm: $(VENV)/.dev  ## the worker whose engine is vLLM, and vLLM as an upstream, with a real one (VLLM_PYTHON=…: a Python that has it)
	@test -n "$(VLLM_PYTHON)" || { echo "penstock: say which Python has vLLM: make test-vllm VLLM_PYTHON=…" >&2; exit 1; }
	VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest tests/engine/test_vllm.py tests/engine/test_vllm_worker.py tests/engine/test_vllm_serve.py tests/engine/test_vllm_adapters.py tests/gateway/fleet/test_vllm_upstreams.py tests/gateway/fleet/test_vllm_endpoints.py $(ARGS)

fuzz: $(VENV)/.dev  ## 100,000 bodies of all kinds against a real server (ARGS="--bodies 5000 --seed 2")
	$(BIN)/python -m tests.fuzz $(ARGS)

demo-model: $(VENV)/.dev  ## train the demo model again, from nothing, and judge it
	$(BIN)/python -m engine.demo.train $(ARGS)
	$(BIN)/python -m engine.demo.evaluate --card

bench-engine: $(VENV)/.dev  ## our engine beside transformers, vLLM (VLLM_PYTHON=…), llama.cpp (LLAMACPP_PYTHON=…)
	$(BIN)/python -m bench.engine $(if $(VLLM_PYTHON),--vllm-python $(VLLM_PYTHON)) \
	  $(if $(LLAMACPP_PYTHON),--llamacpp-python $(LLAMACPP_PYTHON)) $(ARGS)

bench-streaming: $(VENV)/.dev  ## a whole server: tokens/s, first tokens, the gateway's CPU
	$(BIN)/python -m bench.streaming $(ARGS)

bench-accuracy: $(VENV)/.dev  ## what bfloat16 and int8 cost the demo model
	$(BIN)/python -m bench.accuracy $(ARGS)

bench-constrained: $(VENV)/.dev  ## what grammars cost the neighbours in a batch
	$(BIN)/python -m bench.constrained $(ARGS)

bench-tokenize: $(VENV)/.dev  ## what a turn of a long chat costs to tokenise
	$(BIN)/python -m bench.tokenize $(ARGS)

bench-batch: $(VENV)/.dev  ## how much later first tokens come because a batch runs beside
	$(BIN)/python -m bench.beside_batch $(ARGS)

bench-gpu: $(VENV)/.dev  ## what a GPU's kernels and the engine on it reach (ARGS="--help" for more)
	$(BIN)/python -m bench.gpu $(ARGS)

clean:  ## remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
