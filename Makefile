# Two commands for a fresh machine. Each makes its own environment in .venv and runs:
#   make picture PROMPT="two red apples"    draws picture.png
#   make test                               checks everything (linters, types, import contract, tests)

SHELL := /bin/bash
.DEFAULT_GOAL := test
.PHONY: picture test lock format

# The words of the prompt reach the program through the environment, exactly as given: no quoting, no `$` expanded.
PROMPT ?= two red apples
override PROMPT := $(value PROMPT)
export PROMPT

LOCKED := pyproject.toml requirements.lock

picture: .venv/installed-run
	@.venv/bin/snapgen generate --out picture.png -- "$$PROMPT" >/dev/null
	@echo "drawn: $(CURDIR)/picture.png"

test: .venv/installed-dev
	scripts/install_font.sh
	scripts/install_browser.sh
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/pytest

# Everything rewritten that the linters can rewrite.
format: .venv/installed-dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# The newest versions that pyproject.toml allows, written down; `make test` then says whether they serve.
lock:
	scripts/lock.sh requirements.lock

.venv/made:
	scripts/make_environment.sh .venv
	@touch $@

.venv/installed-run: .venv/made $(LOCKED)
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable .
	@touch $@

.venv/installed-dev: .venv/made $(LOCKED)
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable ".[train,dev]"
	@touch $@ .venv/installed-run
