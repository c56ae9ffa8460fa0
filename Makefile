# Two commands matter: `make demo` and `make test`. Each installs what it needs on the first run:
#   .tools         uv, the installer
#   .venv          this package with its development tools
#   .label-studio  the real Label Studio in an environment of its own, its data and logs
PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .tools/bin/uv
RUN := .venv/bin/python -m
DEMO ?=

SHELL := /bin/bash
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := .venv

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow browser docs lint format clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 16

demo: setup ## start Label Studio and the backend with twelve pre-annotated images; Ctrl-C stops both
	@$(RUN) rsvp_backend demo $(DEMO)

test: setup lint ## lint, type check and all tests, the end-to-end test with the real Label Studio included
	@$(RUN) pytest

slow: setup ## the tests that build models of the published size: minutes, 8 GB of memory
	@$(RUN) pytest -m slow

browser: setup ## the tests that drive Chromium (apt install chromium), the recorded loop included: minutes
	@$(RUN) pytest -m browser

docs: .venv/synced ## the documentation as a site, in out/docs
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

lint: .venv/synced ## ruff (rules and format) and mypy (strict)
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

format: .venv/synced ## let ruff rewrite the files
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

# The two environments are independent and are made at the same time.
setup: $(UV) ## install both environments (the other targets do this by themselves)
	@$(MAKE) --no-print-directory -j2 .venv/synced .label-studio/prepared

clean: ## remove everything that was installed or made, Label Studio's data included
	rm -rf .venv .tools .label-studio .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist out

.venv/synced: pyproject.toml uv.lock | $(UV)
	@echo "rsvp-backend: installing into .venv (about 5 GB, PyTorch included; one to three minutes)"
	@set -o pipefail; $(UV) sync --locked --python "$(PYTHON)" 2>&1 | { grep -v '^ [+-] ' || true; }
	@touch $@
	@echo "rsvp-backend: installed"

.label-studio/prepared: rsvp_backend/demo/label-studio-requirements.txt | $(UV)
	@UV="$(abspath $(UV))" $(PYTHON) -m rsvp_backend.demo.label_studio
	@touch $@

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer: run make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "uv: installing into .tools"
	@$(PYTHON) -m venv .tools || \
		{ echo "Python's venv module is incomplete (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
