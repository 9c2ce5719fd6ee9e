# make install [EXTRAS=plan,peer]   .venv with everything, test dependencies included; repeat it to add extras
# make quickstart                   trains every stage on the embedded default, evaluates, writes a report
# make test [ARGS="-k attention"]   the test suite; make test-all adds the proofs that take longer
# make parity                       installs the extra peer and compares every family with transformers itself
# make notebooks | bench | clean    run colab/*.ipynb | measure | remove what install made (never runs/)

PYTHON ?= python3
EXTRAS ?=
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -n auto --dist loadfile $(if $(CI),--color=no --durations=15)

comma := ,
KNOWN := plan peer cuda tpu
ASKED := $(subst $(comma), ,$(EXTRAS))
UNKNOWN := $(filter-out test $(KNOWN),$(ASKED))
ifneq ($(UNKNOWN),)
$(error There is no extra called $(UNKNOWN): EXTRAS takes $(subst $() ,$(comma),$(KNOWN)))
endif
# One empty file per installed extra: each is installed once, stays when another is added, and all of them are
# brought up to date when the versions change.
INSTALLED := $(sort $(patsubst %,$(VENV)/.installed-%,test $(ASKED)) $(wildcard $(VENV)/.installed-*))

.PHONY: install quickstart test test-all parity notebooks bench clean
.NOTPARALLEL:  # two pips must not write one environment

install: $(INSTALLED)

quickstart: install
	$(RUN) -m vlm_jax.train --config configs/quickstart.py --workdir runs/quickstart

test: install
	$(PYTEST) $(ARGS)

test-all: install
	$(PYTEST) -m "not peer" $(ARGS)

parity:
	@$(MAKE) --no-print-directory install EXTRAS=peer
	$(PYTEST) -m peer $(ARGS)

notebooks: install
	$(PYTEST) -m "" tests/test_notebooks.py $(ARGS)

bench: install
	$(RUN) -m experiments.benchmarks $(ARGS)

clean:
	rm -rf $(VENV) *.egg-info build dist .pytest_cache
	find vlm_jax configs experiments tests colab -name __pycache__ -prune -exec rm -rf {} +

# -qq also hides pip's warnings about the reader's own pip settings; errors are shown.
$(VENV)/.installed-%: requirements.txt constraints.txt pyproject.toml | $(VENV)/bin/pip
	@echo "Installing vlm_jax and its extra '$*' into $(VENV) (the first time this takes a minute or more) ..."
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt -e '.[$*]'
	@touch $@

# pip is the last thing that venv makes, so a half-made environment is made again.
$(VENV)/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vlm_jax needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name another one with PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
