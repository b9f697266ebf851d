# Everything on a fresh machine: `make demo`, `make test`. Both set up .venv first, once.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
SEEDS  ?= 1
PYTEST ?=
BIN    := .venv/bin
OUT    ?= results

demo: .venv/ready                 ## train with and without 8-bit state: a table and a picture; SEEDS=3 shows the spread
	$(BIN)/python examples/lightning_gpt.py --out $(OUT)/demo --seeds $(SEEDS)

test: .venv/ready                 ## all tests but the slow ones
	$(BIN)/python -m pytest $(PYTEST)

test-all: .venv/ready             ## the slow ones too, and other examples of the properties every time
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile=explore $(PYTEST)

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(wildcard $(foreach s,h cpp cu cuh,csrc/*.$(s) csrc/*/*.$(s)) benchmarks/*.cpp tests/*.cpp tests/gpu_on_host/*)

readme: .venv/ready               ## the README's numbers, from benchmarks/results
	$(BIN)/python benchmarks/readme.py

docs: .venv/ready                 ## docs/optimizers and the type stub, from the rules' classes
	$(BIN)/python docs/generate.py

bench: .venv/bench                ## a step's time beside other libraries, about a minute
	$(BIN)/python -m benchmarks step --quick

MEASURED := benchmarks/results/cpu-{machine}
QUICK_PEERS := --peers torch-fused torch-foreach bitsandbytes
bench-full: .venv/bench           ## everything, into benchmarks/results: an hour, with the machine to itself
	$(BIN)/python -m benchmarks step --shapes large small --out "$(MEASURED)-step.json"
	$(BIN)/python -m benchmarks step --shapes gpt2 vit llama --dtypes fp32 bf16 $(QUICK_PEERS) --repeats 12 \
	  --out "$(MEASURED)-models.json"
	$(BIN)/python -m benchmarks step --shapes large --rules all --dtypes fp32 bf16 $(QUICK_PEERS) --repeats 10 \
	  --out "$(MEASURED)-rules.json"
	$(BIN)/python -m benchmarks first-step --out "$(MEASURED)-first-step.json"
	$(BIN)/python -m benchmarks scaling --out "$(MEASURED)-scaling.json"
	$(BIN)/python -m benchmarks memory --out "$(MEASURED)-memory.json"

GPU_OUT := $(if $(filter-out file default,$(origin OUT)),$(OUT),results/gpu)
gpu:                              ## on a GPU machine: builds with its torch, tests, sanitizers, the Lightning example
	$(PYTHON) tests/on_gpu.py --out "$(GPU_OUT)"

gpu-bench:                        ## on a GPU machine, after `make gpu`: time per step beside the copy's bandwidth and peers
	$(PYTHON) -m benchmarks.gpu --out "$(GPU_OUT)"

clean:
	rm -rf .venv build results *.egg-info torch_bnb/*.so

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile

# torch first: the extension is built against the torch that runs it. A torch that $(PYTHON) already has is used.
.venv/ready: pyproject.toml setup.py $(wildcard csrc/* csrc/*/*) | tools
	@echo "Setting up .venv: torch, then torch-bnb (some minutes, once)"
	test -x $(BIN)/python || $(PYTHON) -m venv $$($(PYTHON) -c "import torch" 2>/dev/null && echo --system-site-packages) .venv
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q "setuptools>=77" wheel ninja
	$(BIN)/pip install -q --no-build-isolation -e ".[dev]"
	@touch $@

.venv/bench: .venv/ready
	$(BIN)/pip install -q --no-build-isolation -e ".[bench]"
	@touch $@

need = { echo "torch-bnb needs $(1)" >&2; exit 1; }
tools:
	@command -v $(PYTHON) >/dev/null || $(call need,Python 3.10 to 3.13: there is no $(PYTHON); install it or set PYTHON=)
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))" || \
	  $(call need,Python 3.10 to 3.13: $(PYTHON) is $$($(PYTHON) --version); set PYTHON= to another)
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || $(call need,Python's venv module (Debian: python3-venv))
	@test -f "$$($(PYTHON) -c "import sysconfig; print(sysconfig.get_path('include'))")/Python.h" || \
	  $(call need,Python's headers (Debian: python3-dev))
	@command -v $${CXX:-c++} >/dev/null || $(call need,a C++ compiler: there is no $${CXX:-c++} (Debian: g++))

.PHONY: gpu gpu-bench demo test test-all lint readme docs bench bench-full clean help tools
