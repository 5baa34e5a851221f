//! A CPU stress: threads that make, sort and check random numbers. It measures the machine, not the runtime, and is what the profiler
//! is tried on first.

#![forbid(unsafe_code)]

use clap::Parser;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

/// Computes on several threads and reports operations per second.
///
/// Each operation fills a vector with random numbers, sorts it and checks the order. Exits with 1 if a check fails.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Threads.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: u64,
    /// Operations per thread.
    #[arg(long, default_value_t = 1000)]
    operations: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

const NUMBERS_PER_OPERATION: usize = 1000;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (threads, operations) = (arguments.threads, arguments.operations);
    if !arguments.json {
        println!("CPU stress test");
        println!("threads: {threads}");
        println!("operations per thread: {operations}");
    }
    let started = Instant::now();
    let failed: u64 = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || work(thread, operations, !arguments.json)))
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(operations)).sum()
    });
    let elapsed = started.elapsed();
    let total = threads * operations;
    let rate = total as f64 / elapsed.as_secs_f64();
    if arguments.json {
        let report = serde_json::json!({
            "threads": threads, "operations": total, "failed": failed,
            "elapsed_ms": elapsed.as_secs_f64() * 1000.0, "operations_per_second": rate,
        });
        println!("{report}");
    } else {
        println!("\ndone");
        println!("operations: {total}");
        println!("failed: {failed}");
        println!("elapsed: {} ms", elapsed.as_millis());
        println!("throughput: {rate:.1} operations/s");
    }
    anyhow::ensure!(failed == 0, "{failed} operations failed their check");
    Ok(())
}

/// Returns how many operations failed.
fn work(thread: u64, operations: u64, report: bool) -> u64 {
    let mut random = 0x9E37_79B9_7F4A_7C15 ^ (thread + 1);
    let mut failed = 0;
    for operation in 0..operations {
        if report && operation % 100 == 0 {
            println!("thread {thread} has completed {operation} operations");
        }
        let mut numbers: Vec<u64> = (0..NUMBERS_PER_OPERATION).map(|_| xorshift(&mut random)).collect();
        let sum = numbers.iter().fold(0u64, |sum, number| sum.wrapping_add(*number));
        black_box(&mut numbers).sort_unstable();
        let sorted_sum = numbers.iter().fold(0u64, |sum, number| sum.wrapping_add(*number));
        failed += u64::from(!numbers.is_sorted() || sum != sorted_sum);
    }
    if report {
        println!("thread {thread} has completed all operations");
    }
    failed
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
