# Two commands matter: make demo and make test. Both set up .venv from constraints.txt by themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUN := $(BIN)/rim-lens

.PHONY: demo test test-fast test-compat test-engine bench-engine families lint bench bench-gpu trust docs notebooks clean

demo: .venv/.installed
	$(RUN) organism inference-known
	$(RUN) audit smollm2-135m-instruct --checkpoints assets/organism/demo.json --quick --n-controls 50 --out runs/demo

# Two processes side by side, one thread each, what they start included.
test test-fast: export OMP_NUM_THREADS = 1

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The last release of TransformerLens with HookedTransformer, in an environment of its own.
test-compat: .venv35/.installed
	.venv35/bin/python -m pytest tests/compat

# vLLM on a CPU, in an environment of its own (3.4 GB): the same numbers as transformers.
test-engine: .venvllm/.installed
	OMP_NUM_THREADS=2 .venvllm/bin/python -m pytest tests/engine

# vLLM beside transformers: equal numbers, and the seconds of both; about an hour on one core.
bench-engine: .venvllm/.installed
	OMP_NUM_THREADS=1 .venvllm/bin/python -m benchmarks.engine

families: .venv/.installed-dev
	$(BIN)/python tests/family_table.py

test-fast: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not real_model and not gpu and not slow"

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python security/check.py

bench: .venv/.installed-dev
	$(BIN)/python -m benchmarks

# The same figures on a CUDA device, and vLLM's where it is installed.
bench-gpu: .venv/.installed-dev
	$(BIN)/python -m benchmarks.gpu
	if $(BIN)/python -c "import vllm" 2>/dev/null; then $(BIN)/python -m benchmarks.engine; fi

# Everything that docs/trust.md publishes, anew; on two cores well over an hour.
trust: .venv/.installed-dev
	$(BIN)/python -m benchmarks.trust

docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: .venv/.installed-dev
	$(BIN)/python notebooks/execute.py

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

.venv35/.installed: pyproject.toml constraints.txt tests/compat/constraints.txt
	$(PYTHON) -m venv .venv35
	(grep -v '^transformer-lens==' constraints.txt; cat tests/compat/constraints.txt) > .venv35/constraints.txt
	.venv35/bin/python -m pip install --quiet --constraint .venv35/constraints.txt torch==2.13.0
	.venv35/bin/python -m pip install --quiet --constraint .venv35/constraints.txt --editable . pytest pytest-timeout
	touch $@

.venvllm/.installed: pyproject.toml constraints.txt tests/engine/install.sh
	PYTHON=$(PYTHON) bash tests/engine/install.sh .venvllm
	touch $@

clean:
	rm -rf .venv .venv35 .venvllm runs
