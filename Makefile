# make run     set up, fetch the models, start both ends on this machine, stay in front
# make test    set up, fetch the models, run every test
# make check   formatting, lint, types, import rules
EDGE_PORT ?= 8000
VERIFIER_PORT ?= 9000
export EDGE_PORT VERIFIER_PORT

BIN := .venv/bin
SETUP := pyproject.toml $(wildcard scripts/*)
STEP := scripts/step.sh

# Steps build on one another: the virtual environment, then the models, then the work.
.NOTPARALLEL:
.PHONY: setup run test check models clean

setup: .venv/.ready-run

.venv/.ready-run: $(SETUP)
	@scripts/setup.sh run

.venv/.ready-dev: $(SETUP)
	@scripts/setup.sh dev

models: setup
	@$(STEP) "models ready" $(BIN)/picospec models pull qwen2.5-coder

run: models
	@exec $(BIN)/picospec up --config configs/local.toml

test: .venv/.ready-dev models
	@$(STEP) "small model ready" $(BIN)/picospec models pull smollm2
	@$(STEP) "tests" $(BIN)/pytest $(ARGS)

check: .venv/.ready-dev
	@$(STEP) "lint" $(BIN)/ruff check .
	@$(STEP) "format" $(BIN)/ruff format --check .
	@$(STEP) "types" $(BIN)/mypy
	@$(STEP) "imports" $(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
