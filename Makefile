# The two commands are `make demo` and `make test`; everything they need, they set up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers tests fuzz-rank fuzz-http simulate-nightly chaos-ingest bench-ingest bench-freshness bench-memory bench-rank bench-replay bench-snapshot soak-backpressure soak-switch format proto lock clean

help: ## list every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready ## run the whole loop on this machine; ARGS="--data DIR --json" replays recorded days
	$(BIN)/millstream demo $(ARGS)

test: lint types layers tests ## lint, types, layers and every test, against real Kafka and store processes

lint: .venv/ready ## style and common faults (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready ## types, strictly (mypy)
	$(BIN)/mypy

layers: .venv/ready ## which folder may import which (import-linter)
	$(BIN)/lint-imports --no-cache

tests: .venv/ready ## every test (pytest); ARGS="-k name" for some
	$(BIN)/python -m pytest $(ARGS)

fuzz-rank: .venv/ready ## 100,000 mutated rank requests through a real broker to a real worker; ARGS="--seed 1 --requests 2000"
	$(BIN)/python -m tests.fuzz $(ARGS)

fuzz-http: .venv/ready ## requests made from the served OpenAPI document, good and bad; ARGS="--seed 1 --examples 100"
	$(BIN)/python -m tests.fuzz.openapi $(ARGS)

simulate-nightly: .venv/ready ## every rule of ingest taken out once, then 10,000 seeded runs under faults, in virtual time
	$(BIN)/python -m tests.simulation.mutations
	$(BIN)/python -m tests.simulation --seeds 0:10000 --json

chaos-ingest: .venv/ready ## counts against the oracle while workers, store and Kafka fail; ARGS="--scale full --seed 1 --json"
	$(BIN)/python -m benchmarks.chaos $(ARGS)

bench-ingest: .venv/ready .venv-peers/ready ## events a core carries, beside other engines; ARGS="--only millstream --runs 1" for a part
	$(BIN)/python -m benchmarks.ingest $(ARGS)

bench-freshness: .venv/ready ## from an event's producing to its count in the store, at three rates
	$(BIN)/python -m benchmarks.freshness $(ARGS)

bench-memory: .venv/ready ## what a million users and their items take in the store
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-rank: .venv/ready .venv-feast/ready ## cost and latency of a rank request by front end, beside Feast and others; ARGS="--only kafka --scale 0.1 --brief"
	$(BIN)/python -m benchmarks.rank $(ARGS)

bench-replay: .venv/ready ## two weeks of history into a new generation, from the lake and from Kafka; ARGS="--events 2000000 --runs 1"
	$(BIN)/python -m benchmarks.replay $(ARGS)

bench-snapshot: .venv/ready ## looking up 200 items in a snapshot of a million
	$(BIN)/python -m benchmarks.snapshot $(ARGS)

soak-backpressure: .venv/ready ## a store that stands still while producers go on; ARGS="--minutes 1" for less than ten
	$(BIN)/python -m benchmarks.backpressure $(ARGS)

soak-switch: .venv/ready ## rebuild, cutover and rollback under live traffic, for each sort of change of a registry; ARGS="--events-per-s 1000"
	$(BIN)/python -m benchmarks.switch $(ARGS)

format: .venv/ready ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: .venv/ready ## make the gRPC modules of schemas/proto anew
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. schemas/proto/millstream/v1/rank.proto

lock: .venv/ready ## resolve pyproject.toml into requirements.lock and benchmarks' own locks, with hashes
	$(BIN)/uv pip compile --all-extras --generate-hashes --python-version 3.11 --no-annotate --no-header pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --group peers --generate-hashes --python-version 3.11 --no-annotate --no-header -o benchmarks/peers.lock
	$(BIN)/uv pip compile --group rank-peers --generate-hashes --python-version 3.11 --no-annotate --no-header -o benchmarks/rank-peers.lock

clean: ## remove what these targets made
	-test ! -x $(BIN)/millstream || $(BIN)/millstream stack down --remove-data
	rm -rf .venv .venv-peers .venv-feast .state build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: PYTHON=/path/to/python3.11 make")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv-peers/ready: benchmarks/peers.lock
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/peers.lock
	@touch $@

.venv-feast/ready: benchmarks/rank-peers.lock
	$(PYTHON) -m venv .venv-feast
	.venv-feast/bin/pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/rank-peers.lock
	@touch $@
