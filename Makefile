# What a person types is what CI calls: .ci/run runs `lint types test compiled`.
# Every target that needs Python depends on `install`, so each works on a fresh machine (Python 3.11+, make).

SHELL := /bin/sh
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help install demo test compiled coverage lint types pythons docs wheel release bench torture soak clean

# Settings of the caller's shell that would send an install or an import somewhere else.
unexport PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX

PY := .venv/bin/python
# Test files that run side by side. Two is right for two cores: the end-to-end files start servers of their own.
JOBS ?= 2
# More arguments for pytest or for the benchmark: make test ARGS='-k fold -x'
ARGS ?=
# Which benchmark.
WHAT ?= fold
# Arguments for the wrong files of `make torture`, which take longest; cut off, they go on where they were.
FAULTS ?=

# The stamp is named after what it stands for: this folder, the requirements, their pins and the way they are
# installed. A changed file or a moved checkout installs again; a new mtime alone does not.
STAMP := .venv/installed-$(firstword $(shell { pwd; cat pyproject.toml constraints.txt deploy/dev/make-venv.sh; } | cksum))

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv with everything: export, demo, tests

$(STAMP):
	@sh deploy/dev/make-venv.sh
	@rm -f .venv/installed-*
	@touch $@

demo: install ## export three networks, serve them, post real pictures; DEMO_PORT=8000; Ctrl-C ends it
	@exec $(PY) deploy/demo.py

test: install ## all tests but those that kill and flood servers, which `make compiled` has; ARGS='-k name -x' for some of all
	@sh deploy/dev/get-tool.sh promtool prometheus usr/bin/promtool
	@sh deploy/dev/get-tool.sh nginx nginx usr/sbin/nginx
	@sh deploy/dev/get-perf-analyzer.sh
	@sh deploy/dev/get-kserve.sh
	@sh deploy/dev/get-browser.sh
	@exec $(PY) -m pytest -n $(JOBS) --dist loadfile $(or $(ARGS),--ignore tests/faults --ignore tests/torture)

compiled: wheel ## the end-to-end tests again, and those of faults and torture, on servers from the compiled wheel
	@PYTHONPATH=$(CURDIR)/build/compiled exec $(PY) -m pytest -n $(JOBS) --dist loadfile tests/e2e tests/faults tests/torture $(ARGS)

coverage: install ## the unit and end-to-end tests, and which lines and branches they ran, in all processes
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(PY) -m coverage run -m pytest -n $(JOBS) --dist loadfile tests/service tests/models tests/e2e $(ARGS)
	@$(PY) -m coverage combine --quiet 2>/dev/null # its warnings: what processes that tests kill have half written
	@rm -f build/coverage/data.*
	@exec $(PY) -m coverage report

lint: install ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: install ## mypy, strict on models/ and service/; of tests, benchmarks and deploy/ the names and the calls
	$(PY) -m mypy

pythons: install ## mypy again, as Python 3.12, 3.13 and 3.14 read the sources
	@for version in 3.12 3.13 3.14; do $(PY) -m mypy --python-version $$version || exit 1; done

docs: install ## build/site: the pages as a site; fails where a link leads nowhere
	@NO_MKDOCS_2_WARNING=1 exec $(PY) -m mkdocs build --quiet

wheel: install ## dist/: foldserve with the way of a request compiled; needs a C compiler
	@sh deploy/dev/make-wheel.sh

release: install ## check that this commit is a release, and build its wheels: docs/releasing.md
	@sh deploy/dev/make-release.sh

bench: install ## tables of benchmarks/README.md: WHAT=fold (default), export, serve, peers, oip_peers, heads, protocols, security, stall, priority, published or gpu; ARGS='--help' for options
	@exec $(PY) -m benchmarks.$(WHAT) $(ARGS)

torture: wheel ## ten minutes of fuzzing, kills, stops and greedy clients: docs/reliability.md; ARGS='--seconds 60' for less
	@PYTHONPATH=$(CURDIR)/build/compiled:$(CURDIR) $(PY) -P -m tests.torture $(ARGS)
	@PYTHONPATH=$(CURDIR)/build/compiled $(PY) -m pytest -q tests/e2e/test_openapi.py --openapi-examples 100
	@exec $(PY) -m tests.models.export.wrong $(FAULTS)

soak: wheel ## a million requests of mixed sizes, memory must stay flat; ARGS='--requests 20000' to try it
	@PYTHONPATH=$(CURDIR)/build/compiled exec $(PY) -m benchmarks.soak $(ARGS)

clean: ## remove what demo, tests and tools left behind; .venv stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
