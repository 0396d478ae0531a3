# make demo    the main job on real input            (ARGS="--items 200 --once" are passed on)
# make test    every test                            (ARGS="-k batcher" are passed on to pytest)
# make venv    the environment alone
# make triton  the real Triton of tests/conformance (`make test` does it too; without one, these tests are skipped)
# make check   what .ci/run checks before the tests
# make pins    requirements-dev.txt anew from pyproject.toml (needs uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRITON := .venv-triton
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test venv triton check format generate pins clean

demo: venv
	@$(BIN)/pointsman demo $(ARGS)

test: venv triton
	@$(BIN)/python -m pytest $(ARGS)

venv: $(VENV)/.installed

$(VENV)/.installed: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Pointsman needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 venv")'
	@echo "Preparing $(VENV) (once, a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Never fails: what is written to why-not is the reason that the tests give.
triton: venv
	@test $(TRITON)/.installed -nt requirements-triton.txt || { \
		echo "Preparing $(TRITON) (once, half a minute) ..."; \
		rm -rf $(TRITON); $(BIN)/python -m venv $(TRITON) && \
		$(TRITON)/bin/python -m pip install --quiet --retries 1 --timeout 30 --only-binary :all: \
			--no-deps --require-hashes -r requirements-triton.txt 2> $(TRITON)/why-not && \
		touch $(TRITON)/.installed || echo "There is no Triton here; tests/conformance will be skipped."; }

check: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python .ci/generated.py --check

format: venv
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

generate: venv
	@$(BIN)/python .ci/generated.py

pins:
	@uv pip compile pyproject.toml --group dev --extra demo --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet -o requirements-dev.txt

clean:
	rm -rf $(VENV) $(TRITON) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
