# Chores of this project. `make check test` is what has to pass before a commit; .ci/run calls these targets too.
# The virtual environment is made as README.md says; another one is used with `make VENV=path ...`.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
ARGS ?=
SECONDS ?= 60

.PHONY: help check test bench chaos fuzz docs rooms coverage

help:  ## Show the targets
	@sed -n 's/^\([a-z]*\):  ## /\1\t/p' Makefile | expand -t 12

check:  ## Format, lint, types, shell script
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	if command -v shellcheck >/dev/null; then shellcheck .ci/run; fi

test:  ## All tests; ARGS="tests/gateway -k hub" chooses
	$(PYTHON) -m pytest -n 3 $(ARGS)

bench:  ## This gateway beside others; ARGS="--only 1,3,4,7 --ours" chooses
	$(PYTHON) -m tests.bench $(ARGS)

chaos:  ## Kill, stop and disconnect real processes for SECONDS (60), then compare every client with the journal
	$(PYTHON) -m tests.chaos --seconds $(SECONDS) $(ARGS)

fuzz:  ## Hostile files, and hostile clients beside good ones; ARGS="--frames 1000000 --seed 3" chooses
	$(PYTHON) -m tests.fuzz $(ARGS)

docs:  ## Links, anchors, named paths, tables of settings and codes, and the drawn rooms
	$(PYTHON) -m pytest tests/test_docs.py tests/test_layout.py $(ARGS)

rooms:  ## Draw the rooms of docs/architecture.md as the imports are now
	$(PYTHON) -m tests.test_layout

coverage:  ## The test suite under coverage.py; a report, no gate
	-$(PYTHON) -m coverage run -m pytest $(ARGS)
	$(PYTHON) -m coverage combine --quiet
	$(PYTHON) -m coverage report --skip-covered --sort=cover
