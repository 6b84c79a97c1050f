# Every target works on a fresh clone: it makes .venv and installs what it needs first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTENSION_SOURCES := setup.py $(wildcard csrc/*)
TRAIN_FLAGS ?=
TEST_FLAGS ?=

.PHONY: train test lint coverage clean

train: $(VENV)/installed  ## fetch MNIST and train the quick start on it; TRAIN_FLAGS="--iterations 5000" changes it
	$(RUN) -m fastinfogan.train --dataset mnist --amp $(TRAIN_FLAGS)

test: $(VENV)/installed-test  ## the whole test suite
	$(RUN) -m pytest $(TEST_FLAGS)

lint: $(VENV)/installed-test  ## formatting, ruff's rules, types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

coverage: $(VENV)/installed-test  ## line coverage of fastinfogan/, at least 90 %
	$(RUN) -m pytest --cov --cov-report=term-missing --cov-fail-under=90

clean:  ## remove what the targets made, but for data and runs
	rm -rf $(VENV) build *.egg-info fastinfogan/_C*.so

# torch first and from constraints alone: the CUDA build where a driver is present, else whatever pip has for a CPU.
$(VENV)/torch: constraints.txt
	@if nvidia-smi >/dev/null 2>&1; then echo "NVIDIA driver found: installing for the GPU"; \
	else echo "no NVIDIA driver: installing and running on the CPU"; fi
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch setuptools pybind11
	@touch $@

# Built without isolation, so that setuptools and pybind11 are the pinned ones.
$(VENV)/installed: $(VENV)/torch pyproject.toml $(EXTENSION_SOURCES)
	$(INSTALL) --no-build-isolation --editable '.[triton,dali]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) --no-build-isolation --editable '.[test,lint]'
	@touch $@
