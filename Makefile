# make run | test | check | docs | bench | soak | kernels | libraries: each sets up what it needs in .venv; nothing is
# installed elsewhere.
# make test-device: what stands on a GPU, on real pycuda over a driver that plays one.
# make test-oldest | test-system | test-pythons | test-ros | test-arm: the runtime in environments of its own, under build/; the last
# installs QEMU where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TYPING := build/typing/diinn

.PHONY: run test check docs bench soak kernels libraries clean test-device test-oldest test-system test-pythons test-ros test-arm

run: $(VENV)/.run
	$(BIN)/diinn-run --camera demo --out-size 640x480 --duration 10 --headless --output out/demo.mp4
	@echo
	@echo "The result is out/demo.mp4: a 160x120 demo camera, super-resolved to 640x480."
	@echo "Next:  $(BIN)/diinn-run --camera 0 --out-size 640x480"
	@echo "       $(BIN)/diinn-run --input PHOTO.jpg --scale 3 --output big.png"
	@echo "       $(BIN)/diinn-run --help"

test: $(VENV)/.dev
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --device standin tests/runtime/gpu/test_device.py

# All that stands on a device, on real pycuda over a driver of our own, which is built with the CUDA toolkit's headers.
test-device: $(VENV)/.dev
	$(BIN)/python -m pytest --device standin -m device

test-oldest test-system test-ros: $(VENV)/.dev
	VENV=$(VENV) tests/elsewhere.sh $(@:test-%=%)

test-pythons:
	VENV=$(VENV) tests/elsewhere.sh pythons

test-arm: $(VENV)/.run
	PYTHON=$(abspath $(BIN)/python) tests/arm.sh

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(TYPING)
	for room in train export runtime benchmarks; do ln -sfn "$(CURDIR)/$$room" $(TYPING)/$$room; done
	MYPYPATH=build/typing $(BIN)/mypy -p diinn

# The pages of docs/ and the Python reference, into build/docs; a warning is an error, and nothing is fetched.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html -c docs . build/docs
	@echo "The pages are build/docs/index.html"

bench: $(VENV)/.dev
	$(BIN)/diinn-bench speed
	$(BIN)/diinn-bench memory

# Hours of several cameras, with one that fails and viewers that come and go: make soak DURATION=8h
DURATION ?= 10m
soak: $(VENV)/.dev
	$(BIN)/diinn-bench soak --duration $(DURATION)

# Fat binaries of the CUDA kernels, for machines without nvcc: copy runtime/gpu/kernels/prebuilt/ there.
kernels: $(VENV)/.run
	$(BIN)/python -m diinn.runtime.gpu.compiler

# The CPU's decoder for wheels, by the compilers that are here: for x86-64-v3 and, with g++-aarch64-linux-gnu, for aarch64.
libraries: $(VENV)/.run
	$(BIN)/python -m diinn.runtime.cpu.compiler

clean:
	rm -rf $(VENV) build out *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "diinn needs Python 3.10 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python setup.cfg constraints.txt
	$(PIP) -e '.[cpu]'
	touch $@

$(VENV)/.docs: $(VENV)/bin/python setup.cfg constraints.txt
	$(PIP) -e '.[cpu,docs]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python setup.cfg constraints.txt
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.run $(VENV)/.docs
