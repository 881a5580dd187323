# make demo: two real photos of one scene through a pretrained two-image model, pictures in demo/
# make test: lint, types and all tests
# Both need nothing but Python 3.10 or later: they make .venv and install into it.

PYTHON ?= python3
VENV := .venv/bin

.PHONY: demo test lint cards clean

demo: .venv/installed
	$(VENV)/zoo demo --output demo

test: .venv/installed lint
	$(VENV)/python -m pytest

lint: .venv/installed
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

cards: .venv/installed
	$(VENV)/python tools/make_cards.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .venv/installed

clean:
	rm -rf .venv build dist *.egg-info
