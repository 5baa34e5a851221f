# Everything in release, programs in bin/. Nothing but Rust and a C linker is needed.
PROGRAMS = kvserver kvctl test_hook test_iomanager test_scheduler simple_stress_test \
	runtime_bench bench_squall bench_threads bench_epoll bench_load

.PHONY: all run test compat bench perf clean

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
