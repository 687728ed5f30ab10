# kmlab: `make` alone lists the targets.

KMLAB := .venv/bin/kmlab
PYTHON_TOOL := .venv/bin/python -m

help:  ## This text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## Install everything needed: system packages, .venv/bin/kmlab
	@sh tools/setup.sh

demo: setup  ## The main job: start a guest; build, load and unload a module in it
	$(KMLAB) up
	$(KMLAB) run examples/hello

test: setup  ## Run all tests, including those with real guests
	$(PYTHON_TOOL) pytest $(ARGS)

test-hosts: setup  ## Run the README's commands on new machines: Debian 13 and sid (needs root; half an hour each)
	KMLAB_TEST_HOSTS=1 $(PYTHON_TOOL) pytest -s tests/hosts $(ARGS)

test-debug: setup  ## Run modules with quiet bugs on debug kernels, which are built first (an hour and more)
	KMLAB_TEST_DEBUG=1 $(PYTHON_TOOL) pytest tests/debug $(ARGS)

unit: setup  ## Run the tests that need no guest
	$(PYTHON_TOOL) pytest -m 'not guest' $(ARGS)

bench: setup  ## Measure performance against companions, which it installs (ARGS='--list', ARGS='up --rounds 3')
	$(PYTHON_TOOL) benchmarks $(ARGS)

campaign: setup  ## Kill and interrupt kmlab, libvirt and QEMU for hours; each time the next run must pass (ARGS='--seed 2')
	$(PYTHON_TOOL) pytest -q tests/run/test_failing_writes.py
	.venv/bin/python tools/campaign.py $(ARGS)

check: setup  ## Check format, lint, types and import rules
	$(PYTHON_TOOL) ruff format --check kmlab tests tools benchmarks
	$(PYTHON_TOOL) ruff check kmlab tests tools benchmarks
	$(PYTHON_TOOL) mypy
	$(PYTHON_TOOL) pytest -q tests/project/test_house.py

docs:  ## Build the site with search, a page for each command, and man pages: build/site, build/man
	@sh tools/setup.sh --docs
	.venv/bin/python tools/manual.py
	.venv/bin/zensical build --clean --strict

images: setup  ## Look up the current pins of published images: this changes images/*.yaml
	.venv/bin/python tools/pins.py

format: setup  ## Write the format that `make check` expects
	$(PYTHON_TOOL) ruff format kmlab tests tools benchmarks
	$(PYTHON_TOOL) ruff check --fix kmlab tests tools benchmarks

clean:  ## Remove built files; for guests and caches: kmlab destroy --all-state
	rm -rf .venv .kmlab build .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find kmlab tests tools benchmarks -name __pycache__ -type d -exec rm -rf {} +

.PHONY: help setup demo test test-hosts test-debug unit bench check docs images format clean campaign
