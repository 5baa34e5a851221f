# Everything in release, programs in bin/. Nothing but Rust and a C linker is needed.
PROGRAMS = kvserver kvctl test_hook test_iomanager test_scheduler simple_stress_test micro_bench

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

bench: all
	bin/micro_bench

perf: all
	perf record -F 499 --call-graph fp -o target/perf.data bin/micro_bench && perf report -i target/perf.data --no-children --stdio | head -60

clean:
	cargo clean && rm -rf bin compat/target
