# Two commands do everything on a fresh machine with Python 3.11+: `make reproduce` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
SUITE ?= quick
CORES ?= all
DATA_ROOT ?= data

.PHONY: reproduce test lint speed env

env: .venv/.installed

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

# The suite, then Snakemake's own report of the run. A lock that a killed run left is removed; flock-free, so do not start two.
reproduce: env
	$(BIN)/snakemake --unlock --quiet all --configfile benchmarks/$(SUITE).yaml
	$(BIN)/snakemake --cores $(CORES) --configfile benchmarks/$(SUITE).yaml --config data_root=$(DATA_ROOT)
	@echo "report: results/$(SUITE)/report.html"

test: env
	$(BIN)/python -m pytest --numprocesses 2

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakemake --lint

speed: env
	$(BIN)/python -m benchmarks.speed
