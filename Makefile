# Every command sets itself up: a virtual environment in .venv from pinned requirements, then a
# build. TORCH chooses another torch, PYTHON another interpreter.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
CXX_FILES := 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh'
SOURCES := $(shell git ls-files csrc) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test lint format bench gpu check-torch-cuda build clean

demo: build
	$(BIN)/edlm generate --num 2 --top-p 0.9 --progress

test: build
	$(BIN)/ctest --test-dir build/cmake -j 2 --output-on-failure --no-tests=error
	$(BIN)/python -m pytest python_tests

bench: build
	$(BIN)/python -m pytest bench --benchmark-only

# On a machine with a GPU: build, tests, compute-sanitizer and benchmarks in ten minutes, offline,
# with the Python and packages that are there.
gpu:
	$(PYTHON) bench/gpu_run.py

# Outside CI, for it installs gigabytes: the library just built, in a torch with CUDA. No GPU needed.
CUDA_TORCH ?= torch==2.11.0
check-torch-cuda: build
	$(PYTHON) -m venv build/torch-cuda
	build/torch-cuda/bin/pip install --quiet '$(CUDA_TORCH)' numpy
	build/torch-cuda/bin/python csrc/tests/registered_kernels.py edlm_engine/_torch.so CPU CUDA

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files $(CXX_FILES) | xargs $(BIN)/clang-format --dry-run --Werror

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files $(CXX_FILES) | xargs $(BIN)/clang-format -i

build: build/ready

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

build/ready: .venv/ready $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .

	touch $@

clean:
	rm -rf build .venv edlm_engine/*.so edlm_engine.egg-info
