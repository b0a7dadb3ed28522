# `make` lists the targets. Everything runs in .venv, which `make setup` makes; nothing needs to be installed before.

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Tests without servers share nothing, so each core runs some; a file stays together.
PYTEST_UNIT := $(PYTEST) -m "not integration and not cluster" -q -n auto --dist loadfile
# Those with servers wait for them half of the time: two files at once, each beside servers of its own.
PYTEST_INTEGRATION := $(PYTEST) -m "integration or cluster" -q -n auto --maxprocesses 2 --dist loadfile
# Folders outside the packages that mypy looks at: those with Python in them.
TYPED := $(sort $(dir $(wildcard libs/*/tests/*.py services/*/tests/*.py tests/*.py tests/*/*.py bench/*.py protos/*.py tools/*.py)))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup clients demo test test-unit test-deep test-integration lint format types imports protos protos-check docs docs-check constraints bench clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make or update .venv (PYTHON=... chooses the interpreter); nothing to do, nothing done
	@tools/setup

clients: setup ## what the tests with published Chroma clients run: .venv-clients and the JavaScript client
	@tools/clients

demo: setup ## install, start, load WordNet's glosses, ask by meaning
	@$(BIN)/shoal demo

test: setup clients lint types imports protos-check docs-check ## all checks and all tests
	$(PYTEST_UNIT)
	$(PYTEST_INTEGRATION)

test-unit: setup ## the tests without servers and processes (ARGS=... for pytest)
	$(PYTEST_UNIT) $(ARGS)

test-deep: setup ## the same with ten times as many examples of each property, and other ones in every run (DEPTH=...)
	SHOAL_TEST_DEPTH=$(or $(DEPTH),10) $(PYTEST_UNIT) $(ARGS)

test-integration: setup clients ## the tests with real Postgres, etcd, S3 and processes (ARGS=... for pytest)
	$(PYTEST_INTEGRATION) $(ARGS)

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## let ruff correct what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy --strict over every package, then tests, bench and tools
	$(BIN)/mypy
	$(BIN)/mypy --config-file tools/mypy-tests.toml --cache-dir .mypy_cache/tests $(TYPED)

imports: setup ## the import rules of ARCHITECTURE.md
	$(BIN)/lint-imports --no-cache

protos: setup ## generate the protobuf code from protos/
	$(BIN)/python protos/generate.py

protos-check: setup ## fail if the generated code is not what protos/ says, or they break with the last release
	$(BIN)/python protos/generate.py --check

docs: setup ## write what docs/ has that is generated: the reference of all settings
	$(BIN)/python tools/configuration_reference.py

docs-check: setup ## fail if what docs/ has that is generated is not current
	$(BIN)/python tools/configuration_reference.py --check

constraints: setup ## pin again after a change of dependencies (ARGS="--upgrade" for the newest)
	tools/constraints $(ARGS)

bench: setup ## the benchmark (ARGS=... for its options; ARGS=filters, functions, http, embedding, telemetry, failover, tail, churn, closure, engines, memory or overhead for others)
	$(BIN)/python -m bench $(ARGS)

clean: ## remove what tools leave behind
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .grimp_cache .hypothesis .cache
	find . \( -path './.venv*' -o -name node_modules \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environments
	rm -rf .venv .venv-clients tests/compat/javascript/node_modules libs/index/shoal_index/vector/_kernels_*
