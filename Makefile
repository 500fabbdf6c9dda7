# make demo     install the locked packages into .venv, run the benchmark on a real model, write results/report/
# make test     all tests but the long ones; one of them: make test PYTEST_ARGS="-k owl"
# make quick    the unit tests that need no model, about a minute; of others: make quick QUICK=tests/models
# make check    formatter, linters, types, import order, dry run
# make docs     the documentation site, in site/
# make audit    look the locked packages up in a database of vulnerabilities
# make schemas  the JSON schemas of the configuration, for editors
# make test-long                      the long tests: more families, pruners and kills
# make test-faults, make test-slurm   kills and damaged files; a virtual cluster
# make install  only the packages
# make clean    remove caches, logs and the report; cells and data stay

PYTHON ?= python3
VENV ?= .venv
GRID ?= config/grids/demo.yaml
PROFILE ?= $(or $(SNAKEMAKE_PROFILE),profiles/local)
PYTEST_ARGS ?=
# A process for each core, and in each a single thread: the models of the tests are tiny.
SHARED := -n logical --maxprocesses 4 --dist loadfile
QUICK := $(addprefix tests/,core config store allocators)

BIN := $(VENV)/bin
RUN := PATH="$(abspath $(BIN)):$$PATH"
SNAKEMAKE := $(RUN) snakemake --cores all --profile "$(PROFILE)" --config grid="$(GRID)"
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt

.PHONY: install demo test quick test-long test-faults test-slurm check accept schemas docs audit clean
.DEFAULT_GOAL := demo

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11, which ffp needs. Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Installing the packages of constraints.txt into $(VENV) (once; a few minutes, 2 GB and more with CUDA) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e '.[grid,test]'
	@touch $@
	@echo "Installed."

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the linters into $(VENV) ..."
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

# The dry run costs two seconds and lets a second `make demo` say in one line that there was nothing to do.
demo: install
	@if $(SNAKEMAKE) --dry-run 2>&1 | grep -q '^Nothing to be done'; then \
	  echo "Nothing to do: results/report/index.html is up to date."; \
	else \
	  $(SNAKEMAKE); \
	fi

test: install
	@$(RUN) python -m pytest $(SHARED) $(PYTEST_ARGS)

quick: install
	@$(RUN) python -m pytest $(SHARED) -m 'not slurm and not long and not slow and not vllm' $(QUICK) $(PYTEST_ARGS)

test-long: install
	@$(RUN) python -m pytest $(SHARED) -m 'long and not slurm and not vllm' --timeout 3600 $(PYTEST_ARGS)

# Every kill, fault and bad input of the tests, half an hour; what it counted is in benchmarks/results/faults.json.
# The soak on a virtual Slurm adds its own section:  python -m tests.faults.soak --help
test-faults: install
	@$(RUN) python -m pytest -m '(fault or bad_input) and not slurm and not vllm' --timeout 3600 \
	  --counts benchmarks/results/faults.json tests $(PYTEST_ARGS)

# A real Slurm of four virtual nodes (root on Debian; skipped with its reason elsewhere), ten minutes.
test-slurm: install
	@$(RUN) python -m pytest -m slurm --timeout 3600 tests/slurm $(PYTEST_ARGS)

# After an edit of ffp/ that changes no number, or after raising a version: records that results made so far stay valid.
accept: install
	@$(RUN) python -c 'from ffp.store.identity import accept_code; accept_code()'
	@git diff --stat -- ffp/store/accepted.json

# After a change of ffp/config/.
schemas: install
	@$(RUN) ffp schema --out config/schemas

check: $(VENV)/.installed-dev
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) snakefmt --check Snakefile workflow
	$(RUN) lint-imports
	$(RUN) snakemake --lint
	$(SNAKEMAKE) --dry-run --quiet all

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing the documentation's tools into $(VENV) ..."
	@$(PIP_INSTALL) -e '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs
	@$(RUN) NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "Built: site/index.html"

# An environment of its own: pip-audit shares no package with ffp and must not change the lock.
AUDIT := $(VENV)-audit/bin/python
$(VENV)-audit/.installed: .ci/audit-requirements.txt
	@$(PYTHON) -m venv $(VENV)-audit
	@if $(AUDIT) -m pip install --quiet --quiet --disable-pip-version-check -r $<; then touch $@; else \
	  echo "audit skipped: pip-audit cannot be installed from the package index."; fi

audit: $(VENV)-audit/.installed
	@if test -e $<; then $(AUDIT) .ci/audit.py constraints.txt; fi

# Cells, models and calibration are kept: they are what costs time.
clean:
	rm -rf results/report logs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
