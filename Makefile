# Everything happens in this folder's .venv, which the first command makes. Another Python than `python3`:
#     make demo PYTHON=python3.12
PYTHON ?= python3

BIN := .venv/bin
INSTALL := install --quiet --constraint constraints.txt

# With it set, every process would compile its modules anew: Ray starts many.
unexport PYTHONDONTWRITEBYTECODE
# Another environment that is active in this shell is none of our business.
unexport VIRTUAL_ENV

.PHONY: help demo test torture mutants check format kube-tools bench clean venv

help:
	@echo "make demo        eight trainings share a GPU (a simulated one, where there is none)"
	@echo "make test        style, types and tests"
	@echo "make torture     the long proofs: 10,000 crashes, random lives beside a model, broken rules"
	@echo "make mutants     one broken rule of the core at a time, to see that the tests notice"
	@echo "make check       style and types only"
	@echo "make format      puts the style right"
	@echo "make kube-tools  a real Kubernetes for the tests: built once, in about seven minutes"
	@echo "make bench       the speed of decorated calls, against plain Ray tasks"
	@echo "make clean       deletes .venv and all caches"

demo: .venv/demo
	@$(BIN)/python examples/demo.py

test: check
	@$(BIN)/python -m pytest

torture: .venv/dev
	@$(BIN)/python tests/torture.py $(if $(SEED),--seed $(SEED))

mutants: .venv/dev
	@$(BIN)/python tests/mutants/run.py

check: .venv/dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/dev
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

kube-tools:
	@tests/kube_tools.sh

bench: .venv/dev
	@$(BIN)/python benchmarks/decorator.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: what is installed, from which pins.
.venv/demo .venv/dev: .venv/uv pyproject.toml constraints.txt
	@echo "Installing into .venv ..."
	@$(BIN)/uv pip $(INSTALL) --python $(BIN)/python --editable '.[$(@F)]' \
		|| { echo "uv could not; trying pip, with its own settings ..."; $(BIN)/python -m pip $(INSTALL) --editable '.[$(@F)]'; }
	@touch $@

.venv/uv: constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory venv
	@$(BIN)/python -m pip --disable-pip-version-check $(INSTALL) uv
	@touch $@

venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 14) or sys.exit( \
		"raysched needs Python 3.10 to 3.14, and $(PYTHON) is %d.%d: name another, make demo PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv .venv
