# `make run` and `make test` set up a virtual environment first and then do their job.
VENV ?= .venv
BIN := $(VENV)/bin
FOLDERS := space ops latency_lut proxies search

.PHONY: run test check types setup

run: setup
	@$(BIN)/nfsearch run experiments/quickstart/config.yaml

# One process more than there are cores, as tests of whole runs wait a lot; the tests of a file stay together, because they
# share what is slow to make.
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder

check: setup types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

# The folders at the root are parts of one package; mypy reads them through a tree of links that looks like it. A project
# that uses nfsearch may be read more strictly, without the plugin of pydantic.
types: setup
	@mkdir -p build/types/nfsearch
	@ln -sfn $(CURDIR)/src/nfsearch/* $(foreach folder,$(FOLDERS),$(CURDIR)/$(folder)) build/types/nfsearch/
	@cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p nfsearch
	@cd build/types && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file= --strict --follow-imports=silent $(CURDIR)/tests/typed_project.py

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit("nfsearch needs Python 3.10 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@test "$$(uname -s)" = Linux || { echo "nfsearch runs on Linux alone (on Windows: in WSL), and this is $$(uname -s)" >&2; exit 1; }
	@python3 -m venv $(VENV) || { echo "python3 cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing nfsearch and what it needs into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@rm -rf nfsearch.egg-info  # what the build leaves, which would hide entry points that are added later
	@touch $@
