# Runs on Debian 12 or newer and Ubuntu 24.04 or newer. `make` lists the targets.

TARGET := $(or $(CARGO_TARGET_DIR),target)
HOSIER := $(TARGET)/release/hosier

.DEFAULT_GOAL := help
.PHONY: help setup build demo test bench bench-peers picture soak fmt lint clean root

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what the machine lacks (Debian packages, uv, cargo-nextest)
	@.ci/setup

build: setup ## Build target/release/hosier and the module beside it
	cargo build --release --locked

demo: root build ## Deploy three functions, call each cold and warm, show what it cost
	$(HOSIER) demo

# In the release profile: the tests run the worker as its users do, and measure it.
test: root build ## Run all tests
	cargo nextest run --release --locked

bench: root build ## Run the benchmarks
	cargo bench --locked --bench '*'

# Docker's daemon comes with a service manager or not at all.
bench-peers: root build ## Install bwrap, crun, runc (and Docker where it can run); measure cold starts beside them
	apt-get install -qq -y --no-install-recommends bubblewrap crun runc >/dev/null
	if [ -d /run/systemd/system ] && ! docker info >/dev/null 2>&1; then apt-get install -qq -y docker.io >/dev/null; fi
	cargo bench --locked --bench cold_start

picture: ## Draw docs/cold-start.svg from the last run of the steps benchmark
	cargo bench --locked --bench steps -- picture

soak: root build ## Run the tests that take minutes
	cargo nextest run --release --locked --profile soak --no-tests warn

fmt: ## Format the code
	cargo fmt --all

lint: setup ## Check format, lints and dependencies
	cargo fmt --all --check
	cargo clippy --all-targets --locked -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check bans licenses sources; \
	else echo "dependencies were not checked: no cargo-deny on this machine" >&2; fi

clean: ## Remove what was built
	cargo clean

root:
	@[ "$$(id -u)" = 0 ] || { echo 'sandboxes are made by root; run: sudo env "PATH=$$PATH" make $(MAKECMDGOALS)' >&2; exit 1; }
