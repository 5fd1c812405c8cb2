# skinrepro: `make demo` and `make test` need only Python 3.11 or 3.12, git and make. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL  := /bin/bash
VENV   ?= .venv
BIN    := $(VENV)/bin
# the first interpreter of the right version that really starts (a pyenv shim may exist without one)
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
            $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1 && { command -v $$p; break; }; done)
JOBS   ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
export HF_HUB_OFFLINE ?= 1
STAMP  := $(VENV)/.setup-done

.PHONY: help setup demo test lab chest export check clean lock

help:  ## list the commands
	@grep -hE '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP)  ## make the virtual environment (done by the others when needed)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo 'No Python 3.11 or 3.12 was found. Install one, or name it: make PYTHON=/path/to/python3.12 ...'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo 'Installing the locked environment (about 6 GB; once) ...'
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: $(STAMP)  ## wang2024: an exact table and a first picture at once, then scenario ii with one draw at profile mini, all on one page
	@$(BIN)/skinrepro first wang2024
	@$(BIN)/skinrepro run wang2024 --profile mini --section scenario,synthetic --set scenario=ii --set seed=0 --cores $(JOBS) --open

test: $(STAMP)  ## all tests: package, notebooks, paper folders, faults
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(ARGS)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab nbs/index.ipynb

chest: $(STAMP)  ## also install torchxrayvision, whose tables Figures 4 and A1 of ktena2023 are counted from (29 MB)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.lock -e '.[chest]'

export: $(STAMP)  ## notebooks -> package, and strip outputs
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/jupyter nbconvert --log-level=ERROR --clear-output --inplace $(shell find nbs -name '*.ipynb' -not -path '*/.*')

check: $(STAMP)  ## style, and whether notebooks and package are in step
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m pytest -q tests/test_sync.py tests/test_layers.py tests/test_papers.py

lock:  ## resolve requirements.in into requirements.lock (for maintainers)
	@$(BIN)/uv pip compile requirements.in --universal --python-version 3.11 --no-header --no-annotate -q -o requirements.lock

clean:  ## remove what can be made again: environment, runs, cache
	rm -rf $(VENV) runs cache build dist *.egg-info .ruff_cache
