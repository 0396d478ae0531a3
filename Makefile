# make demo    the main job on real input            (ARGS="--items 200 --once" are passed on)
# make cluster-demo  the same on Ray Serve, by two gateways on this machine (likewise)
# make test    every test; with ARGS="-k batcher", those that pytest finds with them
# make test-unit, test-servers, test-faults, test-ray  the parts of it
# make venv    the environment alone
# make triton  the real Triton of tests/conformance (`make test` does it too; without one, these tests are skipped)
# make mlserver, make kserve  the real servers of tests/integration/v2_servers (likewise)
# make ray     an environment with Ray Serve beside everything else, for tests/integration/ray (likewise)
# make check   what .ci/run checks before the tests
# make pins    requirements-dev.txt anew from pyproject.toml, and those of the real servers (needs uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --quiet
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo cluster-demo test test-unit test-servers test-faults test-ray venv triton mlserver kserve ray check format generate pins clean

demo: venv
	@$(BIN)/pointsman demo $(ARGS)

cluster-demo: ray
	@test -e .venv-ray/.installed || { cat .venv-ray/why-not; exit 1; }
	@.venv-ray/bin/pointsman demo --cluster 2 $(ARGS)

ifdef ARGS
test: venv triton mlserver kserve
	@$(BIN)/python -m pytest $(ARGS)
else
test: test-unit test-servers test-faults test-ray
endif

test-unit: venv
	@$(BIN)/python -m pytest -q -n 2 tests/unit tests/fuzz $(ARGS)

test-servers: venv triton mlserver kserve
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/conformance tests/integration tests/faults/test_store_kill.py \
		--ignore tests/integration/ray $(ARGS)

# One at a time: they break things on purpose, and look at how long others wait meanwhile.
test-faults: venv triton
	@$(BIN)/python -m pytest -q tests/faults --ignore tests/faults/test_store_kill.py $(ARGS)

test-ray: ray triton
	@test ! -e .venv-ray/.installed || .venv-ray/bin/python -m pytest -q tests/integration/ray $(ARGS)

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

# Everything that .venv has, in the same versions, and Ray.
ray: venv
	@test .venv-ray/.installed -nt requirements-ray.txt -a .venv-ray/.installed -nt requirements-dev.txt || { \
		echo "Preparing .venv-ray (once, a minute or two) ..."; \
		rm -rf .venv-ray; $(BIN)/python -m venv .venv-ray && \
		.venv-ray/bin/python -m pip install --quiet --retries 1 --timeout 30 --only-binary :all: \
			--no-deps --require-hashes -r requirements-dev.txt -r requirements-ray.txt 2> .venv-ray/why-not && \
		.venv-ray/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable . 2>> .venv-ray/why-not && \
		touch .venv-ray/.installed || echo "There is no Ray here; the tests with it will be skipped."; }

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
	@$(COMPILE) pyproject.toml --group dev --extra demo --extra cluster -c requirements-dev.txt \
		$$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements-dev.txt) -o requirements-ray.txt
	@$(COMPILE) loadtests/peers/requirements/mlserver.txt -o requirements-mlserver.txt
	@$(COMPILE) loadtests/peers/requirements/kserve.txt -o requirements-kserve.txt

clean:
	rm -rf $(VENV) .venv-triton .venv-mlserver .venv-kserve .venv-ray .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
