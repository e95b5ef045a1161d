# make demo           installs into .venv, quantizes the models in fixtures/, measures them, and builds their engines
# make docs           writes the generated pages of docs/ and rules/schema.json
# make site           builds docs/ into site/, without the network
# make test           installs, checks style, types and import order, and runs the suite
# make test-oldest    runs a part of the suite on Python 3.10 with the oldest supported dependencies
# make test-newest    runs the same part on Python 3.13 with the newest
# make constraints    writes constraints/test.txt anew: the versions that `make test` installs
# make dist           builds wheels and sdist twice, compares their bytes, and keeps them in dist/
# make release-check  what must be true before a release is tagged
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
# The part that depends most on the versions of ONNX, ONNX Runtime, NumPy and click. The site is built by pinned versions
# of its own tools alone.
PART := tests/graph tests/ranges tests/calibration tests/rules tests/quantized tests/checking tests/reports \
	tests/documentation tests/test_public_api.py --ignore=tests/documentation/test_site.py

.PHONY: demo test test-oldest test-newest lint docs site install constraints dist release-check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml hatch_build.py qdq/compiled/compiled.c constraints/test.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints/test.txt -e '.[dev]'
	touch $@

demo: install
	@$(BIN)/python fixtures/networks/demo.py --out $(DEMO)

docs: install
	$(BIN)/qdq rules docs -o docs --force
	@mkdir -p build
	$(BIN)/qdq rules schema > build/schema.json && mv build/schema.json rules/schema.json

site: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/qdq test rules/
	$(BIN)/python -m pytest -n 2

test-oldest:
	@if python=$$(release/find_python.sh 3.10); then $(MAKE) test-part PART_PYTHON=$$python PART_VENV=build/oldest \
		PART_OPTIONS='-c constraints/oldest.txt'; else echo 'The oldest dependencies are not tested.'; fi

test-newest:
	@if python=$$(release/find_python.sh 3.13); then $(MAKE) test-part PART_PYTHON=$$python PART_VENV=build/newest \
		PART_OPTIONS='--upgrade --upgrade-strategy eager'; else echo 'The newest dependencies are not tested.'; fi

.PHONY: test-part
test-part:
	$(PART_PYTHON) -m venv $(PART_VENV)
	$(PART_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(PART_VENV)/bin/python -m pip install --quiet $(PART_OPTIONS) -e '.[dev]'
	$(PART_VENV)/bin/python -m pip list --format=freeze | grep -iE '^(onnx|numpy|polygraphy|click|msgspec)'
	$(PART_VENV)/bin/python -m pytest -n 2 $(PART)

constraints: install
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-annotate --no-header --upgrade \
		pyproject.toml -o constraints/test.txt

dist: install
	$(BIN)/python release/compare_builds.py -o dist

release-check: dist site
	$(BIN)/python release/check_release.py dist

clean:
	rm -rf $(VENV) build dist site qdq/compiled/libqdq.so
