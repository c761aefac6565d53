# `make demo` and `make test` set up what they need in .venv and then do their work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# More extras to install for the tests, such as EXTRAS=sentence-transformers
EXTRAS ?=
comma := ,
DEV := $(VENV)/dev-$(subst $(comma),+,$(EXTRAS))

.PHONY: demo test test-vllm wheel lint types format bench clean

demo: $(VENV)/demo
	@$(BIN)/python examples/demo.py

test: $(DEV)
	$(BIN)/pytest

# What needs vLLM, in an environment of its own; VLLM_CPU_KVCACHE_SPACE is in GiB.
test-vllm: .venv-vllm/dev
	VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/pytest tests/engines/test_conformance.py \
		tests/engines/test_vllm.py tests/engines/test_remote.py tests/test_standard.py \
		tests/test_examples.py \
		-k "vllm or Vllm or bitsandbytes"

# A wheel in dist/, tried in an environment that holds nothing else.
wheel: $(VENV)/python
	rm -rf dist
	$(BIN)/pip wheel -q --no-deps --wheel-dir dist .
	PYTHON=$(PYTHON) .ci/smoke dist/*.whl

lint: $(DEV)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(DEV)
	$(BIN)/python tests/benchmarks/decode.py

clean:
	rm -rf $(VENV) .venv-vllm .venv-clients build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

# llama-cpp-python is compiled on the way, which takes some minutes and a C++ compiler.
$(VENV)/demo: $(VENV)/python pyproject.toml
	@echo "Installing; llama.cpp is compiled on the way, which takes a few minutes."
	$(BIN)/pip install -q -e '.[embedded]'
	touch $@

$(DEV): $(VENV)/python pyproject.toml
	@echo "Installing; llama.cpp is compiled on the way, which takes a few minutes."
	$(BIN)/pip install -q -e '.[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	touch $@

# Other frameworks that are shown with our server: they want an older client of OpenAI's.
.venv-clients/dev: .ci/clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install -q -r .ci/clients.txt
	touch $@

.venv-vllm/dev: pyproject.toml .ci/vllm-environment
	@echo "Installing vLLM, its CPU build where there is no GPU."
	PYTHON=$(PYTHON) .ci/vllm-environment .venv-vllm
	touch $@
