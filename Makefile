# Every target makes the virtual environment $(VENV) when it is not there, and installs into it what
# the target needs; a second run finds a stamp file and goes straight to work.
#
#   make demo       train a small Meerkat from scratch, score it, write the report    about 20 minutes
#   make test       the tests that are quick enough for every change                  about 35 minutes
#   make test-all   those marked slow too
#   make lint       ruff: rules and format
#   make format     ruff: mend what it can

# Variables: make demo PYTHON=python3.12 DEMO_DIR=runs/other DEMO_FLAGS=--overwrite
PYTHON ?= python3
VENV ?= .venv
DEMO_DIR ?= runs/demo
DEMO_CONFIG ?= experiments/avfit.py
DEMO_FLAGS ?= --resume
TEST_FLAGS ?=
# Test processes side by side. The tests mostly wait for XLA to compile, on one core each.
TEST_JOBS ?= 2
TORCH ?= torch==2.13.0
PIP_FLAGS ?=

SHELL := /bin/bash
RUN := $(VENV)/bin/python
PIP = $(RUN) -m pip --disable-pip-version-check install --quiet --progress-bar off $(PIP_FLAGS)
REQUIREMENTS := requirements.txt constraints.txt pyproject.toml

# glibc's malloc gives big blocks back to the kernel when they are freed, and zeroed pages cost the
# next step a quarter of its CPU time. Keep them instead.
demo: export MALLOC_MMAP_MAX_ := 0
demo: export MALLOC_TRIM_THRESHOLD_ := 100000000000
demo: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
test test-all: export OMP_NUM_THREADS := 1

.PHONY: demo test test-all lint format clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready-run
	$(RUN) -m meerkat_jax.train --config=$(DEMO_CONFIG) --workdir=$(DEMO_DIR) $(DEMO_FLAGS)
	$(RUN) -m meerkat_jax.evaluate --workdir=$(DEMO_DIR)
	@echo
	@echo "Open $(DEMO_DIR)/report.html in a browser. 'make demo' again goes on with this run,"
	@echo "'make demo DEMO_FLAGS=--overwrite' starts anew."

test: $(VENV)/.ready-test
	$(RUN) -m pytest -n $(TEST_JOBS) -m "not slow" --dist=loadfile --no-loadscope-reorder -rfEs $(TEST_FLAGS)

test-all: $(VENV)/.ready-test
	$(RUN) -m pytest -n $(TEST_JOBS) --dist=loadfile --no-loadscope-reorder -rfEs $(TEST_FLAGS)

lint: $(VENV)/.ready-lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.ready-lint
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV)

# The versions of constraints.txt exist for Python 3.11 to 3.13. A later Python may need newer ones:
# there the lower bounds of requirements.txt decide.
define install
	@echo "installing into $(VENV): $(1) (minutes, the first time)"
	@if $(RUN) -c 'import sys; sys.exit(sys.version_info >= (3, 14))'; then \
	    $(PIP) -c constraints.txt $(1); \
	else \
	    echo "this Python is newer than those of constraints.txt: taking the newest versions"; \
	    $(PIP) $(1); \
	fi
	@touch $@
endef

$(VENV)/.ready-run: $(VENV)/.made $(REQUIREMENTS)
	$(call install,-r requirements.txt)

$(VENV)/.ready-test: $(VENV)/.made $(REQUIREMENTS)
	$(call install,$(TORCH) -e '.[test]')

$(VENV)/.ready-lint: $(VENV)/.made constraints.txt
	$(call install,ruff)

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || \
	    { echo "$(PYTHON) not found; install it: sudo apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$$($(PYTHON) --version) is too old, 3.11 or later is needed; name one:" \
	        "make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >$(VENV).log 2>&1 || \
	    { tail -n 3 $(VENV).log; rm -rf $(VENV) $(VENV).log; \
	      echo "no virtual environment; Debian and Ubuntu keep that apart:" \
	        "sudo apt-get install python3-venv"; exit 1; }
	@rm -f $(VENV).log; touch $@
