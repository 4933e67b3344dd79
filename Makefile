# `make quickstart` runs the whole method offline, `make test` the tests. Both build .venv first, once.
PYTHON ?= python3
# Modules are compiled when they are first imported: most never are, and compiling all of them takes a minute.
# torch comes first and alone, so that nothing else pulls in another build of it. On a machine without a GPU whose index has
# CUDA builds: make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
SEED ?= 42

BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test test-slow lint format bench docs clean

quickstart: .venv/installed
	$(BIN)/python recipes/quickstart.py --seed $(SEED)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed
	for benchmark in tests/benchmarks/bench_*.py; do $(BIN)/python $$benchmark || exit 1; done

# The site is written to site/. REPO_URL=https://github.com/... makes links to files outside docs/ work.
docs: .venv/installed
	$(BIN)/python -m pip install -qq -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv dist site outputs *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --no-compile $(TORCH)
	$(BIN)/python -m pip install -qq --no-compile -c constraints.txt -e ".[dev]"
	touch $@
