# `make` lists the commands. They need Python 3.11 or newer, and a package index.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

VERSION     := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
SUPPORTED   := $(shell $(PYTHON) -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)
CONSTRAINTS := requirements/$(if $(filter 3.11,$(VERSION)),py311,py312).txt
INPUTS      := setup.cfg pyproject.toml $(CONSTRAINTS)

# A stamp says which Python the environment was made with; the mark says that a pip was cut short.
BASE := $(VENV)/base-$(VERSION).stamp
DEV  := $(VENV)/dev-$(VERSION).stamp
MARK := $(VENV)/unfinished

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all parity lint clean

help:
	@echo "make demo      animate a photograph that ships with the package"
	@echo "make test      lint, types and tests"
	@echo "make test-all  the same, with the slow tests"
	@echo "make parity    compare every module at full size with the PyTorch release"
	@echo "make lint      lint and types only"
	@echo "make clean     remove the environment and all caches"
	@echo
	@echo "Another Python: make PYTHON=/path/to/python3.12 test"

demo: $(BASE)
	$(BIN)/python -m dynamicrafter_jax.demo

# A file's tests share what they compile, so one worker runs them all.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Slow tests are handed out two at a time, so that no worker is left with many of them.
test-all: test
	$(BIN)/python -m pytest -n 2 -m slow --maxschedchunk 2 --durations 10

parity: $(DEV)
	$(BIN)/python benchmarks/parity.py

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE): $(INPUTS)
	$(call install,.)
	@touch $(BASE)

$(DEV): $(INPUTS)
	$(call install,.[dev])
	@touch $(BASE) $(DEV)

# $(call install,REQUIREMENT): a new environment, unless a finished one of this Python is there.
define install
$(if $(filter True,$(SUPPORTED)),,$(error Python 3.11 or newer is needed, but $(PYTHON) is \
$(or $(VERSION),not there): use make PYTHON=/path/to/python3.12))
@if [ -e $(MARK) ] || ! [ -x $(BIN)/python ] || [ "$$($(BIN)/python -c \
'import sys; print("%d.%d" % sys.version_info[:2])')" != "$(VERSION)" ]; then \
	rm -rf $(VENV) && mkdir -p $(VENV) && touch $(MARK) && $(PYTHON) -m venv $(VENV); fi
@touch $(MARK)
@echo "installing $(1) into $(VENV), which takes a minute or more the first time"
@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c $(CONSTRAINTS) -e "$(1)"
@rm $(MARK)
endef
