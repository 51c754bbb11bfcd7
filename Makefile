# make demo   set up and run the whole pipeline on the embedded emoji model (some 15 to 20 minutes on 2 cores)
# make test   set up and run linters, type checks and all tests (some 15 minutes on 2 cores)
# make faults run the fault tests in their full counts and write docs/faults (half an hour)
# make serve  keep the endpoint of the last release up, with a page in the browser
# make preflight  say in seconds what stands in the way of a run

VENV ?= .venv
PYTHON ?= python3
# The constraint picks the CPU build of torch where there is one. With a CUDA GPU: make demo CONSTRAINTS=
CONSTRAINTS ?= -c constraints-cpu.txt
RUN = $(VENV)/bin/python
CONFIG ?= jobs/configs/emoji.yaml

.PHONY: demo test faults serve preflight lint ruff mypy arrows report world clean

$(VENV)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[dev]" $(CONSTRAINTS)
	touch $@

demo: $(VENV)/.installed
	$(RUN) -m jobs.pipeline --config $(CONFIG)

serve: $(VENV)/.installed
	$(RUN) -m serve --config $(CONFIG)

preflight: $(VENV)/.installed
	$(RUN) -m jobs.preflight --config $(CONFIG)

# The full report: the demo's experts and merges, judged on larger counts; copied to docs/report.
report: $(VENV)/.installed
	$(RUN) -m jobs.pipeline --config jobs/configs/emoji-report.yaml
	mkdir -p docs/report
	cp out/report/report.html out/report/metrics.json docs/report/

# The embedded model from its raw material: needs npm, and hours of CPU or minutes of GPU.
world: $(VENV)/.installed
	$(RUN) -m pip install --quiet -e ".[world]" $(CONSTRAINTS)
	$(RUN) -m jobs.world --work out/world --zoo safety/emoji/zoo
	$(RUN) -m jobs.world --work out/world --zoo safety/emoji/zoo --config jobs/configs/world-continued.yaml --part unet --part judge

lint: $(VENV)/.installed
	$(MAKE) --no-print-directory -j 2 ruff mypy arrows

ruff: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

mypy: $(VENV)/.installed
	$(VENV)/bin/mypy

arrows: $(VENV)/.installed
	$(VENV)/bin/lint-imports

# Two processes of one thread each, so that they share two cores: some fifteen minutes (how tests are shared out:
# tests/conftest.py).
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist loadgroup --no-loadscope-reorder

# The fault tests in their full counts, one after another: kills, outages, corruptions; figures go to docs/faults.
faults: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest tests/faults --faults-full

clean:
	rm -rf out
