# Chores of this project. `make check test` is what has to pass before a commit; .ci/run calls these targets too.
# The virtual environment is made as README.md says; another one is used with `make VENV=path ...`.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
UV = $(VENV)/bin/uv
ARGS ?=
SECONDS ?= 60

.PHONY: help check test examples sdks bench chaos kills pushers fuzz fuzzed docs rooms coverage lock licences sbom release locked

help:  ## Show the targets
	@sed -n 's/^\([a-z]*\):  ## /\1\t/p' Makefile | expand -t 12

check:  ## Format, lint, types, shell script
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	if command -v shellcheck >/dev/null; then shellcheck .ci/run tests/windows/run deploy/examples/events.sh; fi

test:  ## All tests; ARGS="tests/gateway -k hub" chooses
	$(PYTHON) -m pytest -n 4 $(ARGS)

examples:  ## The programs of deploy/examples, in each language that this machine has, while the gateway is killed
	$(PYTHON) -m pytest -m examples tests/test_examples.py $(ARGS)

sdks:  ## Download every version of xtquant (900 MB, once), whose Python layers the tests then run
	$(PYTHON) -m tests.sdks

bench:  ## This gateway beside others; ARGS="--only 1,3,4,7 --ours" chooses
	$(PYTHON) -m tests.bench $(ARGS)

kills:  ## 200 times kill -9 of store, feeder or worker while clients are read their morning; ARGS="--kills 30" chooses
	$(PYTHON) -m tests.chaos --seconds 0 --kills 200 $(ARGS)

pushers:  ## 200 times kill -9 of a pusher, and 40 times of the feeder; ARGS="--kills 30 --seed 1" chooses
	$(PYTHON) -m tests.chaos.pushers $(ARGS)

chaos:  ## Kill, stop and disconnect real processes for SECONDS (60), then compare every client with the journal
	$(PYTHON) -m tests.chaos --seconds $(SECONDS) $(ARGS)

fuzz:  ## Hostile files, and hostile clients beside good ones; ARGS="--frames 1000000 --seed 3" chooses
	$(PYTHON) -m tests.fuzz $(ARGS)

fuzzed:  ## The fuzz in a minute, from one seed; CI runs it
	$(PYTHON) -m tests.fuzz --frames 50000 --wire-frames 60000 --push-lines 20000 --seed 1

docs:  ## Links, anchors, named paths, blocks, tables of settings and codes, and the drawn rooms
	$(PYTHON) -m pytest tests/test_docs.py tests/test_blocks.py tests/test_layout.py $(ARGS)

rooms:  ## Draw the rooms of docs/architecture.md as the imports are now
	$(PYTHON) -m tests.test_layout

coverage:  ## The test suite under coverage.py; a report, no gate
	-$(PYTHON) -m coverage run -m pytest $(ARGS)
	$(PYTHON) -m coverage combine --quiet
	$(PYTHON) -m coverage report --skip-covered --sort=cover

# One file for every system, and for CPython 3.11 and later: pip-tools would need a run on each of them.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"
# What tests/windows/run installs: wheels of Windows, on another system.
WINDOWS = $(UV) pip compile --quiet --python-platform x86_64-pc-windows-msvc --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"

lock:  ## Pin what is installed and what builds it, with hashes, in the files *.lock; ARGS=--upgrade takes newer versions
	$(COMPILE) $(ARGS) --output-file deploy/requirements.lock pyproject.toml
	$(COMPILE) $(ARGS) --output-file deploy/build.lock --group build --constraints deploy/requirements.lock
	mkdir -p build
	grep '==' deploy/requirements.lock | sed 's/ .*//' | grep --invert-match '^rocksdict==' > build/constraints.txt
	$(WINDOWS) $(ARGS) --output-file tests/windows/requirements.lock --constraints build/constraints.txt \
		--overrides tests/windows/overrides.in pyproject.toml tests/windows/requirements.in
	$(WINDOWS) $(ARGS) --output-file tests/windows/build.lock tests/windows/build.in
	$(MAKE) licences

# Without the conditions of the lock, so that the lists below name the packages of Windows too.
locked:
	rm -rf build/locked
	$(UV) venv --quiet --python $(PYTHON) build/locked
	sed 's/ ;.*/ \\/' deploy/requirements.lock | \
		$(UV) pip install --quiet --python build/locked --require-hashes --requirements -

licences: locked  ## List the packages of the lock and their licences in deploy/licences.md
	{ printf '# Licences\n\nOf every package in requirements.lock; `make licences` writes this file.\n\n'; \
		$(UV) tool run --from pip-licenses==5.5.5 pip-licenses --python=build/locked/bin/python --from=mixed \
		--order=name --format=markdown; } > deploy/licences.md

sbom: locked  ## List the packages of the lock in dist/sbom.cdx.json (CycloneDX)
	mkdir -p dist
	$(UV) tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject pyproject.toml \
		--output-reproducible --output-file dist/sbom.cdx.json build/locked

# From the commit, and not from the folder: nothing that lies there by chance is in a release. Two builds with the same
# CPython have the same bytes, wherever and whenever they are made.
release: sbom  ## Build sdist and wheel of the newest commit into dist/, and print their hashes
	rm -rf build/release build/builder
	mkdir -p build/release
	git archive HEAD | tar --extract --directory build/release
	$(UV) venv --quiet --python $(PYTHON) build/builder
	$(UV) pip install --quiet --python build/builder --require-hashes --requirements deploy/build.lock
	cd build/release && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) ../builder/bin/python -m hatchling build -d ../../dist
	sha256sum dist/*
