# Every target sets up its own environment first; the README prints what each stands for.
# Another Python: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

.PHONY: demo test test-slow check verify-math fuzz bench
demo: $(VENV)/ready
	$(BIN)/python -m diptych digits --mode all --epochs 5 --seed 0

test: $(VENV)/ready
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -q -n 2 -m slow

check: $(VENV)/ready
	$(BIN)/ruff format --check src tests scripts benchmarks docs examples
	$(BIN)/ruff check src tests scripts benchmarks docs examples
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

verify-math: $(VENV)/ready
	$(BIN)/python scripts/verify_math.py

# MINUTES, JOBS (processes), SEED; CASE: a file with a case, which is checked alone;
# MORE: --mode, --target, --first, --cases, --folder, --shrink
fuzz: $(VENV)/ready
	PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(or $(MINUTES),10) --jobs $(or $(JOBS),2) \
	  $(if $(SEED),--seed $(SEED)) $(if $(CASE),--case $(CASE)) $(MORE)

# PEERS: a folder of virtual environments, torch, jax, ort, tf; BENCH: names of workloads;
# MORE: --quick, --cpu, --data FOLDER, --seed FOLDER
bench: $(VENV)/ready
	$(BIN)/python benchmarks/bench.py $(BENCH) $(if $(PEERS),--peers $(PEERS)) $(MORE)
