# make demo: two real photos of one scene through a pretrained two-image model, pictures in demo/
# make test: lint, types and the tests, but for what `.venv/bin/python -m pytest -m slow` runs
# Both need nothing but Python 3.10 or later: they make .venv and install into it.

# whatever the machine says: without bytecode each of the tests' processes would compile torch and timm again
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV := .venv/bin

.PHONY: demo test lint cards batches clean

demo: .venv/demo
	$(VENV)/zoo demo --output demo

test: .venv/dev lint
	$(VENV)/python -m pytest

lint: .venv/dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

cards: .venv/dev
	$(VENV)/python tools/make_cards.py

batches: .venv/dev
	$(VENV)/python tools/make_batches.py

# one stamp for each set of extras; Python compiles what it imports, a tenth of what is installed
.venv/%: pyproject.toml
	test -x $(VENV)/python || $(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
