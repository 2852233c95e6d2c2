# make run | test | test-device | check | bench | soak | kernels: each sets up what it needs in .venv, nothing is installed elsewhere.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TYPING := build/typing/diinn

.PHONY: run test test-device check bench soak kernels clean

run: .venv/.run
	$(BIN)/diinn-run --camera demo --out-size 640x480 --duration 10 --headless --output out/demo.mp4
	@echo
	@echo "The result is out/demo.mp4: a 160x120 demo camera, super-resolved to 640x480."
	@echo "Next:  $(BIN)/diinn-run --camera 0 --out-size 640x480"
	@echo "       $(BIN)/diinn-run --input PHOTO.jpg --scale 3 --output big.png"
	@echo "       $(BIN)/diinn-run --help"

test: .venv/.dev
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --device standin tests/runtime/test_cuda.py

# All that stands on a device, on real pycuda over a driver of our own, which is built with the CUDA toolkit's headers.
test-device: .venv/.dev
	$(BIN)/python -m pytest --device standin -m device

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(TYPING)
	for room in train export runtime benchmarks; do ln -sfn "$(CURDIR)/$$room" $(TYPING)/$$room; done
	MYPYPATH=build/typing $(BIN)/mypy -p diinn

bench: .venv/.dev
	$(BIN)/python -m diinn.benchmarks.speed
	$(BIN)/python -m diinn.benchmarks.memory

# Hours of several cameras, with one that fails and viewers that come and go: make soak DURATION=8h
DURATION ?= 10m
soak: .venv/.dev
	$(BIN)/python -m diinn.benchmarks.soak --duration $(DURATION)

# Fat binaries of the CUDA kernels, for machines without nvcc: copy runtime/kernels/prebuilt/ there.
kernels: .venv/.run
	$(BIN)/python -m diinn.runtime.kernels.compiler

clean:
	rm -rf .venv build out *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "diinn needs Python 3.10 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python setup.cfg constraints.txt
	$(PIP) -e '.[cpu]'
	touch $@

.venv/.dev: .venv/bin/python setup.cfg constraints.txt
	$(PIP) -e '.[test]'
	touch $@ .venv/.run
