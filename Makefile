# make demo   installs into .venv, quantizes the models in fixtures/, measures them, and builds their engines
# make docs   writes the generated pages of docs/ and rules/schema.json
# make test   installs, checks style, types and import order, and runs the suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo

.PHONY: demo test lint docs install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml hatch_build.py qdq/compiled/compiled.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[all,dev]'
	touch $@

demo: install
	@$(BIN)/python fixtures/networks/demo.py --out $(DEMO)

docs: install
	$(BIN)/qdq rules docs -o docs --force
	@mkdir -p build
	$(BIN)/qdq rules schema > build/schema.json && mv build/schema.json rules/schema.json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/qdq test rules/
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) build dist qdq/compiled/libqdq.so
