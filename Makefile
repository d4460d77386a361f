# The developer's interface. `make demo` and `make test` start from nothing but a clone and Python 3.11.
PYTHON ?= python3.11
# Another Python has an environment of its own: `make quick PYTHON=python3.13`.
VENV := $(if $(filter python3.11,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# The model that the inference benchmark runs, as `leebert train` has written it.
MODEL ?= runs/mrpc
# Real data for tests and benchmarks, where it is there; tests that need it skip without.
export LEEBERT_DATA ?= $(wildcard $(abspath ../shared/data))
export RAY_AUTH_MODE ?= disabled

comma := ,
# Of what pip prints: each package of at least a megabyte, and when it unpacks them.
define SHOWN
s/^ *Downloading \([^ ]*\)-[0-9][^ ]*\.whl (\(.* MB\)).*/  downloading \1 (\2)/p
s/^ *Building .*/  &/p
s/^Installing collected packages: .*/  unpacking all packages: about a minute/p
endef
export SHOWN
install = bash -o pipefail -c '$(BIN)/pip install --disable-pip-version-check --progress-bar off -c constraints.txt $(1) \
	| sed -un "$$SHOWN"'

.PHONY: help setup demo quick test lint tables bench soak clean

help:
	@echo "make demo   a small sweep on generated data: CLO-v2, BLO, learned and equal weights (minutes)"
	@echo "make quick  the fast tests"
	@echo "make test   all tests, what CI runs"
	@echo "make lint   ruff and mypy"
	@echo "make tables the documents' tables, from the registries"
	@echo "make bench  the benchmarks (an hour; needs LEEBERT_DATA)"
	@echo "make soak   sweeps that are killed again and again (half an hour)"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV): a few minutes"
	$(PYTHON) -m venv $(VENV)
	@echo "1 of 2: PyTorch"
	@$(call install,torch==2.13.0)
	@echo "2 of 2: everything else"
	@$(call install,-e ".[demo$(comma)dev$(comma)cluster]")
	@touch $@

demo: setup
	$(BIN)/python -m tune.demo

quick: setup
	$(BIN)/python -m pytest -m "not slow"

test: lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tables: setup
	$(BIN)/python -m tune.tables

bench: setup
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/students.py
	$(BIN)/python benchmarks/trainer.py
	$(BIN)/python benchmarks/inference.py --model $(MODEL)
	$(BIN)/python benchmarks/replay.py
	$(BIN)/python benchmarks/tokenise.py
	$(BIN)/python benchmarks/trial.py
	$(BIN)/python benchmarks/best.py
	$(BIN)/python benchmarks/feed.py
	$(BIN)/python benchmarks/driver.py

soak: setup
	$(BIN)/python benchmarks/soak.py

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
