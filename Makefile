# Two commands do everything on a fresh machine with Python 3.11+: `make reproduce` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
SUITE ?= quick
CORES ?= all
DATA_ROOT ?= data

.PHONY: env reproduce test lint speed publish

env: .venv/.installed

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

# The suite, then Snakemake's own report of the run. A lock that a killed run left is removed; that of a living one is not.
STUDY = $(BIN)/snakemake --configfile benchmarks/$(SUITE).yaml --config data_root=$(DATA_ROOT)
REPORT = results/$(SUITE)/report.html
WORKFLOW = results/$(SUITE)/workflow.html

reproduce: env
	$(BIN)/python workflow/alone.py $(STUDY) --cores $(CORES)
	@[ $(WORKFLOW) -nt $(REPORT) ] || $(STUDY) --cores 1 --quiet all --report $(WORKFLOW)
	@echo "the report: $(REPORT), and of the workflow: $(WORKFLOW)"

test: env
	$(BIN)/python -m pytest --numprocesses 2

# Style of the code and of the workflow, and the types of the contracts that plug-ins are written against.
lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakemake --lint
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy

speed: env
	$(BIN)/python -m benchmarks.speed

# Copy a finished suite to results/published/, and the default suite's table into README.md.
publish: env
	$(BIN)/python workflow/publish.py $(SUITE)
