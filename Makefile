# Every target works on a fresh clone: it makes .venv and installs what it needs first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTENSION_SOURCES := setup.py $(wildcard csrc/*)
TRAIN_FLAGS ?=
TEST_FLAGS ?=
# A process per core up to four, of 1.5 GB each. TEST_FLAGS=-n0 for one; their waiting threads are not to spin.
PYTEST := OMP_WAIT_POLICY=passive $(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: train test test-all test-ptx lint coverage sanitize mutations bench claims clean

train: $(VENV)/installed  ## fetch MNIST and train the quick start on it; TRAIN_FLAGS="--iterations 5000" changes it
	$(RUN) -m fastinfogan.train --dataset mnist --amp $(TRAIN_FLAGS)

test: $(VENV)/installed-test  ## the test suite, without the long proofs of test-all
	$(PYTEST) $(TEST_FLAGS)

test-all: $(VENV)/installed-test  ## with the long proofs that `make test` leaves out
	$(PYTEST) -m 'slow or not slow' $(TEST_FLAGS)

test-ptx: $(VENV)/installed-test  ## every kernel's PTX, executed: all presets, dtypes, architectures and batches
	$(PYTEST) -m 'slow or not slow' $(wildcard tests/test_ptx_*.py) $(TEST_FLAGS)
	$(RUN) -m tests.ptx

lint: $(VENV)/installed-test  ## formatting, ruff's rules, types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

coverage: $(VENV)/installed-test  ## line coverage of fastinfogan/, at least 90 %
	$(PYTEST) --cov --cov-report=term-missing --cov-fail-under=90

# The extension with AddressSanitizer and UndefinedBehaviorSanitizer, in a copy, so that the built one stays as it is.
sanitize: $(VENV)/installed-test  ## the extension's tests under ASan and UBSan
	rm -rf build/sanitize && mkdir -p build/sanitize && git ls-files -z | xargs -0 cp --parents -t build/sanitize
	cd build/sanitize && FASTINFOGAN_SANITIZE=1 $(abspath $(RUN)) setup.py -q build_ext --inplace
	cd build/sanitize && \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=. \
	$(abspath $(RUN)) -m pytest tests/test_native.py -p no:cacheprovider

mutations: $(VENV)/installed-test  ## break every kernel in five ways and show which test sees it
	$(RUN) -m tests.mutations

# Runs of the speedrun that have their row of this commit and machine are not repeated.
bench: $(VENV)/installed-test  ## the measured tables and pictures of bench/results/; hours on two cores
	$(RUN) -m bench kernels --static
	$(RUN) -m bench kernels
	$(RUN) -m bench step --static
	$(RUN) -m bench step
	$(RUN) -m bench data
	$(RUN) -m bench render
	$(RUN) -m bench speedrun --contestants eager tuned --seeds 0
	$(RUN) -m bench speedrun --contestants same --seeds 0 1 2
	$(RUN) -m bench speedrun --contestants own --seeds 20 21 22 23 24 25 26 27 28 29

# Runs that have their row are not repeated, and one that was stopped goes on.
claims: $(VENV)/installed-test  ## every claim of bench/results/claims/; many hours on two cores
	set -e; for name in information mnist invariance longer ablation objective fashion probe imbalanced faces chairs \
	chairs-paper svhn celeba dsprites; do $(RUN) -m bench claims $$name; done

clean:  ## remove what the targets made, but for data and runs
	rm -rf $(VENV) build *.egg-info fastinfogan/_C*.so

# torch first and from constraints alone: the CUDA build where a driver is present, else whatever pip has for a CPU.
$(VENV)/torch: constraints.txt
	@if nvidia-smi >/dev/null 2>&1; then echo "NVIDIA driver found: installing for the GPU"; \
	else echo "no NVIDIA driver: installing and running on the CPU"; fi
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch setuptools pybind11
	@if nvidia-smi >/dev/null 2>&1 && ! $(RUN) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	echo "torch does not see the GPU and everything will run on the CPU: torch 2.13 is built for CUDA 13, which needs" \
	"driver 580 or newer (nvidia-smi shows yours)"; fi
	@touch $@

# Built without isolation, so that setuptools and pybind11 are the pinned ones.
$(VENV)/installed: $(VENV)/torch pyproject.toml $(EXTENSION_SOURCES)
	$(INSTALL) --no-build-isolation --editable '.[triton,dali]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) --no-build-isolation --editable '.[test,lint,metrics,render]'
	@touch $@
