# Every command of the project. `make help` lists them.
#
# Run one test:         .venv/bin/pytest tests/safety/merge/test_co_merge.py -k disjoint
# Run one test folder:  .venv/bin/pytest tests/safety/merge

VENV ?= .venv
PYTHON ?= python3
# cpu takes the CPU build of torch where pip finds one (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu), and else
# PyPI's, which brings CUDA. With a CUDA GPU: make demo DEVICE=cuda
DEVICE ?= cpu
CONFIG ?= jobs/configs/emoji.yaml
RUN = $(VENV)/bin/python
# Where the demo keeps its artifacts: a folder or, with STORE=s3, a real S3 server on loopback with its data in out/s3.
STORE ?= folder
JOB = $(RUN) -m $(if $(filter s3,$(STORE)),tests.support.s3_demo)
INSTALLED = $(VENV)/.installed$(if $(filter s3,$(STORE)),-dev)
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check --no-input
# Three processes of one thread each share two cores, as each waits now and then (tests/conftest.py says how tests are
# shared out).
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/pytest
SHARED = -n 3 --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo serve preflight report world test test-fast nightly faults coverage lint ruff mypy imports arrows format docs lock audit clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# From the lock, by hash; the image installs from it too (Dockerfile).
$(VENV)/.installed: pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV)
	device=$(DEVICE); \
	if [ $$device = cpu ] && ! $(INSTALL) --no-deps --require-hashes -r requirements/torch-cpu.txt; then \
		echo "No CPU build of torch here: taking PyPI's, which brings several GB of CUDA." >&2; device=cuda; \
	fi; \
	$(INSTALL) --require-hashes -r requirements/$$device.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

# What tests and linters need beside it.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --no-deps --require-hashes -r requirements/dev.txt
	touch $@

demo: $(INSTALLED) ## set up and run the whole pipeline on the embedded emoji model (15 to 20 minutes on 2 cores)
	$(JOB) jobs.pipeline --config $(CONFIG)

serve: $(INSTALLED) ## keep the endpoint of the last release up, with a page in the browser
	$(JOB) serve --config $(CONFIG)

preflight: $(INSTALLED) ## check whether a run can start, and try it out
	$(JOB) jobs.preflight --config $(CONFIG)

test: lint ## set up, then run the linters, the type checks and all tests but the nightly ones
	$(PYTEST) $(SHARED) -m "not nightly"

nightly: $(VENV)/.installed-dev ## run the tests that take minutes each: every model family through all stages, killed nodes and workers
	$(PYTEST) -m nightly

# What needs no Ray, no endpoint and no S3 server, and takes under five seconds a test.
test-fast: lint ## run the linters, the type checks and the fast tests (2 minutes on 2 cores)
	$(PYTEST) -n 2 --dist loadgroup --no-loadscope-reorder -m "not ray and not serve and not s3 and not slow and not nightly"

faults: $(VENV)/.installed-dev ## run the fault tests in their full counts and write docs/faults (half an hour)
	$(PYTEST) tests/faults --faults-full

coverage: $(VENV)/.installed-dev ## run all tests and report which lines they run, subprocesses and Ray workers included
	$(PYTEST) $(SHARED) -m "not nightly" --cov --cov-report=term:skip-covered --cov-report=html:out/coverage

lint: $(VENV)/.installed-dev ## run ruff, mypy and the import contracts
	$(MAKE) --no-print-directory -j 2 ruff mypy imports

ruff: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

mypy: $(VENV)/.installed-dev
	$(VENV)/bin/mypy

imports: $(VENV)/.installed-dev
	$(VENV)/bin/lint-imports

arrows:
	@echo "make arrows is called make imports now" >&2; exit 2

format: $(VENV)/.installed-dev ## format the code and fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.installed ## write docs/config.md from the config's models
	$(RUN) -m docs.config_reference

# The demo's experts and merges, judged on larger counts.
report: $(VENV)/.installed ## run the full report and copy it to docs/report
	$(RUN) -m jobs.pipeline --config jobs/configs/emoji-report.yaml
	mkdir -p docs/report
	cp out/report/report.html out/report/metrics.json docs/report/

# Needs npm.
world: $(VENV)/.installed ## rebuild the embedded model from its raw material (hours of CPU, or minutes of GPU)
	$(INSTALL) --require-hashes -r requirements/world.txt
	$(RUN) -m jobs.world --work out/world --zoo safety/emoji/zoo
	$(RUN) -m jobs.world --work out/world --zoo safety/emoji/zoo --config jobs/configs/world-continued.yaml --part unet --part judge

# Needs uv. The CPU build of torch is raised by hand: requirements/torch-cpu.txt.
lock: ## take newer versions within the bounds of pyproject.toml into uv.lock and requirements/
	uv lock $(UPGRADE)
	$(PYTHON) -m requirements.lock

audit: ## look the locked versions up in PyPI's list of known vulnerabilities (needs uv)
	uvx pip-audit --strict --disable-pip --require-hashes -r requirements/cuda.txt -r requirements/dev.txt

clean: ## delete what runs have left in out/
	rm -rf out
