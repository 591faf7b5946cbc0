# `make serve` is all a newcomer needs; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PYREFT_STAMP := .venv-pyreft/.installed
CLIENTS_STAMP := .venv-clients/.installed
AUDIT_STAMP := .venv-audit/.installed

# Passed through to the server: make serve MODEL=... PORT=... HOST=... ARGS='--log-level debug'
MODEL ?=
PORT ?=
HOST ?=
ARGS ?=
SERVE_FLAGS := $(if $(MODEL),--model '$(MODEL)') $(if $(PORT),--port $(PORT)) $(if $(HOST),--host '$(HOST)')

# Which comparisons: make bench-peers PEERS=vllm
PEERS ?= hf peft weights pyreft llama_cpp vllm
PEER_STAMPS := $(patsubst %,.venv-%/.installed,$(filter pyreft llama_cpp vllm,$(PEERS)))

# Which tests: make test TESTS=tests/unit ARGS='-k store'
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help install model serve check audit format test test-pyreft test-clients bench bench-peers bench-methods train-examples docker docker-cuda migration clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "No venv module: on Debian, run 'apt install python3-venv'."; exit 2; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[server,train]'
	@touch $(STAMP)

# Twice the packages and a GB more, which serving and training do without.
$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(DEV_STAMP)

install: $(DEV_STAMP)  ## Make the environment of developers in .venv

model: $(STAMP)  ## Fetch the default model into the user's cache
	$(BIN)/reft-serve --fetch-only

serve: $(STAMP)  ## Start the server (MODEL= PORT= HOST= ARGS=)
	@exec $(BIN)/reft-serve --preload-dir examples $(SERVE_FLAGS) $(ARGS)

check: $(DEV_STAMP) audit  ## Lint, formatting, types, import rules, known vulnerabilities of dependencies
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(AUDIT_STAMP):
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3' \
		&& touch $(AUDIT_STAMP) || echo "pip-audit can't be installed here"

audit: $(DEV_STAMP) $(AUDIT_STAMP)  ## Look for known vulnerabilities of what .venv holds; says so where nothing can be asked
	@$(BIN)/python .ci/audit_dependencies.py .venv-audit/bin/pip-audit \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

format: $(DEV_STAMP)  ## Repair lint and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(DEV_STAMP) model  ## Run every test (TESTS= ARGS=)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(TESTS) $(ARGS)

$(PYREFT_STAMP): tests/pyreft/requirements.txt tests/pyreft/requirements-no-deps.txt
	@$(PYTHON) -m venv .venv-pyreft
	.venv-pyreft/bin/python -m pip install --disable-pip-version-check -r tests/pyreft/requirements.txt
	.venv-pyreft/bin/python -m pip install --disable-pip-version-check --no-deps -r tests/pyreft/requirements-no-deps.txt
	@touch $(PYREFT_STAMP)

test-pyreft: $(DEV_STAMP) $(PYREFT_STAMP)  ## Compare with pyreft itself, in an environment of its own
	.venv-pyreft/bin/python tests/pyreft/make_fixtures.py .venv-pyreft/fixtures
	REFT_TEST_PYREFT_FIXTURES=$(CURDIR)/.venv-pyreft/fixtures REFT_TEST_PYREFT_PYTHON=$(CURDIR)/.venv-pyreft/bin/python \
		$(BIN)/python -m pytest tests/parity/test_pyreft_parity.py tests/pyreft/live_check.py $(ARGS)

$(CLIENTS_STAMP): tests/e2e/clients/requirements.txt constraints.txt
	@$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r tests/e2e/clients/requirements.txt
	@touch $(CLIENTS_STAMP)

test-clients: $(DEV_STAMP) $(CLIENTS_STAMP) model  ## Run other people's clients against a server, in an environment of their own
	REFT_TEST_CLIENTS_PYTHON=$(CURDIR)/.venv-clients/bin/python \
		$(BIN)/python -m pytest tests/e2e/clients/live_check.py $(ARGS)

bench: $(DEV_STAMP) model  ## Measure this machine beside HF and PEFT (ARGS='--quick', '--only swap pool')
	$(BIN)/python -m benchmarks $(ARGS)

.venv-vllm/.installed: benchmarks/environments/vllm.txt benchmarks/environments/vllm-no-deps.txt
	@$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --disable-pip-version-check -r benchmarks/environments/vllm.txt
	.venv-vllm/bin/python -m pip install --disable-pip-version-check --no-deps -r benchmarks/environments/vllm-no-deps.txt
	@touch $@

.venv-llama_cpp/.installed: $(STAMP) benchmarks/environments/llama_cpp.txt benchmarks/environments/build_llama_cpp.sh
	@$(PYTHON) -m venv .venv-llama_cpp
	bash benchmarks/environments/build_llama_cpp.sh .venv-llama_cpp
	$(BIN)/python -m benchmarks.peers.gguf_copies .venv-llama_cpp
	@touch $@

bench-peers: $(DEV_STAMP) model $(PEER_STAMPS)  ## Compare with other software, in environments of their own (PEERS= ARGS=)
	$(BIN)/python -m benchmarks --only $(PEERS) $(patsubst %,distinct-%,$(filter peft vllm,$(PEERS))) $(ARGS)

bench-methods: $(DEV_STAMP) model  ## Train ReFT, LoRA, prefix and prompt tuning on the same data; write docs/interventions.md's tables
	$(BIN)/python -m benchmarks.methods.tasks --output-dir build/methods
	$(BIN)/python -m benchmarks.methods.run --data-dir build/methods $(ARGS)
	$(BIN)/python -m benchmarks.methods.serving
	$(BIN)/python -m benchmarks.methods.report

train-examples: $(STAMP) model  ## Train the bundled interventions again
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/train_all.sh $(ARGS)

docker:  ## Build the CPU image
	docker build -f docker/Dockerfile -t reft-serve .

docker-cuda:  ## Build the image for NVIDIA GPUs
	docker build -f docker/Dockerfile -t reft-serve:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .

migration: $(DEV_STAMP)  ## Write the migration of what the models have new (MESSAGE='Add routes')
	$(BIN)/python -m reft_server.tenants.migrations '$(MESSAGE)'
	$(BIN)/ruff check --fix --quiet server/reft_server/tenants/migrations
	$(BIN)/ruff format server/reft_server/tenants/migrations

clean:  ## Remove the environment and the caches of the tools (not the model)
	rm -rf $(VENV) .venv-pyreft .venv-clients .venv-audit .venv-vllm .venv-llama_cpp *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
