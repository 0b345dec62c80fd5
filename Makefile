# Everything a person runs by hand. `make` alone prints what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# Tools of the virtual environment come first, also for what they start themselves (molecule starts ansible).
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Ansible refuses to start where the locale is not UTF-8, as on a minimal container or a fresh host.
export LC_ALL := C.UTF-8
export PYTHONUNBUFFERED := 1
# Memory in huge pages where the kernel has them for the asking: half the time to import torch where page faults are dear.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
# Molecule would wrap the output of what it runs into a box of 80 columns.
export MOLECULE_COMMAND_BORDERS := false

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what the lab and the controller need: Debian packages (as root) and .venv
	@scripts/setup lab

.PHONY: setup-tests
setup-tests: ## As setup, with the servers and linters that the tests use
	@scripts/setup lab tests

.PHONY: lint
lint: setup-tests ## Run every linter
	@scripts/lint

.PHONY: format
format: setup ## Format the Python code and apply the safe fixes
	@mapfile -t files < <(scripts/python-files)
	ruff check --fix "$${files[@]}"
	ruff format "$${files[@]}"

.PHONY: test-unit
test-unit: setup-tests ## Run the tests that need nothing but Python
	@pytest --numprocesses auto --dist loadfile tests/unit

.PHONY: test-integration
test-integration: setup-tests ## Run the tests that start a Redis and a PostgreSQL of their own
	@pytest --numprocesses auto --maxprocesses 4 --dist loadfile tests/integration

.PHONY: hostile
hostile: setup-tests ## Embed documents that nobody means well with, and show what becomes of each
	@PYTHONPATH=app:tests python -m hostile

.PHONY: molecule
molecule: setup-tests root ## Run molecule's scenarios, each in a lab of its own: made, tested, destroyed (SCENARIO=default chaos nvidia)
	@for scenario in $(or $(SCENARIO),default chaos nvidia); do molecule test --scenario-name "$$scenario"; done

.PHONY: test
test: ## Everything: linters, unit, integration and molecule tests
	@begin=$$SECONDS
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test-unit
	$(MAKE) --no-print-directory test-integration
	$(MAKE) --no-print-directory molecule
	echo "make test: all passed in $$((SECONDS - begin)) s"

.PHONY: bench
bench: setup ## Measure this engine beside what others use (QUICK=1: a few minutes, not for figures)
	@bench/bench $(if $(QUICK),--quick) $(BENCH)

.PHONY: bench-planning
bench-planning: root setup-tests ## Plan a tree of FILES=1000000 small files and watch memory and Redis meanwhile
	@bench/planning --files $(or $(FILES),1000000)

.PHONY: chaos
chaos: root setup-tests ## Break a lab at work by a seeded plan and judge the damage (SEED=1 FAULTS=20 CHAOS='--keep')
	@PYTHONPATH=app:tests:lab python -m chaos --seed $(or $(SEED),1) --faults $(or $(FAULTS),20) $(CHAOS)

.PHONY: demo
demo: root setup ## Build a three-host cluster on this machine, embed real documents, search them
	@lab/demo up

.PHONY: demo-check
demo-check: root setup-tests ## Hold the demo's result against the model itself and against the database
	@pytest tests/acceptance

.PHONY: demo-down
demo-down: root ## Remove the demo's hosts and documents; downloaded packages stay in their caches
	@lab/demo down

.PHONY: check
check: root setup ## Ask every part of the demo's cluster whether it works, each GPU slot included
	@lab/demo check

.PHONY: bench-gpu
bench-gpu: ## Measure the forward path on this machine's GPU; needs torch for CUDA, sentence-transformers, no network
	@PYTHONPATH=app python3 bench/gpu.py

.PHONY: clean
clean: ## Remove what was built in this directory, except .venv and secrets
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .ansible
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf

.PHONY: root
root:
	@if [[ $$EUID -ne 0 ]]; then
	  echo "The lab boots real systemd hosts and needs root: run this as root, for example with sudo make $(MAKECMDGOALS)" >&2
	  exit 1
	fi
