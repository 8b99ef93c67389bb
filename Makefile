# make train   set up what is missing and train:              make train ARGS="--epochs 5"
# make test    set up what is missing, check and test:        make test ARGS="-k resume"
# make check   formatting, lint, types, layering
# make clean   remove what set-up, checks and builds wrote; keep runs and checkpoints

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS :=

.PHONY: train test check clean

train: $(STAMP)
	$(BIN)/prunetrain train $(ARGS)

test: check
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --config generated_nets/ruff.toml generated_nets
	$(BIN)/ruff check --config generated_nets/ruff.toml generated_nets
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find prunetrain tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Python is suitable if it runs (a version manager's shim may not), is new enough and can make a virtual environment.
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

$(STAMP): pyproject.toml
	@if ! $(BIN)/python -c 'import pip; $(SUITABLE)' 2>/dev/null; then \
	    for python in python3.13 python3.12 python3.11 python3 none; do \
	        if $$python -c '$(SUITABLE)' 2>/dev/null; then break; fi; \
	    done; \
	    if [ $$python = none ]; then \
	        echo "error: no working Python >= 3.11 with venv found: install one (on Debian and Ubuntu also python3-venv)" >&2; exit 1; \
	    fi; \
	    echo "Setting up $(VENV) with $$($$python --version); torch is large, so this takes some minutes, once"; \
	    $$python -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@
