# Every command sets itself up: a virtual environment in .venv from pinned requirements, then a
# build. TORCH chooses another torch, PYTHON another interpreter.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
SOURCES := $(shell git ls-files csrc) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test lint format bench build clean

demo: build
	$(BIN)/edlm generate --num 2 --progress

test: build
	$(BIN)/ctest --test-dir build/cmake --output-on-failure --no-tests=error
	$(BIN)/python -m pytest python_tests

bench: build
	$(BIN)/python -m pytest bench --benchmark-only

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files 'csrc/*' | xargs $(BIN)/clang-format --dry-run --Werror

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*' | xargs $(BIN)/clang-format -i

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
