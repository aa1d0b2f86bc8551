# Everything runs in .venv, which the first target that needs it creates: Python 3.11 and make are enough.

PYTHON ?= python3
ARGS ?=

# Many tests wait for the disk, or for processes that they kill.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores + cores / 2)))

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
# Each process begins with tests that lie together, which share what they make once; who is done first takes from others.
PYTEST := $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal
DEMO_READY := $(VENV)/.demo-ready
DEV_READY := $(VENV)/.dev-ready

# Without bytecode every process that a test starts would compile LangGraph from its sources, for seconds.
unexport PYTHONDONTWRITEBYTECODE

BENCH_WORKLOADS := research-1000,research-300,research-4000,chat-200,deepagents,deepagents-1000,react-100,threads-200
BENCH_RESULTS := bench/results/savers.json

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check kill crash signals stress properties damage repair full agents bench bench-agents bench-quick bench-looking bench-store bench-micro bench-cli bench-catalogue bench-import imports format clean

help: ## show this list
	@echo "make TARGET [ARGS='...'] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV_READY) ## create .venv with all that developing needs

demo: $(DEMO_READY) ## an agent is killed and comes back (ARGS='--help' for its options)
	@$(PY) examples/demo.py $(ARGS)

test: $(DEV_READY) ## run the tests (ARGS='-k name' to choose)
	$(PYTEST) $(ARGS)

check: $(DEV_READY) ## format, lint, types, tests: what CI runs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	@# Beside the type checker, which has one core, another process compiles what each of the tests' would compile.
	$(PY) -m pytest --collect-only -qq > /dev/null & $(PY) -m mypy; typed=$$?; wait; exit $$typed
	$(PYTEST)

kill: $(DEV_READY) ## kill a writer 200 times, and at every named point, and look for what it was promised
	$(PY) tests/crash/kill_writer.py --rounds 200 $(ARGS)
	$(PY) tests/crash/kill_writer.py --rounds 40 --writers 3
	$(PY) tests/crash/kill_points.py
	STEPWELL_KILLS=50 $(PY) -m pytest tests/crash/test_kill_items.py

crash: $(DEV_READY) ## cut the power in thousands of ways and look for what was promised
	$(PY) tests/crash/power_loss.py --images 4000 $(ARGS)

signals: $(DEV_READY) ## interrupt every call at every moment, by Ctrl-C and by signal handlers
	$(PY) tests/crash/moments.py $(ARGS)

stress: $(DEV_READY) ## use one saver from several event loops and threads at once for 5 minutes, against a model
	PYTHONPATH=tests $(PY) tests/concurrency/stress.py --seconds 300 $(ARGS)

properties: $(DEV_READY) ## try 2,000 examples of each property, not the 60 that `make test` tries
	HYPOTHESIS_PROFILE=thorough $(PYTEST) tests/property $(ARGS)

damage: $(DEV_READY) ## damage a log's file in 100,000 ways and look for a lie or a crash
	$(PY) tests/fuzz/damage.py --cases 100000 $(ARGS)
	RECORDS_SEEDS=20 $(PYTEST) tests/fuzz

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

bench-agents: $(DEV_READY) ## measure many agents at once, in one process and in several, for 20 minutes, into bench/results
	$(PY) bench/run_agents.py --json bench/results/agents.json $(ARGS)
	$(PY) bench/report.py bench/results/agents.json --write bench/results/agents.md

bench-quick: $(DEV_READY) ## a short look at the same
	$(PY) bench/run.py --workload research-300,chat-200 --contenders stepwell,sqlite,memory --rounds 1 --reopenings 1 $(ARGS)

bench-looking: $(DEV_READY) ## time what it takes to look into a thread of 10,000 steps
	$(PY) bench/looking.py $(ARGS)

bench-store: $(DEV_READY) ## measure the store of memories against other stores (ARGS='--items 5000 --vectors 1000' for a short look)
	$(PY) bench/store.py $(ARGS)

bench-micro: $(DEV_READY) ## time single operations of the engine
	$(PY) -m pytest bench/micro --benchmark-columns=median,iqr,min,rounds $(ARGS)

bench-cli: $(DEV_READY) ## time commands as whole processes, on 100,000 threads and on a thread of 10,000 steps
	$(PY) bench/command_line.py $(ARGS)

bench-catalogue: $(DEV_READY) ## time lists of threads, among 100,000
	$(PY) bench/catalogue.py $(ARGS)

bench-import: $(DEV_READY) ## import databases of SqliteSaver and PostgresSaver: time, memory, sizes
	$(PY) bench/importing.py --workload research-1000 $(ARGS)

imports: $(DEV_READY) ## import what every agent leaves with other savers, and kill imports 50 times
	STEPWELL_FULL_MATRIX=1 $(PY) -m pytest tests/agents/test_imports.py $(ARGS)
	STEPWELL_KILLS=50 $(PY) -m pytest tests/unit/test_importing.py -k kills $(ARGS)

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
