# Everything here is complete on a bare Debian 12 machine with Rust: what is missing is installed by tests/setup.sh.
.PHONY: demo test bench soak torture build

# The main job on real containers, in under two minutes once built.
demo:
	@./tests/setup.sh
	@./tests/sweep.sh
	@cargo run --quiet --package deploy-tests --bin demo

# Every promise, on a real Docker Engine. Four threads whatever the machine has: the Engine is the limit, and most tests wait.
test:
	@./tests/setup.sh
	@./tests/sweep.sh
	cargo test --workspace --no-fail-fast -- --test-threads=4

# Side by side with an ssh one-liner on the same project.
bench:
	@./tests/setup.sh
	@cargo run --quiet --release --package deploy-tests --bin bench

# Hundreds of deployments in a row: nothing may be wrong after any, and nothing may grow.
soak:
	@./tests/setup.sh
	@./tests/sweep.sh
	@cargo run --quiet --package deploy-tests --bin soak

# Kills the agent and breaks its disk in every way and everywhere; `make torture ARGS="--only kill-back --seed 7"`.
torture:
	@./tests/setup.sh
	@./tests/sweep.sh
	@cargo run --quiet --package deploy-tests --bin torture -- $(ARGS)

build:
	cargo build --release --package deploy-agent --package deployctl
