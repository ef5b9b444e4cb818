# `make run` starts everything, `make test` tests everything; both set up .venv themselves. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements-dev.lock
EXAMPLE ?= orders
# An older `python3` may come first on PATH: take the first interpreter that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
LOCKED := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --quiet --custom-compile-command "make lock"

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' \
		| while IFS=$$'\t' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

# -- set up, run -----------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMP) ## Create .venv and install everything from the hashed lock

$(BIN)/uv:
	@if [ -z "$(PYTHON)" ]; then echo "Millstream needs Python 3.11 or newer on PATH (or: make PYTHON=/path/to/python)" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Millstream needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1)" >&2; exit 1; }
	@echo "creating $(VENV)"
	@# Debian splits ensurepip into python3-venv: where it is missing, a pip or virtualenv at hand can stand in.
	@rm -rf $(VENV); "$(PYTHON)" -m venv $(VENV) >/dev/null 2>&1 \
		|| { rm -rf $(VENV); "$(PYTHON)" -m venv --without-pip $(VENV) && "$(PYTHON)" -m pip --version >/dev/null 2>&1; } \
		|| { rm -rf $(VENV); "$(PYTHON)" -m virtualenv -q $(VENV) 2>/dev/null; } \
		|| { rm -rf $(VENV); echo "cannot create a virtual environment: install the venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@# uv itself comes from the same hashed lock as everything else.
	@awk '/^[^ #]/ { on = /^uv==/ } on && !/#/' $(LOCK) > $(VENV)/uv.txt
	@if [ -x $(BIN)/pip ]; then pip="$(BIN)/python -m pip"; else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
		$$pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.txt

$(STAMP): $(LOCK) pyproject.toml | $(BIN)/uv
	@echo "installing $(LOCK)"
	@# uv does not read pip's configuration: where only pip knows the way to a mirror, pip installs the same lock.
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes --no-deps -r $(LOCK) \
		|| $(BIN)/python -m pip install --quiet --require-hashes --no-deps -r $(LOCK)
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --offline -e .
	@touch $@

.PHONY: run
run: setup ## Start it all with the example on http://127.0.0.1:8080 (ARGS="--port 8081 --grpc-port 7081")
	@exec $(BIN)/millstream dev --example $(EXAMPLE) $(ARGS)

# -- check -----------------------------------------------------------------------------------------------------

.PHONY: test
test: setup ## Run every test but the soak (real PostgreSQL, real Envoy)
	$(BIN)/pytest -m "not soak"

.PHONY: soak
soak: setup ## Run the long soak tests
	$(BIN)/pytest -m soak

.PHONY: bench
bench: setup ## Measure; prints a table and JSON
	$(BIN)/python -m tests.bench

.PHONY: verify
verify: setup ## What CI checks besides tests: format, lint, types, layers, contract, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python proto/generate.py --image $(VENV)/contract.binpb
	$(BIN)/buf lint $(VENV)/contract.binpb
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/buf breaking $(VENV)/contract.binpb --against proto/baseline.binpb

.PHONY: format
format: setup ## Format Python and proto files, fix what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/buf format -w proto

# -- generate --------------------------------------------------------------------------------------------------

.PHONY: gen
gen: setup ## Generate gen/, envoy/millstream.binpb and the reference of the API from proto/
	$(BIN)/python proto/generate.py

.PHONY: examples
examples: setup ## Record the service's answers to new examples of the API's documentation, and make it anew
	$(BIN)/python -m tests.documentation.record
	$(BIN)/python proto/generate.py

.PHONY: baseline
baseline: setup ## Take the present contract as the one that `buf breaking` compares with (at a release)
	$(BIN)/python proto/generate.py --baseline

.PHONY: migration
migration: setup ## Write a migration for what changed in the tables: make migration m="add x"
	@test -n "$(m)" || { echo 'usage: make migration m="what changes"' >&2; exit 1; }
	$(BIN)/millstream migrate new "$(m)"

.PHONY: lock
lock: $(BIN)/uv ## Pin the dependencies anew (upgrade=1: to their newest versions)
	$(BIN)/$(LOCKED) $(if $(upgrade),--upgrade) -o requirements.lock
	$(BIN)/$(LOCKED) $(if $(upgrade),--upgrade) --group dev -c requirements.lock -o $(LOCK)

.PHONY: clean
clean: ## Remove .venv, caches and the development data
	@# Root's database may stand elsewhere, where its unprivileged user can reach it: the link says where.
	@if [ -L .millstream/postgres ]; then rm -rf "$$(readlink .millstream/postgres)"; fi
	rm -rf $(VENV) .millstream .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
