# Everything a developer does, from a fresh clone. Each target first installs what it needs and is not there yet.

# Debian's own Python: it sees Debian's python3-libvirt, which has to match the libvirt of the system.
SYSTEM_PYTHON := $(or $(wildcard /usr/bin/python3),python3)
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# Two at a time, each file by one of them: a machine of the lab keeps one core busy. Three were no quicker on two
# cores: nothing waited any more, and each machine took half as long again.
# In the order of tests/conftest.py, not with the file first that has most tests.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
BOOTSTRAP := $(SYSTEM_PYTHON) -I tests/bootstrap.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-fast lab image bench deb wheel lint format clean environment packages

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

# The groups of Debian packages that the targets asked for need, installed in one go. tests/bootstrap.py lists them,
# each package with its reason.
NEEDS_demo := environment deb lab
NEEDS_test := environment checks deb lab
NEEDS_test-fast := environment checks
NEEDS_lab := environment deb lab
NEEDS_deb := deb
NEEDS_lint := environment checks
NEEDS_bench := environment bench deb lab
NEEDS_image := environment lab
GROUPS := $(sort $(foreach goal,$(MAKECMDGOALS),$(or $(NEEDS_$(goal)),environment)))

demo: packages environment deb  ## Watch a GPU go to a VM and come back, in a virtual machine
	$(PYTHON) -m tests.lab.demo

test: packages environment deb image  ## Run all tests: the fast ones, then the lab
	$(PYTEST) $(PARALLEL) --durations=25 --durations-min=20 tests

test-fast: packages environment  ## Run the tests that need no virtual machine
	$(PYTEST) $(PARALLEL) -m 'not lab and not slow' tests

lab: packages environment deb image  ## Run the tests on a virtual machine with a real kernel, IOMMU and libvirt
	$(PYTEST) $(PARALLEL) -m lab tests/lab

# Before pytest, which keeps what is printed to itself: this shows how far it is.
image: packages environment
	@$(PYTHON) -m tests.lab.image

bench: packages environment deb  ## Measure what a user waits for, also in a virtual machine
	$(PYTHON) -m tests.bench

deb: packages  ## Build dist/virtpass_VERSION_all.deb
	@$(SYSTEM_PYTHON) -I packaging/build_deb.py

wheel: packages environment  ## Build dist/virtpass-VERSION-py3-none-any.whl
	$(PYTHON) -m hatchling build --target wheel

lint: packages environment  ## Run ruff, mypy and shellcheck
	$(PYTEST) tests/test_checks.py tests/test_house.py

format: packages environment  ## Let ruff format the code and sort its imports
	$(PYTHON) -m ruff check --select I --fix
	$(PYTHON) -m ruff format

clean:  ## Remove everything that make built
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

environment: .venv/.complete

.venv/.complete: tests/requirements.txt | packages
	@$(BOOTSTRAP) environment .venv

packages:
	@$(BOOTSTRAP) packages $(GROUPS)
