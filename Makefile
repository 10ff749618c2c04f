# `make help` prints what there is. Everything runs from .venv, made by `make install`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null || echo .tooling/bin/uv)
FAST := tests/rules tests/promises/test_contracts.py tests/promises/test_deploy.py
export PYTHONDONTWRITEBYTECODE := 1
# Hospital networks have certificates of their own: believe the system, as curl does.
export UV_SYSTEM_CERTS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo up test check bench bench-counting bench-simulator calibrate format contracts consent-proof freshness silence oracle mutate-counting clean

help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Install everything into .venv (leaves .venv/bin/passerelle)

$(VENV)/.installed: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --quiet
	@touch $@

.tooling/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name it with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m venv .tooling || { echo "Python's venv module is missing (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@.tooling/bin/python -m pip install --quiet --disable-pip-version-check uv

demo: install ## Run everything on this machine, with a simulated region
	@$(BIN)/passerelle demo

up: install ## Run everything on this machine, empty
	@$(BIN)/passerelle up

test: install ## Run all tests; says in one line what this machine cannot run
	@$(BIN)/python -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder

check: install ## Format, lint, types, import rules, fast tests: under a minute
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target style rules

.PHONY: style rules
style:
	@$(BIN)/ruff format --quiet --check . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports >/dev/null || $(BIN)/lint-imports

rules:
	@$(BIN)/python -m pytest -q -m "not slow and not kafka and not browser" $(FAST)

format: install ## Format, and mend what a machine can mend
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

contracts: install ## Write schemas/json, schemas/examples and schemas/asyncapi.yaml anew
	@$(BIN)/python -m schemas.generate

bench: install ## Measure, and print the table of docs/performance.md
	@$(BIN)/python -m tests.bench

bench-simulator: install ## Measure how fast the simulator writes, and in how much memory
	@$(BIN)/python -m tests.bench_simulator

calibrate: install ## Print the simulated region beside what was published (docs/simulator.md)
	@nice $(BIN)/python -m tests.calibration

bench-counting: install ## What counting costs at a million encounters (N=1000000)
	@$(BIN)/python -m tests.bench_counting --encounters $(or $(N),1000000)

consent-proof: install ## Prove the consent engine: cases, properties, time, planted faults (N=50000)
	@nice $(BIN)/python -m tests.consent.proof --examples $(or $(N),50000)

oracle: install ## Compare counting with the independent oracle (N=200000 PEOPLE=2000)
	@nice $(BIN)/python -m tests.counting.compare --histories $(or $(N),200000) --people $(or $(PEOPLE),0)

mutate-counting: install ## Plant faults in the rules of counting; each must be caught
	@nice $(BIN)/python -m tests.counting.proof --report docs/counting-proof.md

.PHONY: audit sbom webhooks
audit: install $(UV) ## Hashes, advisories and secrets; says in a line what could not be looked at
	@$(BIN)/python -m tests.supply audit --uv $(UV)

sbom: install $(UV) ## Write what we are made of (CycloneDX) into build/sbom
	@$(BIN)/python -m tests.supply sbom --uv $(UV)

# A receiver's own library, for tests/services/test_webhooks.py; nothing of ours needs it.
webhooks: .tooling/webhooks/.installed ## Fetch the JavaScript library that verifies our notifications
.tooling/webhooks/.installed: tests/services/webhooks.json
	@command -v npm >/dev/null || { echo "npm is missing: notifications are not verified in JavaScript"; exit 0; } ; \
	  mkdir -p $(@D) && cp $< $(@D)/package.json && \
	  npm install --prefix $(@D) --ignore-scripts --no-audit --no-fund --no-package-lock --silent && touch $@

freshness: install ## Run random schedules of consent changes and sends, and judge them (N=10000)
	@nice $(BIN)/python -m tests.consent.freshness --schedules $(or $(N),10000)

silence: install ## Measure whether the time of an answer tells of what is withheld (N=10000)
	@nice $(BIN)/python -m tests.bench_silence --pairs $(or $(N),10000)

clean: ## Remove what was made here
	@rm -rf $(VENV) .tooling .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache
