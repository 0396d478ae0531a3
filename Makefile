# make demo    the main job on real input            (ARGS="--items 200 --once" are passed on)
# make test    every test                            (ARGS="-k batcher" are passed on to pytest)
# make venv    the environment alone
# make triton  the real Triton of tests/conformance (`make test` does it too; without one, these tests are skipped)
# make mlserver, make kserve  the real servers of tests/integration/v2_servers (likewise)
# make check   what .ci/run checks before the tests
# make pins    requirements-dev.txt anew from pyproject.toml, and those of the real servers (needs uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --quiet
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test venv triton mlserver kserve check format generate pins clean

demo: venv
	@$(BIN)/pointsman demo $(ARGS)

test: venv triton mlserver kserve
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
triton mlserver kserve: venv
	@test .venv-$@/.installed -nt requirements-$@.txt || { \
		echo "Preparing .venv-$@ (once, half a minute) ..."; \
		rm -rf .venv-$@; $(BIN)/python -m venv .venv-$@ && \
		.venv-$@/bin/python -m pip install --quiet --retries 1 --timeout 30 --only-binary :all: \
			--no-deps --require-hashes -r requirements-$@.txt 2> .venv-$@/why-not && \
		touch .venv-$@/.installed || echo "There is no $@ here; the tests against it will be skipped."; }

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
	@$(COMPILE) pyproject.toml --group dev --extra demo -o requirements-dev.txt
	@$(COMPILE) loadtests/peers/requirements/mlserver.txt -o requirements-mlserver.txt
	@$(COMPILE) loadtests/peers/requirements/kserve.txt -o requirements-kserve.txt

clean:
	rm -rf $(VENV) .venv-triton .venv-mlserver .venv-kserve .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
