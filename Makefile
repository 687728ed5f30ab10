# kmlab: `make` alone says what there is.

KMLAB := .venv/bin/kmlab
PYTHON_TOOL := .venv/bin/python -m

help:  ## This text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## Bring all that is needed: system packages, .venv/bin/kmlab
	@sh tools/setup.sh

demo: setup  ## The main job: a guest comes up, a module is built, loaded and unloaded in it
	$(KMLAB) up
	$(KMLAB) run examples/hello

test: setup  ## All tests, real guests included
	$(PYTHON_TOOL) pytest $(ARGS)

unit: setup  ## The tests that need no guest
	$(PYTHON_TOOL) pytest -m 'not guest' $(ARGS)

bench: setup  ## Performance as ratios against companions, which it installs (ARGS='--list', ARGS='up --rounds 3')
	$(PYTHON_TOOL) benchmarks $(ARGS)

check: setup  ## Format, lint, types, import rules
	$(PYTHON_TOOL) ruff format --check kmlab tests tools benchmarks
	$(PYTHON_TOOL) ruff check kmlab tests tools benchmarks
	$(PYTHON_TOOL) mypy
	$(PYTHON_TOOL) pytest -q tests/test_house.py

images: setup  ## Look up the pins of published images anew: images/*.yaml change
	.venv/bin/python tools/pins.py

format: setup  ## Write the format that `make check` wants
	$(PYTHON_TOOL) ruff format kmlab tests tools benchmarks
	$(PYTHON_TOOL) ruff check --fix kmlab tests tools benchmarks

clean:  ## Remove what was made here; guests and caches: kmlab destroy --all-state
	rm -rf .venv .kmlab .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find kmlab tests tools benchmarks -name __pycache__ -type d -exec rm -rf {} +

.PHONY: help setup demo test unit bench check images format clean
