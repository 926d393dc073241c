# Everything runs in .venv, made from pinned requirements; the only needs are Python >= 3.11, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.requirements

.PHONY: setup build test test-all lint demo bench clean

setup: $(STAMP) build

$(STAMP): requirements.txt requirements-peers.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-peers.txt
	touch $@

build: $(STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .

test: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal -m "not gpu and not exhaustive" --durations=15

test-all: setup
	$(RUN) -m pytest -q -m "not gpu" --durations=30
	GENSSL_ISA=avx2 $(RUN) -m pytest -q -m "not gpu" tests/ops
	GENSSL_ISA=baseline $(RUN) -m pytest -q -m "not gpu" tests/ops

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run --Werror

demo: setup
	$(RUN) examples/demo.py

bench: setup
	$(RUN) -m bench

clean:
	rm -rf build dist *.egg-info genssl_fast/*.so
