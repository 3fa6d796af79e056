PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL ?= smollm2-135m

.PHONY: help install quickstart compare compare-coderl compare-agents compare-critique compare-rldp compare-control test test-slow test-gpu bench lint durability clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## everything for CPU training and tests, in .venv

$(INSTALLED): pyproject.toml launch/cpu-lock.txt launch/install_cpu.sh
	@sh launch/install_cpu.sh $(PYTHON) $(VENV)
	@touch $@

quickstart: $(INSTALLED)  ## train a real model with GRPO on this machine, and see it learn
	$(BIN)/llmrl train recipes/arithmetic/grpo.yaml --fresh train.max_hours=0.13 $(ARGS)

compare: $(INSTALLED)  ## five methods under one sample budget, resumable: at most two hours on two cores
	$(BIN)/python -m tests.bench.compare $(ARGS)

compare-critique: $(INSTALLED)  ## Critique-RL against its baselines, three seeds, resumable: at most two hours on two cores
	$(BIN)/python -m tests.bench.compare_critique $(ARGS)

compare-agents: $(INSTALLED)  ## methods for agents under one budget of episodes, resumable: at most two hours on two cores
	$(BIN)/python -m tests.bench.compare_agents $(ARGS)

compare-coderl: $(INSTALLED)  ## CodeRL's critic, weights, baselines and critic sampling, resumable: at most two hours on two cores
	$(BIN)/python -m tests.bench.compare_coderl $(ARGS)

compare-control: $(INSTALLED)  ## controllers against each other and stable-baselines3, resumable: about 25 minutes of one core
	$(BIN)/python -m tests.bench.control $(ARGS)

compare-rldp: $(INSTALLED)  ## private fine-tuning: controllers against constant thresholds, resumable
	$(BIN)/python -m tests.bench.compare_rldp $(ARGS)

test: $(INSTALLED)  ## the test suite, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" $(ARGS)

test-slow: $(INSTALLED)  ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

test-gpu:  ## what needs one NVIDIA card: at most 8 minutes, no network; PYTHON_GPU=python of an environment with CUDA
	$(or $(PYTHON_GPU),$(BIN)/python) -m pytest -m gpu tests $(ARGS)

durability: $(INSTALLED)  ## kill runs at many moments, resume them, compare; ends with {"kills": N, "equal": N}
	$(BIN)/python -m tests.durability $(ARGS)

bench: $(INSTALLED)  ## speed and memory against TRL, vLLM and the machine's limit
	@for name in limits scaling generation memory vs_trl; do \
	  echo "== $$name"; $(BIN)/python -m tests.bench.$$name --model $(MODEL) $(ARGS) || exit 1; \
	done
	$(BIN)/python -m tests.bench.vs_trl --model $(MODEL) --mode equal $(ARGS)

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy llmrl rewards eval

clean:  ## remove the virtual environment and caches, never runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
