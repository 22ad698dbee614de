# Two commands do everything on a fresh machine: `make train` and `make test`.
ENV ?= CartPole-v1
ESTIMATOR ?= auto
ARGS ?=
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What the environments of the examples need; `make train` installs the small set, `make test` all of it.
EXTRAS ?= box2d,mujoco,atari-wrappers

.PHONY: train test lint bench docs-tables install clean

train: $(VENV)/.installed
	$(BIN)/python train_agent.py train --env $(ENV) --estimator $(ESTIMATOR) \
		$(if $(filter CartPole-v1,$(ENV)),--stop-at-return 475,) $(ARGS)

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Speeds beside the peers', in turns; the machine must be otherwise idle.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.whole_runs

docs-tables: $(VENV)/.installed
	$(BIN)/python docs/update_tables.py

install: $(VENV)/.installed

# torch comes first and pinned: an open range would pull gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[benchmarks,envpool]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
