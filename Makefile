# The verbs of this repo. Everything lives in .venv; `make video` and `make test` need Python 3.10+ and nothing else.

PYTHON ?= python3
PIP_ARGS ?=
PROMPT ?= a red circle moving left
OUT ?= out.mp4
SEED ?= 0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
# the link tree of a strict editable install must be renewed when a file comes or goes
SOURCES := $(shell find engine kernels benchmarks -name '*.py' -o -name '*.json' | LC_ALL=C sort | cksum | tr -d ' ')

.PHONY: video test test-slow lint types format bench clean

video: $(VENV)/installed
	$(BIN)/kinema generate "$(PROMPT)" --output "$(OUT)" --seed $(SEED)

test: $(VENV)/installed $(VENV)/test-tools
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/installed $(VENV)/test-tools
	$(BIN)/pytest -m slow

lint: $(VENV)/lint-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.cpp' '*.cc' '*.h' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/lint-tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cpp' '*.cc' '*.h' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format -i

types: $(VENV)/strict-$(SOURCES) $(VENV)/lint-tools
	$(BIN)/mypy

bench: $(VENV)/installed $(VENV)/test-tools
	$(BIN)/kinema bench --list

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml setup.py constraints.txt | $(BIN)/python
	@echo "installing kinema and its libraries into $(VENV) (once) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/test-tools: constraints.txt pyproject.toml | $(VENV)/installed
	@echo "installing what the tests need (once) ..."
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/lint-tools: constraints.txt pyproject.toml | $(VENV)/installed
	$(PIP) -e '.[lint]'
	@touch $@

# mypy follows files, not import hooks: a strict editable install is a tree of links that it can read
$(VENV)/strict-$(SOURCES): | $(VENV)/installed
	rm -f $(VENV)/strict-*
	$(PIP) --no-deps -e . --config-settings editable_mode=strict
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info engine/*.egg-info out.mp4
