# Two commands for a fresh machine. Each makes an environment in .venv if there is none, then:
#   make picture PROMPT="two red apples"    generates picture.png
#   make test                               checks everything (linters, types, import contract, tests)

SHELL := /bin/bash
.DEFAULT_GOAL := test
.PHONY: picture web test check lint lock format

# The prompt reaches the program through the environment, exactly as given: no quoting, no `$` expansion.
PROMPT ?= two red apples
override PROMPT := $(value PROMPT)
export PROMPT

LOCKED := pyproject.toml requirements.lock
# One process per core, up to four; the tests of a file share what its fixtures trained.
PYTEST := .venv/bin/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

picture: .venv/installed-run
	@.venv/bin/snapgen generate --out picture.png -- "$$PROMPT" >/dev/null
	@echo "written: $(CURDIR)/picture.png"

# The app that draws in the browser, for `snapgen web`.
web: .venv/installed-dev
	scripts/build_web.sh

test: lint web/node_modules/installed
	scripts/install_font.sh
	scripts/install_browser.sh
	npm test --prefix web --silent
	$(PYTEST)

# What to run before every commit: all but the slow tests.
check: lint
	scripts/install_font.sh
	$(PYTEST) -m "not slow"

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

# Fixes everything that the linters can fix.
format: .venv/installed-dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Pins the newest versions that pyproject.toml allows; `make test` then shows whether they work.
lock:
	scripts/lock.sh requirements.lock

web/node_modules/installed: web/package.json web/package-lock.json
	scripts/install_node.sh
	npm ci --prefix web --ignore-scripts --no-audit --no-fund --silent
	@touch $@

.venv/made:
	scripts/make_environment.sh .venv
	@touch $@

.venv/installed-run: .venv/made $(LOCKED)
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable .
	@touch $@

.venv/installed-dev: .venv/made $(LOCKED)
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable ".[train,eval,onnx,export,dev]"
	@touch $@ .venv/installed-run
