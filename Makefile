# Two commands do everything on a fresh machine: `make train` and `make test`.
ENV ?= CartPole-v1
ESTIMATOR ?= auto
ARGS ?=
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# All that a user needs, so that what the README shows works after `make train` too; EXTRAS= installs none of it.
EXTRAS ?= all

.PHONY: train test soak lint site site-version docs-audit dist bench docs-tables install clean

train: $(VENV)/.installed
	$(BIN)/python train_agent.py train --env $(ENV) --estimator $(ESTIMATOR) \
		$(if $(filter CartPole-v1,$(ENV)),--stop-at-return 475,) $(ARGS)

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Kills, damaged files, odd command lines, broken environments and long runs, from a seed: see docs/reliability.md.
soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.attack $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documents as a site, in build/site; `make test` builds it too.
site: $(VENV)/.installed-test
	$(BIN)/mkdocs build --strict

# The site of this version beside those of others, on the branch gh-pages of this repository, which ARGS=--push pushes.
RELEASE ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' relax_rl/__init__.py)
site-version: $(VENV)/.installed-test
	PATH="$(abspath $(BIN)):$$PATH" mike deploy --update-aliases --alias-type copy $(ARGS) $(RELEASE) latest
	PATH="$(abspath $(BIN)):$$PATH" mike set-default $(ARGS) latest

# Five of its pages in a browser, light and dark, wide and narrow, through axe-core; screenshots in build/audit.
docs-audit: $(VENV)/.installed-audit site
	$(BIN)/python docs/audit.py $(ARGS)

# The wheel and the source distribution, checked; the wheel is tried in an environment of its own, outside of this folder.
dist: $(VENV)/.installed-dist
	$(BIN)/python -m tests.dist $(ARGS)

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

$(VENV)/.installed-audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[audit]"
	touch $@

$(VENV)/.installed-dist: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dist]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[benchmarks,envpool]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
