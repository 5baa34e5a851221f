# Everything in release, programs in bin/. Nothing but Rust and a C linker is needed.
PROGRAMS = kvserver kvctl test_hook test_iomanager test_scheduler simple_stress_test \
	fiber_stress_test conn_pool_test io_speed_test kv_raft_performance_test \
	runtime_bench bench_squall bench_threads bench_epoll bench_load squall-doctor \
	squall-profile comprehensive_performance_test sim planted

.PHONY: all run test compat differential million connections models sim planted bench perf clean

all:
	cargo build --release --workspace
	mkdir -p bin && cp $(addprefix target/release/,$(PROGRAMS)) target/release/libsquall_preload.so bin/

run:
	cargo run --release

test:
	cargo test --workspace

# Real crates against real servers, in fibers. A server that is not installed is a SKIPPED line.
compat:
	cargo test --manifest-path compat/Cargo.toml

# Every hooked call, on a thread without hooks and in fibers with them, compared.
differential:
	cargo test -p squall-hook --test invisible

# A million fibers at once, each asleep for a second, with thread-locals of their own and with their worker's. Takes about 10 GB.
million: all
	bin/bench_squall sleep --variant=private --count=1000000 --workers=2
	bin/bench_squall sleep --variant=shared --count=1000000 --workers=2

# The thread-per-connection server of examples/, on fibers, with 10,000 connections at once.
connections:
	cargo build --release --examples
	ulimit -n $$(ulimit -H -n); target/release/examples/echo_fibers 127.0.0.1:7777 & server=$$!; sleep 1; \
		target/release/examples/many_connections 127.0.0.1:7777 10000 10; status=$$?; kill $$server; exit $$status

# The lock-free parts, checked by loom in every order of events.
models:
	RUSTFLAGS="--cfg loom" cargo test --release -p squall-fiber --lib --target-dir target/loom loom

# Whole clusters with faults, each in a deterministic world: the same seeds every time, then seeds that nobody has run. `make sim SIM="--time 3600s"`.
SIM = --time 120s
sim: all
	bin/sim --seeds 1..200 --profile all --jobs 2
	bin/sim --seeds fresh --profile all --jobs 2 $(SIM)

# Known mistakes, and what it takes to find each: the table in sim/README.md. `make planted PLANTED=early-read` for one.
planted:
	cargo build --release -p squall-sim-cluster --features planted-bugs --target-dir target/planted
	target/planted/release/planted --jobs 2 $(PLANTED)

# Against the peers; figures to perf/results. `make bench BENCH="--only yield,echo"` for a part (`bin/runtime_bench --help`).
# The target folder is named because bin/runtime_bench looks for the peers' programs there.
PEERS = cargo build --release --manifest-path perf/peers/Cargo.toml --target-dir perf/peers/target
bench: all
	$(PEERS)
	$(PEERS) -p bench_open_coroutine || echo "SKIPPED: open-coroutine does not build here"
	if command -v go >/dev/null; then cd perf/peers/go && go build -o ../target/release/bench_go .; \
		else echo "SKIPPED: Go is not installed"; fi
	bin/runtime_bench --out perf/results $(BENCH)

perf: all
	perf record -F 499 --call-graph fp -o target/perf.data bin/runtime_bench --quick --runtimes squall && perf report -i target/perf.data --no-children --stdio | head -60

clean:
	cargo clean && rm -rf bin compat/target perf/peers/target
