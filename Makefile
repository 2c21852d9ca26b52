# make demo    adapt the embedded model to telephone prompts and report word error rates before and after
# make test    every test
# make check   format, lint, types, architecture
# make docs    the pages as a site, build/site/index.html
# make lock    requirements/*.txt anew, the files that are installed by their hashes
# make clean   remove caches and build leftovers (the environment stays: `rm -r .venv` starts it afresh)
#
# PYTHON=python3.12   the interpreter of the environment
# TORCH_INDEX=URL     the index that PyTorch alone comes from, such as PyTorch's own of CPU builds
# PIP_ARGS=...        anything else for `pip install`

PYTHON ?= python3
TORCH_INDEX ?=
PIP_ARGS ?=

bin := .venv/bin
pip := $(bin)/python -m pip
pip_install := $(pip) install --quiet --disable-pip-version-check $(PIP_ARGS)

# Every file but PyTorch's comes with its hash; PyTorch, and what only it needs, from TORCH_INDEX where that is given.
define install
	$(pip_install) --require-hashes --no-deps --requirement requirements/$(1).txt
	$(pip_install) --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(pip_install) --constraint constraints.txt --no-build-isolation --editable '.[$(2)]'
endef

comma := ,

.PHONY: demo test check docs lock clean

demo: .venv/installed
	$(bin)/overtone demo

test: .venv/installed-dev
	$(bin)/python -m pytest -q --durations=15

check: .venv/installed-dev
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy --strict overtone recipes
	$(bin)/python -m pytest -q tests/test_architecture.py tests/test_docstrings.py tests/test_exports.py

# mkdocs wants all pages in one folder below its own.
pages := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE NOTICE docs benchmarks overtone/fundamental/README.md \
	recipes/fundamental/README.md overtone/prompts/README.md

docs: .venv/installed-docs
	rm -rf build/pages && mkdir -p build/pages && cp -r --parents $(wildcard $(pages)) build/pages
	$(bin)/mkdocs build --quiet --strict
	@echo "Written: build/site/index.html"

lock:
	$(PYTHON) requirements/lock.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# The stamps carry the time of the last installation, which is repeated only when these files change.
.venv/installed: pyproject.toml constraints.txt requirements/demo.txt | $(bin)/python
	@echo "Installing Overtone into .venv"
	$(call install,demo,serve)
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt requirements/test.txt | $(bin)/python
	@echo "Installing Overtone and its development tools into .venv"
	$(call install,test,dev$(comma)serve$(comma)openvino$(comma)datasets$(comma)ray$(comma)search)
	@touch .venv/installed $@

.venv/installed-docs: pyproject.toml constraints.txt | $(bin)/python
	$(pip_install) --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(bin)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Overtone needs Python 3.11 or later; this is {v.major}.{v.minor}. Name another with PYTHON=...")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
