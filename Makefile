# One command per intent. Each builds .venv first when it is missing or no longer fits.
#
# PYTHON=python3.13 chooses the interpreter, DEMO_SECONDS=60 ends the demo by itself,
# ARGS="..." goes on to the program that the target starts.

VENV := .venv
BIN := $(VENV)/bin
DEMO_SECONDS ?=
ARGS ?=
# Tests of the whole program under load and attack: two at a time, and not slowed down by measuring coverage.
WHOLE := tests/bench tests/docs tests/e2e tests/faults

.DEFAULT_GOAL := help
.PHONY: help run demo test lint format bench faults fuzz requirements schema .venv

help: ## Say what can be done here
	@awk -F ':.*## ' '/^[.a-z]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv ## Collect as config/collector.yaml says, until Ctrl-C
	@$(BIN)/python run_controller.py $(ARGS)

demo: .venv ## Show five simulated exchanges live, until Ctrl-C or DEMO_SECONDS
	@$(BIN)/python run_controller.py demo $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS)) $(ARGS)

test: .venv ## Run all tests; fail under 90 % branch coverage. ARGS: some tests only, without coverage
ifeq ($(strip $(ARGS)),)
	@$(BIN)/python -m pytest --timeout=120 -n 3 --cov --cov-report=term $(addprefix --ignore=,$(WHOLE))
	@$(BIN)/python -m pytest --timeout=120 -n 2 $(WHOLE)
else
	@$(BIN)/python -m pytest --timeout=120 $(ARGS)
endif

lint: .venv ## Check style, format, types and the import rule
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv ## Put the code into the form that lint asks for
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: .venv ## Measure speed, as ratios
	@$(BIN)/python -m bench $(ARGS)

faults: .venv ## Cut power and connections, fill and break disks, kill threads, set clocks: for an hour and more
	@COLLECTOR_FAULTS=nightly $(BIN)/python -m pytest --timeout=7200 tests/faults tests/e2e/test_chaos.py $(ARGS)

fuzz: .venv ## Look for messages and settings that it can't cope with, by the million
	@$(BIN)/python -m tests.fuzz $(ARGS)

schema: .venv ## Write config/collector.schema.json from the settings
	@$(BIN)/python -m collector.config $(ARGS)

requirements: .venv ## Pin requirements*.txt from requirements*.in; ARGS=--upgrade takes newer versions
	@for name in requirements requirements-dev; do \
	    $(BIN)/uv pip compile --quiet --no-header --universal --python-version 3.11 $(ARGS) \
	        $$name.in --output-file $$name.txt || exit 1; \
	done

# The stamp tells in which folder and from which pins .venv was built. Another folder, or an interpreter that
# does not start or is not the one that PYTHON names, means to build anew; other pins, only to install again.
.venv: ## Build or refresh the virtual environment
	@stamp="$$(pwd) $$(cat requirements.txt requirements-dev.txt | cksum)"; \
	wanted='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; \
	same='import sys; print(sys.base_prefix, sys.version)'; \
	built="$$(cat $(VENV)/.built 2>/dev/null)"; \
	fits() { \
	    $(BIN)/python -c "$$wanted" 2>/dev/null && grep -qF "$$(pwd)/$(VENV)/" $(VENV)/bin/pip 2>/dev/null && \
	    { [ -z "$(PYTHON)" ] || [ "$$($(BIN)/python -c "$$same")" = "$$($(PYTHON) -c "$$same")" ]; }; \
	}; \
	fits && [ "$$built" = "$$stamp" ] && exit 0; \
	if ! fits; then \
	    found=; \
	    for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	        if "$$python" -c "import venv, ensurepip, sqlite3, ssl; $$wanted" 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "The collector needs Python 3.11, 3.12 or 3.13 with its venv module, and found none" \
	             "(looked at: $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python))." >&2; \
	        echo "Install one (Debian, Ubuntu: apt install python3 python3-venv)" \
	             "or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	        exit 1; \
	    fi; \
	    echo "Building $(VENV) with $$("$$found" --version)"; \
	    rm -rf $(VENV) && "$$found" -m venv $(VENV) || exit 1; \
	fi; \
	rm -f $(VENV)/.built; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
	    -r requirements.txt -r requirements-dev.txt && \
	echo "$$stamp" > $(VENV)/.built
