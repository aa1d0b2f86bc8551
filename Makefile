# Everything runs in .venv, which the first target that needs it creates: Python 3.11 and make are enough.

PYTHON ?= python3
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
DEMO_READY := $(VENV)/.demo-ready
DEV_READY := $(VENV)/.dev-ready

BENCH_WORKLOADS := research-1000,research-300,research-4000,chat-200,deepagents,deepagents-1000,react-100,threads-200
BENCH_RESULTS := bench/results/savers.json

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check format bench bench-quick bench-micro bench-catalogue kill crash full signals damage repair agents clean

help: ## show this list
	@echo "make TARGET [ARGS='...'] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV_READY) ## create .venv with all that developing needs

demo: $(DEMO_READY) ## an agent is killed and comes back (ARGS='--help' for its options)
	@$(PY) examples/demo.py $(ARGS)

test: $(DEV_READY) ## run the tests (ARGS='-k name' to choose)
	$(PY) -m pytest --numprocesses auto $(ARGS)

check: $(DEV_READY) ## format, lint, types, tests: what CI runs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest --numprocesses auto

kill: $(DEV_READY) ## kill a writer 200 times, and at every named point, and look for what it was promised
	$(PY) tests/crash/kill_writer.py --rounds 200 $(ARGS)
	$(PY) tests/crash/kill_writer.py --rounds 40 --writers 3
	$(PY) tests/crash/kill_points.py

crash: $(DEV_READY) ## cut the power in thousands of ways and look for what was promised
	$(PY) tests/crash/power_loss.py --images 4000 $(ARGS)

signals: $(DEV_READY) ## interrupt every call at every moment, by Ctrl-C and by signal handlers
	$(PY) tests/crash/moments.py $(ARGS)

damage: $(DEV_READY) ## damage a log's file in 100,000 ways and look for a lie or a crash
	$(PY) tests/fuzz/damage.py --cases 100000 $(ARGS)

repair: $(DEV_READY) ## damage a log in thousands of ways and see what repairing makes of it
	PYTHONPATH=tests $(PY) tests/property/repairs.py --cases 6500 $(ARGS)

full: $(DEV_READY) ## fill disks and maps, and let each write and sync fail, and look for what was promised
	$(PY) tests/crash/faults.py $(ARGS)
	$(PY) tests/crash/full.py

agents: $(DEV_READY) ## run every agent in every mode, not only the sample that `make test` runs
	STEPWELL_FULL_MATRIX=1 $(PY) -m pytest tests/agents $(ARGS)

bench: $(DEV_READY) ## measure against other savers for an hour, and put tables and pictures into README.md and bench/results
	$(PY) bench/run.py --workload $(BENCH_WORKLOADS) --contenders all --rounds 3 --minutes 50 --json $(BENCH_RESULTS) $(ARGS)
	$(PY) bench/plots.py $(BENCH_RESULTS)
	$(PY) bench/report.py $(BENCH_RESULTS) --write README.md --full bench/results/README.md

bench-quick: $(DEV_READY) ## a short look at the same
	$(PY) bench/run.py --workload research-300,chat-200 --contenders stepwell,sqlite,memory --rounds 1 --reopenings 1 $(ARGS)

bench-micro: $(DEV_READY) ## time single operations of the engine
	$(PY) -m pytest bench/micro --benchmark-columns=median,iqr,min,rounds $(ARGS)

bench-catalogue: $(DEV_READY) ## time lists of threads, among 100,000
	$(PY) bench/catalogue.py $(ARGS)

format: $(DEV_READY) ## put the sources in form and mend what the linter can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean: ## remove .venv and what the tools leave
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +

# A half-made environment would pass for a whole one, so it is removed.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stepwell needs Python 3.11 or newer: make PYTHON=...")'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# The demo needs less than developing does; whoever has all has the demo's part too.
$(DEMO_READY): pyproject.toml | $(PY)
	@echo "Installing what the demo needs into $(VENV) (once)"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(DEV_READY): pyproject.toml | $(PY)
	@echo "Installing what developing needs into $(VENV) (once)"
	@$(PIP) --editable '.[dev]'
	@touch $(DEMO_READY) $@
